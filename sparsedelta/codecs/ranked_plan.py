"""Which classes a block of ``ranked`` is divided into, and how each of them is written.

Any division decodes; this one is near the smallest. Integers only: every machine decides alike.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.entropy import FRACTION, entropies, weighed_logarithms
from sparsedelta.codecs.ranked_classes import Range
from sparsedelta.codecs.ranked_layout import FLAT, GAPS, MASK
from sparsedelta.codecs.ranked_values import WIDTHS
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
_ITEM_BITS: Final = 4
"""What the high byte of an escaped magnitude takes, about."""

_CODED: Final = 320
"""Bits that a compressed stream takes beside its symbols, about: header and code."""


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
    wanted = min(max(total // 6, 512), max(total // 120, 4096))
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
    size = counts.size * _KINDS
    histograms = [
        np.bincount(rows + part, minlength=size).reshape(-1, _KINDS)
        for part in (np.minimum(found, _KINDS - 1), *words)
    ]
    # Sums up to each magnitude, from which those of every width follow.
    numbers, weighed = (
        np.concatenate([np.zeros((counts.size, 1), np.int64), np.cumsum(each, axis=1)], axis=1)
        for each in (histograms[0], weighed_logarithms(histograms[0]))
    )
    costs = []
    for width in WIDTHS:
        top = (1 << width) - 1
        items = counts - numbers[:, top]
        escaped = weighed_logarithms(items) - (weighed[:, -1] - weighed[:, top])
        bits = counts + _coded(escaped, items, 2) + items * _ITEM_BITS
        if width:
            symbols = weighed_logarithms(counts) - weighed[:, top] - weighed_logarithms(items)
            bits += _coded(symbols, counts, 8 // width)
        costs.append(bits)
    costs.append(sum(_coded(entropies(each), counts, 1) for each in histograms[1:]))
    cheapest: Indices = np.argmin(costs, axis=0)
    return cheapest


def _coded(entropy: Indices, counts: Indices, symbols_a_byte: int) -> Indices:
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
