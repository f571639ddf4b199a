"""Outputs of many files that an interrupted run leaves for the next one to go on with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint, segments
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.companions import find_companions
from sparsedelta.digests import Digest, plain_digest, segment_digest, tensor_digest
from sparsedelta.errors import CheckpointError, OutputError
from sparsedelta.files import InputFile, sync
from sparsedelta.operations.arrows import Arrow, DiffersError
from sparsedelta.operations.result_files import ResultFiles
from sparsedelta.operations.steps import Pass, Step, Verify
from sparsedelta.outputs import output_errors, publish
from sparsedelta.parallel import OrderedMap
from sparsedelta.safetensors_header import FileLayout, StoredTensor

_INPUTS: Final = "inputs"
_FINISHED: Final = "finished"
_ENDS_THE_RUN: Final = (KeyboardInterrupt, OSError, MemoryError, OutputError, CheckpointError)
"""What says nothing of the work that was done: it is kept."""


@dataclass(slots=True)
class Stage:
    """A folder beside the output in which it grows, file by file.

    Attributes:
        folder: The folder.
        work: The output in it.
        files: Name and layout of each file of the output.
        discarded: Whether something was there, for other inputs.
        kept: Names of the files that were there, and are whole.
        found: Digests of the tensors in them that stay.
    """

    folder: Path
    work: Path
    files: tuple[tuple[str, FileLayout], ...]
    discarded: bool = False
    kept: tuple[str, ...] = ()
    found: dict[str, Digest] = field(default_factory=dict)
    _homes: dict[str, str] = field(default_factory=dict)
    _left: Counter[str] = field(default_factory=Counter)

    def verify(self, step: Step, pool: OrderedMap, verify: Verify) -> None:
        """Read the files that are said to be finished, and keep those that are what is promised.

        Args:
            step: The step that made them.
            pool: Threads to use.
            verify: What is verified at the end: with ``"full"`` the fingerprint tells of tensors
                that stay and that the delta does not list; without it nothing does.
        """
        arrows = {arrow.result.name: arrow for arrow in step.arrows if arrow.result is not None}
        said = set(_lines(self.folder / _FINISHED))
        good = []
        for name, layout in self.files:
            if name not in said or (verify != "full" and not _is_listed(layout, step, arrows)):
                continue
            if self._is_whole(self.work / name, layout, step, arrows, pool):
                good.append(name)
        self._keep(good)

    def empty(self) -> None:
        """Keep nothing."""
        self.found.clear()
        self._keep([])

    def _keep(self, names: Sequence[str]) -> None:
        self.kept = tuple(names)
        for path in self.work.iterdir():
            if path.name not in self.kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / _FINISHED).write_text("".join(f"{name}\n" for name in self.kept))
        self._homes = {t.spec.name: name for name, layout in self.files for t in layout.tensors}
        self._left = Counter(self._homes.values())

    def _is_whole(
        self,
        path: Path,
        layout: FileLayout,
        step: Step,
        arrows: dict[str, Arrow],
        pool: OrderedMap,
    ) -> bool:
        try:
            with InputFile(path) as source:
                if source.size != layout.size:
                    return False
                if source.read(0, len(layout.prefix)) != layout.prefix:
                    return False
                found = _digests(source, layout, pool)
        except CheckpointError:
            return False
        for name, digest in found.items():
            arrow = arrows[name]
            if arrow.stays:
                expected = step.expected.get(name, digest)
            else:
                assert arrow.result is not None  # noqa: S101 (it is one of the results)
                expected = tensor_digest(arrow.result, arrow.after)
            if digest != expected:
                return False
        stay = {name: digest for name, digest in found.items() if arrows[name].stays}
        self.found.update(stay)
        return True

    def is_made(self, arrow: Arrow) -> bool:
        """Whether the result of an arrow lies in a file that is kept."""
        return arrow.result is not None and self._homes[arrow.result.name] in self.kept

    def made(self, arrow: Arrow) -> None:
        """Tell that the result of an arrow is written: its file may be finished.

        Raises:
            OSError: The file does not reach the disk.
        """
        if arrow.result is None:
            return
        name = self._homes[arrow.result.name]
        self._left[name] -= 1
        if not self._left[name]:
            sync(self.work / name)
            with (self.folder / _FINISHED).open("a") as log:
                log.write(f"{name}\n")
                log.flush()
                os.fsync(log.fileno())


def go_on(run: Pass, step: Step, files: ResultFiles, out: Path) -> tuple[Sequence[str], Stage]:
    """Take a step into an output of many files, or go on where a run was interrupted.

    Args:
        run: What to take through the step.
        step: The step.
        files: The files to write, a directory.
        out: The output.

    Returns:
        Names of the files beside the weights that are not copied; and the folder as it was found.

    Raises:
        DiffersError: A tensor is not what the step starts from; nothing was left behind.
        VerificationError: The result is not what the delta promises; nothing was left behind.
        OutputError: The output cannot be written; what is finished is kept.
    """
    inputs = _describe(run.checkpoint, step, files)
    with _kept_stage(out, files, inputs, force=run.force) as stage:
        stage.verify(step, run.pool, run.verify)
        try:
            return _go_on(run, step, files, stage), stage
        except DiffersError:
            if not stage.found:
                raise
        # Of what stays a lean delta knows only the fingerprint: was it the base, or a kept file?
        stage.empty()
        return _go_on(run, step, files, stage), stage


def _go_on(run: Pass, step: Step, files: ResultFiles, stage: Stage) -> Sequence[str]:
    companions = find_companions(run.checkpoint)
    rest = [(name, layout) for name, layout in files.files if name not in stage.kept]
    with CheckpointWriter(rest, stage.work, is_directory=True) as writer:
        arrows = [arrow for arrow in step.arrows if not stage.is_made(arrow)]
        run.through(step, writer, arrows=arrows, known=stage.found, made=stage.made)
        files.check_sha256(writer)
        writer.copy_companions(run.checkpoint.root, files.companions(companions))
        writer.write_files(files.contents)
    return companions.left_behind


@contextlib.contextmanager
def _kept_stage(out: Path, files: ResultFiles, inputs: bytes, *, force: bool) -> Iterator[Stage]:
    """A folder for an output of many files, which outlives a run that is interrupted.

    It has a name that follows from the output's, and is locked: by this process, until the output
    takes its name. A run that fails for what it has read removes it.

    Args:
        out: The final name of the output, a directory.
        files: The files of the output.
        inputs: What the output follows from; see :func:`_describe`.
        force: Whether an output that has appeared meanwhile is replaced.

    Yields:
        The folder, which may hold something already: :meth:`Stage.verify` has not been called.

    Raises:
        OutputError: Another process is at work on it; the disk is full; the rename fails.
    """
    folder = out.with_name(f".{out.name}.sparsedelta-run")
    with contextlib.ExitStack() as stack:
        with output_errors(out):
            folder.mkdir(exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, descriptor)
        _lock(out, folder, descriptor)
        stage = Stage(folder, folder / out.name, files.files)
        try:
            with output_errors(out):
                _begin(stage, out, inputs)
                yield stage
                publish(stage.work, out, folder, force=force)
        except _ENDS_THE_RUN as error:
            kept = f"what is finished is kept in {folder}: the same command goes on with it"
            if isinstance(error, OutputError):
                error.hint = f"{kept} (if the disk is full, free some space first)"
            else:
                error.add_note(kept)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _describe(checkpoint: FileCheckpoint, step: Step, files: ResultFiles) -> bytes:
    """What an output follows from: the checkpoint's files, the delta, and what is made."""
    document = {
        "content": step.route.content,
        "from": step.fingerprint,
        "to": step.result_fingerprint,
        "inputs": [file.source.identity() for file in checkpoint.files],
        "files": [[name, plain_digest(layout.prefix).hex()] for name, layout in files.files],
    }
    return json.dumps(document, indent=1).encode()


