"""Live rows of a block of ``ranked``: rows without a change leave the ranking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Indices, Words


@dataclass(frozen=True, slots=True)
class LiveRows:
    """Which elements of a block are ranked: those of its live rows, in order.

    The row of an element is its flat index over ``length``, rounded down.

    Attributes:
        length: Elements of a row, 1 or more.
        words: Elements of the block.
        offset: Elements of its first row that lie before the block.
        rows: int64, numbers of the live rows, ascending, the block's first row being 0.
        elements: Elements of the live rows within the block.
    """

    length: int
    words: int
    offset: int
    rows: Indices
    elements: int

    @classmethod
    def of(cls, live: NDArray[np.bool_], length: int, words: int, start: int) -> LiveRows:
        """Rows by a mark for each row that the block meets.

        Args:
            live: bool ``[row_count(...)]``.
            length: Elements of a row.
            words: Elements of the block.
            start: Flat index of its first.
        """
        offset = start % length
        rows = np.flatnonzero(live)
        elements = rows.size * length
        if rows.size and not rows[0]:
            elements -= offset
        if rows.size and rows[-1] == live.size - 1:
            elements -= live.size * length - offset - words
        return cls(length, words, offset, rows, elements)

    @property
    def _missing(self) -> int:
        """Elements of the first live row that lie before the block."""
        return self.offset if self.rows.size and not self.rows[0] else 0

    def pick(self, block: Words) -> Words:
        """What belongs to the elements of live rows, of something that each element has one of."""
        if self.elements == self.words:
            return block
        starts = np.maximum(self.rows * self.length - self.offset, 0)
        stops = np.minimum((self.rows + 1) * self.length - self.offset, self.words)
        if self.rows.size > self.elements >> 4:  # short rows: marked, not copied one by one
            marks = np.zeros(self.words + 1, np.int8)
            marks[starts] += 1
            marks[stops] -= 1
            return block[np.cumsum(marks[:-1], dtype=np.int8).view(np.bool_)]
        joined = np.flatnonzero(starts[1:] != stops[:-1])  # neighbours are copied together
        first = starts[np.concatenate([[0], joined + 1])].tolist()
        last = stops[np.concatenate([joined, [self.rows.size - 1]])].tolist()
        return np.concatenate([block[a:b] for a, b in zip(first, last, strict=True)])

    def positions(self, indices: Indices) -> Indices:
        """Positions among the elements of live rows, of elements of the block in such rows."""
        numbers = np.zeros(int(self.rows[-1]) + 1, np.int64)
        numbers[self.rows] = np.arange(self.rows.size)
        at = indices + self.offset
        row = at // self.length
        return at - (row - numbers[row]) * self.length - self._missing

    def indices(self, positions: Indices) -> Indices:
        """Elements of the block at some positions among those of live rows."""
        at = positions + self._missing
        row = at // self.length
        skipped = (self.rows - np.arange(self.rows.size)) * self.length - self.offset
        found: Indices = at + skipped[row]
        return found


def row_count(length: int, words: int, start: int) -> int:
    """Rows that a block meets, partial ones included."""
    return (start + words - 1) // length - start // length + 1
