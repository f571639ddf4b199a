"""How each tensor of a result is made from tensors of the checkpoint at hand.

A record is an arrow from base to target; apply follows it, revert goes the other way. Both become
the same kind of work: read a source tensor and verify it, change it, append what is carried, verify
the result. A tensor that goes is only verified; one that comes new has no source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparsedelta.delta import RESIZE, Part
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, segment_count, segment_digest
from sparsedelta.errors import VerificationError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import apply_parts, check_disjoint
from sparsedelta.words import Bytes, TensorSpec, as_words


class DiffersError(Exception):
    """A tensor of the checkpoint is not the one that the delta starts from."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """From one tensor of a checkpoint to one of the result.

    Attributes:
        source: The tensor that is read, or None.
        result: The tensor that is made, or None: the source is only verified.
        record: The record that says how, or None: the tensor stays as it is.
        changes: Numbers of the sparse parts to follow.
        carried: Number of the part that carries the words behind the source's, or None.
        before: Segment digests of the source, or None where only its tensor digest is known.
        after: Segment digests of the result.
        reverse: Whether the parts are undone.
        is_leaf: Whether the source enters the fingerprint here: a copy is read once more.
    """

    source: TensorSpec | None
    result: TensorSpec | None
    record: TensorRecord | None = None
    changes: tuple[int, ...] = ()
    carried: int | None = None
    before: tuple[Digest, ...] | None = None
    after: tuple[Digest, ...] = ()
    reverse: bool = False
    is_leaf: bool = True

    @property
    def words(self) -> int:
        """Words to go through: of the longer of source and result."""
        return max(spec.words for spec in (self.source, self.result) if spec is not None)

    @property
    def word_bytes(self) -> int:
        """Bytes of a word of source and result."""
        spec = self.source or self.result
        assert spec is not None  # noqa: S101 (an arrow has at least one end)
        return spec.word_bytes

    def is_unchanged(self, start: int, stop: int) -> bool:
        """Whether the words of a run stay: there is nothing to change in any of its segments."""
        if self.source is None or self.result is None or self.source.words != self.result.words:
            return False
        first, last = start // SEGMENT_WORDS, segment_count(stop)
        return self.record is None or (
            self.before is not None and self.before[first:last] == self.after[first:last]
        )

    def spans(self) -> Iterator[tuple[int, int]]:
        """Runs that are worked on at a time: whole segments, and whole blocks of every change."""
        record = self.record
        parts = (record.parts[number] for number in self.changes) if record else ()
        blocks = (1 << part.block_log2 for part in parts if isinstance(part, PartRecord))
        size = max(SEGMENT_WORDS, *blocks, 0)
        for start in range(0, self.words, size):
            yield start, min(start + size, self.words)


def stays(spec: TensorSpec) -> Arrow:
    """The arrow of a tensor that no record touches."""
    return Arrow(spec, spec)


def arrows_of(reader: DeltaReader, record: TensorRecord, *, reverse: bool) -> Iterator[Arrow]:
    """The arrows of a record: one, or two where a tensor is dropped and another made."""
    table = reader.tables.tensors[record.name]
    split = record.split
    away, made = range(split), range(split, len(record.parts))
    if not split and record.base is not None:
        yield _change(reader, record, reverse=reverse)
        return
    for spec, segments, numbers, is_made in (
        (record.base, table.base_segments, away, reverse),
        (record.target, table.target_segments, made, not reverse),
    ):
        if spec is None:
            continue
        if not is_made:
            yield Arrow(spec, None, record, before=segments)
            continue
        bearer = split - 1 if reverse else split
        reference = record.parts[bearer].reference
        if reference is None:
            yield Arrow(None, spec, record, carried=bearer, after=segments)
            continue
        yield Arrow(
            TensorSpec(reference, spec.dtype, spec.shape),
            spec,
            record,
            changes=tuple(number for number in numbers if number != bearer),
            before=table.other_segments(bearer),
            after=segments,
            reverse=reverse,
            is_leaf=False,
        )


def _change(reader: DeltaReader, record: TensorRecord, *, reverse: bool) -> Arrow:
    table = reader.tables.tensors[record.name]
    base, target = record.base, record.target
    assert base is not None and target is not None  # noqa: S101, PT018 (section 5)
    ends = ((base, table.base_segments), (target, table.target_segments))
    (source, before), (result, after) = reversed(ends) if reverse else ends
    resize = next((n for n, part in enumerate(record.parts) if part.op == RESIZE), None)
    return Arrow(
        source,
        result,
        record,
        changes=tuple(n for n in range(len(record.parts)) if n != resize),
        carried=resize if resize is not None and result.words > source.words else None,
        before=before,
        after=after,
        reverse=reverse,
    )


def follow(reader: DeltaReader, arrow: Arrow, start: int, stop: int, data: Bytes) -> Bytes:
    """Make a run of the result out of a run of the source.

    Args:
        reader: The delta.
        arrow: The arrow.
        start: First word of the run, as :meth:`Arrow.spans` gives it.
        stop: Word behind its last.
        data: The source's bytes of the run, fewer where the source ends; changed in place.

    Returns:
        The result's bytes of the run; none where the result ends before it.

    Raises:
        DiffersError: A segment of the source has another digest.
        VerificationError: A segment of the result has another digest (SD502).
        FormatError: A block breaks a rule.
        NotFiniteError: SD505.
    """
    check_source(arrow, start, data)
    if arrow.result is None:
        return data[:0]
    if arrow.is_unchanged(start, stop):
        return data
    result = _extended(reader, arrow, start, min(stop, arrow.result.words), data)
    _apply_changes(reader, arrow, start, result)
    first = start // SEGMENT_WORDS
    for offset, digest in enumerate(_segment_digests(result, arrow.word_bytes)):
        if digest != arrow.after[first + offset]:
            raise VerificationError(
                f"{reader.path}: tensor {arrow.result.name!r}: the result has not the digest that "
                f"the delta promises for segment {first + offset} (SD502)",
                hint="the delta is damaged or was written by a faulty tool: get it again, then "
                f"sparsedelta validate {reader.path}",
            )
    return result


def check_source(arrow: Arrow, start: int, data: Bytes) -> None:
    """Compare a run of the source with the segment digests that the delta knows of it.

    Args:
        arrow: The arrow.
        start: First word of the run, the first of a segment.
        data: The source's bytes of the run.

    Raises:
        DiffersError: A segment has another digest.
    """
    if arrow.before is not None:
        first = start // SEGMENT_WORDS
        found = _segment_digests(data, arrow.word_bytes)
        if found != list(arrow.before[first : first + len(found)]):
            raise DiffersError


def _segment_digests(data: Bytes, word_bytes: int) -> list[Digest]:
    size = SEGMENT_WORDS * word_bytes
    return [segment_digest(data[at : at + size].data) for at in range(0, data.size, size)]


def _extended(reader: DeltaReader, arrow: Arrow, start: int, stop: int, data: Bytes) -> Bytes:
    """The run of the result before its changes: the source's words, then those carried."""
    width = arrow.word_bytes
    wanted = max(0, stop - start) * width
    if data.size >= wanted:
        return data[:wanted]
    given = 0 if arrow.source is None else arrow.source.words
    assert arrow.record is not None and arrow.carried is not None  # noqa: S101, PT018
    behind = reader.read_carried(arrow.record, arrow.carried, max(0, start - given), stop - given)
    return np.concatenate([data, behind.view(np.uint8)])


def _apply_changes(reader: DeltaReader, arrow: Arrow, start: int, data: Bytes) -> None:
    record, result = arrow.record, arrow.result
    if record is None or result is None or not arrow.changes:
        return
    words = as_words(data, arrow.word_bytes)
    stop = min(start + words.size, record.domain(arrow.changes[0]))
    parts = []
    for number in arrow.changes:
        described = record.parts[number]
        assert isinstance(described, PartRecord)  # noqa: S101 (changes are coded)
        size = 1 << described.block_log2
        for block in range(start // size, -(-stop // size)):
            first = block * size
            # On the way back the words at hand are the target's: they cannot stand in for the base.
            base = None if arrow.reverse else words[first - start : first - start + size]
            indices, values = reader.read_block(record, number, block, base=base)
            part = Part(
                described.op, indices + first, values, None, described.dtype, described.scale
            )
            parts.append(part.invert() if arrow.reverse else part)
    if len(arrow.changes) > 1:
        check_disjoint(
            reader.path, record.name, [p.indices for p in parts if p.indices is not None]
        )
    apply_parts(result, words, start, parts)
