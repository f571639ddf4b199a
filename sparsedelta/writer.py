"""Writing deltas (spec section 3): tensors as they come, header and manifest at the end.

One file, or a set of part files and their root where a size is not to be exceeded.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from sparsedelta.delta import content_digest
from sparsedelta.digests import (
    Digest,
    checkpoint_fingerprint,
    plain_digest,
    tensor_digest,
)
from sparsedelta.encode import EncodedTensor
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.file_names import CHECKPOINT_SUFFIX, file_name_problem
from sparsedelta.header import DATA, MANIFEST, TABLES, build_header
from sparsedelta.limits import MAX_BLOBS, MAX_BLOBS_BYTES, MAX_MANIFEST_BYTES, MAX_SET_PARTS
from sparsedelta.manifest import (
    PORTABLE,
    Manifest,
    SetPart,
    SetPlace,
    are_invertible,
    name_problem,
)
from sparsedelta.outputs import check_output, output_errors, staged, write_all
from sparsedelta.records import TensorRecord
from sparsedelta.strict_json import canonical
from sparsedelta.table_rules import digest_problems
from sparsedelta.tables import parse_tables

_COPY_BYTES: Final = 1 << 22
_FEWER_FILES: Final = "leave out --with-files, or record no layout: --layout never"


@dataclass(frozen=True, slots=True)
class _Written:
    """A touched tensor whose frames are in the spool."""

    record: TensorRecord
    tables: bytes
    content: bytes
    leaves: tuple[Digest | None, Digest | None]


class DeltaWriter:
    """Writes a delta under a temporary name; a context manager.

    Frames are spooled to an unnamed file in the output's folder, since header, manifest and tables
    come before them and are known last. Leaving the context without :meth:`finish` leaves nothing.

    Args:
        path: The output.
        metadata: Provenance, string to string.
        base_repo: Hint where the base can be had, never trusted.
        base_revision: Hint at its commit.
        lean: Leave the untouched tensors out.
        max_shard_size: Bytes of frames and tables that a part file may have, but for one with a
            single tensor; None for one file.
        force: Whether an existing output is replaced.
        inputs: Files that are read: part files of a set do not overwrite them, even with ``force``.

    Raises:
        UsageError: A string of the metadata or of the hints is no valid text.

    Attributes:
        size: Bytes of all files, once :meth:`finish` has been called.
        spooled: Bytes of the frames so far.
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        base_repo: str | None = None,
        base_revision: str | None = None,
        lean: bool = False,
        max_shard_size: int | None = None,
        force: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        self._path = path
        self._inputs = tuple(inputs)
        self._force = force
        self._lean = lean
        self._max_shard_size = max_shard_size
        self._metadata = dict(metadata or {})
        hints = {"sd.base_repo": base_repo, "sd.base_revision": base_revision}
        self._hints = {key: value for key, value in hints.items() if value is not None}
        for key, value in (*self._metadata.items(), *self._hints.items()):
            if not _is_text(key) or not _is_text(value):
                raise UsageError(
                    f"metadata {key!r:.80}: expected text that UTF-8 can hold, found {value!r:.80}",
                    hint="metadata maps strings to strings: convert numbers with str()",
                )
        if max_shard_size is not None:
            for name in (path.name, self._part_name(MAX_SET_PARTS, MAX_SET_PARTS)):
                problem = file_name_problem(name)
                if problem:
                    raise UsageError(f"{path}: the files of a set need a simple name: it {problem}")
        self._untouched: dict[str, Digest] = {}
        self._touched: dict[str, _Written] = {}
        self._frames: list[bytes] = []
        self._blobs: dict[Blob, int] = {}
        self._blob_bytes = 0
        self._spool: IO[bytes] | None = None
        self.attachments = Attachments()
        self.spooled = 0
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
        """Record a touched tensor; tensors come in ascending order of their names.

        Raises:
            OutputError: Its frames cannot be written.
        """
        record = tensor.record
        for spec in (record.base, record.target):
            if spec is not None:
                _check_name(spec.name)
        if self._touched and next(reversed(self._touched)) >= record.name:
            raise ValueError(f"tensor {record.name!r} comes too late")
        for part in tensor.parts:
            self._append(part.frames)
        leaves = (
            None if record.base is None else tensor_digest(record.base, tensor.base_segments),
            None if record.target is None else tensor_digest(record.target, tensor.target_segments),
        )
        written = _Written(record, tensor.tables, tensor.content, leaves)
        self._touched[record.name] = written

    def _append(self, frames: Sequence[bytes]) -> None:
        if self._spool is None:
            raise ValueError("the writer is not open")
        with output_errors(self._path):
            for frame in frames:
                write_all(self._spool.fileno(), frame, self.spooled)
                self.spooled += len(frame)

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

    def finish(self, *, dry_run: bool = False) -> Manifest:
        """Write the file, or the files of the set, and give them their names.

        Args:
            dry_run: Only say what would have been written.

        Returns:
            The manifest; of a set the root's, with all records.

        Raises:
            OutputError: It cannot be written; nothing is left behind.
        """
        if self._spool is None:
            raise ValueError("the writer is not open")
        data = self.spooled
        self._append(self._frames)
        whole = self._manifest()
        self._check(whole)
        groups = self._groups()
        if len(groups) <= 1:
            pieces = [(self._path.name, whole, self._tables(self._touched), (0, self.spooled))]
        else:
            pieces = list(self._set(whole, groups, data))
        files = [
            (name, *self._head(manifest, tables, span)) for name, manifest, tables, span in pieces
        ]
        self.size = sum(len(head) + end - start for _, head, (start, end) in files)
        for name, *_ in files:
            if name != self._path.name:  # that one has been checked before anything was read
                part = self._path.parent / name
                check_output(part, force=self._force, inputs=self._inputs)
        if not dry_run:
            with staged(self._path, force=self._force) as work:
                for name, head, span in files:
                    self._write(work.parent / name, head, span)
        return whole

    def _check(self, whole: Manifest) -> None:
        """What is about to be written has to be what a reader takes, whoever made the parts."""
        tables = parse_tables(self._tables(self._touched), whole)
        for problem in digest_problems(tables, whole, is_part=False):
            raise StructureError(f"{self._path}: no delta can hold this: {problem.message}")

    def _part_name(self, number: int, count: int) -> str:
        stem = self._path.name.removesuffix(CHECKPOINT_SUFFIX)
        return f"{stem}-{number:05d}-of-{count:05d}{CHECKPOINT_SUFFIX}"

    def _groups(self) -> list[list[str]]:
        """Names of the records of each part file: one group if all fit."""
        limit = self._max_shard_size
        groups: list[list[str]] = [[]]
        size = 0
        for name, written in self._touched.items():
            own = written.record.nbytes + len(written.tables)
            if limit is not None and groups[-1] and size + own > limit:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += own
        return groups

    def _set(
        self, whole: Manifest, groups: list[list[str]], data: int
    ) -> Iterator[tuple[str, Manifest, bytes, tuple[int, int]]]:
        listed = []
        start = 0
        for number, names in enumerate(groups, start=1):
            name = self._part_name(number, len(groups))
            touched = {name: self._touched[name] for name in names}
            records = tuple(written.record for written in touched.values())
            tables = self._tables(touched, untouched=False)
            contents = {name: written.content for name, written in touched.items()}
            manifest = replace(
                whole,
                content=content_digest(whole.base, whole.target, contents),
                metadata={},
                nnz=sum(record.nnz for record in records),
                invertible=are_invertible(records),
                tables=plain_digest(tables).hex(),
                tensors=records,
                untouched=(),
                attachments=Attachments(),
                place=SetPlace(whole.content, number),
            )
            span = (start, start + sum(record.nbytes for record in records))
            head, _ = self._head(manifest, tables, span)
            size = len(head) + span[1] - span[0]
            listed.append(SetPart(name, size, plain_digest(_manifest_frame(manifest)[0]).hex()))
            yield name, manifest, tables, span
            start = span[1]
        tables = self._tables({})
        root = replace(
            whole,
            tables=plain_digest(tables).hex(),
            tensors=(),
            place=SetPlace(whole.content, 0, tuple(listed)),
        )
        yield self._path.name, root, tables, (data, self.spooled)

    def _tables(self, touched: Mapping[str, _Written], *, untouched: bool = True) -> bytes:
        stay = self._untouched if untouched and not self._lean else {}
        chunks = [stay[name] for name in sorted(stay)]
        return b"".join((*chunks, *(written.tables for written in touched.values())))

    def _manifest(self) -> Manifest:
        ends: list[str] = []
        for end in (0, 1):
            leaves = dict(self._untouched)
            for written in self._touched.values():
                spec = (written.record.base, written.record.target)[end]
                digest = written.leaves[end]
                if spec is not None and digest is not None:
                    leaves[spec.name] = digest
            ends.append(checkpoint_fingerprint(leaves).hex())
        records = tuple(written.record for written in self._touched.values())
        contents = {name: written.content for name, written in self._touched.items()}
        return Manifest(
            base=ends[0],
            target=ends[1],
            content=content_digest(ends[0], ends[1], contents),
            profile=PORTABLE,
            metadata=self._metadata,
            tables=plain_digest(self._tables(self._touched)).hex(),
            nnz=sum(record.nnz for record in records),
            invertible=are_invertible(records),
            tensors=records,
            untouched=() if self._lean else tuple(sorted(self._untouched)),
            lean=self._lean,
            attachments=self.attachments,
        )

    def _head(
        self, manifest: Manifest, tables: bytes, span: tuple[int, int]
    ) -> tuple[bytes, tuple[int, int]]:
        """Header, manifest and tables of a file."""
        frame, length = _manifest_frame(manifest)
        if length > MAX_MANIFEST_BYTES:
            raise StructureError(
                f"{self._path}: a manifest of {length} bytes, {MAX_MANIFEST_BYTES} are allowed",
                hint="--lean leaves out the tensors that are not touched; --max-shard-size divides",
            )
        metadata = {
            "format": "sparsedelta",
            "sd.manifest": plain_digest(frame).hex(),
            "sd.manifest_size": str(length),
            **manifest.header_facts(),
            **self._hints,
        }
        lengths = {MANIFEST: len(frame), TABLES: len(tables), DATA: span[1] - span[0]}
        try:
            header = build_header(metadata, lengths)
        except ValueError as error:
            raise UsageError(f"{self._path}: the hints at the base are too long: {error}") from None
        return header + frame + tables, span

    def _write(self, path: Path, head: bytes, span: tuple[int, int]) -> None:
        assert self._spool is not None  # noqa: S101 (finish has seen to it)
        with path.open("wb") as output:
            output.write(head)
            position, end = span
            while position < end:
                piece = os.pread(self._spool.fileno(), min(_COPY_BYTES, end - position), position)
                output.write(piece)
                position += len(piece)
            output.flush()
            os.fsync(output.fileno())


def _manifest_frame(manifest: Manifest) -> tuple[bytes, int]:
    text = canonical(manifest.to_json())
    return encode_frame(text), len(text)


def _check_name(name: str) -> None:
    problem = name_problem(name)
    if problem:
        raise StructureError(f"tensor name {name!r:.100} {problem}: a delta cannot hold it")


def _is_text(text: object) -> bool:
    return isinstance(text, str) and not any("\ud800" <= char <= "\udfff" for char in text)
