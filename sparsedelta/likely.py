"""Which value codecs of differences are worth trying, by an estimate of their entropies."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs import Packed, ValueCodec, Zigzag
from sparsedelta.codecs.entropy import FRACTION, entropies
from sparsedelta.codecs.packed import WIDTHS
from sparsedelta.words import Words

_FEW: Final = 256
"""Of fewer values, what the block table takes for each stream decides."""

_LARGE_SHARE: Final = 16
"""If one in so many does not fit a byte, whole bytes of words may do better than escapes."""

_TRIED: Final = 3
"""Widths of ``packed`` that are tried."""

_LARGEST: Final = 255


def magnitudes(values: Words) -> NDArray[np.int64]:
    """How many differences have each ``|d| - 1``, int64 ``[256]``; the last counts all above.

    Args:
        values: Differences, none of them 0.
    """
    one = values.dtype.type(1)
    signs = values >> values.dtype.type(8 * values.itemsize - 1)
    found = (values ^ np.negative(signs)) - (one - signs)
    return np.bincount(np.minimum(found, _LARGEST).astype(np.int64), minlength=_LARGEST + 1)


def likely_values(counts: NDArray[np.int64]) -> set[ValueCodec] | None:
    """The value codecs that may give the fewest bytes; None: any.

    Signs take a bit, whatever the width, and ``zigzag`` may save it; the three best widths by the
    estimate are tried, and ``zigzag``. ``planes`` and ``raw`` have the sign in every byte.

    Args:
        counts: What :func:`magnitudes` found.
    """
    total = int(counts.sum())
    if total < _FEW or int(counts[_LARGEST]) * _LARGE_SHARE > total:
        return None
    kinds = np.zeros((2 * len(WIDTHS), _LARGEST + 1), np.int64)
    for packed, escaped, width in zip(kinds[::2], kinds[1::2], WIDTHS, strict=True):
        top = (1 << width) - 1
        escaped[top:] = counts[top:]
        if width:
            packed[:top] = counts[:top]
            packed[top] = escaped.sum()
    bits = entropies(kinds)
    # No byte takes less than a bit, unless all are alike: codes are Huffman codes.
    is_mixed = np.count_nonzero(kinds, axis=1) > 1
    floors = kinds.sum(axis=1) << FRACTION
    floors[::2] = floors[::2] * WIDTHS // 8
    sizes = np.maximum(bits, floors * is_mixed).reshape(-1, 2).sum(axis=1).tolist()
    best = sorted(range(len(WIDTHS)), key=sizes.__getitem__)[:_TRIED]
    return {Zigzag(), *(Packed(WIDTHS[n]) for n in best)}
