"""Checkpoints that most tests of this folder start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import Pair, base_tensors, tuned, write_file

import sparsedelta


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    base = write_file(tmp_path / "base.safetensors", base_tensors())
    target = write_file(tmp_path / "target.safetensors", tuned(base_tensors()))
    delta = tmp_path / "tuned.delta.safetensors"
    sparsedelta.diff(base, target, delta)
    return Pair(tmp_path, base, target, delta)
