"""What a reader is willing to do: decoded bytes, memory, open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import Stored, write_file, write_shards

import sparsedelta
from sparsedelta.state_dict import StateDictReader


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A delta of 5,000 changed bytes, and its base beside it."""
    old = Stored("U8", (5000,), bytes(5000))
    new = Stored("U8", (5000,), bytes([1]) * 5000)
    base = write_file(tmp_path / "base", {"w": old})
    target = write_file(tmp_path / "target", {"w": new})
    sparsedelta.diff(base, target, tmp_path / "delta")
    return tmp_path / "delta"


def test_memory_for_entries_has_a_budget(delta: Path) -> None:
    """A small file may hold very many entries: SD504 comes before memory is taken."""
    with sparsedelta.DeltaReader(delta) as reader:
        for read in (lambda: reader.read_tensor("w", budget=44_999), lambda: reader.read(budget=1)):
            with pytest.raises(sparsedelta.FormatError) as error:
                read()
            assert error.value.rule == "SD504"
        assert reader.read_tensor("w", budget=45_000).nnz == 5000


def test_a_base_lifts_the_budget_of_validate(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 9: the budget is that of a reader without a base."""
    monkeypatch.setattr(sparsedelta.DeltaReader.check_budget, "__defaults__", (1,))
    without = sparsedelta.validate(delta)
    assert [problem.rule for problem in without.problems] == ["SD504"]
    report = sparsedelta.validate(delta, base=delta.with_name("base"))
    assert report.ok
    assert report.base_checked


def test_a_base_of_another_shape_lifts_no_budget(
    delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size says nothing about the work: a stranger's delta may claim any shape."""
    monkeypatch.setattr(sparsedelta.DeltaReader.check_budget, "__defaults__", (1,))
    other = write_file(tmp_path / "other", {"w": Stored("U8", (50,), bytes(50))})
    report = sparsedelta.validate(delta, base=other)
    assert [problem.rule for problem in report.problems] == ["SD504", "SD501"]
    assert not report.base_checked


def test_hundreds_of_shards_under_the_usual_limit_of_open_files(tmp_path: Path) -> None:
    """Both ends of a checkpoint of 150 shards, though the process starts with 128 files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 1024:
        pytest.fail(f"the hard limit of open files is {hard}: too low for any checkpoint of shards")
    names = [f"w{number}" for number in range(150)]
    ends = []
    for end in (0, 1):
        shards = [{name: Stored("U8", (4,), bytes([end]) * 4)} for name in names]
        ends.append(write_shards(tmp_path / str(end), *shards))
    for words in (
        ["diff", *ends, "-o", tmp_path / "delta"],
        ["apply", ends[0], tmp_path / "delta", "-o", tmp_path / "out"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sparsedelta", *map(str, words)],
            check=False,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard)),
        )
        assert done.returncode == 0, done.stderr
    same = sparsedelta.fingerprint(tmp_path / "out").fingerprint
    assert same == sparsedelta.fingerprint(ends[1]).fingerprint


def test_a_companion_that_cannot_be_read_is_an_error_of_the_base(
    delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "folder"
    write_file(base / "model.safetensors", {"w": Stored("U8", (5000,), bytes(5000))})
    (base / "config.json").write_text("{}")
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("config.json"):
            raise PermissionError(13, os.strerror(13))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(sparsedelta.CheckpointError, match=r"config\.json: Permission denied"):
        sparsedelta.apply(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_read_is_an_error_of_the_base(
    delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "folder"
    write_file(base / "model.safetensors", {"w": Stored("U8", (5000,), bytes(5000))})
    (base / "private").mkdir()
    real = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "private":
            raise PermissionError(13, os.strerror(13), str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(sparsedelta.CheckpointError, match=r"private: Permission denied"):
        sparsedelta.apply(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("metadata", [{"lr": 1e-3}, {1: "x"}, {"x": None}])
def test_metadata_that_is_no_text_is_told(delta: Path, metadata: dict[str, str]) -> None:
    base, target = delta.with_name("base"), delta.with_name("target")
    with pytest.raises(sparsedelta.UsageError, match="expected text"):
        sparsedelta.diff(base, target, delta.with_name("other"), metadata=metadata)
    assert not delta.with_name("other").exists()


def test_a_live_tensor_of_any_strides_is_read_by_logical_index() -> None:
    """Runs of a transposed tensor, in any order and between runs of others."""
    plain = torch.arange(60, dtype=torch.int32).reshape(6, 10)
    reader = StateDictReader({"t": plain.t(), "u": plain.t().contiguous(), "s": torch.tensor(7)})
    for start, stop in ((50, 60), (0, 7), (7, 50)):
        found = reader.read("t", start, stop)
        assert np.array_equal(found, reader.read("u", start, stop))
        assert reader.read("s", 0, 1).tolist() == [7, 0, 0, 0, 0, 0, 0, 0]
