"""``gap8``: COO indices as gaps in bytes (spec/codecs/gap8.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.words import Bytes, Indices

_ESCAPE = 255


@dataclass(frozen=True, slots=True)
class Gap8:
    """A gap g is ``g // 255`` bytes of 255 and one byte ``g % 255``."""

    id: ClassVar[str] = "gap8"
    needs_base: ClassVar[bool] = False
    rule: ClassVar[str] = "SD403"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: GAPS."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """At least a byte per entry, and at most one byte of 255 per 255 words more."""
        return [Bounds(counts, counts + words // _ESCAPE)]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Gaps of ascending indices; the first counts from -1."""
        gaps = np.diff(indices, prepend=-1) - 1
        escapes, rest = np.divmod(gaps, _ESCAPE)
        ends = np.cumsum(escapes + 1)
        stream = np.full(int(ends[-1]) if ends.size else 0, _ESCAPE, np.uint8)
        stream[ends - 1] = rest
        return [stream]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """Indices by one cumulative sum; ascending by construction."""
        (stream,) = streams
        ends = np.flatnonzero(stream != _ESCAPE)
        if ends.size != count:
            raise StreamError(self.rule, f"{count} gaps expected, {ends.size} found")
        if not count:
            return ends
        if ends[-1] != stream.size - 1:
            raise StreamError(self.rule, "the stream ends inside a gap")
        sums = np.cumsum(stream, dtype=np.int64)
        indices: Indices = sums[ends] + np.arange(count)
        if indices[-1] >= block.words:
            raise StreamError(
                self.rule, f"index {indices[-1]} lies outside its block of {block.words} words"
            )
        return indices
