"""Which classes a block of ``ranked`` is divided into, and how each of them is written.

Any division decodes; this one is near the smallest. Integers only: every machine decides alike.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.entropy import FRACTION, entropies
from sparsedelta.codecs.ranked_classes import Range
from sparsedelta.codecs.ranked_layout import FLAT, GAPS, MASK
from sparsedelta.codecs.ranked_values import NEW_WORDS, WIDTHS
from sparsedelta.words import Bytes, Indices

_SCARCE: Final = 400
"""An exponent is left to the flat class if less than one of so many of its elements changed ..."""

_FEW: Final = 50
"""... and less than one of so many changes is among them."""

_MASK_FROM: Final = 5
"""Ranks are a bitmask if at least one of so many elements of the class changed."""

_ROWS_LIVE: Final = 16
"""Rows are left out if at least one word of so many lies in them: a reader has to put the others
together, and below that there is next to nothing to gain."""

_KINDS: Final = 256
_CODED: Final = 320
"""Bits that a compressed stream takes beside its symbols, about: header and code."""


_SYMBOLS_A_BYTE: Final = 8 // np.array(WIDTHS[1:])[:, None]


class Division(NamedTuple):
    """Classes of a block.

    Attributes:
        listed: Their ranges; FLAT is the last if some entries are ranked among all elements.
        ranges: Those but FLAT.
        classes: uint8 ``[256]``, by exponent the class of its entries.
    """

    listed: list[Range]
    ranges: list[Range]
    classes: NDArray[np.uint8]


def divide(sizes: NDArray[np.int64], changes: NDArray[np.int64]) -> Division:
    """Divide exponents into classes.

    Args:
        sizes: int64 ``[256]``, elements of each exponent.
        changes: int64 ``[256]``, entries of each exponent, at least one in all.
    """
    total = int(changes.sum())
    # A byte holds the number of classes: even where all 256 exponents change there are fewer.
    wanted = min(max(total // 4, 1024), max(total // 120, 4096))
    has_flat = False
    ranges: list[Range] = []
    low: int | None = None
    high = held = 0
    for field in np.flatnonzero(sizes).tolist():
        size, changed = int(sizes[field]), int(changes[field])
        if changed * _SCARCE < size and changed * _FEW < total:
            has_flat |= changed > 0
            if low is not None:
                ranges.append(Range(low, high))
                low, held = None, 0
            continue
        low = field if low is None else low
        high = field
        held += changed
        if held >= wanted:
            ranges.append(Range(low, high))
            low, held = None, 0
    if low is not None:
        ranges.append(Range(low, high))
    classes = np.full(_KINDS, len(ranges), np.uint8)
    for number, each in enumerate(ranges):
        classes[each.low : each.high + 1] = number
    return Division([*ranges, FLAT] if has_flat else ranges, ranges, classes)


def index_code(size: int, count: int) -> int:
    """The index code of a class of ``size`` elements with ``count`` entries."""
    return MASK if _MASK_FROM * count >= size else GAPS


def value_codes(found: NDArray[np.uint16], words: tuple[Bytes, Bytes], counts: Indices) -> Indices:
    """The value codes of the fewest bits, by an estimate, int64 ``[classes]``.

    Args:
        found: Magnitudes of the differences, class by class.
        words: The new words, split.
        counts: int64 ``[classes]``, entries of each class.
    """
    rows = np.repeat(np.arange(counts.size) * _KINDS, counts)
    is_near = found < _KINDS
    near = _table(rows[is_near], found[is_near], counts)
    high = _table(rows, found >> np.uint16(8), counts)
    tables = np.empty((2 * len(WIDTHS) + 2, counts.size, _KINDS), np.int64)
    # Escapes are low and high bytes of all classes, in one stream and under one code.
    symbols, planes = tables[: len(WIDTHS)], tables[len(WIDTHS) : -2]
    symbols[:] = 0
    planes[:] = high + _table(rows[~is_near], found[~is_near] & np.uint16(255), counts)
    items = np.empty((len(WIDTHS), counts.size), np.int64)
    for number, width in enumerate(WIDTHS):
        top = (1 << width) - 1
        symbols[number, :, :top] = near[:, :top]
        items[number] = symbols[number, :, top] = counts - near[:, :top].sum(axis=1)
        planes[number, :, 0] -= counts - items[number]
        planes[number, :, top:] += near[:, top:]
    tables[-2:] = [_table(rows, part, counts) for part in words]
    bits = entropies(tables.reshape(-1, _KINDS)).reshape(-1, counts.size)
    costs = np.empty((NEW_WORDS + 1, counts.size), np.int64)
    costs[:NEW_WORDS] = counts + _coded(bits[len(WIDTHS) : -2], 2 * items, 1)
    costs[1:NEW_WORDS] += _coded(bits[1 : len(WIDTHS)], counts, _SYMBOLS_A_BYTE)
    costs[NEW_WORDS] = _coded(bits[-2:], counts, 1).sum(axis=0)
    cheapest: Indices = np.argmin(costs, axis=0)
    return cheapest


def _table(rows: Indices, symbols: NDArray[np.unsignedinteger[Any]], counts: Indices) -> Indices:
    """How often each class has each symbol, int64 ``[classes, 256]``."""
    found: Indices = np.bincount(rows + symbols, minlength=counts.size * _KINDS)
    return found.reshape(-1, _KINDS)


def _coded(entropy: Indices, counts: Indices, symbols_a_byte: Indices | int) -> Indices:
    """Bits of streams of symbols: stored, or coded with no byte below one bit."""
    stored = 8 * -(-counts // symbols_a_byte)
    bits: Indices = np.minimum(stored, np.maximum(entropy >> FRACTION, stored >> 3) + _CODED)
    return bits


def is_worth_rows(words: int, elements: int, count: int, rows: int, live: int) -> bool:
    """Whether saying which rows are live pays.

    Args:
        words: Elements of the block.
        elements: Those in live rows.
        count: Entries.
        rows: Rows of the block.
        live: Live ones.
    """
    if elements * _ROWS_LIVE > words * (_ROWS_LIVE - 1):
        return False
    pairs = [[words - count, count], [elements - count, count], [rows - live, live]]
    among_all, among_live, marks = entropies(np.array(pairs, np.int64)).tolist()
    return bool(among_all > among_live + marks + (8 << FRACTION))
