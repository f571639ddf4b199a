"""What an ideal coder would need that has the base: the yardstick of the profile ``compact``.

It knows of each element the exponent of its base word, and whether its row is live, which is to say
that anything in it changes. Given that, changes are independent, and so are their differences.
Nothing is charged for telling how often each happens, or which rows are live. The counts are those
of the whole checkpoint, pooled, or of each tensor by itself. A coder that adapts to each tensor may
go below the first, where tensors differ; of the second, what values cost is told too low where they
are so many that most come once (a GaLLoP mask).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from stored import StoredFile, Words

EXPONENTS: Final = 256
MANTISSA_BITS: Final = 7


def tensors(base: Path, target: Path) -> Iterator[tuple[Words, Words, tuple[int, ...]]]:
    """Words of every tensor, before and after, and its shape: the pairs are bf16."""
    old, new = StoredFile(base), StoredFile(target)
    for name, stored in old.tensors.items():
        yield old.words(name), new.words(name), stored.shape


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Bits per symbol of independent symbols with these counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def live(marks: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which elements lie in a row in which something changed; a row runs along the last axis."""
    rows = marks.reshape(-1, shape[-1] if shape else 1)
    return np.repeat(rows.any(axis=1), rows.shape[1])


def counts_of(
    old: Words, new: Words, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each exponent, the elements in live rows, and how often each difference occurs."""
    marks = old != new
    exponents = (old >> MANTISSA_BITS) & (EXPONENTS - 1)
    elements = np.bincount(exponents[live(marks, shape)], minlength=EXPONENTS)
    steps = exponents[marks].astype(np.int64) << 16 | (new - old)[marks]
    return elements, np.bincount(steps, minlength=EXPONENTS << 16).reshape(EXPONENTS, 1 << 16)


def bits_of(elements: NDArray[np.int64], changes: NDArray[np.int64]) -> float:
    """Bits of the support and of the differences, from such counts."""
    bits, found = 0.0, changes.sum(axis=1)
    for exponent in np.flatnonzero(found):
        count, total = int(found[exponent]), int(elements[exponent])
        bits += total * entropy_bits(np.array([count, total - count]))
        bits += count * entropy_bits(changes[exponent])
    return bits


def conditional_bits(base: Path, target: Path) -> tuple[float, float]:
    """Bits per entry: with counts of the whole checkpoint, and with counts of each tensor."""
    pooled: list[NDArray[np.int64]] = []
    apart = 0.0
    for old, new, shape in tensors(base, target):
        if not np.array_equal(old, new):
            counts = counts_of(old, new, shape)
            apart += bits_of(*counts)
            pooled = [a + b for a, b in zip(pooled, counts, strict=True)] if pooled else [*counts]
    entries = int(pooled[1].sum())
    return bits_of(pooled[0], pooled[1]) / entries, apart / entries
