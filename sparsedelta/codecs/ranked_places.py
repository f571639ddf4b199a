"""Where the entries of blocks of ``ranked`` are: from ranks in classes of the base to positions.

The elements of a block are gone through in spans. Classes of which much is asked are listed; others
become bits, in which ranks are looked up for all blocks together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.ranked_classes import Range, exponents, holds
from sparsedelta.codecs.ranked_select import GROUP_BITS, SPAN, BitSets
from sparsedelta.words import Indices, Words

BASE_RULE: Final = "SD418"
"""What of a block needs its base words."""

_LISTING: Final = 23
_LOOKING: Final = 82
"""What it takes to list an element of a rare set, and to look a rank up in bits; passing over an
element of another set is one."""


class ElementSet(NamedTuple):
    """The elements of a block whose exponents lie in a range, and what is asked of them.

    Attributes:
        range: The range.
        own: Which of all ranks are asked of this set: ascending, at least one.
        last: The greatest of them.
        mask_bytes: Length of the bitmask over the set that they were read from, or 0.
    """

    range: Range
    own: slice
    last: int
    mask_bytes: int = 0

    @property
    def asked(self) -> int:
        """Number of ranks that are asked."""
        return int(self.own.stop - self.own.start)

    def is_listed(self, elements: int) -> bool:
        """Whether it takes less to list it than to look for what is asked, among so many elements.

        numpy lists few elements one by one, and many at the pace of those between them.
        """
        return min(_LISTING * (self.last + 1), elements) < _LOOKING * self.asked

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


class Elements(NamedTuple):
    """The elements of a block.

    Attributes:
        words: Their base words, at least one.
        dtype: Their dtype.
        sets: What is asked of them.
    """

    words: Words
    dtype: str
    sets: Sequence[ElementSet]


class _Scan(NamedTuple):
    """A pass over the elements of a block: sets to list, and sets to be made bits."""

    elements: Elements
    listed: list[ElementSet]
    as_bits: list[ElementSet]


def positions(blocks: Sequence[Elements], ranks: Indices) -> Indices:
    """Positions of what has some ranks, among the elements of its block.

    Args:
        blocks: The blocks.
        ranks: int64, those of all sets; others stay what they are.

    Raises:
        StreamError: SD418: a set has fewer elements, or another number than its bitmask bits.
    """
    found = ranks.copy()
    for scans in _groups(blocks):
        bits = BitSets([scan.elements.words.size for scan in scans for _ in scan.as_bits])
        looked_up: list[ElementSet] = []
        for scan in scans:
            _go_through(scan, bits, len(looked_up), ranks, found)
            looked_up += scan.as_bits
        if looked_up:
            _look_up(looked_up, bits, ranks, found)
    return found


def _go_through(scan: _Scan, bits: BitSets, first: int, ranks: Indices, found: Indices) -> None:
    """Find what is asked of listed sets, and make bits of the others.

    Args:
        scan: The elements and the sets.
        bits: Bits of all sets that are looked up.
        first: Number of the first set of this scan among them.
        ranks: All ranks.
        found: Where to write positions.
    """
    words, dtype, _ = scan.elements
    most = min(SPAN, words.size)
    fields, mask = np.empty(most, np.uint8), np.empty(most, np.bool_)
    seen = [0] * len(scan.listed)
    for start in range(0, words.size, SPAN):
        part = words[start : start + SPAN]
        own, marks = exponents(part, dtype, fields[: part.size]), mask[: part.size]
        for number, each in enumerate(scan.listed):
            members: Indices = holds(own, each.range, marks).nonzero()[0]
            at, asked = _asked(each, ranks, seen[number], members.size)
            into = found[at : at + asked.size]
            members.take(asked, out=into, mode="clip")  # none is out of range, or check tells
            if start:
                into += start
            seen[number] += members.size
        for number, each in enumerate(scan.as_bits, first):
            bits.put(number, start, holds(own, each.range, marks))
    for each, size in zip(scan.listed, seen, strict=True):
        each.check(size)


def _look_up(sets: Sequence[ElementSet], bits: BitSets, ranks: Indices, found: Indices) -> None:
    """Find what is asked of sets that have become bits."""
    for each, size in zip(sets, bits.count(), strict=True):
        each.check(size)
    counts = [each.asked for each in sets]
    places = bits.positions(np.concatenate([ranks[each.own] for each in sets]), counts)
    for each, stop in zip(sets, accumulate(counts), strict=True):
        found[each.own] = places[stop - each.asked : stop]


def _asked(each: ElementSet, ranks: Indices, seen: int, size: int) -> tuple[int, Indices]:
    """What is asked of a set within a span.

    Args:
        each: The set.
        ranks: All ranks.
        seen: How many elements of the set lie before the span.
        size: How many lie in it.

    Returns:
        Which rank is the first, and those within the span, of the elements in it.
    """
    own = ranks[each.own]
    if not seen and each.last < size:
        return each.own.start, own
    first, stop = own.searchsorted([seen, seen + size]).tolist()
    return each.own.start + first, own[first:stop] - seen


def _groups(blocks: Sequence[Elements]) -> Iterator[list[_Scan]]:
    """Passes that are made together: sets with as many bits as there may be at a time."""
    group: list[_Scan] = []
    bits = 0
    for block in blocks:
        elements = block.words.size
        listed: list[ElementSet] = []
        as_bits: list[ElementSet] = []
        for each in block.sets:
            (listed if each.is_listed(elements) else as_bits).append(each)
        step = max(GROUP_BITS // elements, 1)
        parts = [as_bits[at : at + step] for at in range(0, len(as_bits), step)] or [[]]
        for part in parts:
            if group and bits + len(part) * elements > GROUP_BITS:
                yield group
                group, bits = [], 0
            group.append(_Scan(block, listed, part))
            listed = []
            bits += len(part) * elements
    if group:
        yield group
