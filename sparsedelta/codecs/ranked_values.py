"""Values of ``ranked``: differences packed at a width of each class, or new words."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.escapes import decode_escapes
from sparsedelta.codecs.packed import unpack
from sparsedelta.codecs.ranked_frames import RULE
from sparsedelta.words import Bytes, Indices, Words

WIDTHS: Final = (0, 1, 2, 4, 8)
"""Bits of a symbol, by value code."""

NEW_WORDS: Final = 5
"""The value code of new words."""

_TOPS: Final = np.array([*((1 << width) - 1 for width in WIDTHS), 0], np.uint16)
"""The symbol that is an escape, by value code."""

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


def differences(
    found: NDArray[np.uint16],
    tops: Bytes,
    escapes: Bytes,
    negative: NDArray[np.bool_],
) -> Words:
    """The differences of some symbols and signs.

    Args:
        found: The symbols; becomes the differences.
        tops: Of each the symbol that is an escape.
        escapes: Items of those that are escaped, as byte planes.
        negative: Whether each is negative.

    Raises:
        StreamError: Too many or too few items, or a magnitude that its sign does not allow.
    """
    escaped = np.flatnonzero(found == tops)
    items = decode_escapes(escapes, escaped.size, found.itemsize, RULE)
    if items.size:
        largest = int(items.max())
        if largest > LARGEST:
            raise StreamError(RULE, "an escaped magnitude is out of range")
        items = items + found[escaped]
        if largest + int(_TOPS.max()) >= LARGEST:
            is_least = items >= LARGEST
            if (items > LARGEST).any() or not negative[escaped[is_least]].all():
                raise StreamError(RULE, "a magnitude is out of range")
        found[escaped] = items
    signs = negative.astype(_U16)
    found += np.uint16(1)
    found ^= np.negative(signs)  # ~d + 1 is -d
    found += signs
    return found


def symbols(found: NDArray[np.uint16], codes: Indices) -> tuple[Bytes, NDArray[np.uint16]]:
    """Symbols of some magnitudes, and the items of those that are escaped.

    Args:
        found: Magnitudes.
        codes: The value code of each; those with NEW_WORDS have neither.
    """
    tops = _TOPS[codes]
    items = (found - tops)[(found >= tops) & (codes != NEW_WORDS)]
    return np.minimum(found, tops).astype(np.uint8), items


def packed_bytes(count: int, code: int) -> int:
    """Length of the packed symbols of a class."""
    return -(-count * WIDTHS[code] // 8)


def read_symbols(packed: Bytes, code: int, count: int) -> Bytes:
    """The symbols of a class, uint8 ``[count]``."""
    return unpack(packed, WIDTHS[code], count, RULE)


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
