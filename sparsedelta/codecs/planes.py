"""``planes``: words split into byte planes, one stream each (spec/codecs/planes.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, Counts
from sparsedelta.words import Bytes, Words, word_dtype


@dataclass(frozen=True, slots=True)
class Planes:
    """Stream j holds byte j of every value, lowest byte first."""

    id: ClassVar[str] = "planes"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD304"  # every byte decodes: only a length can be wrong

    def stream_count(self, word_bytes: int) -> int:
        """One per byte of a word."""
        return word_bytes

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """A byte per value."""
        return [Bounds(counts, counts)] * word_bytes

    def encode(self, values: Words, block: Block) -> list[Bytes]:
        """Planes of any values, 0 included."""
        table = np.ascontiguousarray(values).view(np.uint8).reshape(-1, block.word_bytes)
        return [np.ascontiguousarray(table[:, plane]) for plane in range(block.word_bytes)]

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:
        """A value is 0 exactly if it is in every plane."""
        found = np.zeros(count, np.bool_)
        for stream in streams:
            found |= stream != 0
        return found

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:
        """The values; the bounds have fixed the length of every plane to ``count``."""
        table = np.empty((count, block.word_bytes), np.uint8)
        for plane, stream in enumerate(streams):
            table[:, plane] = stream
        return table.reshape(-1).view(word_dtype(block.word_bytes))
