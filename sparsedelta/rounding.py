"""Numbers and words: what words stand for, and numbers rounded once (spec section 5).

Sums are made in float64 and rounded directly to the tensor's dtype, from the bits of the float64. A
cast by way of float32 would round twice: 1 + 2^-8 + 2^-40 must give the bf16 0x3f81, not 0x3f80.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.errors import NotFiniteError
from sparsedelta.words import TensorSpec, Words, word_dtype

if TYPE_CHECKING:
    from sparsedelta.delta import Part

_FLOAT64 = NDArray[np.float64]

_ONE: Final = np.uint64(1)
_FRACTION_BITS: Final = np.uint64(52)
_MAGNITUDE: Final = np.uint64((1 << 63) - 1)
_INFINITY: Final = np.uint64(0x7FF << 52)
_FRACTION: Final = np.uint64((1 << 52) - 1)
_HIDDEN: Final = np.uint64(1 << 52)
_BIAS: Final = 1023
_ALL_CUT: Final = 54
"""Places by which a significand of 53 bits has to be cut so that nothing can round up."""

FLOATS: Final = ("F64", "F32", "F16", "BF16")
"""Dtypes that are computed with."""

FP8: Final = ("F8_E5M2", "F8_E4M3")
"""Dtypes of 8 bits that are computed with only if somebody says so."""


class _Form:
    """A binary floating-point format smaller than float64.

    Args:
        exponent: Bits of the exponent.
        fraction: Bits of the fraction.
        is_ieee: Whether the largest exponent is that of infinity and NaN; else only the largest
            magnitude is a NaN, which too large a number becomes, too.
    """

    def __init__(self, exponent: int, fraction: int, *, is_ieee: bool = True) -> None:
        self.fraction = fraction
        self.bias = (1 << (exponent - 1)) - 1
        self.cut = 52 - fraction
        self.rebias = np.uint64((_BIAS - self.bias) << 52)
        most = ((1 << exponent) - 1) << fraction
        nan = most | (1 << (fraction - 1))
        if not is_ieee:
            most = nan = (1 << (exponent + fraction)) - 1
        self.infinity, self.nan = np.uint64(most), np.uint64(nan)
        self.sign = np.uint64(exponent + fraction)
        self.words = word_dtype((1 + exponent + fraction) // 8)


_FORMS: Final = {
    "F32": _Form(8, 23),
    "F16": _Form(5, 10),
    "BF16": _Form(8, 7),
    "F8_E5M2": _Form(5, 2),
    "F8_E4M3": _Form(4, 3, is_ieee=False),
}


def to_float64(words: Words, dtype: str) -> _FLOAT64:
    """The numbers that words of F16, BF16, F32, F64, F8_E5M2 or F8_E4M3 stand for, exactly."""
    if dtype in FP8:
        return _numbers_of_bytes(dtype)[words]
    if dtype == "BF16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return words.view(kinds[dtype]).astype(np.float64)


def is_finite(words: Words, dtype: str) -> NDArray[np.bool_]:
    """Whether the numbers that words of F16, BF16, F32 or F64 stand for are finite."""
    infinity = words.dtype.type(_INFINITY if dtype == "F64" else _FORMS[dtype].infinity)
    marks: NDArray[np.bool_] = (words & infinity) != infinity
    return marks


@cache
def _numbers_of_bytes(dtype: str) -> _FLOAT64:
    form, words = _FORMS[dtype], np.arange(256)
    magnitude = words & 0x7F
    field, fraction = magnitude >> form.fraction, magnitude & ((1 << form.fraction) - 1)
    significand = np.where(field > 0, fraction + (1 << form.fraction), fraction)
    numbers = np.ldexp(
        significand.astype(np.float64), np.maximum(field, 1) - form.bias - form.fraction
    )
    numbers[magnitude == int(form.infinity)] = np.inf
    numbers[magnitude > int(form.infinity)] = np.nan
    numbers[magnitude == int(form.nan)] = np.nan
    signed: _FLOAT64 = np.where(words > 0x7F, -numbers, numbers)  # noqa: PLR2004 (the sign bit)
    return signed


def from_float64(numbers: _FLOAT64, dtype: str) -> Words:
    """Words of numbers, each rounded once: to nearest, ties to even, subnormals kept.

    Too large a number becomes infinity; NaN stays one, quiet and without its payload.
    """
    bits = np.ascontiguousarray(numbers, np.float64).view(np.uint64)
    if dtype == "F64":
        return bits
    form = _FORMS[dtype]
    magnitude = bits & _MAGNITUDE
    # How many powers of two a number lies below the normal ones: there bits are fewer.
    below = np.int64(_BIAS - form.bias + 1) - (magnitude >> _FRACTION_BITS).astype(np.int64)
    significand = (magnitude & _FRACTION) | _HIDDEN
    kept = np.where(below > 0, significand, magnitude - form.rebias)
    cut = (np.clip(below, 0, _ALL_CUT - form.cut) + form.cut).astype(np.uint64)
    half = (_ONE << (cut - _ONE)) - _ONE
    rounded = np.minimum((kept + half + ((kept >> cut) & _ONE)) >> cut, form.infinity)
    rounded[magnitude > _INFINITY] = form.nan
    words: Words = (rounded | ((bits >> np.uint64(63)) << form.sign)).astype(form.words)
    return words


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
