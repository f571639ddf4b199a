"""Boxes: blocks of a tensor's index space, and where their words lie in the whole tensor.

Both are sequences of words in row-major order, and a box keeps that order: what it holds of a run
of the tensor is a run of its own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Indices, Words

_LONG_WORDS: Final = 64
"""Stretches from which copying them one by one is faster than computing every index."""

_BATCH_WORDS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Box:
    """A block of a tensor of ``shape``: from ``offset`` on, ``size`` in each dimension."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The box that is all of a tensor."""
        return cls(shape, (0,) * len(shape), shape)

    @property
    def words(self) -> int:
        """Words in the box."""
        return prod(self.size)

    def run(self, start: int, stop: int) -> tuple[int, int]:
        """The run of the box's words that lies in the tensor's words ``[start, stop)``."""
        return self._before(start), self._before(stop)

    def _before(self, index: int) -> int:
        """Words of the box before word ``index`` of the tensor."""
        if index >= prod(self.shape):
            return self.words
        count = 0
        rows, inside = prod(self.shape), self.words
        for length, offset, size in zip(self.shape, self.offset, self.size, strict=True):
            rows //= length
            inside = inside // size if size else 0
            position, index = divmod(index, rows)
            count += min(max(position - offset, 0), size) * inside
            if not offset <= position < offset + size:
                break
        return count

    def place(self, words: Words, first: int, target: Words, start: int) -> None:
        """Put words of the box where they belong.

        Args:
            words: Words of the box, from its word ``first`` on.
            first: Which is the first of them.
            target: Words of the tensor, from its word ``start`` on; written to.
            start: Which is the first of them.
        """
        if not words.size:
            return
        length, split = self._stretch()
        chunks = np.arange(first // length, -(-(first + words.size) // length))
        starts = self._starts(chunks, split) - start
        head = first % length
        if length >= _LONG_WORDS or starts.size <= 2:  # noqa: PLR2004 (both cut short)
            done = 0
            for position in starts.tolist():
                size = min(length - head, words.size - done)
                target[position + head : position + head + size] = words[done : done + size]
                done += size
                head = 0
            return
        # Short stretches: the first and the last may be cut, those between are whole.
        batch = max(1, _BATCH_WORDS // length)
        within = np.arange(length)
        for at in range(0, starts.size, batch):
            indices = (starts[at : at + batch, None] + within).reshape(-1)
            done = at * length - head
            cut = indices[max(0, -done) : words.size - done]
            target[cut] = words[max(0, done) : max(0, done) + cut.size]

    def find(self, indices: Indices) -> tuple[Indices, Indices]:
        """Which of some words of the tensor are in the box, and where.

        Args:
            indices: Words of the tensor, ascending.

        Returns:
            Their places among ``indices``; what they are of the box's words, ascending.
        """
        if self.size == self.shape:
            return np.arange(indices.size), indices
        kept = np.ones(indices.size, np.bool_)
        within = np.zeros(indices.size, np.int64)
        axes = zip(np.unravel_index(indices, self.shape), self.offset, self.size, strict=True)
        for coordinate, offset, size in axes:
            position = coordinate - offset
            kept &= (position >= 0) & (position < size)
            within = within * size + position
        places = np.flatnonzero(kept)
        return places, within[places]

    def indices(self, words: Indices) -> Indices:
        """Which words of the tensor some words of the box are: the way back from :meth:`find`."""
        if self.size == self.shape:
            return words
        inside = np.unravel_index(words, self.size)
        moved = [axis + offset for axis, offset in zip(inside, self.offset, strict=True)]
        found: Indices = np.ravel_multi_index(moved, self.shape).astype(np.int64)
        return found

    def _stretch(self) -> tuple[int, int]:
        """Words that follow each other in the tensor, too, and the dimensions before them."""
        split = max(0, len(self.shape) - 1)
        while split > 0 and self.size[split] == self.shape[split]:
            split -= 1
        return max(1, prod(self.size[split:])), split

    def _starts(self, chunks: NDArray[np.int64], split: int) -> NDArray[np.int64]:
        """Where stretches of the box begin in the tensor."""
        strides = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        starts = np.zeros(chunks.size, np.int64)
        if self.shape:
            starts += self.offset[split] * strides[split]
        for axis in reversed(range(split)):
            chunks, position = np.divmod(chunks, self.size[axis])
            starts += (position + self.offset[axis]) * strides[axis]
        return starts
