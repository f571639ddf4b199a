"""How each tensor of a result is made from tensors of the checkpoint at hand.

A record is an arrow from base to target; apply follows it, revert goes the other way. Both become
the same kind of work: read a source tensor and verify it, change it, append what is carried, verify
the result. A tensor that goes is only verified; one that comes new has no source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparsedelta.delta import RESIZE
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, segment_count, segment_digest
from sparsedelta.errors import VerificationError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.operations.hops import Hop, HopStep, apply_hops
from sparsedelta.records import TensorRecord
from sparsedelta.words import Bytes, TensorSpec


class DiffersError(Exception):
    """A tensor of the checkpoint is not the one that the delta starts from."""


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

    def given(self, depth: int) -> int:
        """How many words the hop of a number starts from."""
        if depth:
            return self.hops[depth - 1].result.words
        return 0 if self.source is None else self.source.words

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


class ReadRun(NamedTuple):
    """A run of words of an arrow's source, read.

    Attributes:
        arrow: The arrow.
        start: First word of the run, as :meth:`Arrow.spans` gives it.
        stop: Word behind its last.
        data: The source's bytes of the run, fewer where the source ends.
    """

    arrow: Arrow
    start: int
    stop: int
    data: Bytes


def follow(runs: Sequence[ReadRun]) -> list[Bytes]:
    """Make runs of results out of runs of their sources.

    Those of a batch go along together, delta by delta: all of them are compared with what the
    deltas start from before a block of any is decoded on top of it.

    Args:
        runs: The runs, of memory of their own, which is changed in place.

    Returns:
        Of each run the result's bytes; none where the result ends before it.

    Raises:
        DiffersError: A segment of a source has another digest.
        VerificationError: A segment of a result has another digest (SD502).
        FormatError: A block breaks a rule.
        NotFiniteError: SD505.
        Exception: Of several runs any may be the one that fails, and its memory has changed:
            :func:`~sparsedelta.batches.together` reads them again to find the first that does.
    """
    for arrow, start, _, data in runs:
        check_source(arrow, start, data)
    made = [data[:0] if arrow.result is None else data for arrow, _, _, data in runs]
    going = [
        number
        for number, (arrow, start, stop, _) in enumerate(runs)
        if arrow.result is not None and not arrow.is_unchanged(start, stop)
    ]
    for depth in range(max((len(runs[number].arrow.hops) for number in going), default=0)):
        steps = {}
        for number in going:
            arrow, start, stop, _ = runs[number]
            if depth < len(arrow.hops):
                hop = arrow.hops[depth]
                if depth and hop.needs_base:  # what decodes it is what the deltas before it made
                    _check_made(arrow.hops[:depth], hop.before, start, made[number])
                steps[number] = HopStep(hop, arrow.given(depth), start, stop, made[number])
        for number, data in zip(steps, apply_hops(list(steps.values())), strict=True):
            made[number] = data
    for number in going:
        arrow = runs[number].arrow
        _check_made(arrow.hops, arrow.after, runs[number].start, made[number])
    return made


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
