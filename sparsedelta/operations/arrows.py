"""How each tensor of a result is made from tensors of the checkpoint at hand.

A record is an arrow from base to target; apply follows it, revert goes the other way. Both become
the same kind of work: read a source tensor and verify it, change it, append what is carried, verify
the result. A tensor that goes is only verified; one that comes new has no source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedelta.delta import RESIZE, Part
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, segment_count, segment_digest
from sparsedelta.errors import VerificationError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import apply_parts, check_disjoint
from sparsedelta.words import Bytes, Indices, TensorSpec, Words, as_words, word_dtype


class DiffersError(Exception):
    """A tensor of the checkpoint is not the one that the delta starts from."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What one delta does to the words of a tensor.

    Attributes:
        reader: The delta.
        record: The record that says what.
        result: The tensor behind it.
        changes: Numbers of the sparse parts to follow.
        carried: Number of the part that carries the words behind the source's, or None.
        reverse: Whether the parts are undone.
        before: Segment digests of the tensor before it; known where the parts need its words.
    """

    reader: DeltaReader
    record: TensorRecord
    result: TensorSpec
    changes: tuple[int, ...] = ()
    carried: int | None = None
    reverse: bool = False
    before: tuple[Digest, ...] = ()

    @property
    def parts(self) -> Iterator[tuple[int, PartRecord]]:
        """Numbers and records of the sparse parts to follow."""
        for number in self.changes:
            part = self.record.parts[number]
            assert isinstance(part, PartRecord)  # noqa: S101 (changes are coded)
            yield number, part

    @property
    def domain(self) -> int:
        """Number of words that the sparse parts cover."""
        return self.record.domain(self.changes[0]) if self.changes else 0

    @property
    def needs_base(self) -> bool:
        """Whether the parts can only be decoded with the words before them at hand."""
        return any(part.encoding.needs_base for _, part in self.parts)

    def carried_words(self, given: int, start: int, stop: int) -> Words:
        """Words ``[start, stop)`` of the result as far as they are carried: behind ``given``."""
        assert self.carried is not None  # noqa: S101 (there are words that no source has)
        first = max(0, start - given)
        return self.reader.read_carried(self.record, self.carried, first, stop - given)

    def entries(
        self, start: int, stop: int, words: Words | None = None, *, any_order: bool = False
    ) -> list[Part]:
        """The sparse parts within a run of whole blocks, as they are stored, of flat indices.

        Args:
            start: First word of the run.
            stop: Word behind its last.
            words: The words that the parts are applied to, from ``start`` on, for codecs that are
                decoded with the base words at hand.
            any_order: Whether entries may come in any order, if that is faster.

        Raises:
            FormatError: A block breaks a rule, or two parts hold an index (SD409).
        """
        stop = min(stop, self.domain)
        # On the way back the words at hand are the target's: they cannot stand in for the base.
        known = None if self.reverse else words
        parts = []
        for number, described in self.parts:
            size = 1 << described.block_log2
            found: list[Indices] = []
            values: list[Words] = []
            for block in range(start // size, -(-stop // size) if start < stop else 0):
                first = block * size
                last = min(first + size, self.domain)
                base = None if known is None else known[first - start : last - start]
                indices, block_values = self.reader.read_block(
                    self.record, number, block, base=base, any_order=any_order
                )
                found.append(indices + first)
                values.append(block_values)
            parts.append(
                Part(
                    described.op,
                    _joined(found, np.dtype(np.int64)),
                    _joined(values, word_dtype(self.record.word_bytes(number))),
                    None,
                    described.dtype,
                    described.scale,
                )
            )
        if len(parts) > 1:
            check_disjoint(
                self.reader.path,
                self.record.name,
                [part.indices for part in parts if part.indices is not None],
            )
        return parts

    def apply(self, given: int, start: int, stop: int, data: Bytes) -> Bytes:
        """Make a run of the result out of a run of the source.

        Args:
            given: Words of the source.
            start: First word of the run.
            stop: Word behind its last.
            data: The source's bytes of the run, fewer where the source ends; changed in place.

        Raises:
            FormatError: A block breaks a rule.
            NotFiniteError: SD505.
        """
        width = self.result.word_bytes
        stop = min(stop, self.result.words)
        wanted = max(0, stop - start) * width
        if data.size >= wanted:
            data = data[:wanted]
        else:
            behind = self.carried_words(given, start, stop)
            data = np.concatenate([data, behind.view(np.uint8)])
        if self.changes and data.size:
            words = as_words(data, width)
            parts = self.entries(start, start + words.size, words, any_order=True)
            apply_parts(
                self.result, words, start, [p.invert() for p in parts] if self.reverse else parts
            )
        return data


def _joined(arrays: list[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, dtype), *arrays])


@dataclass(frozen=True, slots=True)
class Arrow:
    """From one tensor of a checkpoint to one of the result, along one delta or a chain of them.

    Attributes:
        source: The tensor that is read, or None.
        result: The tensor that is made, or None: the source is only verified.
        hops: What is done to the words on the way; deltas that do nothing to them are left out.
        before: Segment digests of the source, or None where only its tensor digest is known: of
            what no delta touches.
        after: Segment digests of the result.
        is_leaf: Whether the source enters the fingerprint here: a copy is read once more.
    """

    source: TensorSpec | None
    result: TensorSpec | None
    hops: tuple[Hop, ...] = ()
    before: tuple[Digest, ...] | None = None
    after: tuple[Digest, ...] = ()
    is_leaf: bool = True

    @property
    def stays(self) -> bool:
        """Whether the tensor is one that no delta touches."""
        return self.source is not None and self.before is None

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

    @property
    def linked(self) -> int:
        """How many words of the result follow from the source: rows that were never cut."""
        if self.source is None:
            return 0
        return min(self.source.words, *(hop.result.words for hop in self.hops), self.source.words)

    def is_unchanged(self, start: int, stop: int) -> bool:
        """Whether the words of a run stay: there is nothing to change in any of its segments."""
        if self.source is None or self.result is None or self.source.words != self.result.words:
            return False
        first, last = start // SEGMENT_WORDS, segment_count(stop)
        return self.before is None or self.before[first:last] == self.after[first:last]

    def spans(self) -> Iterator[tuple[int, int]]:
        """Runs that are worked on at a time: whole segments, and whole blocks of every change."""
        blocks = (1 << part.block_log2 for hop in self.hops for _, part in hop.parts)
        size = max(SEGMENT_WORDS, *blocks, 0)
        for start in range(0, self.words, size):
            yield start, min(start + size, self.words)

    def then(self, following: Arrow) -> Arrow:
        """This arrow and one that starts where it ends, as one.

        Raises:
            ValueError: It does not start there.
        """
        if self.result != following.source or following.before != self.after:
            raise ValueError(f"arrows that do not meet: {self.result} and {following.source}")
        return Arrow(
            self.source,
            following.result,
            (*self.hops, *following.hops),
            self.before,
            following.after,
            self.is_leaf and following.is_leaf,
        )


def stays(spec: TensorSpec) -> Arrow:
    """The arrow of a tensor that no record touches."""
    return Arrow(spec, spec)


def arrows_of(reader: DeltaReader, record: TensorRecord, *, reverse: bool) -> Iterator[Arrow]:
    """The arrows of a record: one, or two where a tensor is dropped and another made.

    In reverse also those of a record that does not lead back: their hops carry nothing then, and
    only what is known of their ends is of use.
    """
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
            yield Arrow(spec, None, before=segments)
            continue
        bearer = split - 1 if reverse else split
        reference = record.parts[bearer].reference
        if reference is None:
            hop = Hop(reader, record, spec, carried=bearer, reverse=reverse)
            yield Arrow(None, spec, (hop,), after=segments)
            continue
        changes = tuple(number for number in numbers if number != bearer)
        before = table.other_segments(bearer)
        hop = Hop(reader, record, spec, changes, reverse=reverse, before=before)
        yield Arrow(
            TensorSpec(reference, spec.dtype, spec.shape),
            spec,
            (hop,) if changes else (),
            before=before,
            after=segments,
            is_leaf=False,
        )


def _change(reader: DeltaReader, record: TensorRecord, *, reverse: bool) -> Arrow:
    table = reader.tables.tensors[record.name]
    base, target = record.base, record.target
    assert base is not None and target is not None  # noqa: S101, PT018 (section 5)
    ends = ((base, table.base_segments), (target, table.target_segments))
    (source, before), (result, after) = reversed(ends) if reverse else ends
    resize = next((n for n, part in enumerate(record.parts) if part.op == RESIZE), None)
    hop = Hop(
        reader,
        record,
        result,
        changes=tuple(n for n in range(len(record.parts)) if n != resize),
        carried=resize if resize is not None and result.words > source.words else None,
        reverse=reverse,
        before=before,
    )
    hops = (hop,) if record.parts else ()
    return Arrow(source, result, hops, before=before, after=after)


def follow(arrow: Arrow, start: int, stop: int, data: Bytes) -> Bytes:
    """Make a run of the result out of a run of the source.

    Args:
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
    given = 0 if arrow.source is None else arrow.source.words
    for number, hop in enumerate(arrow.hops):
        if number and hop.needs_base:  # what it is decoded with is what the deltas before it made
            _check_made(arrow.hops[:number], hop.before, start, data)
        data = hop.apply(given, start, stop, data)
        given = hop.result.words
    _check_made(arrow.hops, arrow.after, start, data)
    return data


def _check_made(hops: Sequence[Hop], expected: Sequence[Digest], start: int, data: Bytes) -> None:
    """Compare a run of what hops have made with the segment digests that it should have."""
    first = start // SEGMENT_WORDS
    result = hops[-1].result
    for offset, digest in enumerate(_segment_digests(data, result.word_bytes)):
        if digest != expected[first + offset]:
            paths = [str(hop.reader.path) for hop in hops]
            damaged = paths[0] if len(paths) == 1 else "DELTA of each"
            raise VerificationError(
                f"{', '.join(paths)}: tensor {result.name!r}: the result has not the digest "
                f"that the delta promises for segment {first + offset} (SD502)",
                hint="the delta is damaged or was written by a faulty tool: get it again, then "
                f"sparsedelta validate {damaged}",
            )


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
