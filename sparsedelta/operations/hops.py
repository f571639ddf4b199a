"""What deltas do to the words of tensors, to those of many runs at a time: the hops of arrows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.container import BlockRequest
from sparsedelta.delta import Part
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import apply_parts, check_disjoint
from sparsedelta.words import Bytes, Indices, TensorSpec, Words, as_words, word_dtype


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

    def resized(self, given: int, start: int, stop: int, data: Bytes) -> Bytes:
        """A run as far as the result has it: cut off, or with the words behind that are carried.

        Args:
            given: Words of the source.
            start: First word of the run.
            stop: Word behind its last.
            data: The source's bytes of the run, fewer where the source ends.
        """
        stop = min(stop, self.result.words)
        wanted = max(0, stop - start) * self.result.word_bytes
        if data.size >= wanted:
            return data[:wanted]
        return np.concatenate([data, self.carried_words(given, start, stop).view(np.uint8)])

    def blocks(self, part: PartRecord, start: int, stop: int) -> range:
        """Numbers of the blocks of a part within a run of whole blocks."""
        stop = min(stop, self.domain)
        if start >= stop:
            return range(0)
        return range(start >> part.block_log2, ((stop - 1) >> part.block_log2) + 1)


class HopRun(NamedTuple):
    """A run of whole blocks that a hop is taken with.

    Attributes:
        hop: The hop.
        start: First word of the run.
        stop: Word behind its last.
        words: The words that the parts are applied to, from ``start`` on, for codecs that are
            decoded with the base words at hand.
    """

    hop: Hop
    start: int
    stop: int
    words: Words | None = None

    def requests(self) -> Iterator[BlockRequest]:
        """The blocks of the run, part by part."""
        hop, start, stop, words = self
        # On the way back the words at hand are the target's: they cannot stand in for the base.
        known = None if hop.reverse or words is None else words[: hop.domain - start]
        for number, part in hop.parts:
            for block in hop.blocks(part, start, stop):
                first = (block << part.block_log2) - start
                base = None if known is None else known[first : first + (1 << part.block_log2)]
                yield BlockRequest(hop.record, number, block, base)

    def joined(self, decoded: Iterator[tuple[Indices, Words]]) -> list[Part]:
        """The parts of the run.

        Args:
            decoded: The entries of its blocks, in the order of :meth:`requests`.

        Raises:
            FormatError: Two parts hold an index (SD409).
        """
        hop = self.hop
        parts = []
        for number, described in hop.parts:
            found: list[Indices] = []
            values: list[Words] = []
            for block in hop.blocks(described, self.start, self.stop):
                indices, words = next(decoded)
                found.append(indices + (block << described.block_log2))
                values.append(words)
            parts.append(
                Part(
                    described.op,
                    _joined(found, np.dtype(np.int64)),
                    _joined(values, word_dtype(hop.record.word_bytes(number))),
                    None,
                    described.dtype,
                    described.scale,
                )
            )
        if len(parts) > 1:
            check_disjoint(
                hop.reader.path,
                hop.record.name,
                [part.indices for part in parts if part.indices is not None],
            )
        return parts


def entries_of(runs: Sequence[HopRun], *, any_order: bool = False) -> Iterator[list[Part]]:
    """The sparse parts within runs, as they are stored, of flat indices.

    Args:
        runs: The runs; the words of one must not be changed before its parts are given.
        any_order: Whether entries may come in any order, if that is faster.

    Yields:
        The parts of each run.

    Raises:
        FormatError: A block breaks a rule, or two parts of a run hold an index (SD409).
    """
    wanted: dict[DeltaReader, list[BlockRequest]] = {}
    for run in runs:
        wanted.setdefault(run.hop.reader, []).extend(run.requests())
    decoded = {
        reader: iter(reader.read_blocks(requests, any_order=any_order))
        for reader, requests in wanted.items()
    }
    for run in runs:
        yield run.joined(decoded[run.hop.reader])


class HopStep(NamedTuple):
    """A run of words that a hop leads on.

    Attributes:
        hop: The hop.
        given: Words of the tensor before it.
        start: First word of the run.
        stop: Word behind its last.
        data: Bytes of the run before it, fewer where the tensor ends; changed in place.
    """

    hop: Hop
    given: int
    start: int
    stop: int
    data: Bytes


def apply_hops(steps: Sequence[HopStep]) -> list[Bytes]:
    """Make runs of what is behind hops out of runs of what is before them.

    Args:
        steps: A run each, of memory of its own.

    Raises:
        FormatError: A block breaks a rule.
        NotFiniteError: SD505.
    """
    made = [hop.resized(given, start, stop, data) for hop, given, start, stop, data in steps]
    runs = []
    for (hop, _, start, _, _), data in zip(steps, made, strict=True):
        if hop.changes and data.size:
            words = as_words(data, hop.result.word_bytes)
            runs.append(HopRun(hop, start, start + words.size, words))
    for run, parts in zip(runs, entries_of(runs, any_order=True), strict=True):
        assert run.words is not None  # noqa: S101 (see above)
        undone = [part.invert() for part in parts] if run.hop.reverse else parts
        apply_parts(run.hop.result, run.words, run.start, undone)
    return made


def _joined(arrays: list[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, dtype), *arrays])
