"""``range``: one run of words (spec/codecs/range.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.words import Bytes, Indices

_RUN_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Range:
    """First word and length of a run, each of whose words has a value."""

    id: ClassVar[str] = "range"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD412"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: RUN."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """Two numbers of 32 bits."""
        length = np.full_like(counts, _RUN_BYTES)
        return [Bounds(length, length)]

    def span(self, indices: Indices, block: Block) -> tuple[int, int]:  # noqa: ARG002
        """First word and length of the run that holds ascending indices, at least one."""
        first = int(indices[0])
        return first, int(indices[-1]) - first + 1

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:
        """The run from the first index to the last."""
        return [np.array(self.span(indices, block), "<u4").view(np.uint8)]

    def run(self, streams: Sequence[Bytes], count: int, block: Block) -> tuple[int, int]:
        """First word and length of the run; checks all of SD412 that needs neither op nor values.

        Raises:
            StreamError: The run leaves its block, or is shorter than the number of its entries.
        """
        data = streams[0].tobytes()
        first, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")
        if first + length > block.words:
            raise StreamError(
                self.rule, f"a run from {first} of {length} in a block of {block.words} words"
            )
        if length < count:
            raise StreamError(self.rule, f"a run of {length} words for {count} entries")
        return first, length

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """All words of the run."""
        first, length = self.run(streams, count, block)
        return np.arange(first, first + length)
