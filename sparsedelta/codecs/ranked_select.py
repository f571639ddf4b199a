"""Ranks in sets of positions, and back: the sets are bits, and only those that are asked are found.

All sets of a block are looked up together: per set there is one comparison and one packing of bits,
whatever the number of ranks. 64 bits are counted at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from sparsedelta.codecs.ranked_classes import Range, holds
from sparsedelta.words import Bytes, Indices

_U64: Final = np.uint64
_ONES: Final = _U64(0x0101010101010101)
_TOPS: Final = _U64(0x8080808080808080)
_EIGHT: Final = _U64(8)
_BYTE: Final = _U64(255)
_THREE: Final = np.uint8(3)
_EIGHT_WAYS: Final = _U64(3)

_WORD_LOG2: Final = 6
_WORD_BITS: Final = 1 << _WORD_LOG2

_LISTING: Final = 23
_LOOKING: Final = 82
"""What it takes to list an element of a rare set, and to look a rank up in bits; passing over an
element of another set is one."""

_LOOKED_UP_FROM: Final = 4
"""From one rank to so many words on, it is faster to list the word of every element."""

GROUP_BITS: Final = 1 << 25
"""Sets are looked up together up to so many bits."""

_NTH: Final = np.array(
    [([n for n in range(8) if byte >> n & 1] + 8 * [0])[:8] for byte in range(256)], np.int64
).reshape(-1)
"""Position of the n-th 1 bit of a byte, at ``8 * byte + n``."""


class BitSets:
    """The elements of some ranges of exponents, as bits.

    Args:
        fields: Exponents, uint8 ``[elements]``, at least one.
        ranges: Disjoint ranges.

    Attributes:
        sizes: How many elements each range has.
    """

    def __init__(self, fields: Bytes, ranges: Sequence[Range]) -> None:
        row = -(-fields.size // _WORD_BITS)
        bits = np.empty((len(ranges), row * 8), np.uint8)
        bits[:, -8:] = 0
        mask = np.empty(fields.size, np.bool_)
        for into, each in zip(bits, ranges, strict=True):
            packed = np.packbits(holds(fields, each, mask), bitorder="little")
            into[: packed.size] = packed
        self._row = row
        self._words = bits.reshape(-1).view("<u8")
        # Elements before each word, those of all ranges before included; in the end all of them.
        self._counts = np.bitwise_count(self._words)
        self._before = np.empty(self._words.size + 1, np.int64)
        self._before[0] = 0
        np.cumsum(self._counts, dtype=np.int64, out=self._before[1:])
        stops = self._before[row::row].tolist()
        self._starts = [0, *stops[:-1]]
        self.sizes = [stop - start for start, stop in zip(self._starts, stops, strict=True)]

    def positions(self, ranks: Indices, counts: Sequence[int]) -> Indices:
        """Where the elements with some ranks are.

        Args:
            ranks: int64, range by range, ascending within each, below its size.
            counts: How many there are of each range.
        """
        wanted = ranks
        if len(counts) > 1:
            wanted = ranks + np.repeat(self._starts, counts)
        at = self._words_of(wanted)
        word = self._words[at]
        left = (wanted - self._before[at]).view(_U64)
        # In each byte of `sums` the bits up to it, and is that at most `left`?
        sums = np.bitwise_count(word.view(np.uint8)).view(_U64)
        sums *= _ONES
        behind = left * _ONES
        behind |= _TOPS
        behind -= sums
        behind &= _TOPS
        shift = (np.bitwise_count(behind) << _THREE).astype(_U64)
        sums <<= _EIGHT
        sums >>= shift
        sums &= _BYTE
        left -= sums
        word >>= shift
        word &= _BYTE
        word <<= _EIGHT_WAYS
        word |= left
        found = at << _WORD_LOG2
        found += shift.view(np.int64)
        found += _NTH[word.view(np.int64)]
        if len(counts) > 1:
            found -= np.repeat(np.arange(len(counts)) * (self._row * _WORD_BITS), counts)
        return found

    def _words_of(self, wanted: Indices) -> Indices:
        """The words in which the elements with some ranks among those of all ranges lie."""
        if wanted.size * _LOOKED_UP_FROM < self._words.size:
            return np.searchsorted(self._before[1:], wanted, "right")
        return np.repeat(np.arange(self._words.size), self._counts).take(wanted)

    def ranks(self, positions: Indices, counts: Sequence[int]) -> Indices:
        """Ranks of some elements.

        Args:
            positions: int64, range by range, each an element of its range.
            counts: How many there are of each range.
        """
        at = positions >> _WORD_LOG2
        at += np.repeat(np.arange(len(counts)) * self._row, counts)
        above = self._words[at]
        above >>= (positions & (_WORD_BITS - 1)).view(_U64)  # the element itself is the lowest left
        found: Indices = self._before[1:][at]
        found -= np.bitwise_count(above)
        found -= np.repeat(self._starts, counts)
        return found


class Listed:
    """The elements of one range, listed; used as :class:`BitSets` of that range.

    Args:
        fields: Exponents.
        each: The range.
    """

    def __init__(self, fields: Bytes, each: Range) -> None:
        self._positions = np.flatnonzero(holds(fields, each))
        self.sizes = [self._positions.size]

    def positions(self, ranks: Indices, counts: Sequence[int]) -> Indices:  # noqa: ARG002 (as BitSets)
        """Where the elements with some ranks are."""
        return self._positions.take(ranks)


class Group(NamedTuple):
    """Neighbouring ranges that are looked up together.

    Attributes:
        ranges: Which.
        is_listed: Whether it is one range, whose elements are to be listed.
    """

    ranges: slice
    is_listed: bool

    def of(self, fields: Bytes, ranges: Sequence[Range]) -> BitSets | Listed:
        """The elements of its ranges.

        Args:
            fields: Exponents.
            ranges: All ranges.
        """
        own = ranges[self.ranges]
        return Listed(fields, *own) if self.is_listed else BitSets(fields, own)


def groups(
    elements: int, counts: Sequence[int], sizes: Sequence[int] | None = None
) -> Iterator[Group]:
    """Which neighbouring ranges to look up together: as many as have few bits.

    Args:
        elements: Elements that they are of.
        counts: Ranks that are asked of each range.
        sizes: About how many elements each range has. A range of which much is asked goes by
            itself, and is listed; without sizes none is.
    """
    most = max(GROUP_BITS // elements, 1)
    start = 0
    for stop, count in enumerate(counts):
        # numpy lists few elements one by one, and many at the pace of those between them.
        is_listed = sizes is not None and min(_LISTING * sizes[stop], elements) < _LOOKING * count
        if stop > start and (is_listed or stop - start == most):
            yield Group(slice(start, stop), is_listed=False)
            start = stop
        if is_listed:
            yield Group(slice(start, stop + 1), is_listed=True)
            start = stop + 1
    if start < len(counts):
        yield Group(slice(start, len(counts)), is_listed=False)