def _lock(out: Path, folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.samestat(folder.lstat(), os.fstat(descriptor))
    except OSError:
        is_there = False
    if not is_there:
        raise OutputError(f"another process is making {out} (it works in {folder})")


def _begin(stage: Stage, out: Path, inputs: bytes) -> None:
    """Make the folder one for these inputs: as it was left, or else empty."""
    described, replaced = stage.folder / _INPUTS, stage.folder / "replaced"
    if os.path.lexists(replaced) and not os.path.lexists(out):
        replaced.rename(out)  # a power cut has come between the two steps of replacing it
    is_same = described.exists() and described.read_bytes() == inputs
    if not is_same or not stage.work.is_dir():
        stage.discarded = (stage.folder / _FINISHED).exists()
        for path in stage.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        stage.work.mkdir()
        (stage.folder / _FINISHED).touch()
        described.write_bytes(inputs)
        sync(described)
        sync(stage.folder)


def _is_listed(layout: FileLayout, step: Step, arrows: Mapping[str, Arrow]) -> bool:
    """Whether the delta knows the digest of each tensor of a file."""
    names = (stored.spec.name for stored in layout.tensors)
    return all(not arrows[name].stays or name in step.expected for name in names)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="surrogateescape").splitlines()


def _digests(source: InputFile, layout: FileLayout, pool: OrderedMap) -> dict[str, Digest]:
    """Digests of the tensors of a file, by name."""

    def work(item: tuple[StoredTensor, int, int]) -> Digest:
        stored, start, stop = item
        width = stored.spec.word_bytes
        data = source.read(stored.offset + start * width, (stop - start) * width)
        return segment_digest(data)

    items = ((stored, *run) for stored in layout.tensors for run in segments(stored.spec))
    with pool.mapped(work, items) as digests:
        return {
            stored.spec.name: tensor_digest(
                stored.spec, [next(digests) for _ in segments(stored.spec)]
            )
            for stored in layout.tensors
        }
