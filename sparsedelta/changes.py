"""The changed words of one tensor, held compactly while they wait to be encoded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import Bytes, Indices, TensorSpec, Words


class Changes:
    """Entries of one tensor as a bit per word and a value per entry.

    One bit per word is at most an eighth of the tensor, however much of it has changed; 64-bit
    indices of a tensor of bf16 that has changed throughout would be four times the tensor.

    Args:
        spec: The tensor.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self._bits: Bytes = np.zeros(-(-spec.words // 8), np.uint8)
        self._values: list[Words] = []
        self.nnz = 0

    def append(self, start: int, marks: NDArray[np.bool_], values: Words) -> None:
        """Add the entries of a run of words; runs come in ascending order.

        Args:
            start: First word of the run, a multiple of 8.
            marks: Whether each word of the run is an entry.
            values: A value per entry.
        """
        bits = np.packbits(marks, bitorder="little")
        self._bits[start // 8 : start // 8 + bits.size] = bits
        self._values.append(values)
        self.nnz += values.size

    @classmethod
    def from_entries(cls, spec: TensorSpec, indices: Indices, values: Words) -> Changes:
        """Changes of ascending flat indices, for deltas made in memory."""
        changes = cls(spec)
        edges = np.searchsorted(indices, np.arange(0, spec.words + SEGMENT_WORDS, SEGMENT_WORDS))
        for segment in np.flatnonzero(np.diff(edges)).tolist():
            start = segment * SEGMENT_WORDS
            entries = slice(edges[segment], edges[segment + 1])
            marks = np.zeros(min(SEGMENT_WORDS, spec.words - start), np.bool_)
            marks[indices[entries] - start] = True
            changes.append(start, marks, values[entries])
        return changes

    @property
    def values(self) -> Words:
        """All values, in order."""
        if len(self._values) != 1:
            joined = (
                np.concatenate(self._values) if self._values else np.empty(0, self.spec.word_dtype)
            )
            self._values = [joined]
        return self._values[0]

    def blocks(self, block_log2: int) -> Iterator[tuple[int, Indices, Words]]:
        """Entries block by block.

        Yields:
            Words of the block, indices relative to its first word, values.
        """
        size = 1 << block_log2
        values = self.values
        position = 0
        for start in range(0, self.spec.words, size):
            words = min(size, self.spec.words - start)
            bits = self._bits[start // 8 : -(-(start + words) // 8)]
            indices = np.flatnonzero(np.unpackbits(bits, bitorder="little").view(np.bool_))
            yield words, indices, values[position : position + indices.size]
            position += indices.size
