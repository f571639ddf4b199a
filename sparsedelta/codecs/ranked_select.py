"""Ranks in a set of positions, and back: the set is a mask, and is not listed where few are asked.

Eight bytes of bits are counted at a time, as one integer of 64 bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Indices

_U64: Final = np.uint64
_PAIRS: Final = _U64(0x5555555555555555)
_NIBBLES: Final = _U64(0x3333333333333333)
_BYTES: Final = _U64(0x0F0F0F0F0F0F0F0F)
_ONES: Final = _U64(0x0101010101010101)
_TOPS: Final = _U64(0x8080808080808080)
_ONE: Final = _U64(1)
_TWO: Final = _U64(2)
_THREE: Final = _U64(3)
_FOUR: Final = _U64(4)
_SEVEN: Final = _U64(7)
_EIGHT: Final = _U64(8)
_LAST: Final = _U64(56)
_BYTE: Final = _U64(255)

_LISTED_FROM: Final = 128
"""From one of so many elements on, it is faster to list the set than to look up ranks in it."""

_NTH: Final = np.array(
    [([n for n in range(8) if byte >> n & 1] + 8 * [0])[:8] for byte in range(256)], np.uint64
).reshape(-1)
"""Position of the n-th 1 bit of a byte, at ``8 * byte + n``."""


def positions(mask: NDArray[np.bool_], ranks: Indices) -> Indices:
    """Where the elements of a set with some ranks are.

    Args:
        mask: The set: a mark for each position.
        ranks: int64, ascending, below the size of the set.
    """
    if ranks.size * _LISTED_FROM > mask.size:
        return np.flatnonzero(mask)[ranks]
    words = _packed(mask)
    ends = np.cumsum(_sums(words) >> _LAST, dtype=np.int64)
    at = np.searchsorted(ends, ranks, "right")
    word = words[at]
    sums = _sums(word)
    left = (ranks - ends[at]).astype(_U64) + (sums >> _LAST)
    # In each byte of the comparison the top bit says whether the sum up to it is at most `left`.
    behind = (((left * _ONES) | _TOPS) - sums) & _TOPS
    shift = ((behind >> _SEVEN) * _ONES >> _LAST) << _THREE
    left -= ((sums << _EIGHT) >> shift) & _BYTE
    byte = (word >> shift) & _BYTE
    found: Indices = at * 64 + (shift + _NTH[(byte << _THREE) | left]).astype(np.int64)
    return found


def ranks_of(mask: NDArray[np.bool_], where: Indices) -> Indices:
    """Ranks in a set of some of its elements.

    Args:
        mask: The set: a mark for each position.
        where: int64, ascending, all in the set.
    """
    words = _packed(mask)
    counts = (_sums(words) >> _LAST).astype(np.int64)
    at = where >> 6
    below = (_ONE << (where & 63).astype(_U64)) - _ONE
    inner = (_sums(words[at] & below) >> _LAST).astype(np.int64)
    found: Indices = (np.cumsum(counts) - counts)[at] + inner
    return found


def _packed(mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    found = np.packbits(mask, bitorder="little")
    if found.size % 8:
        found = np.concatenate([found, np.zeros(-found.size % 8, np.uint8)])
    return found.view("<u8")


def _sums(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """In each byte, how many bits of it and of the bytes below it are 1."""
    pairs = words - ((words >> _ONE) & _PAIRS)
    nibbles = (pairs & _NIBBLES) + ((pairs >> _TWO) & _NIBBLES)
    found: NDArray[np.uint64] = ((nibbles + (nibbles >> _FOUR)) & _BYTES) * _ONES
    return found
