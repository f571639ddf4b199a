"""``raw``: indices and words of fixed width, stored as they are (spec/codecs/raw.md).

Nothing is compressed, so that anything that can read an array can read them in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.gap8 import check_last
from sparsedelta.words import Bytes, Indices, Words, word_dtype

_INDEX: Final = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class RawIndices:
    """A 32-bit number per entry."""

    id: ClassVar[str] = "raw"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = True
    rule: ClassVar[str] = "SD413"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: INDICES."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """Four bytes per entry."""
        lengths = counts * _INDEX.itemsize
        return [Bounds(lengths, lengths)]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """The indices as they are."""
        return [indices.astype(_INDEX).view(np.uint8)]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:  # noqa: ARG002
        """The indices; the bounds have fixed their number to ``count``."""
        indices = streams[0].view(_INDEX).astype(np.int64)
        if (indices[1:] <= indices[:-1]).any():
            raise StreamError(self.rule, "the indices do not ascend strictly")
        check_last(indices, block, self.rule)
        return indices


@dataclass(frozen=True, slots=True)
class RawWords:
    """The words themselves."""

    id: ClassVar[str] = "raw"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = True
    rule: ClassVar[str] = "SD304"  # every byte decodes: only a length can be wrong

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: WORDS."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """The bytes of the words."""
        lengths = counts * word_bytes
        return [Bounds(lengths, lengths, word_bytes)]

    def encode(self, values: Words, block: Block) -> list[Bytes]:
        """The values as they are, 0 included."""
        words = np.ascontiguousarray(values, word_dtype(block.word_bytes))
        return [words.view(np.uint8)]

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:
        """A value is 0 exactly if all of its bytes are."""
        word = word_dtype(streams[0].size // max(count, 1))
        found: NDArray[np.bool_] = streams[0].view(word) != 0
        return found

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:  # noqa: ARG002
        """The values; the bounds have fixed their number to ``count``.

        They are a view of the stream where memory is aligned, and so may be read-only.
        """
        words: Words = streams[0].view(word_dtype(block.word_bytes))
        return words if words.flags.aligned else words.copy()
