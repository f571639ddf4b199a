"""Tensors as sequences of little-endian unsigned words (spec section 2).

Everything in this package compares, subtracts and stores words, never numbers: +0 and -0 differ,
NaN payloads are kept, and the difference of two words is taken modulo 2^w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsedelta.limits import MAX_DIMENSIONS, MAX_JSON_INTEGER, MAX_WORDS

Indices: TypeAlias = NDArray[np.int64]
"""Strictly ascending flat indices of words."""

Words: TypeAlias = NDArray[np.unsignedinteger]
"""Words of one tensor: uint8, uint16, uint32 or uint64."""

Bytes: TypeAlias = NDArray[np.uint8]

ReadWords: TypeAlias = Callable[[int, int], Words]
"""Reads the words ``[start, stop)`` of a tensor, or of what a part covers of it, in any thread."""

DTYPE_BITS: Final[dict[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits per element of every dtype of safetensors."""

_WORD_DTYPES: Final[dict[int, np.dtype[np.unsignedinteger]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


def word_dtype(word_bytes: int) -> np.dtype[np.unsignedinteger]:
    """The numpy dtype of words of 1, 2, 4 or 8 bytes."""
    return _WORD_DTYPES[word_bytes]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; everything else follows.

    Attributes:
        name: Its name.
        dtype: Its dtype, as safetensors writes it.
        shape: Its shape.
        nbytes: Bytes of its data.
        word_bytes: Bytes of one word: 1, 2, 4 or 8. Packed sub-byte dtypes have words of one byte.
        words: Number of words.

    Raises:
        ValueError: Unknown dtype, too many or too large dimensions, a sub-byte tensor that is no
            whole number of bytes, or more than 2^48 words.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int = field(init=False, repr=False, compare=False)
    word_bytes: int = field(init=False, repr=False, compare=False)
    words: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = DTYPE_BITS.get(self.dtype)
        if bits is None:
            raise ValueError(f"unknown dtype {self.dtype!r:.80}")
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"{len(self.shape)} dimensions, at most {MAX_DIMENSIONS} are allowed")
        for dimension in self.shape:
            if not 0 <= dimension <= MAX_JSON_INTEGER:
                raise ValueError(f"a dimension of {list(self.shape)!s:.200} is out of range")
        size = prod(self.shape) * bits
        if size % 8:
            raise ValueError(f"{self.dtype} {list(self.shape)} is no whole number of bytes")
        word_bytes = max(1, bits // 8)
        words = size // 8 // word_bytes
        if words > MAX_WORDS:
            raise ValueError(f"{words} words, at most 2^48 are allowed")
        # Set once: a checkpoint of experts has a hundred thousand of these.
        for name, value in (("nbytes", size // 8), ("word_bytes", word_bytes), ("words", words)):
            object.__setattr__(self, name, value)

    @property
    def word_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The numpy dtype of the words."""
        return _WORD_DTYPES[self.word_bytes]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def as_words(data: Bytes, word_bytes: int) -> Words:
    """View contiguous bytes as words, without a copy.

    Args:
        data: uint8 array whose length is a multiple of ``word_bytes``.
        word_bytes: 1, 2, 4 or 8.
    """
    return data.view(_WORD_DTYPES[word_bytes])


def difference(new: Words, old: Words) -> Words:
    """``(new - old) mod 2^w``, elementwise. Unsigned numpy arithmetic wraps, as wanted."""
    return new - old


def negate(words: Words) -> Words:
    """``-words mod 2^w``, elementwise: the difference that undoes ``words``."""
    return np.negative(words)
