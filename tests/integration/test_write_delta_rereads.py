"""`write_delta` describes one version of its base, however often and whenever that is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Stored, Tensors, write_file
from test_changed_while_read import spoil

import sparsedelta
from sparsedelta import CheckpointError, rereading
from sparsedelta.checkpoint import FileCheckpoint

CHANGED, COPIED, GONE, MOVED, CUT, GROWN = "changed", "copied", "gone", "moved", "cut", "grown"
NAMES = (CHANGED, COPIED, GONE, MOVED, CUT, GROWN)
SPOILT = 7
"""The word of a tensor that changes: it survives where rows are cut."""


def stored(words: np.ndarray[Any, Any]) -> Stored:
    return Stored("F16", words.shape, words.tobytes())


def stepped(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    made = words.copy()
    made[::3, ::2] += np.float16(0.5)
    return made


def ends() -> tuple[Tensors, Tensors]:
    """A base, and a target that uses each of its tensors in another way."""
    chance = np.random.default_rng(5)
    old = {name: chance.normal(size=(60, 40)).astype("<f2") for name in NAMES}
    new = {
        CHANGED: stepped(old[CHANGED]),
        COPIED: old[COPIED],
        "copy": old[COPIED],
        "moved on": stepped(old[MOVED]),
        "moved too": old[MOVED],
        CUT: stepped(old[CUT])[:50],
        GROWN: np.concatenate([stepped(old[GROWN]), old[GROWN][:3]]),
    }
    return {n: stored(w) for n, w in old.items()}, {n: stored(w) for n, w in new.items()}


@pytest.mark.parametrize("kept", [0, 4], ids=["read anew each time", "segments are kept"])
@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_a_delta_is_of_one_version_of_its_base(
    profile: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever tensor changes after whichever reading of it: that is told, or was not used."""
    monkeypatch.setattr(rereading, "_KEPT", kept)
    base_tensors, target_tensors = ends()
    before = write_file(tmp_path / "before", base_tensors)
    sparsedelta.diff(
        before,
        write_file(tmp_path / "target", target_tensors),
        tmp_path / "delta",
        renames={"moved on": MOVED},
        layout="never",
    )
    with sparsedelta.DeltaReader(tmp_path / "delta") as reader:
        tensors = list(reader.read().tensors.values())
    assert {tensor.base.name for tensor in tensors if tensor.base} == {*NAMES} - {COPIED}
    base, out = tmp_path / "base", tmp_path / "out"
    read = FileCheckpoint.read
    seen, wanted = dict.fromkeys(NAMES, 0), ("", 0)

    def late(checkpoint: FileCheckpoint, name: str, *run: Any) -> Any:  # noqa: ANN401
        data = read(checkpoint, name, *run)
        if checkpoint.path == base:
            seen[name] += 1
            if (name, seen[name]) == wanted:
                spoil(base, name, SPOILT)
        return data

    def failure() -> CheckpointError | None:
        """Why the delta was not written."""
        shutil.copyfile(before, base)
        out.unlink(missing_ok=True)
        seen.update(dict.fromkeys(NAMES, 0))
        try:
            sparsedelta.write_delta(base, tensors, out, profile=profile, threads=1)
        except CheckpointError as error:
            return error
        return None

    monkeypatch.setattr(FileCheckpoint, "read", late)
    assert failure() is None
    readings = dict(seen)
    told = 0
    for wanted in [(name, n + 1) for name, count in readings.items() for n in range(count)]:
        error = failure()
        if error is None:
            found = sparsedelta.validate(out, base=before)
            assert found.ok, (wanted, found.problems)
            continue
        told += 1
        assert f"tensor {wanted[0]!r}" in str(error)
        assert str(base) in str(error)
        assert not out.exists()
    assert told == sum(readings.values()) - len(NAMES)  # all but the last reading of each tensor
