"""``packed``: sign and magnitude, packed to a few bits (spec/codecs/packed.md).

A byte-wise entropy coder cannot go below one bit a symbol. Most moves of a weight are by one step,
so their sign is one raw bit and their magnitude, |d| - 1, is packed first and compressed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.escapes import decode_escapes, encode_escapes
from sparsedelta.words import Bytes, Words, word_dtype

WIDTHS: Final = (0, 1, 2, 4, 8)

_SLOTS: Final = {width: np.arange(0, 8, width, dtype=np.uint8)[:, None] for width in (1, 2, 4)}
"""Bits below each symbol of a byte, by width."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Sign bits, ``min(|d| - 1, 2^width - 1)`` in ``width`` bits, and what exceeds that.

    Attributes:
        width: Bits of a packed magnitude: 0, 1, 2, 4 or 8.
    """

    width: int
    id: ClassVar[str] = "packed"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD406"

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise ValueError(f"width {self.width}, expected one of {WIDTHS}")

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """SIGN, MAG, EXC."""
        return 3

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """Bits of signs and magnitudes; at most every value escaped."""
        signs, packed = -(-counts // 8), -(-counts * self.width // 8)
        return [
            Bounds(signs, signs),
            Bounds(packed, packed),
            Bounds(np.zeros_like(counts), counts * word_bytes, word_bytes),
        ]

    def encode(self, values: Words, block: Block) -> list[Bytes]:
        """Streams of values other than 0."""
        one = values.dtype.type(1)
        signs = values >> values.dtype.type(8 * block.word_bytes - 1)
        magnitudes = (values ^ np.negative(signs)) - (one - signs)  # ~d, or d - 1
        top = (1 << self.width) - 1
        if block.word_bytes == 1 and top > np.iinfo(np.int8).max:
            escaped = np.zeros(values.size, np.bool_)  # no magnitude of a byte reaches 255
        else:
            escaped = magnitudes >= top
        symbols = np.minimum(magnitudes, top).astype(np.uint8)
        items = magnitudes[escaped] - magnitudes.dtype.type(top)
        return [
            np.packbits(signs.view(np.uint8)[:: block.word_bytes], bitorder="little"),
            pack(symbols, self.width),
            encode_escapes(items, block.word_bytes),
        ]

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:  # noqa: ARG002
        """All of them: a magnitude of 0 cannot be written."""
        return np.ones(count, np.bool_)

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:
        """The values; checks that each has its one encoding."""
        signs, packed, escapes = streams
        negative = np.unpackbits(signs, bitorder="little").view(np.bool_)
        if negative[count:].any():
            raise StreamError(self.rule, "a spare bit of SIGN is 1")
        negative = negative[:count]
        symbols = unpack(packed, self.width, count, self.rule)
        top = (1 << self.width) - 1
        escaped = np.flatnonzero(symbols == top)
        items = decode_escapes(escapes, escaped.size, block.word_bytes, self.rule)
        dtype = word_dtype(block.word_bytes)
        greatest = (1 << (8 * block.word_bytes - 1)) - 1
        # Without an item to be added, a symbol may still exceed what a word of one byte can hold.
        too_large = symbols.size and int(symbols.max()) > greatest
        if too_large or (items.size and int(items.max()) > greatest - top):
            raise StreamError(self.rule, "a magnitude is out of range")
        magnitudes = symbols.astype(dtype)
        magnitudes[escaped] += items
        if (
            magnitudes.size
            and int(magnitudes.max()) == greatest
            and (not negative[magnitudes == greatest].all())
        ):
            raise StreamError(self.rule, "a positive magnitude is out of range")
        ones = negative.astype(dtype)
        words: Words = (magnitudes ^ np.negative(ones)) + (dtype.type(1) - ones)
        return words


def pack(symbols: Bytes, width: int) -> Bytes:
    """Symbols of ``width`` bits, uint8 each, as bytes.

    Planar: byte i holds the symbols i, i + q, i + 2q, ... so both ways are whole-array steps.
    """
    if not width:
        return np.empty(0, np.uint8)
    length = -(-symbols.size * width // 8)
    packed = np.zeros(length, np.uint8)
    for slot in range(8 // width):
        part = symbols[slot * length : (slot + 1) * length]
        packed[: part.size] |= part << np.uint8(slot * width)
    return packed


def unpack(packed: Bytes, width: int, count: int, rule: str) -> Bytes:
    """The ``count`` symbols of :func:`pack`, uint8 each.

    Raises:
        StreamError: Spare bits are not 0.
    """
    if not width:
        return np.zeros(count, np.uint8)
    if width == 8:  # noqa: PLR2004 (a symbol is a byte)
        return packed[:count]
    symbols: Bytes = (packed >> _SLOTS[width] & np.uint8((1 << width) - 1)).reshape(-1)
    if symbols[count:].tobytes().strip(b"\0"):  # a few bytes: quicker than a reduction
        raise StreamError(rule, "spare bits of MAG are not 0")
    return symbols[:count]
