"""Merge methods: what several tasks make of one tensor, as pure functions of aligned entries."""
