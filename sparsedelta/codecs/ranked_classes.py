"""Classes of ``ranked``: the elements of a block whose base word has an exponent of a range.

No element is ever moved: each class is one comparison and one list of positions. Where many ranges
lie low, among few elements, these are listed once and compared by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.ranked_select import positions, ranks_of
from sparsedelta.words import Bytes, Indices, Words

EXPONENTS: Final = {"BF16": (7, 255), "F16": (10, 31)}
"""Of a dtype: bits below the exponent in a word, and the greatest exponent."""

_SAMPLED: Final = 1 << 12
_LIGHT_SHARE: Final = 4
"""Ranges are compared by themselves if at most one element in so many lies up to them."""

_SCANS_SAVED: Final = 2


class Range(NamedTuple):
    """Exponents ``low`` to ``high``, both included."""

    low: int
    high: int


def exponents(words: Words, dtype: str) -> Bytes:
    """The exponent field of each word, uint8.

    Args:
        words: Words of 16 bits.
        dtype: ``BF16`` or ``F16``.
    """
    shift, top = EXPONENTS[dtype]
    fields = (words >> words.dtype.type(shift)).astype(np.uint8)
    return fields if top == np.iinfo(np.uint8).max else fields & np.uint8(top)


class Members(NamedTuple):
    """The elements of a range.

    Attributes:
        number: Number of the range.
        mask: Marks them, among the elements of ``where``.
        where: Positions among which they are; None: all.
    """

    number: int
    mask: NDArray[np.bool_]
    where: Indices | None

    @property
    def size(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask))

    def positions(self, ranks: Indices) -> Indices:
        """Positions of those with some ranks, ascending and below ``size``."""
        found = positions(self.mask, ranks)
        return found if self.where is None else self.where[found]

    def ranks(self, found: Indices) -> Indices:
        """Ranks of those at some positions, ascending."""
        inner = found if self.where is None else np.searchsorted(self.where, found)
        return ranks_of(self.mask, inner)


def members(fields: Bytes, ranges: Sequence[Range]) -> Iterator[Members]:
    """The elements of each range, in any order of ranges.

    Args:
        fields: Exponents.
        ranges: Ascending and disjoint.
    """
    yield from _members(fields, list(enumerate(ranges)), None)


def _members(
    fields: Bytes, ranges: list[tuple[int, Range]], where: Indices | None
) -> Iterator[Members]:
    light = _light(fields, ranges)
    if light:
        found = np.flatnonzero(fields <= np.uint8(ranges[light - 1][1].high))
        inner = found if where is None else where[found]
        yield from _members(fields[found], ranges[:light], inner)
    for number, each in ranges[light:]:
        yield Members(number, holds(fields, each), where)


def _light(fields: Bytes, ranges: list[tuple[int, Range]]) -> int:
    """How many ranges, from the lowest on, are to be compared by themselves."""
    if len(ranges) <= _SCANS_SAVED or fields.size < _SAMPLED:
        return 0
    sample = np.sort(fields[:: fields.size // _SAMPLED])
    edge = sample[sample.size // _LIGHT_SHARE]
    light = sum(each.high < edge for _, each in ranges)
    return light if light > _SCANS_SAVED else 0


def holds(fields: Bytes, each: Range) -> NDArray[np.bool_]:
    """Whether each exponent lies in a range."""
    low = np.uint8(each.low)
    found: NDArray[np.bool_]
    if each.low == each.high:
        found = fields == low
    elif not each.low:
        found = fields <= np.uint8(each.high)
    else:
        found = (fields - low) <= np.uint8(each.high - each.low)  # wraps around below the range
    return found
