"""Which classes a block of ``ranked`` is divided into, and how each of them is written.

Any division decodes; this one is near the smallest. Integers only: every machine decides alike.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.entropy import FRACTION, entropies
from sparsedelta.codecs.ranked_classes import Range
from sparsedelta.codecs.ranked_layout import GAPS, MASK
from sparsedelta.codecs.ranked_values import NEW_WORDS, WIDTHS

_SCARCE: Final = 400
"""An exponent is left to the flat class if less than one of so many of its elements changed ..."""

_FEW: Final = 50
"""... and less than one of so many changes is among them."""

_MASK_FROM: Final = 5
"""Ranks are a bitmask if at least one of so many elements of the class changed."""

_KINDS: Final = 256
_ITEM_BITS: Final = 4
"""What the high byte of an escaped magnitude takes, about."""

_CODED: Final = 320
"""Bits that a compressed stream takes beside its symbols, about: header and code."""


class Division(NamedTuple):
    """Classes of a block.

    Attributes:
        ranges: Their exponents.
        flat: bool ``[256]``, exponents whose entries are ranked among all elements.
    """

    ranges: list[Range]
    flat: NDArray[np.bool_]


def divide(sizes: NDArray[np.int64], changes: NDArray[np.int64]) -> Division:
    """Divide exponents into classes.

    Args:
        sizes: int64 ``[256]``, elements of each exponent.
        changes: int64 ``[256]``, entries of each exponent, at least one in all.
    """
    total = int(changes.sum())
    wanted = min(max(total // 12, 96), 2048)
    flat = np.zeros(_KINDS, np.bool_)
    ranges: list[Range] = []
    low: int | None = None
    high = held = 0
    for field in np.flatnonzero(sizes).tolist():
        size, changed = int(sizes[field]), int(changes[field])
        if changed * _SCARCE < size and changed * _FEW < total:
            flat[field] = changed > 0
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
    return Division(ranges, flat)


def index_code(size: int, count: int) -> int:
    """The index code of a class of ``size`` elements with ``count`` entries."""
    return MASK if _MASK_FROM * count >= size else GAPS


def value_code(
    found: NDArray[np.uint16], words: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> int:
    """The value code of the fewest bits, by an estimate.

    Args:
        found: Magnitudes of the differences of a class.
        words: The new words of the class, split.
    """
    count = found.size
    histogram = np.bincount(np.minimum(found, _KINDS - 1), minlength=_KINDS)
    costs = []
    for width in WIDTHS:
        top = (1 << width) - 1
        symbols = np.zeros(_KINDS, np.int64)
        escaped = histogram.copy()
        escaped[:top] = 0
        symbols[:top] = histogram[:top]
        items = symbols[top] = int(escaped.sum())
        bits = _coded(escaped, items, 2) + items * _ITEM_BITS
        costs.append(bits + count + (_coded(symbols, count, 8 // width) if width else 0))
    new = [_coded(np.bincount(part, minlength=_KINDS), count, 1) for part in words]
    costs.append(sum(new))
    return min(range(NEW_WORDS + 1), key=costs.__getitem__)


def _coded(histogram: NDArray[np.int64], count: int, symbols_a_byte: int) -> int:
    """Bits of a stream of symbols: stored, or coded with no byte below one bit."""
    stored = 8 * -(-count // symbols_a_byte)
    entropy = int(entropies(histogram[None])[0]) >> FRACTION
    return min(stored, max(entropy, stored >> 3) + _CODED)


def is_worth_rows(words: int, elements: int, count: int, rows: int, live: int) -> bool:
    """Whether saying which rows are live pays.

    Args:
        words: Elements of the block.
        elements: Those in live rows.
        count: Entries.
        rows: Rows of the block.
        live: Live ones.
    """
    pairs = [[words - count, count], [elements - count, count], [rows - live, live]]
    among_all, among_live, marks = entropies(np.array(pairs, np.int64)).tolist()
    return bool(among_all > among_live + marks + (8 << FRACTION))
