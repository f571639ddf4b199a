"""Writing deltas (spec section 3): tensors as they come, header and manifest at the end.

One file, or a set of part files and their root: as many as a size wants, or as were planned. Ranks
each write the part files of their own tensors, and rank 0 the root.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from sparsedelta.attachments import (
    Attachments,
    Blob,
    CarriedFile,
    Layout,
    attachment_problems,
)
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.delta_files import (
    DeltaFiles,
    DeltaPiece,
    Written,
    groups_by_plan,
    groups_by_size,
    leaves_of,
    part_name,
)
from sparsedelta.digests import Digest, plain_digest, tensor_digest
from sparsedelta.encode import EncodedTensor
from sparsedelta.errors import OutputError, StructureError, UsageError
from sparsedelta.file_names import file_name_problem
from sparsedelta.limits import MAX_BLOBS, MAX_BLOBS_BYTES, MAX_SET_PARTS
from sparsedelta.manifest import PORTABLE, Manifest, name_problem
from sparsedelta.outputs import check_output, output_errors, staged, write_all
from sparsedelta.ranks import ALONE, Ranks, first
from sparsedelta.table_rules import digest_problems
from sparsedelta.tables import parse_tables

_COPY_BYTES: Final = 1 << 22
_FEWER_FILES: Final = "leave out --with-files, or record no layout: --layout never"


class DeltaWriter:
    """Writes a delta under a temporary name; a context manager.

    Frames are spooled to an unnamed file in the output's folder, since header, manifest and tables
    come before them and are known last. Leaving the context without :meth:`finish` leaves nothing.

    Args:
        path: The output.
        metadata: Provenance, string to string.
        base_repo: Hint where the base can be had, never trusted.
        base_revision: Hint at its commit.
        profile: ``portable``, or ``compact`` if records may need their base to be decoded.
        lean: Leave the untouched tensors out.
        max_shard_size: Bytes of frames and tables that a part file may have, but for one with a
            single tensor; None for one file.
        plan: Number of the part file of each record, by name; None if the size decides. The records
            of a part file follow each other, and are added by one rank.
        ranks: Who adds tensors, each rank its own.
        force: Whether an existing output is replaced.
        ends: Fingerprints of base and target, for one that is lean and of which not all tensors are
            known; None: they follow from what is added.
        inputs: Files that are read: part files of a set do not overwrite them, even with ``force``.

    Raises:
        UsageError: A string of the metadata or of the hints is no valid text.

    Attributes:
        size: Bytes of all files, once :meth:`finish` has been called.
        spooled: Bytes of the frames: of this rank, and of all once :meth:`collect` has been called.
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        base_repo: str | None = None,
        base_revision: str | None = None,
        profile: str = PORTABLE,
        lean: bool = False,
        max_shard_size: int | None = None,
        plan: Mapping[str, int] | None = None,
        ranks: Ranks = ALONE,
        force: bool = False,
        ends: tuple[str, str] | None = None,
        inputs: Iterable[Path] = (),
    ) -> None:
        self._path = path
        self._inputs = tuple(inputs)
        self._force = force
        self._lean = lean
        self._profile = profile
        self._ends = ends
        self._max_shard_size = max_shard_size
        self._plan = plan
        self._ranks = ranks
        self._metadata = dict(metadata or {})
        hints = {"sd.base_repo": base_repo, "sd.base_revision": base_revision}
        self._hints = {key: value for key, value in hints.items() if value is not None}
        for key, value in (*self._metadata.items(), *self._hints.items()):
            if not _is_text(key) or not _is_text(value):
                raise UsageError(
                    f"metadata {key!r:.80}: expected text that UTF-8 can hold, found {value!r:.80}",
                    hint="metadata maps strings to strings: convert numbers with str()",
                )
        if max_shard_size is not None or plan is not None:
            for name in (path.name, part_name(path, MAX_SET_PARTS, MAX_SET_PARTS)):
                problem = file_name_problem(name)
                if problem:
                    raise UsageError(f"{path}: the files of a set need a simple name: it {problem}")
        self._untouched: dict[str, Digest] = {}
        self._touched: dict[str, Written] = {}
        self._frames: list[bytes] = []
        self._blobs: dict[Blob, int] = {}
        self._blob_bytes = 0
        self._spool: IO[bytes] | None = None
        self.attachments = Attachments()
        self.spooled = 0
        self._end = 0
        self.size = 0

    def __enter__(self) -> Self:
        with output_errors(self._path):
            self._spool = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spool is not None:
            self._spool.close()

    def add_untouched(self, name: str, digest: Digest) -> None:
        """Record a tensor that stays as it is."""
        _check_name(name)
        self._untouched[name] = digest

    def add(self, tensor: EncodedTensor) -> None:
        """Record a touched tensor; tensors come in any order, each once.

        Raises:
            OutputError: Its frames cannot be written.
        """
        record = tensor.record
        for spec in (record.base, record.target):
            if spec is not None:
                _check_name(spec.name)
        if record.name in self._touched:
            raise ValueError(f"tensor {record.name!r} comes twice")
        start = self._end
        for part in tensor.parts:
            self._append(part.frames)
        self.spooled = self._end
        leaves = (
            None if record.base is None else tensor_digest(record.base, tensor.base_segments),
            None if record.target is None else tensor_digest(record.target, tensor.target_segments),
        )
        self._touched[record.name] = Written(
            record, tensor.tables, tensor.content, leaves, self._ranks.rank, (start, self._end)
        )

    def _append(self, frames: Sequence[bytes]) -> None:
        if self._spool is None:
            raise ValueError("the writer is not open")
        with output_errors(self._path):
            for frame in frames:
                write_all(self._spool.fileno(), frame, self._end)
                self._end += len(frame)

    def blob(self, content: bytes) -> int:
        """Add a blob; equal contents become one.

        Returns:
            Its position, for a layout or a carried file.

        Raises:
            StructureError: There would be more of them than a delta can hold.
        """
        frame = encode_frame(content)
        found = Blob(len(frame), len(content), plain_digest(frame).hex())
        if found not in self._blobs:
            self._blobs[found] = len(self._blobs)
            self._frames.append(frame)
            self._blob_bytes += found.size
            if len(self._blobs) > MAX_BLOBS or self._blob_bytes > MAX_BLOBS_BYTES:
                raise StructureError(
                    f"{self._path}: {len(self._blobs)} headers and files of {self._blob_bytes} "
                    f"bytes, at most {MAX_BLOBS} of {MAX_BLOBS_BYTES} are allowed",
                    hint=_FEWER_FILES,
                )
        return self._blobs[found]

    @property
    def renames(self) -> bool:
        """Whether a tensor has changed its name so far."""
        return any(written.record.renamed for written in self._touched.values())

    def attach(self, layout: Layout | None, files: Sequence[CarriedFile]) -> None:
        """Say which files the ends have; their blobs have been added.

        Raises:
            StructureError: A delta cannot hold them.
        """
        self.attachments = Attachments(tuple(self._blobs), layout, tuple(files))
        for problem in attachment_problems(self.attachments):
            raise StructureError(f"{self._path}: {problem.message}", hint=_FEWER_FILES)

    def collect(self) -> None:
        """Bring the records of all ranks together: rank 0 then knows the whole delta.

        Raises:
            RankError: Another rank failed.
        """
        gathered = self._ranks.gather((self._touched, self._untouched, self._end))
        if not gathered:
            return
        touched = [item for found, _, _ in gathered for item in found.items()]
        self._touched = dict(sorted(touched, key=itemgetter(0)))
        for _, stay, _ in gathered:
            self._untouched |= stay
        self.spooled = sum(end for _, _, end in gathered)

    def leaves(self, *, target: bool) -> dict[str, Digest]:
        """Tensor digests of an end by name, as far as this rank knows them."""
        return leaves_of(self._touched, self._untouched, target=target)

    def finish(
        self, *, dry_run: bool = False, check: Callable[[Manifest], None] | None = None
    ) -> Manifest:
        """Write the file, or the files of the set, and give them their names.

        Args:
            dry_run: Only say what would have been written.
            check: Looks at the manifest of the whole delta before anything is written.

        Returns:
            The manifest; of a set the root's, with all records.

        Raises:
            OutputError: It cannot be written; nothing is left behind.
            RankError: Another rank failed; nothing is left behind.
        """
        whole, pieces = first(self._ranks, lambda: self._pieces(check))
        self.size = sum(piece.size for piece in pieces)
        if not dry_run:
            self._write_pieces(pieces)
        return whole

    def _pieces(
        self, check: Callable[[Manifest], None] | None
    ) -> tuple[Manifest, list[DeltaPiece]]:
        start = self._end
        self._append(self._frames)
        self._touched = dict(sorted(self._touched.items()))
        files = DeltaFiles(
            self._path,
            self._touched,
            self._untouched,
            self._lean,
            self._metadata,
            self._hints,
            self.attachments,
            self._profile,
            self._ends,
        )
        whole = files.manifest()
        if check is not None:
            check(whole)
        self._check(whole, files.tables())
        if self._plan is None:
            groups = groups_by_size(self._touched, self._max_shard_size)
        else:
            groups = groups_by_plan(self._touched, self._plan)
        pieces = list(files.pieces(whole, groups, (start, self._end)))
        for piece in pieces[:-1]:  # the root has been checked before anything was read
            part = self._path.parent / piece.name
            check_output(part, force=self._force, inputs=self._inputs)
        return whole, pieces

    def _check(self, whole: Manifest, tables: bytes) -> None:
        """What is about to be written has to be what a reader takes, whoever made the parts."""
        for problem in digest_problems(parse_tables(tables, whole), whole, is_part=False):
            raise StructureError(f"{self._path}: no delta can hold this: {problem.message}")

    def _write_pieces(self, pieces: Sequence[DeltaPiece]) -> None:
        """Each rank writes its own files into the folder of rank 0, which then names them."""

        def stage() -> Path:
            work = stack.enter_context(staged(self._path, force=self._force))
            work.touch()  # the folder is never empty, so no other rank removes it before this one
            return work.parent.absolute()

        with ExitStack() as clearing:
            with ExitStack() as stack:
                folder = first(self._ranks, stage)
                mine = [piece for piece in pieces if piece.rank == self._ranks.rank]
                if self._ranks.rank:
                    clearing.enter_context(_cleared([folder / piece.name for piece in mine]))
                try:
                    for piece in mine:
                        self._write(folder / piece.name, piece)
                except OutputError:
                    if self._ranks.rank and not folder.exists():
                        self._ranks.share(None)  # rank 0 has removed it, and says why
                    raise
                self._ranks.gather(None)  # all files are there
            self._ranks.share(None)  # and have their names

    def _write(self, path: Path, piece: DeltaPiece) -> None:
        assert self._spool is not None  # noqa: S101 (records were added)
        with output_errors(self._path), path.open("wb") as output:
            output.write(piece.head)
            for position, end in piece.spans:
                self._copy(output, position, end)
            output.flush()
            os.fsync(output.fileno())

    def _copy(self, output: IO[bytes], position: int, end: int) -> None:
        assert self._spool is not None  # noqa: S101 (it is open)
        while position < end:
            self._ranks.check()
            data = os.pread(self._spool.fileno(), min(_COPY_BYTES, end - position), position)
            output.write(data)
            position += len(data)


@contextmanager
def _cleared(files: Sequence[Path]) -> Iterator[None]:
    """Remove files in the folder of another rank on failure, and the folder after the last of them.

    That rank removes the folder too, but cannot know of a file that is made while it does: each
    rank clears up after itself, and whoever is last finds the folder empty.
    """
    try:
        yield
    except BaseException:
        for path in files:
            with suppress(OSError):  # it was not made yet, or is gone
                path.unlink()
        for folder in {path.parent for path in files}:
            with suppress(OSError):  # others are still in it, or it is gone
                folder.rmdir()
        raise


def _check_name(name: str) -> None:
    problem = name_problem(name)
    if problem:
        raise StructureError(f"tensor name {name!r:.100} {problem}: a delta cannot hold it")


def _is_text(text: object) -> bool:
    return isinstance(text, str) and not any("\ud800" <= char <= "\udfff" for char in text)
