"""Values of ``ranked``: differences packed at a width of each class, or new words."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.packed import pack, unpack
from sparsedelta.codecs.ranked_frames import RULE
from sparsedelta.words import Bytes, Words

WIDTHS: Final = (0, 1, 2, 4, 8)
"""Bits of a symbol, by value code."""

NEW_WORDS: Final = 5
"""The value code of new words."""

LARGEST: Final = (1 << 15) - 1
"""The largest magnitude."""

_U16: Final = np.dtype("<u2")
_SIGN_SHIFT: Final = np.uint16(15)
_HIGH_SHIFT: Final = np.uint16(7)
_LOW_BITS: Final = np.uint16(127)


def magnitudes(values: Words) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """``|d| - 1`` of differences d that are not 0, and whether each is negative."""
    signs = values >> _SIGN_SHIFT
    found = (values ^ np.negative(signs)) - (np.uint16(1) - signs)  # ~d, or d - 1
    return found, signs.astype(np.bool_)


def differences(found: NDArray[np.uint16], negative: NDArray[np.bool_]) -> Words:
    """The differences of some magnitudes and signs."""
    signs = negative.astype(_U16)
    words: Words = found + np.uint16(1)
    words ^= np.negative(signs)  # ~d + 1 is -d
    words += signs
    return words


def symbols(found: NDArray[np.uint16], code: int) -> tuple[Bytes, NDArray[np.uint16]]:
    """The packed symbols of a class, and the items of those that are escaped."""
    top = np.uint16((1 << WIDTHS[code]) - 1)
    if not code:
        return np.empty(0, np.uint8), found
    packed = pack(np.minimum(found, top).astype(np.uint8), WIDTHS[code])
    return packed, found[found >= top] - top


def packed_bytes(count: int, code: int) -> int:
    """Length of the packed symbols of a class."""
    return -(-count * WIDTHS[code] // 8)


def read_symbols(packed: Bytes, code: int, count: int) -> Bytes:
    """The symbols of a class, uint8 ``[count]``."""
    return unpack(packed, WIDTHS[code], count, RULE)


def check_magnitudes(found: NDArray[np.uint16], negative: NDArray[np.bool_]) -> None:
    """Every magnitude is one that its sign allows; raises StreamError."""
    largest = int(found.max()) if found.size else 0
    if largest < LARGEST:
        return
    if largest > LARGEST or not negative[found == LARGEST].all():
        raise StreamError(RULE, "a magnitude is out of range")


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
