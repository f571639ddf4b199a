"""Following a delta in place: proof, journal, new words; or nothing at all (docs/in-place.md)."""

from __future__ import annotations

import contextlib
import errno
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sparsedelta.checkpoint import FileCheckpoint, segment_digests
from sparsedelta.digests import plain_digest, tensor_digest
from sparsedelta.errors import (
    OutputError,
    SparseDeltaError,
    UnfinishedError,
    VerificationError,
)
from sparsedelta.journal import (
    UNCOMMITTED,
    Head,
    Journal,
    JournalWriter,
    journal_path,
)
from sparsedelta.journal_frames import Buffers, SmallFile, small_frame
from sparsedelta.limits import MAX_INDEX_BYTES, SEGMENT_WORDS
from sparsedelta.locked_files import LockedFiles, read_small
from sparsedelta.operations.proving import Place, Proof, compared
from sparsedelta.operations.result_files import ResultFiles, replaced_file
from sparsedelta.operations.settle import carry_out, remove
from sparsedelta.operations.standpoint import Standpoint, changed_meanwhile
from sparsedelta.operations.steps import Verify
from sparsedelta.operations.way_back import WayBack
from sparsedelta.outputs import output_errors
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.safetensors_header import FileLayout

_ELSEWHERE: Final = "write the result elsewhere: -o OUT"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class InPlace:
    """Takes a checkpoint along a delta where it lies, or leaves it as it is.

    Attributes:
        walk: The checkpoint and the delta.
        locked: The checkpoint's files.
        result: The files of the result.
        pool: Threads to use.
        verify: What is verified.
        with_files: Whether the files that the delta carries are written.
        way_back: What writes the way back, or None.
        dry_run: Verify everything, write nothing.
        progress: Told how many bytes were done, and of how many.
    """

    walk: Standpoint
    locked: LockedFiles
    result: ResultFiles
    pool: OrderedMap
    verify: Verify
    with_files: bool
    way_back: WayBack | None
    dry_run: bool
    progress: Progress

    @property
    def checkpoint(self) -> FileCheckpoint:
        """The checkpoint."""
        return self.walk.checkpoint

    def __call__(self) -> None:
        """Do it.

        Raises:
            DiffersError: A tensor is not what the delta starts from; nothing was written.
            OutputError: The result has other files, or these cannot be written.
            VerificationError: The result is not what the delta promises; nothing is changed.
            UnfinishedError: The files are half changed; the journal is kept.
        """
        files = self.locked
        if files.paths != [file.source.location for file in self.checkpoint.files]:
            raise changed_meanwhile(self.checkpoint)
        proof = self._proof()
        small = list(self._small_files())
        with output_errors(files.folder), ExitStack() as stack:
            journal = None
            if not self.dry_run:
                journal = JournalWriter(self._journal_path, self._head(small), mode=files.mode)
                stack.callback(journal.discard)
            count = self._journal(journal, proof, small)
            if not files.are_as_opened():
                raise changed_meanwhile(self.checkpoint)
            if journal is None or not count:
                return
            if self.way_back is not None:
                self.way_back.finish()  # it is there whatever happens from now on
            journal.commit()
            self._carry_out()

    @property
    def _journal_path(self) -> Path:
        return journal_path(self.locked.folder, self.checkpoint.files[0].name)

    def _head(self, small: Iterable[SmallFile]) -> Head:
        index = self.checkpoint.index
        route = self.walk.route
        return Head(
            tuple(
                (file.name, file.layout.size, self.locked.inode(number))
                for number, file in enumerate(self.checkpoint.files)
            ),
            (*([] if index is None else [index.name]), *(file.name for file in small)),
            str(route.readers[0].path),
            route.content,
            route.reverse,
            self.with_files,
            tuple(str(reader.path) for reader in route.readers[1:]),
            route.start,
        )

    def _journal(
        self, journal: JournalWriter | None, proof: Proof, small: Iterable[SmallFile]
    ) -> int:
        """Prove the change and journal it; return the number of what changes."""
        count = 0

        def append(frame: Buffers) -> None:
            nonlocal count
            count += 1
            if journal is not None:
                journal.append(frame)

        for number, layout in enumerate(self._layouts()):
            old = self.checkpoint.files[number].layout
            for frame in _header_changes(number, proof.files, old, layout):
                append(frame)
        for each in small:
            append(small_frame(each))
        step = self.walk.step
        proof(step if self.way_back is None else step.by_name(), append, self.progress)
        return count

    def _carry_out(self) -> None:
        with Journal(self._journal_path) as journal:
            try:
                carry_out(journal, self.locked, self.pool, back=False, rewrite=False)
                self._check_sha256()
            except BaseException as error:
                self._roll_back(journal, error)
                raise
            remove(journal)

    def _roll_back(self, journal: Journal, cause: BaseException) -> None:
        # Pages that were never written need no room on a full disk.
        rewrite = not (isinstance(cause, OSError) and cause.errno in _FULL)
        try:
            carry_out(journal, self.locked, self.pool, back=True, rewrite=rewrite)
            remove(journal)
        except (OSError, SparseDeltaError) as error:
            head = journal.head
            command = shlex.join(
                ["sparsedelta", head.verb, self.checkpoint.location, *head.deltas, "--in-place"]
            )
            raise UnfinishedError(
                f"{self.checkpoint.location} is half changed: {cause}; it could not be put back "
                f"either: {error}; its journal {journal.path} is kept",
                hint=f"free some space or repair the disk; then, to put it back and begin again: "
                f"{command}; to go on: {command} --resume",
            ) from cause

    def _check_sha256(self) -> None:
        if self.verify == "touched":
            return
        for number, (name, _) in enumerate(self.result.files):
            expected = self.result.sha256.get(name)
            found = self.locked.sha256(number) if expected is not None else None
            if found != expected:
                raise VerificationError(
                    f"{self.locked.paths[number]} would have the SHA-256 {found}, the delta "
                    f"promises {expected} (SD502); it was put back",
                    hint="the delta was written by a faulty tool",
                )

    def _layouts(self) -> Iterator[FileLayout]:
        """The layout of the result of each file, in the order of the checkpoint's files."""
        return (layout for _, layout in self.result.files)

    def _proof(self) -> Proof:
        self._check_files()
        sources = _places(file.layout for file in self.checkpoint.files)
        results = _places(self._layouts())
        for arrow in self.walk.step.arrows:
            source, result = arrow.source, arrow.result
            if source is None or result is None or not arrow.is_leaf:
                continue
            if sources[source.name] != results[result.name]:
                raise self._misfit(
                    f"tensor {source.name!r} lies at byte {sources[source.name][1]}, in the result "
                    f"at byte {results[result.name][1]}"
                )
        return Proof(
            self.checkpoint,
            self.locked,
            sources,
            results,
            self.pool,
            self.verify,
            self.way_back,
        )

    def _check_files(self) -> None:
        present = self.checkpoint.files
        if self.result.is_directory and not self.checkpoint.is_directory:
            raise self._misfit("it is one file, the result is a directory")
        names = [file.name for file in present]
        wanted = [name for name, _ in self.result.files]
        if names != wanted and (self.checkpoint.is_directory or len(wanted) != 1):
            missing = sorted(set(wanted).symmetric_difference(names))
            raise self._misfit(f"only one of them has a file {missing[0]}")
        for file, layout in zip(present, self._layouts(), strict=True):
            if file.layout.size != layout.size:
                raise self._misfit(
                    f"{file.name} has {file.layout.size} bytes, in the result {layout.size}"
                )

    def _misfit(self, difference: str) -> OutputError:
        return OutputError(
            f"{self.checkpoint.location} cannot be changed in place by {self.walk.route.name}: "
            f"{difference}",
            hint=_ELSEWHERE,
        )

    def _small_files(self) -> Iterator[SmallFile]:
        """The small files that change: the index, and what the delta carries."""
        for name in sorted({*self.result.contents, *self.result.dropped}):
            path = self.locked.folder / name
            new = self.result.contents.get(name)
            old = read_small(path, MAX_INDEX_BYTES)
            if old == new:
                continue
            if name in self.result.unwritten:
                raise OutputError(
                    f"{path} would be lost: {self.result.unwritten[name]}",
                    hint="--no-files leaves it alone; -o OUT writes the result elsewhere",
                )
            self._check_carried(path, old)
            yield SmallFile(name, old, new)

    def _check_carried(self, path: Path, content: bytes | None) -> None:
        """Insist that a file is the one that the delta replaces: nobody's changes get lost."""
        is_listed, end = replaced_file(self.walk.route, path.name)
        found = None if content is None else plain_digest(content).hex()
        if is_listed and found != (None if end is None else end.digest):
            raise OutputError(
                f"{path} is not the file that the delta replaces: it would be lost",
                hint="--no-files leaves it alone; -o OUT writes the result elsewhere",
            )


