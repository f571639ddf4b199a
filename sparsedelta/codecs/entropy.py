"""Entropies in integers: near, and the same on every machine."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from sparsedelta.codecs.base import Counts
from sparsedelta.words import Indices

FRACTION: Final = 16
"""Binary digits of logarithms and entropies behind the point."""

_TABLE_BITS: Final = 12


def entropies(counts: Counts) -> Counts:
    """Bits, times 2^16, of all of the symbols of each row, int64 ``[rows]``.

    Args:
        counts: int64 ``[rows, kinds]``, how many there are of each kind, below 2^32 in all.
    """
    bits: Counts = _weighed(counts.sum(axis=1)) - _weighed(counts).sum(axis=1)
    return bits


def _weighed(counts: Counts) -> Counts:
    """Each number times its base-2 logarithm, times 2^16; 0 for 0."""
    found = np.zeros_like(counts)
    where = np.nonzero(counts)  # most kinds are rare
    some = counts[where]
    found[where] = some * _log2(some)
    return found


def _log2(numbers: Indices) -> Indices:
    """Base-2 logarithms of positive integers, times 2^16: near, and the same on every machine."""
    shifts = np.maximum(np.frexp(numbers)[1].astype(np.int64) - _TABLE_BITS, 0)
    logs: Indices = _logarithms()[numbers >> shifts] + (shifts << FRACTION)
    return logs


@cache
def _logarithms() -> Indices:
    """Those of 1 to 2^12 - 1, by integers: squaring a number in [1, 2) shows the next digit."""
    numbers = np.arange(1, 1 << _TABLE_BITS)
    whole = np.frexp(numbers)[1].astype(np.int64) - 1
    mantissas = numbers.astype(np.uint64) << (31 - whole).astype(np.uint64)
    logs = whole << FRACTION
    for bit in reversed(range(FRACTION)):
        mantissas = mantissas * mantissas >> np.uint64(31)
        doubled = mantissas >> np.uint64(32)
        logs += doubled.astype(np.int64) << bit
        mantissas >>= doubled
    return np.concatenate([[0], logs])
