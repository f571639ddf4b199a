"""``add``: the one operation that computes with numbers, rounded once (spec section 5).

``round(w + scale * v)``: product and sum are float64 operations, and the sum is rounded directly to
the tensor's dtype. A cast by way of float32 would round twice: 1 + 2^-8 + 2^-40 must give the bf16
0x3f81, not 0x3f80.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsedelta.errors import NotFiniteError
from sparsedelta.words import TensorSpec, Words

if TYPE_CHECKING:
    from sparsedelta.delta import Part

_FLOAT64 = NDArray[np.float64]


def to_float64(words: Words, dtype: str) -> _FLOAT64:
    """The numbers that words of F16, BF16, F32 or F64 stand for, exactly."""
    if dtype == "BF16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return words.view(kinds[dtype]).astype(np.float64)


def from_float64(numbers: _FLOAT64, dtype: str) -> Words:
    """Words of numbers, each rounded once: to nearest, ties to even, subnormals kept."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "F64":
            return numbers.view(np.uint64)
        if dtype == "F32":
            return numbers.astype(np.float32).view(np.uint32)
        if dtype == "F16":
            return numbers.astype(np.float16).view(np.uint16)
        return _to_bfloat16(numbers)


def _to_bfloat16(numbers: _FLOAT64) -> Words:
    # First to float32, rounding to odd: what was cut off stays visible in the last bit, so that the
    # second step, which has 16 bits to spare, rounds as if it had seen all of it.
    singles = numbers.astype(np.float32)
    bits = singles.view(np.uint32)
    back = singles.astype(np.float64)
    inexact = back != numbers
    away = inexact & (np.abs(back) > np.abs(numbers))
    bits = (bits - away.astype(np.uint32)) | inexact.astype(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: Words = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return rounded


def add_scaled(spec: TensorSpec, words: Words, part: Part) -> Words:
    """New words of the entries of an ``add``.

    Args:
        spec: The tensor.
        words: Its old words at the part's indices.
        part: The entries.

    Raises:
        NotFiniteError: An operand or a result is not finite (SD505).
    """
    if part.dtype is None or part.words is None or part.indices is None:
        raise ValueError(f"a part of op {part.op!r} adds nothing")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        products = to_float64(part.words, part.dtype) * np.float64(part.scale)
        sums = to_float64(words, spec.dtype) + products
    result = from_float64(sums, spec.dtype)
    finite = np.isfinite(products) & np.isfinite(sums)
    finite &= np.isfinite(to_float64(result, spec.dtype))
    if not finite.all():
        index = int(part.indices[np.flatnonzero(~finite)[0]])
        raise NotFiniteError(
            f"tensor {spec.name!r}, index {index}: adding does not give a finite number (SD505)"
        )
    return result
