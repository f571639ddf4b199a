"""What `diff` reads twice has to be the same both times, whatever the times of the files say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Stored, write_file

import sparsedelta
from sparsedelta import CheckpointError
from sparsedelta.operations.scanning import ScannedTensor

ROWS, COLUMNS = 1100, 4000
"""More words than a segment has: runs are compared first, and blocks encoded then."""


def tensor(words: np.ndarray[Any, Any]) -> Stored:
    return Stored("F16", words.shape, words.tobytes())


def spoil(path: Path, name: str, index: int) -> None:
    """Change one word of a checkpoint, and leave no trace of it in the times of the file."""
    status = path.stat()
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        place = 8 + size + header[name]["data_offsets"][0] + 2 * index
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 0x40]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def words() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype("<f2")


CASES = {
    "compact": ("compact", "base", "w", ROWS * COLUMNS - 3),
    "compact, small": ("compact", "base", "small", 5),
    "new": ("portable", "target", "new", 9),
    "dropped": ("portable", "base", "old", 9),
    "grown": ("portable", "target", "grown", 400),
    "cut": ("portable", "base", "cut", 400),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_changes_between_two_readings_is_told(
    case: str, words: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, end, name, index = CASES[case]
    few = words[:40].copy()
    base = {"old": tensor(words[:7]), "grown": tensor(few[:, :8]), "small": tensor(few)}
    base["cut"] = tensor(few[:, 20:31].reshape(55, 8))
    target = {"new": tensor(words[7:20]), "grown": tensor(few[:, 9:20].reshape(55, 8))}
    target["cut"] = tensor(few[:, 31:39])
    changed, more = few + few[::-1] * (few > 1), words.copy()
    more[::9] += np.float16(0.25)
    target["small"] = tensor(changed)
    if name == "w":
        base["w"], target["w"] = tensor(words), tensor(more)
    files = {
        "base": write_file(tmp_path / "base.safetensors", base),
        "target": write_file(tmp_path / "target.safetensors", target),
    }
    out = tmp_path / "out.safetensors"
    options: dict[str, Any] = {"profile": profile, "unrelated": True, "threads": 2, "cache": False}
    sparsedelta.diff(files["base"], files["target"], out, **options)
    assert (sparsedelta.info(out).needs_base > 0) == (profile == "compact")
    out.unlink()

    encode = ScannedTensor.encode

    def late(scanned: ScannedTensor, *arguments: Any) -> None:  # noqa: ANN401 (as those of the method)
        if scanned.pair.name == name:
            spoil(files[end], name, index)
        encode(scanned, *arguments)

    monkeypatch.setattr(ScannedTensor, "encode", late)
    with pytest.raises(CheckpointError, match="changed while it was being read") as caught:
        sparsedelta.diff(files["base"], files["target"], out, **options)
    assert f"tensor {name!r}" in str(caught.value)
    assert str(files[end]) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
