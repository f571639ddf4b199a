"""What users do with deltas and checkpoints: functions over readers and writers."""
