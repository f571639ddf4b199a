"""The changed words of one tensor, held compactly while they wait to be encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import Bytes, Indices, TensorSpec, Words

_ONES: Final = np.array([byte.bit_count() for byte in range(256)], np.uint8)


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
        self._ends: list[int] = []
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
        self.nnz += values.size
        self._values.append(values)
        self._ends.append(self.nnz)

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
    def runs(self) -> Sequence[Words]:
        """The values, in order, in the runs in which they were added."""
        return self._values

    def _slice(self, start: int, stop: int) -> Words:
        # Values stay in their runs: joining them all would hold them twice.
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < stop:
            offset = self._ends[first] - self._values[first].size
            piece = self._values[first][start - offset : stop - offset]
            pieces.append(piece)
            start += piece.size
            first += 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.spec.word_dtype)

    def counts(self, block_log2: int) -> NDArray[np.int64]:
        """Entries of each block, int64 ``[blocks]``.

        Args:
            block_log2: Base-2 logarithm of the words of a block, at least 3.
        """
        if not self._bits.size:
            return np.empty(0, np.int64)
        starts = np.arange(0, self._bits.size, 1 << (block_log2 - 3))
        return np.add.reduceat(_ONES[self._bits], starts, dtype=np.int64)

    def block(self, block_log2: int, block: int, position: int) -> tuple[int, Indices, Words]:
        """One block, for any thread.

        Args:
            block_log2: Base-2 logarithm of the words of a block, at least 3.
            block: Its number.
            position: Entries of the blocks before it.

        Returns:
            Words of the block, indices relative to its first word, values.
        """
        start = block << block_log2
        words = min(1 << block_log2, self.spec.words - start)
        bits = self._bits[start // 8 : -(-(start + words) // 8)]
        indices = _ones(bits)
        return words, indices, self._slice(position, position + indices.size)

    def blocks(self, block_log2: int) -> Iterator[tuple[int, Indices, Words]]:
        """Entries block by block, in the form of :meth:`block`."""
        position = 0
        for block in range(-(-self.spec.words >> block_log2)):
            words, indices, values = self.block(block_log2, block, position)
            yield words, indices, values
            position += indices.size


def _ones(bits: Bytes) -> Indices:
    """Positions of the 1 bits, least significant first in each byte."""
    groups = np.concatenate([bits, np.zeros(-bits.size % 8, np.uint8)]) if bits.size % 8 else bits
    used = np.flatnonzero(groups.view(np.uint64))
    if 2 * used.size > groups.size // 8:  # nothing is gained by leaving out groups of zeros
        return np.flatnonzero(np.unpackbits(bits, bitorder="little").view(np.bool_))
    chosen = np.ascontiguousarray(groups.reshape(-1, 8)[used])
    ones = np.flatnonzero(np.unpackbits(chosen.reshape(-1), bitorder="little").view(np.bool_))
    indices: Indices = used[ones >> 6] * 64 + (ones & 63)
    return indices
