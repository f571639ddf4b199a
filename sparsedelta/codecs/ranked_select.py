"""Ranks in sets of positions, and back: the sets are bits, and only those that are asked are found.

All sets of some blocks are looked up together: per set there is one comparison and one packing of
bits, whatever the number of ranks. 64 bits are counted at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.ranked_classes import Range, holds
from sparsedelta.words import Bytes, Indices

BASE_RULE: Final = "SD418"
"""What of a block needs its base words."""

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

GROUP_BITS: Final = 1 << 25
"""Sets are looked up together up to so many bits."""

_NTH: Final = np.array(
    [([n for n in range(8) if byte >> n & 1] + 8 * [0])[:8] for byte in range(256)], np.int64
).reshape(-1)
"""Position of the n-th 1 bit of a byte, at ``8 * byte + n``."""


@dataclass(frozen=True, slots=True)
class ElementSet:
    """The elements of a block whose exponents lie in a range, and what is asked of them.

    Attributes:
        fields: Exponents of all elements of the block, uint8, at least one.
        range: The range.
        own: Which of all ranks are asked of this set: ascending, at least one.
        last: The greatest of them.
        mask_bytes: Length of the bitmask over the set that they were read from, or 0.
    """

    fields: Bytes
    range: Range
    own: slice
    last: int
    mask_bytes: int = 0

    @property
    def count(self) -> int:
        """Number of ranks that are asked."""
        return int(self.own.stop - self.own.start)

    @property
    def is_listed(self) -> bool:
        """Whether it takes less to list the elements than to look for those that are asked.

        numpy lists few elements one by one, and many at the pace of those between them.
        """
        return min(_LISTING * (self.last + 1), self.fields.size) < _LOOKING * self.count

    def check(self, size: int) -> None:
        """Compare what is asked with the number of elements.

        Raises:
            StreamError: SD418.
        """
        if self.mask_bytes and self.mask_bytes != -(-size // 8):
            raise StreamError(
                BASE_RULE, f"a bitmask of {8 * self.mask_bytes} bits over {size} elements"
            )
        if self.last >= size:
            raise StreamError(BASE_RULE, f"rank {self.last} in a class of {size}")


def positions(sets: Sequence[ElementSet], ranks: Indices) -> Indices:
    """Where the elements with some ranks are, in the block of their set.

    Args:
        sets: The sets.
        ranks: int64, those of all sets; others stay what they are.

    Raises:
        StreamError: SD418: a set has fewer elements.
    """
    found = ranks.copy()
    mask = np.empty(max((each.fields.size for each in sets), default=0), np.bool_)
    looked_up = []
    for each in sets:
        if not each.is_listed:
            looked_up.append(each)
            continue
        elements = holds(each.fields, each.range, mask[: each.fields.size]).nonzero()[0]
        each.check(elements.size)
        elements.take(ranks[each.own], out=found[each.own], mode="clip")  # none is out of range
    for group in _groups(looked_up):
        bits = BitSets([(each.fields, each.range) for each in group])
        for each, size in zip(group, bits.sizes, strict=True):
            each.check(size)
        counts = [each.count for each in group]
        wanted = [ranks[each.own] for each in group]
        places = bits.positions(np.concatenate(wanted), counts)
        for each, stop in zip(group, accumulate(counts), strict=True):
            found[each.own] = places[stop - each.count : stop]
    return found


def _groups(sets: Sequence[ElementSet]) -> Iterator[list[ElementSet]]:
    """Sets that are looked up together: as many as have few bits."""
    group: list[ElementSet] = []
    bits = 0
    for each in sets:
        if group and bits + each.fields.size > GROUP_BITS:
            yield group
            group, bits = [], 0
        group.append(each)
        bits += each.fields.size
    if group:
        yield group


class BitSets:
    """Some sets of elements, as bits: each begins with a word of its own.

    Args:
        sets: Exponents, uint8 ``[elements]``, at least one, and the range of those of the set.

    Attributes:
        sizes: How many elements each set has.
    """

    def __init__(self, sets: Sequence[tuple[Bytes, Range]]) -> None:
        rows = [-(-fields.size // _WORD_BITS) for fields, _ in sets]
        self._rows = list(accumulate(rows, initial=0))
        bits = np.empty(self._rows[-1] * 8, np.uint8)
        mask = np.empty(max(fields.size for fields, _ in sets), np.bool_)
        for (fields, each), start, stop in zip(sets, self._rows, self._rows[1:], strict=False):
            packed = np.packbits(holds(fields, each, mask[: fields.size]), bitorder="little")
            bits[8 * stop - 8 : 8 * stop] = 0
            bits[8 * start : 8 * start + packed.size] = packed
        self._words = bits.view("<u8")
        # Elements before each word, those of all sets before included; in the end all of them.
        self._before = np.empty(self._words.size + 1, np.int64)
        self._before[0] = 0
        sums = self._before[1:]
        sums[:] = np.bitwise_count(
            self._words
        )  # to cast and to sum in one step would keep the interpreter lock
        np.cumsum(sums, out=sums)
        self._starts = self._before[np.array(self._rows)].tolist()
        stops = self._starts[1:]
        self.sizes = [stop - start for start, stop in zip(self._starts, stops, strict=False)]

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