def lock(path: Path) -> LockedFiles:
    """Lock the files of a checkpoint, and remove what a run left that changed nothing.

    Raises:
        OutputError: They are links, shared, read-only, or locked by another process.
        CheckpointError: There is no checkpoint, or it is half changed.
    """
    with FileCheckpoint(path) as checkpoint:
        names = [file.name for file in checkpoint.files]
    root = path if path.is_dir() else path.parent
    files = LockedFiles(root, names)
    for name in names:
        journal = journal_path(root, name)
        with contextlib.suppress(OSError):  # a folder that cannot be written to is told later
            journal.with_name(journal.name + UNCOMMITTED).unlink()
    return files


def _places(layouts: Iterable[FileLayout]) -> Mapping[str, Place]:
    return {
        stored.spec.name: (number, stored.offset)
        for number, layout in enumerate(layouts)
        for stored in layout.tensors
    }


def _header_changes(
    number: int, files: LockedFiles, old: FileLayout, new: FileLayout
) -> Iterator[Buffers]:
    if old.prefix == new.prefix:
        return
    wanted = np.frombuffer(new.prefix, np.uint8)
    for start in range(0, wanted.size, SEGMENT_WORDS):
        piece = wanted[start : start + SEGMENT_WORDS]
        found = np.empty_like(piece)
        files.read_into(number, found.data, start)
        yield from compared(number, start, found, piece)


def insist_on_result(walk: Standpoint, verify: Verify, cause: Exception) -> None:
    """Insist that the checkpoint is where the delta leads, as far as it is verified.

    Raises:
        WrongBaseError: It is neither end; names the first tensor that differs.
    """
    if verify == "full" or not _is_touched_result(walk):
        walk.insist_on_result(cause)


def _is_touched_result(walk: Standpoint) -> bool:
    """Whether the tensors that the delta touches already are what it makes of them."""
    route, checkpoint = walk.route, walk.checkpoint
    wanted = route.specs(at_end=True)
    gone = route.specs(at_end=False).keys() - wanted.keys()
    if any(checkpoint.specs.get(name) != spec for name, spec in wanted.items()):
        return False
    if gone.intersection(checkpoint.specs):
        return False
    leaves = route.leaves(at_end=True)
    return all(
        tensor_digest(spec, segment_digests(checkpoint, name)) == leaves[name]
        for name, spec in wanted.items()
    )
