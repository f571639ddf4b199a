"""Outputs of many files: what an interrupted run has finished is verified, and not made again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import pytest
from checkpoint_files import (
    Stored,
    Tensors,
    call,
    shard_names,
    succeeded,
    tree,
    tuned,
    write_shards,
)

import sparsedelta
from sparsedelta import OutputError, WrongBaseError
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.operations import batched_runs
from sparsedelta.safetensors_header import FileLayout

SHARDS: Final = 4
NAMES: Final = shard_names(SHARDS)
CRASHED: Final = 77


@dataclass
class Case:
    """Checkpoints of four shards, two of which are tuned, and the files that a run begins."""

    folder: Path
    base: Path
    target: Path
    delta: Path
    begun: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """Where nothing is yet."""
        return self.folder / "out"

    @property
    def kept(self) -> Path:
        """What an interrupted run leaves."""
        return self.folder / ".out.sparsedelta-run"

    @property
    def finished(self) -> list[str]:
        """Names of the files that a run says it has finished."""
        return (self.kept / "finished").read_text().splitlines()

    def apply(self, **options: Any) -> sparsedelta.ApplyReport:  # noqa: ANN401 (passed on)
        """Follow the delta, to be resumed."""
        self.begun.clear()
        options = {"threads": 1, "resume": True, **options}
        return sparsedelta.apply(self.base, self.delta, self.out, **options)

    def stop_after(self, count: int) -> None:
        """Interrupt a run when it has finished a number of files."""

        def stop(done: int, total: int) -> None:
            if len(self.finished) == count:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            self.apply(progress=stop)
        assert "the same command goes on" in caught.value.__notes__[0]
        assert self.finished == NAMES[:count]
        assert not self.out.exists()


def tensors() -> list[Tensors]:
    rng = np.random.default_rng(0)
    return [
        {f"{shard}.{n}": Stored("BF16", (300,), rng.bytes(600)) for n in range(3)}
        for shard in range(SHARDS)
    ]


@pytest.fixture(params=[False, True], ids=["listed", "lean"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    old = tensors()
    new = [tuned(t, [name for name in t if name[0] in "13"]) for t in old]
    base, target = (write_shards(tmp_path / n, *t) for n, t in (("base", old), ("target", new)))
    (base / "config.json").write_text("{}")
    (target / "config.json").write_text("{}")
    delta = tmp_path / "delta"
    sparsedelta.diff(base, target, delta, lean=request.param)
    case = Case(tmp_path, base, target, delta)
    opened = CheckpointWriter._open  # noqa: SLF001 (told of what is made)

    def recording(
        writer: CheckpointWriter, path: Path, layout: FileLayout, *, create: bool
    ) -> None:
        case.begun.append(path.name)
        opened(writer, path, layout, create=create)

    monkeypatch.setattr(CheckpointWriter, "_open", recording)
    # These shards are small: one after the other.
    monkeypatch.setattr(batched_runs, "BATCH_BYTES", 1)
    yield case
    if case.out.exists():
        assert tree(case.out) == tree(target)
        assert not case.kept.exists()


@pytest.mark.parametrize("count", range(SHARDS + 1))
def test_what_is_finished_is_not_made_again(case: Case, count: int) -> None:
    if count == SHARDS:
        case.stop_after(SHARDS - 1)
        # The last file, then a failure before the output takes its name.
        (case.out).mkdir()
        with pytest.raises(OutputError, match="exists"):
            case.apply()
        case.out.rmdir()
    else:
        case.stop_after(count)
    left = case.finished
    report = case.apply()
    assert list(report.kept) == left
    assert case.begun == [name for name in NAMES if name not in left]
    assert not report.discarded
    assert case.out.exists()


def test_a_run_that_is_not_interrupted_leaves_nothing(case: Case) -> None:
    report = case.apply()
    assert (report.kept, report.discarded) == ((), False)
    assert case.begun == NAMES


def test_without_resume_nothing_is_kept(case: Case) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = tree(case.folder)
    with pytest.raises(KeyboardInterrupt):
        case.apply(progress=stop, resume=False)
    assert tree(case.folder) == before


@pytest.mark.parametrize("damage", ["bit", "header", "short", "gone", "unsaid"])
def test_what_is_finished_is_never_trusted(case: Case, damage: str) -> None:
    case.stop_after(3)
    path = case.kept / "out" / NAMES[1]
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 1
    elif damage == "header":
        data[data.index(b"pt")] ^= 1
    elif damage == "short":
        data.pop()
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    elif damage == "unsaid":  # the line was torn
        (case.kept / "finished").write_text(f"{NAMES[0]}\n{NAMES[2]}\n{NAMES[1][:5]}")
    report = case.apply()
    assert list(report.kept) == [NAMES[0], NAMES[2]]
    assert case.begun == [NAMES[1], NAMES[3]]
    assert case.out.exists()


def test_a_tensor_that_stays_is_never_trusted_either(case: Case) -> None:
    """A lean delta does not know its digest: only the fingerprint tells, at the end."""
    case.stop_after(3)
    path = case.kept / "out" / NAMES[2]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    case.apply()
    assert NAMES[2] in case.begun
    assert case.out.exists()


def test_what_nothing_would_tell_of_is_made_again(case: Case) -> None:
    """What stays is compared with its digest or with the fingerprint: without either, not kept."""
    case.stop_after(3)
    path = case.kept / "out" / NAMES[2]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    report = case.apply(verify="touched")
    # A lean delta knows the tensors that it touches: all of those in the second file.
    is_lean = sparsedelta.info(case.delta).lean
    assert list(report.kept) == (NAMES[1:2] if is_lean else NAMES[:2])
    assert tree(case.out) == tree(case.target)


def test_what_is_of_another_delta_is_discarded(case: Case) -> None:
    other = case.folder / "other.delta"
    new = [tuned(t, list(t), seed=9) for t in tensors()]
    sparsedelta.diff(case.base, write_shards(case.folder / "other", *new), other)
    right, case.delta = case.delta, other
    case.stop_after(2)
    case.delta = right
    report = case.apply()
    assert (report.kept, report.discarded) == ((), True)
    assert case.out.exists()


def test_a_remote_base_is_gone_on_with(case: Case) -> None:
    store = fsspec.filesystem("memory")
    for path in case.base.iterdir():
        store.pipe_file(f"/resumed/{path.name}", path.read_bytes())
    case.base = "memory://resumed"  # type: ignore[assignment]
    case.stop_after(2)
    assert list(case.apply().kept) == NAMES[:2]
    store.rm("/resumed", recursive=True)


def test_the_same_delta_may_be_coded_anew(case: Case) -> None:
    """Its content digest tells what it is."""
    case.stop_after(2)
    sparsedelta.diff(case.base, case.target, case.delta, codec="raw", force=True)
    assert list(case.apply().kept) == NAMES[:2]


@pytest.mark.parametrize("change", ["base", "torn"])
def test_what_is_of_other_inputs_is_discarded(case: Case, change: str) -> None:
    case.stop_after(2)
    if change == "base":
        os.utime(case.base / NAMES[3], ns=(5, 5))
    else:
        (case.kept / "inputs").write_text("torn")
    case.begun.clear()
    run = succeeded(call("apply", case.base, case.delta, "-o", case.out, "--resume"))
    assert run.err == "note: an interrupted run had left files of other inputs: removed\n"
    assert case.begun == NAMES
    assert case.out.exists()


def test_a_wrong_base_leaves_nothing(case: Case) -> None:
    case.stop_after(2)
    path = case.base / NAMES[3]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WrongBaseError):
        case.apply()
    assert not case.kept.exists()
    assert not case.out.exists()


def test_a_full_disk_keeps_what_is_finished(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    write = CheckpointWriter.write

    def full(writer: CheckpointWriter, name: str, *arguments: Any) -> None:  # noqa: ANN401
        if name.startswith("3"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "write", full)
        with pytest.raises(OutputError, match="No space") as caught:
            case.apply()
    assert caught.value.hint is not None
    assert str(case.kept) in caught.value.hint
    assert list(case.apply().kept) == NAMES[:3]


def dying(after: int, operation: Callable[[], object]) -> int:
    """Run in a process that dies at a call of ``os.pwrite`` or ``os.fsync``; the exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = after

    def counting(original: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: Any) -> object:  # noqa: ANN401 (passed on)
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(CRASHED)
            return original(*arguments)

        return count

    try:
        for name in ("pwrite", "fsync", "mkdir", "rename"):
            setattr(os, name, counting(getattr(os, name)))
        operation()
        os._exit(0)
    except BaseException:  # noqa: BLE001 (a forked process must never come back)
        os._exit(1)


def test_a_kill_at_any_moment(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what was written outlives its process
    kept = set()
    for after in range(1000):
        code = dying(after, case.apply)
        if code == 0:
            break
        assert code == CRASHED
        if case.out.exists():  # it has its name, and what is left is no obstacle
            shutil.rmtree(case.out)
        report = case.apply()
        assert sorted(report.kept) + sorted(case.begun) == NAMES
        kept.add(len(report.kept))
        assert tree(case.out) == tree(case.target)
        assert not case.kept.exists()
        shutil.rmtree(case.out)
    assert kept == set(range(SHARDS + 1))


def test_two_processes_do_not_meet(case: Case) -> None:
    reached, reaches = os.pipe()
    resumed, resumes = os.pipe()
    child = os.fork()
    if not child:

        def wait(done: int, total: int) -> None:
            os.write(reaches, b".")
            os.read(resumed, 1)

        try:
            case.apply(progress=wait)
        finally:
            os._exit(0)
    try:
        os.read(reached, 1)
        with pytest.raises(OutputError, match="another process is making"):
            case.apply()
    finally:
        os.write(resumes, b"." * 100)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for descriptor in (reached, reaches, resumed, resumes):
            os.close(descriptor)
    assert case.out.exists()
