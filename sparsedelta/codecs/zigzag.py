"""``zigzag``: small signed values in one byte, others escaped (spec/codecs/zigzag.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.escapes import decode_escapes, encode_escapes
from sparsedelta.words import Bytes, Words, word_dtype

_ESCAPE = 255


@dataclass(frozen=True, slots=True)
class Zigzag:
    """``z = 2d`` or ``-2d - 1``, as ``min(z, 255)`` and, where that is 255, the rest as a word."""

    id: ClassVar[str] = "zigzag"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD407"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """SYM, EXC."""
        return 2

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """A byte per value; at most every value escaped."""
        return [
            Bounds(counts, counts),
            Bounds(np.zeros_like(counts), counts * word_bytes, word_bytes),
        ]

    def encode(self, values: Words, block: Block) -> list[Bytes]:
        """Streams of any values, 0 included."""
        one = values.dtype.type(1)
        zigzag = (values << one) ^ np.negative(
            values >> values.dtype.type(8 * block.word_bytes - 1)
        )
        symbols = np.minimum(zigzag, _ESCAPE).astype(np.uint8)
        items = zigzag[zigzag >= _ESCAPE] - zigzag.dtype.type(_ESCAPE)
        return [symbols, encode_escapes(items, block.word_bytes)]

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:
        """A value is 0 exactly if its symbol is."""
        nonzero: NDArray[np.bool_] = streams[0][:count] != 0
        return nonzero

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:
        """The values; the bounds have fixed the length of SYM to ``count``."""
        symbols, escapes = streams
        dtype = word_dtype(block.word_bytes)
        escaped = np.flatnonzero(symbols == _ESCAPE)
        items = decode_escapes(escapes, escaped.size, block.word_bytes, self.rule)
        if items.size and int(items.max()) > np.iinfo(dtype).max - _ESCAPE:
            raise StreamError(self.rule, "an escaped value is out of range")
        zigzag = symbols[:count].astype(dtype)
        zigzag[escaped] += items
        one = dtype.type(1)
        values: Words = (zigzag >> one) ^ np.negative(zigzag & one)
        return values
