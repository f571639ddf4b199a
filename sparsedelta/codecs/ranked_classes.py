"""Classes of ``ranked``: the elements of a block whose base word has an exponent of a range."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Bytes, Indices, Words

EXPONENTS: Final = {"BF16": (7, 255), "F16": (10, 31)}
"""Of a dtype: bits below the exponent in a word, and the greatest exponent."""


_BYTE_TOP: Final = 255
_PAIRED_FROM: Final = 1 << 16
"""Two elements are counted at a time where there are as many as there are pairs."""


class Range(NamedTuple):
    """Exponents ``low`` to ``high``, both included."""

    low: int
    high: int


def exponents(words: Words, dtype: str, out: Bytes | None = None) -> Bytes:
    """The exponent field of each word, uint8.

    Args:
        words: Words of 16 bits.
        dtype: ``BF16`` or ``F16``.
        out: Where to write them; by default into memory of their own.
    """
    shift, top = EXPONENTS[dtype]
    fields = np.empty(words.size, np.uint8) if out is None else out
    np.right_shift(words, words.dtype.type(shift), out=fields, casting="unsafe")
    if top < _BYTE_TOP:
        fields &= np.uint8(top)
    return fields


def histogram(fields: Bytes) -> Indices:
    """How many elements have each exponent, int64 ``[256]``."""
    if fields.size < _PAIRED_FROM:
        return np.bincount(fields, minlength=256)
    pairs = fields[: fields.size & ~1].view(np.uint16)  # two at a time: half as many to count
    square = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    found: Indices = square.sum(axis=0) + square.sum(axis=1)
    if fields.size % 2:
        found[fields[-1]] += 1
    return found


def holds(fields: Bytes, each: Range, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Whether each exponent lies in a range; ``out`` is where to write it."""
    low = np.uint8(each.low)
    if each.low == each.high:
        return np.equal(fields, low, out=out)
    if not each.low:
        return np.less_equal(fields, np.uint8(each.high), out=out)
    if out is None:
        out = np.empty(fields.size, np.bool_)
    above = np.subtract(fields, low, out=out.view(np.uint8))  # wraps around below the range
    return np.less_equal(above, np.uint8(each.high - each.low), out=out)
