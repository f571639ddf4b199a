"""An encoding: an index codec, a value codec, and what they may be used for (spec section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, IndexCodec, StreamError, ValueCodec
from sparsedelta.codecs.dense import Dense
from sparsedelta.codecs.packed import Packed
from sparsedelta.codecs.planes import Planes
from sparsedelta.codecs.registry import (
    INDEX_CODECS,
    VALUE_CODECS,
    codec_from_json,
    codec_to_json,
)

if TYPE_CHECKING:
    from sparsedelta.strict_json import Json
    from sparsedelta.words import Bytes, Indices, Words


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the entries of a part are written.

    Attributes:
        op: ``difference`` or ``replace``.
        index: Codec of the indices.
        value: Codec of the values.

    Raises:
        ValueError: The specification does not allow this combination.
    """

    op: str
    index: IndexCodec
    value: ValueCodec

    def __post_init__(self) -> None:
        if self.op == "replace" and not isinstance(self.value, Planes):
            raise ValueError(f"values of replace as {self.value.id!r}, only 'planes' is allowed")
        if isinstance(self.index, Dense) and isinstance(self.value, Packed):
            raise ValueError("'packed' cannot hold the zeros of 'dense'")

    @classmethod
    def from_json(cls, op: str, index: Json, value: Json) -> Encoding:
        """The encoding that a manifest names; raises ValueError."""
        return cls(op, codec_from_json(index, INDEX_CODECS), codec_from_json(value, VALUE_CODECS))

    def to_json(self) -> dict[str, Json]:
        """The ``index`` and ``value`` of a part's record."""
        return {"index": codec_to_json(self.index), "value": codec_to_json(self.value)}

    def describe(self) -> str:
        """The codecs in words, such as ``gap8 + packed(width=1)``."""
        return " + ".join(
            codec.id + (f"({', '.join(f'{k}={v}' for k, v in rest.items())})" if rest else "")
            for codec in (self.index, self.value)
            for rest in [{k: v for k, v in codec_to_json(codec).items() if k != "id"}]
        )

    @property
    def needs_base(self) -> bool:
        """Whether blocks can only be decoded with the base words at hand."""
        return self.index.needs_base or self.value.needs_base

    def stream_count(self, word_bytes: int) -> int:
        """Streams per block: those of the index codec, then those of the value codec."""
        return self.index.stream_count(word_bytes) + self.value.stream_count(word_bytes)

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> list[Bounds]:
        """Decoded lengths allowed for blocks, per stream; 0 where a block has no entries.

        Args:
            counts: int64 ``[blocks]``, entries of each block.
            words: int64 ``[blocks]``, words of each block.
            word_bytes: Bytes of a word.
        """
        values = words if isinstance(self.index, Dense) else counts
        bounds = [
            *self.index.bounds(counts, words, word_bytes),
            *self.value.bounds(values, words, word_bytes),
        ]
        return [
            Bounds(np.where(counts, low, 0), np.where(counts, high, 0), step)
            for low, high, step in bounds
        ]

    def encode(self, indices: Indices, values: Words, block: Block) -> list[Bytes]:
        """Streams of a block's entries.

        Args:
            indices: int64 ``[count]``, ascending, relative to the block's first word.
            values: Words ``[count]``.
            block: The block; with ``base`` where ``needs_base``.
        """
        if not indices.size:
            return [np.empty(0, np.uint8)] * self.stream_count(block.word_bytes)
        if isinstance(self.index, Dense):
            dense = np.zeros(block.words, values.dtype)
            dense[indices] = values
            values = dense
        return [*self.index.encode(indices, block), *self.value.encode(values, block)]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> tuple[Indices, Words]:
        """Entries of a block, from streams whose lengths are within :meth:`bounds`.

        Raises:
            StreamError: The streams break a rule of their codec's page, SD405 or SD408.
        """
        if not count:
            empty: Indices = np.empty(0, np.int64)
            return empty, np.empty(0, f"<u{block.word_bytes}")
        split = self.index.stream_count(block.word_bytes)
        indices = self.index.decode(streams[:split], count, block)
        values = streams[split:]
        if not isinstance(self.index, Dense):
            words = self.value.decode(values, count, block)
            if self.op == "difference" and not words.all():
                raise StreamError("SD408", "a difference of 0")
            return indices, words
        if self.op == "difference":
            indices = np.flatnonzero(self.value.nonzero(values, block.words))
        if indices.size != count:
            raise StreamError(self.index.rule, f"{count} entries expected, {indices.size} found")
        return indices, self.value.decode(values, block.words, block)[indices]
