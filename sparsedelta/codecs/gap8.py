"""``gap8``: COO indices as gaps in bytes (spec/codecs/gap8.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Final

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.words import Bytes, Indices, Words

ESCAPE: Final = 255


@dataclass(frozen=True, slots=True)
class Gap8:
    """A gap g is ``g // 255`` bytes of 255 and one byte ``g % 255``."""

    id: ClassVar[str] = "gap8"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD403"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: GAPS."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """At least a byte per entry, and at most one byte of 255 per 255 words more."""
        return [Bounds(counts, counts + words // ESCAPE)]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Gaps of ascending indices; the first counts from -1."""
        return [write_gaps(gaps_of(indices))]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """Indices by one cumulative sum; ascending by construction."""
        (stream,) = streams
        indices = read_sums(stream, count, self.rule) + np.arange(count)
        check_last(indices, block, self.rule)
        return indices


def gaps_of(indices: Indices) -> Indices:
    """Words between each index and the one before it; the first counts from -1.

    Args:
        indices: int64 ``[count]``, strictly ascending.
    """
    return np.diff(indices, prepend=-1) - 1


def write_gaps(gaps: Indices) -> Bytes:
    """Each gap g as ``g // 255`` bytes of 255 and one byte ``g % 255``.

    Args:
        gaps: int64 ``[count]``, 0 or more.
    """
    if not gaps.size or int(gaps.max()) < ESCAPE:
        return gaps.astype(np.uint8)
    escapes, rest = np.divmod(gaps, ESCAPE)
    ends = np.cumsum(escapes + 1)
    stream = np.full(int(ends[-1]), ESCAPE, np.uint8)
    stream[ends - 1] = rest
    return stream


def running_sums(numbers: Words) -> Indices:
    """Sums of the first 1, 2, ... of some numbers, int64.

    numpy keeps the interpreter lock where it casts and sums in one step.
    """
    sums = numbers.astype(np.int64)
    return np.cumsum(sums, out=sums)


def read_sums(stream: Bytes, count: int, rule: str) -> Indices:
    """Sums of the first 1, 2, ... gaps of a stream of :func:`write_gaps`, int64 ``[count]``.

    Raises:
        StreamError: The stream holds another number of gaps, or ends inside one.
    """
    ends = np.flatnonzero(stream != ESCAPE)
    if ends.size != count:
        raise StreamError(rule, f"{count} gaps expected, {ends.size} found")
    if stream.size and stream[-1] == ESCAPE:
        raise StreamError(rule, "the stream ends inside a gap")
    return running_sums(stream)[ends]


def read_gaps(streams: Sequence[Bytes], counts: Sequence[int], rule: str) -> Indices:
    """Ascending numbers of several streams of :func:`write_gaps`, each counted from -1.

    Args:
        streams: At least one.
        counts: Numbers of each, at least 1.
        rule: Rule that a stream may break.

    Returns:
        int64, stream by stream.

    Raises:
        StreamError: A stream holds another number of gaps, or ends inside one.
    """
    stream = streams[0] if len(streams) == 1 else np.concatenate(streams)
    sums = running_sums(stream)
    ends = list(accumulate(counts))
    lengths = list(accumulate(each.size for each in streams))
    if lengths != ends or int(stream.max()) == ESCAPE:
        where = np.flatnonzero(stream != ESCAPE)
        # If each stream's last byte ends the last of its gaps, all of them have their number.
        if where.size != ends[-1] or where[np.array(ends) - 1].tolist() != [n - 1 for n in lengths]:
            for each, count in zip(streams, counts, strict=True):
                read_sums(each, count, rule)
        sums = sums[where]
    sums += np.arange(sums.size)
    before = [int(sums[end - 1]) + 1 for end in ends[:-1]]
    for start, stop, number in zip(ends, ends[1:], before, strict=False):
        sums[start:stop] -= number
    return sums


def check_last(indices: Indices, block: Block, rule: str) -> None:
    """The last of ascending indices lies inside its block; raises StreamError."""
    if indices.size and indices[-1] >= block.words:
        raise StreamError(
            rule, f"index {indices[-1]} lies outside its block of {block.words} words"
        )
