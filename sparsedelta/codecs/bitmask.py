"""``bitmask``: one bit per word (spec/codecs/bitmask.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.words import Bytes, Indices


@dataclass(frozen=True, slots=True)
class Bitmask:
    """Bit ``i % 8`` of byte ``i // 8``, least significant first, says if word i is an entry."""

    id: ClassVar[str] = "bitmask"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD404"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: BITS."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """One bit per word, whatever the count."""
        lengths = -(-words // 8)
        return [Bounds(lengths, lengths)]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:
        """Bits of the indices."""
        marks = np.zeros(block.words, np.bool_)
        marks[indices] = True
        return [np.packbits(marks, bitorder="little")]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """Positions of the 1 bits."""
        (stream,) = streams
        marks = np.unpackbits(stream, bitorder="little").view(np.bool_)
        if marks[block.words :].any():
            raise StreamError(self.rule, "a spare bit behind the block's last word is 1")
        indices: Indices = np.flatnonzero(marks)
        if indices.size != count:
            raise StreamError(self.rule, f"{count} bits expected, {indices.size} found")
        return indices
