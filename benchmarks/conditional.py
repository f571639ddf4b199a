"""What an ideal coder would need that has the base: the yardstick of the profile ``compact``.

It knows of each element the exponent of its base word, and whether its row is live, which is to say
that anything in it changes. Given that, changes are independent, and so are their differences. The
counts are those of the whole checkpoint, pooled over its tensors: nothing is charged for telling
them, or for telling which rows are live, so that no coder of this kind reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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


def conditional_bits(base: Path, target: Path) -> float:
    """Bits per entry: of the support, and of the differences, given exponent and live row."""
    elements = np.zeros(EXPONENTS, np.int64)
    changes = np.zeros((EXPONENTS, 1 << 16), np.int64)
    for old, new, shape in tensors(base, target):
        marks = old != new
        if not marks.any():
            continue
        exponents = (old >> MANTISSA_BITS) & (EXPONENTS - 1)
        elements += np.bincount(exponents[live(marks, shape)], minlength=EXPONENTS)
        steps = exponents[marks].astype(np.int64) << 16 | (new - old)[marks]
        changes += np.bincount(steps, minlength=changes.size).reshape(changes.shape)
    found: NDArray[Any] = changes.sum(axis=1)
    bits = 0.0
    for exponent in np.flatnonzero(found):
        count, total = int(found[exponent]), int(elements[exponent])
        bits += total * entropy_bits(np.array([count, total - count]))
        bits += count * entropy_bits(changes[exponent])
    return bits / int(found.sum())
