"""``dense``: no index, a value for every word (spec/codecs/dense.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts
from sparsedelta.words import Bytes, Indices


@dataclass(frozen=True, slots=True)
class Dense:
    """Every word has a value. Which of them are entries is seen from the values alone."""

    id: ClassVar[str] = "dense"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD405"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """No stream."""
        return 0

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """No stream."""
        return []

    def span(self, indices: Indices, block: Block) -> tuple[int, int]:  # noqa: ARG002
        """First word and length of the run that has values: the whole block."""
        return 0, block.words

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Nothing is stored."""
        return []

    def run(self, streams: Sequence[Bytes], count: int, block: Block) -> tuple[int, int]:  # noqa: ARG002
        """First word and length of the run that has values: the whole block."""
        return 0, block.words

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:  # noqa: ARG002
        """All words of the block."""
        return np.arange(block.words)
