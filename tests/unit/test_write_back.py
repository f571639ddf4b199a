"""Writing back beside writing: a fault is heard, whoever would sync the file afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import sparsedelta
from sparsedelta import write_back
from sparsedelta.write_back import WriteBack


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "_STEP_BYTES", 8)


def test_rounds_begin_when_enough_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    back = WriteBack()
    back.begin(3, 7)
    back.end()
    assert synced == []
    back = WriteBack()
    back.begin(3, 7)
    back.begin(4, 1)
    back.end()
    back.end()
    assert synced == [4]


def failing(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_fault_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", failing)
    back = WriteBack()
    back.begin(3, 100)
    with pytest.raises(OSError, match="Input/output"):
        back.end()
    back.end()


def test_a_fault_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415

    old = {"a": np.arange(99, dtype=np.float32), "b": np.ones(9, np.float32)}
    new = {**old, "a": old["a"] + 1}
    base, target, delta, out = (tmp_path / n for n in ("base", "target", "delta", "out"))
    save_file(old, base)
    save_file(new, target)
    sparsedelta.diff(base, target, delta)
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(sparsedelta.OutputError, match=r"out: Input/output error"):
        sparsedelta.apply(base, delta, out)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "target", "delta"}
