"""Ranks in sets of positions, and back: the sets are bits, and only those that are asked are found.

All sets of some blocks are looked up together: per set there is one comparison and one packing of
bits, whatever the number of ranks. 64 bits are counted at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

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

SPAN: Final = 1 << 20
"""Elements are compared so many at a time: what is made of them takes some memory and cache."""

GROUP_BITS: Final = 1 << 25
"""Sets are looked up together up to so many bits."""

_NTH: Final = np.array(
    [([n for n in range(8) if byte >> n & 1] + 8 * [0])[:8] for byte in range(256)], np.int64
).reshape(-1)
"""Position of the n-th 1 bit of a byte, at ``8 * byte + n``."""


class BitSets:
    """Some sets of positions, as bits: each begins with a word of its own.

    Args:
        sizes: For each set the number of positions that it is a set of, at least 1.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        rows = [-(-size // _WORD_BITS) for size in sizes]
        self._rows = list(accumulate(rows, initial=0))
        self._bits = np.empty(self._rows[-1] * 8, np.uint8)
        for stop in self._rows[1:]:
            self._bits[8 * stop - 8 : 8 * stop] = 0

    def put(self, number: int, start: int, marks: NDArray[np.bool_]) -> None:
        """Say which of some positions are in a set.

        Args:
            number: Number of the set.
            start: The first position, a multiple of 64.
            marks: Whether each is in it. Every position is told once.
        """
        packed = np.packbits(marks, bitorder="little")
        at = self._rows[number] * 8 + start // 8
        self._bits[at : at + packed.size] = packed

    def count(self) -> list[int]:
        """How many positions are in each set; to be called when all have been told."""
        self._words = self._bits.view("<u8")
        # Those before each word, of all sets before included; in the end all of them.
        self._before = np.empty(self._words.size + 1, np.int64)
        self._before[0] = 0
        sums = self._before[1:]
        sums[:] = np.bitwise_count(self._words)
        np.cumsum(sums, out=sums)  # casting and summing in one keeps the interpreter lock
        self._starts = self._before[np.array(self._rows)].tolist()
        stops = self._starts[1:]
        return [stop - start for start, stop in zip(self._starts, stops, strict=False)]

    def positions(self, ranks: Indices, counts: Sequence[int]) -> Indices:
        """Where the elements with some ranks are.

        Args:
            ranks: int64, set by set, ascending within each, below its size; used up.
            counts: How many there are of each set.
        """
        add_to_each(ranks, self._starts, counts)
        at = np.searchsorted(self._before[1:], ranks, "right")
        word = self._words[at]
        ranks -= self._before[at]
        left = ranks.view(_U64)
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
        add_to_each(found, [-(row << _WORD_LOG2) for row in self._rows], counts)
        return found

    def ranks(self, positions: Indices, counts: Sequence[int]) -> Indices:
        """Ranks of some elements.

        Args:
            positions: int64, set by set, each an element of its set.
            counts: How many there are of each set.
        """
        at = positions >> _WORD_LOG2
        add_to_each(at, self._rows, counts)
        above = self._words[at]
        above >>= (positions & (_WORD_BITS - 1)).view(_U64)  # the element itself is the lowest left
        found: Indices = self._before[1:][at]
        found -= np.bitwise_count(above)
        add_to_each(found, [-start for start in self._starts], counts)
        return found


def add_to_each(numbers: Indices, amounts: Sequence[int], counts: Sequence[int]) -> None:
    """Add to each of some runs of numbers an amount of its own, in place.

    Args:
        numbers: int64, run by run.
        amounts: What to add to each run.
        counts: Lengths of the runs.
    """
    start = 0
    for amount, count in zip(amounts, counts, strict=False):
        if amount:
            numbers[start : start + count] += amount
        start += count


def sets_of(fields: Bytes, ranges: Sequence[Range]) -> BitSets:
    """The elements whose exponents lie in each of some ranges.

    Args:
        fields: Exponents, uint8 ``[elements]``, at least one.
        ranges: The ranges, at least one.
    """
    sets = BitSets([fields.size] * len(ranges))
    mask = np.empty(min(fields.size, SPAN), np.bool_)
    for start in range(0, fields.size, SPAN):
        part = fields[start : start + SPAN]
        for number, each in enumerate(ranges):
            sets.put(number, start, holds(part, each, mask[: part.size]))
    return sets
