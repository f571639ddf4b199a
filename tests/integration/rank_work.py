"""What one of several processes does in the tests of ranks: run as a script, with a task's name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import sparsedelta
from sparsedelta import OutputError, RankError, UsageError, WrongBaseError
from sparsedelta.cli import main
from sparsedelta.progress import Progress, silent
from sparsedelta.torch_ranks import TorchRanks
from sparsedelta.writer import DeltaWriter


def files(folder: Path) -> None:
    """Every operation on checkpoints in files, one after the other; outputs below ``many``."""
    dist.init_process_group("gloo")
    base, target, many = folder / "base", folder / "target", folder / "many"
    whole, cut = many / "whole.safetensors", many / "cut.safetensors"
    with TorchRanks() as ranks:
        report = sparsedelta.diff(
            base, target, whole, ranks=ranks, with_files=True, explain=True, profile="compact"
        )
        assert report.sizes
        size = sum(path.stat().st_size for path in many.glob("whole*"))
        assert report.size == size
        sparsedelta.diff(base, target, cut, shards=5, layout="always", ranks=ranks)
        dry = sparsedelta.diff(base, target, many / "dry", dry_run=True, ranks=ranks)
        assert dry.manifest.content == report.manifest.content
        sparsedelta.diff(base, base, many / "nothing", ranks=ranks)
        applied = sparsedelta.apply(base, whole, many / "out", ranks=ranks, undo=many / "undo")
        assert applied.fingerprint == report.manifest.target
        sparsedelta.revert(target, cut, many / "back", ranks=ranks)
        again = sparsedelta.apply(target, whole, many / "again", ranks=ranks)
        assert not again.changed
        found = sparsedelta.fingerprint(target, ranks=ranks)
        assert found.fingerprint == report.manifest.target
        kept = [record for record in report.manifest.tensors if record.target is not None]
        assert len(found.tensors) == len(report.manifest.untouched) + len(kept)
        for options in ({"in_place": True}, {"resume": True, "out": many / "no"}):
            with pytest.raises(UsageError, match="ranks cannot share a run in place"):
                sparsedelta.apply(base, whole, ranks=ranks, **options)
        # What is wrong on all ranks alike ends all of them alike, and they can go on.
        with pytest.raises(WrongBaseError, match="digest"):
            sparsedelta.apply(
                folder / "other", whole, many / "no", ranks=ranks, undo=many / "no-undo"
            )


def composing(folder: Path) -> None:
    """Two deltas of one base put together, as a delta and as a checkpoint, below ``many``."""
    dist.init_process_group("gloo")
    base, many = folder / "base", folder / "many"
    deltas, weights = (folder / "d0", folder / "d1"), (0.5, -0.75)
    with TorchRanks() as ranks:
        for method in ("sum", "dare_ties"):
            parameters = {} if method == "sum" else {"density": 0.5}
            how: dict[str, Any] = {"weights": weights, "method": method, "parameters": parameters}
            out = many / f"{method}.safetensors"
            report = sparsedelta.compose(base, deltas, out, ranks=ranks, **how)
            stacked = sparsedelta.apply_stack(base, deltas, many / method, ranks=ranks, **how)
            assert stacked.fingerprint == report.manifest.target
            assert stacked.overlaps.keys() == report.overlaps.keys()
        with pytest.raises(WrongBaseError, match="is not the base"):
            sparsedelta.apply_stack(folder / "other", deltas, many / "no", ranks=ranks)


def chains(folder: Path) -> None:
    """Operations on several deltas; outputs below ``many``."""
    dist.init_process_group("gloo")
    deltas, many = [folder / f"d{number}" for number in range(3)], folder / "many"
    with TorchRanks() as ranks:
        report = sparsedelta.squash(deltas[::-1], many / "one.safetensors", ranks=ranks)
        sparsedelta.invert(deltas[1], many / "inverse.safetensors", ranks=ranks)
        applied = sparsedelta.apply(
            folder / "s0.safetensors", deltas[::-1], many / "out", ranks=ranks
        )
        assert applied.fingerprint == report.manifest.target
        found = sparsedelta.which(folder / "s1.safetensors", deltas, ranks=ranks)
        assert found.arrived == (str(deltas[0]),)


def failures(folder: Path) -> None:
    """What happens when rank 1, or rank 0, fails: of one process after the other."""
    dist.init_process_group("gloo")
    rank, last = dist.get_rank(), dist.get_world_size() - 1

    def fails(at: int, error: Exception) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if rank == at and done:
                raise error

        return report

    def run(error: type[Exception], match: str, progress: Progress = silent) -> None:
        with TorchRanks() as ranks, pytest.raises(error, match=match) as caught:
            sparsedelta.diff(
                folder / "base",
                folder / "target",
                folder / "many" / "d",
                ranks=ranks,
                progress=progress,
            )
        if isinstance(caught.value, RankError) and error is RankError:
            assert caught.value.exit_code == (2 if "odd" in match else 1)

    boom = ValueError("boom")
    mine = rank == last
    for _ in range(2):  # a failure does not spoil the next run
        run(
            ValueError if mine else RankError,
            "^boom" if mine else f"rank {last} failed: ValueError: boom",
            progress=fails(last, boom),
        )
    odd = UsageError("odd", hint="even")
    run(
        UsageError if not rank else RankError,
        "^odd\nhint: even" if not rank else "rank 0 failed: odd\nhint: even",
        progress=fails(0, odd),
    )
    full_disks(run, mine=mine)


def full_disks(run: Callable[..., None], *, mine: bool) -> None:
    """The disk of the last rank is full when its part file is to be written.

    Rank 0 clears the folder after that, or just before the files of the others are made in it; or
    the last rank does before the others have begun.
    """
    write = DeltaWriter._write  # noqa: SLF001
    written: list[str] = []
    wait = 0.0

    def full(self: DeltaWriter, path: Path, piece: object) -> None:
        if mine:
            path.write_bytes(b"half")
            raise OutputError("no space")
        time.sleep(wait)
        written.append(path.name)
        write(self, path, piece)  # type: ignore[arg-type]

    def early(stage: Path, **_: object) -> None:
        for name in written:
            (stage / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            stage.rmdir()

    rmdir = Path.rmdir

    def slow(folder: Path) -> None:
        try:
            rmdir(folder)
        finally:
            time.sleep(0.6)

    last = dist.get_world_size() - 1
    expected = (OutputError, "no space") if mine else (RankError, f"rank {last} failed: no space")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeltaWriter, "_write", full)
        run(*expected)
        wait = 0.2
        if mine:
            patch.setattr(Path, "rmdir", slow)  # it is long before the others hear of it
        run(*expected)
        wait = 0.0
        if not dist.get_rank():
            patch.setattr("sparsedelta.outputs.shutil.rmtree", early)
        run(*expected)


def killed(moment: str, victim: str, *arguments: str) -> None:
    """The command line, of which one rank is killed at a chosen moment."""
    if os.environ["RANK"] == victim:

        def kill(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        module, _, name = moment.rpartition(":")
        pytest.MonkeyPatch().setattr(f"{module}.{name}", kill)
    main([*arguments])


def terminated(victim: str, *arguments: str) -> None:
    """The command line, of which one rank is asked to end while it writes."""
    if os.environ["RANK"] == victim:

        def end(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        pytest.MonkeyPatch().setattr("sparsedelta.writer.DeltaWriter._write", end)
    main([*arguments])


TASKS: dict[str, Callable[..., None]] = {
    "files": lambda folder: files(Path(folder)),
    "composing": lambda folder: composing(Path(folder)),
    "chains": lambda folder: chains(Path(folder)),
    "failures": lambda folder: failures(Path(folder)),
    "killed": killed,
    "terminated": terminated,
}

if __name__ == "__main__":
    TASKS[sys.argv[1]](*sys.argv[2:])
