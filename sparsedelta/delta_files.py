"""The files of a delta: how its records are divided among them, and the head of each.

Everything here follows from what is small: records, tables, digests. Frames stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparsedelta.attachments import Attachments
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.delta import content_digest
from sparsedelta.digests import Digest, checkpoint_fingerprint, plain_digest
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.file_names import CHECKPOINT_SUFFIX
from sparsedelta.header import DATA, MANIFEST, TABLES, build_header
from sparsedelta.limits import MAX_MANIFEST_BYTES
from sparsedelta.manifest import (
    PROFILES,
    Manifest,
    SetPart,
    SetPlace,
    are_invertible,
    features_of,
)
from sparsedelta.records import TensorRecord
from sparsedelta.strict_json import canonical


@dataclass(frozen=True, slots=True)
class Written:
    """A touched tensor whose frames are in a spool.

    Attributes:
        record: Its record.
        tables: What it adds to the tables.
        content: What of it enters the content digest.
        leaves: Its tensor digests in base and target.
        rank: Whose spool.
        span: First and end byte of its frames there.
    """

    record: TensorRecord
    tables: bytes
    content: bytes
    leaves: tuple[Digest | None, Digest | None]
    rank: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class DeltaPiece:
    """A file of a delta: its name, its header, manifest and tables, and its frames in a spool."""

    name: str
    head: bytes
    rank: int
    spans: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + _length(self.spans)


def part_name(path: Path, number: int, count: int) -> str:
    """Name of a part file of the set whose root is ``path``."""
    stem = path.name.removesuffix(CHECKPOINT_SUFFIX)
    return f"{stem}-{number:05d}-of-{count:05d}{CHECKPOINT_SUFFIX}"


def groups_by_size(touched: Mapping[str, Written], limit: int | None) -> list[list[str]]:
    """Names of the records of each part file, as many as fit; of one group no set is made."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, written in touched.items():
        own = written.record.nbytes + len(written.tables)
        if limit is not None and groups[-1] and size + own > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    return groups if len(groups) > 1 else []


def groups_by_plan(touched: Mapping[str, Written], plan: Mapping[str, int]) -> list[list[str]]:
    """Names of the records of each part file, as planned; a part without records is left out."""
    groups: dict[int, list[str]] = {}
    for name in touched:
        groups.setdefault(plan[name], []).append(name)
    return list(groups.values())


def leaves_of(
    touched: Mapping[str, Written], untouched: Mapping[str, Digest], *, target: bool
) -> dict[str, Digest]:
    """Tensor digests of an end, by the names there."""
    leaves = dict(untouched)
    for written in touched.values():
        spec = written.record.target if target else written.record.base
        digest = written.leaves[int(target)]
        if spec is not None and digest is not None:
            leaves[spec.name] = digest
    return leaves


