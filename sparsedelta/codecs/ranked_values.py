"""Values of ``ranked``: differences packed at a width of each class, or new words."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.ranked_numbers import RULE
from sparsedelta.words import Bytes, Indices, Words

WIDTHS: Final = (0, 1, 2, 4, 8)
"""Bits of a symbol, by value code."""

NEW_WORDS: Final = 5
"""The value code of new words."""

TOPS: Final = (*((1 << width) - 1 for width in WIDTHS), 0)
"""The symbol that is an escape, by value code."""

LARGEST: Final = (1 << 15) - 1
"""The largest magnitude."""

_U16: Final = np.dtype("<u2")
_SIGN_SHIFT: Final = np.uint16(15)
_HIGH_SHIFT: Final = np.uint16(7)
_LOW_BITS: Final = np.uint16(127)

_BYTES: Final = np.arange(256, dtype=np.uint8)
_SYMBOLS: Final = {
    width: np.stack([_BYTES >> at & ((1 << width) - 1) for at in range(0, 8, width)], axis=1)
    .view(f"u{8 // width}")
    .reshape(-1)
    for width in (2, 4)
}
"""By width the symbols of each byte, side by side."""


def magnitudes(values: Words) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """``|d| - 1`` of differences d that are not 0, and whether each is negative."""
    signs = values >> _SIGN_SHIFT
    found = (values ^ np.negative(signs)) - (np.uint16(1) - signs)  # ~d, or d - 1
    return found, signs.astype(np.bool_)


def symbols(found: NDArray[np.uint16], codes: Indices) -> tuple[Bytes, NDArray[np.uint16]]:
    """Symbols of some magnitudes, and the items of those that are escaped.

    Args:
        found: Magnitudes.
        codes: The value code of each; those with NEW_WORDS have neither.
    """
    tops = np.array(TOPS, np.uint16)[codes]
    items = (found - tops)[(found >= tops) & (codes != NEW_WORDS)]
    return np.minimum(found, tops).astype(np.uint8), items


def value_bytes(code: int, count: int) -> tuple[int, bool]:
    """Length of the values of a class, and whether there are two parts of it."""
    if code == NEW_WORDS:
        return count, True
    return -(-count * WIDTHS[code] // 8), False


def pack(found: Bytes, width: int) -> Bytes:
    """Symbols of so many bits one after another, from the least significant bit of a byte on."""
    if not width:
        return found[:0]
    if width == 1:
        return np.packbits(found, bitorder="little")
    each = 8 // width
    rows = np.zeros((-(-found.size // each), each), np.uint8)
    rows.reshape(-1)[: found.size] = found
    packed = rows[:, 0].copy()
    for slot in range(1, each):
        packed |= rows[:, slot] << np.uint8(slot * width)
    return packed


def unpack(packed: Bytes, width: int) -> Bytes:
    """The symbols of :func:`pack`, uint8 each, spare ones included.

    Args:
        packed: Bytes.
        width: Bits of a symbol: 1, 2, 4 or 8.
    """
    if width == 1:
        return np.unpackbits(packed, bitorder="little")
    if width == 8:  # noqa: PLR2004 (a symbol is a byte)
        return packed
    return _SYMBOLS[width].take(packed).view(np.uint8)


def add_escapes(
    found: NDArray[np.uint16],
    where: Indices,
    items: tuple[Bytes, Bytes],
    negative: NDArray[np.bool_],
) -> None:
    """Add items to the symbols that are escaped.

    Args:
        found: Symbols; becomes the magnitudes.
        where: Which of them are escaped, as many as there are items.
        items: Low byte of each item, and high byte.
        negative: Whether each difference is negative.

    Raises:
        StreamError: A magnitude is out of range, or its sign does not allow it.
    """
    low, high = items
    sums = high.astype(np.uint32)
    sums <<= 8
    sums |= low
    sums += found[where]
    largest = int(sums.max(initial=0))
    if largest >= LARGEST and (largest > LARGEST or not negative[where[sums == LARGEST]].all()):
        raise StreamError(RULE, "a magnitude is out of range")
    found[where] = sums


def differences(found: NDArray[np.uint16], negative: NDArray[np.bool_]) -> Words:
    """The differences of some magnitudes, which become them, and signs."""
    signs = negative.astype(_U16)
    found += np.uint16(1)
    found ^= np.negative(signs)  # ~d + 1 is -d
    found += signs
    return found


def split_words(words: Words) -> tuple[Bytes, Bytes]:
    """Bits 7 to 14 of words, and bit 15 with bits 0 to 6."""
    high = (words >> _HIGH_SHIFT).astype(np.uint8)
    low = (words >> np.uint16(8) & np.uint16(128) | words & _LOW_BITS).astype(np.uint8)
    return high, low


def join_words(high: Bytes, low: Bytes) -> Words:
    """The words of :func:`split_words`."""
    rest = low.astype(_U16)
    words: Words = (
        (high.astype(_U16) << _HIGH_SHIFT)
        | (rest & _LOW_BITS)
        | (rest >> _HIGH_SHIFT << _SIGN_SHIFT)
    )
    return words