@dataclass(frozen=True, slots=True)
class DeltaFiles:
    """What the files of a delta hold, but for frames.

    Attributes:
        path: The output.
        touched: The touched tensors, ascending by name.
        untouched: Digests of the tensors that stay.
        lean: Whether these are left out.
        metadata: Provenance.
        hints: Hints at the base, as the header has them.
        attachments: What travels beside the tensors.
        profile: Profile of the delta.
        ends: Fingerprints of base and target; None: they follow from the tensors.
    """

    path: Path
    touched: Mapping[str, Written]
    untouched: Mapping[str, Digest]
    lean: bool
    metadata: Mapping[str, str]
    hints: Mapping[str, str]
    attachments: Attachments
    profile: str
    ends: tuple[str, str] | None = None

    def tables(self) -> bytes:
        """The tables of the whole delta."""
        return self._tables(self.touched)

    def _tables(self, touched: Mapping[str, Written], *, untouched: bool = True) -> bytes:
        stay = self.untouched if untouched and not self.lean else {}
        chunks = [stay[name] for name in sorted(stay)]
        return b"".join((*chunks, *(written.tables for written in touched.values())))

    def manifest(self) -> Manifest:
        """The manifest of the whole delta, as of one file."""
        ends = self.ends or tuple(
            checkpoint_fingerprint(leaves_of(self.touched, self.untouched, target=target)).hex()
            for target in (False, True)
        )
        records = tuple(written.record for written in self.touched.values())
        contents = {name: written.content for name, written in self.touched.items()}
        return Manifest(
            base=ends[0],
            target=ends[1],
            content=content_digest(ends[0], ends[1], contents),
            profile=self.profile,
            version=PROFILES[self.profile],
            features=features_of(records),
            metadata=self.metadata,
            tables=plain_digest(self.tables()).hex(),
            nnz=sum(record.nnz for record in records),
            invertible=are_invertible(records),
            tensors=records,
            untouched=() if self.lean else tuple(sorted(self.untouched)),
            lean=self.lean,
            attachments=self.attachments,
        )

    def pieces(
        self, whole: Manifest, groups: Sequence[Sequence[str]], blobs: tuple[int, int]
    ) -> Iterator[DeltaPiece]:
        """The files, the root last.

        Args:
            whole: The manifest of the whole delta.
            groups: Names of the records of each part file; of none, the delta is one file.
            blobs: First and end byte of the blobs in the spool of rank 0, behind all its frames.

        Raises:
            StructureError: A manifest is too long.
            UsageError: The hints are too long.
        """
        if not groups:
            spans = _spans(self.touched.values(), blobs)
            yield self._piece(self.path.name, whole, self.tables(), 0, spans)
            return
        listed = []
        for number, names in enumerate(groups, start=1):
            written = [self.touched[name] for name in names]
            manifest, tables = self._part(whole, number, dict(zip(names, written, strict=True)))
            name = part_name(self.path, number, len(groups))
            piece = self._piece(name, manifest, tables, written[0].rank, _spans(written))
            digest = plain_digest(_manifest_frame(manifest)[0]).hex()
            listed.append(SetPart(name, piece.size, digest))
            yield piece
        tables = self._tables({})
        root = replace(
            whole,
            tables=plain_digest(tables).hex(),
            tensors=(),
            place=SetPlace(whole.content, 0, tuple(listed)),
        )
        yield self._piece(self.path.name, root, tables, 0, (blobs,))

    def _part(
        self, whole: Manifest, number: int, touched: Mapping[str, Written]
    ) -> tuple[Manifest, bytes]:
        records = tuple(written.record for written in touched.values())
        tables = self._tables(touched, untouched=False)
        contents = {name: written.content for name, written in touched.items()}
        manifest = replace(
            whole,
            content=content_digest(whole.base, whole.target, contents),
            metadata={},
            nnz=sum(record.nnz for record in records),
            invertible=are_invertible(records),
            features=features_of(records),
            tables=plain_digest(tables).hex(),
            tensors=records,
            untouched=(),
            attachments=Attachments(),
            place=SetPlace(whole.content, number),
        )
        return manifest, tables

    def _piece(
        self,
        name: str,
        manifest: Manifest,
        tables: bytes,
        rank: int,
        spans: tuple[tuple[int, int], ...],
    ) -> DeltaPiece:
        frame, length = _manifest_frame(manifest)
        if length > MAX_MANIFEST_BYTES:
            raise StructureError(
                f"{self.path}: a manifest of {length} bytes, {MAX_MANIFEST_BYTES} are allowed",
                hint="--lean leaves out the tensors that are not touched; --max-shard-size divides",
            )
        metadata = {
            "format": "sparsedelta",
            "sd.manifest": plain_digest(frame).hex(),
            "sd.manifest_size": str(length),
            **manifest.header_facts(),
            **self.hints,
        }
        lengths = {MANIFEST: len(frame), TABLES: len(tables), DATA: _length(spans)}
        try:
            header = build_header(metadata, lengths)
        except ValueError as error:
            raise UsageError(f"{self.path}: the hints at the base are too long: {error}") from None
        return DeltaPiece(name, header + frame + tables, rank, spans)


def _spans(
    written: Iterable[Written], behind: tuple[int, int] | None = None
) -> tuple[tuple[int, int], ...]:
    """Where the frames of records are, in their order; those that follow each other as one."""
    found: list[tuple[int, int]] = []
    for start, end in (*(each.span for each in written), *(() if behind is None else (behind,))):
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return tuple(found)


def _length(spans: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def _manifest_frame(manifest: Manifest) -> tuple[bytes, int]:
    text = canonical(manifest.to_json())
    return encode_frame(text), len(text)
