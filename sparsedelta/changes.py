"""The changed words of one tensor, held compactly while they wait to be encoded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import Bytes, Indices, TensorSpec, Words

_ONES: Final = np.array([byte.bit_count() for byte in range(256)], np.uint8)

_OFFSET_BITS: Final = 32
"""Bits of an offset: from one entry in so many words on, a bit per word takes less."""


class Run(NamedTuple):
    """Entries of one run of words: offsets where they are few, else a bit per word.

    Attributes:
        start: First word of the run, a multiple of 8.
        words: Words of the run.
        offsets: uint32 ``[count]``, entries as words behind ``start``; None if they are bits.
        bits: uint8, a bit per word of the run, the lowest first; empty if they are offsets.
        values: Words ``[count]``.
    """

    start: int
    words: int
    offsets: NDArray[np.uint32] | None
    bits: Bytes
    values: Words


def make_run(start: int, words: int, offsets: NDArray[np.integer], values: Words) -> Run:
    """The entries of a run of words, as compact as they can be held.

    Args:
        start: First word of the run, a multiple of 8.
        words: Words of the run, at most 2^32.
        offsets: ``[count]``, words of the run that are entries, ascending.
        values: A value per entry.
    """
    if values.size <= words // _OFFSET_BITS:
        return Run(
            start, words, offsets.astype(np.uint32, copy=False), np.empty(0, np.uint8), values
        )
    marks = np.zeros(words, np.bool_)
    marks[offsets] = True
    return Run(start, words, None, np.packbits(marks, bitorder="little"), values)


class Changes:
    """Entries of one tensor, run by run.

    So they take at most an eighth of the tensor beside their values, however much of it has
    changed; 64-bit indices of a tensor of bf16 that has changed throughout would be four times the
    tensor.

    Args:
        spec: The tensor.

    Attributes:
        spec: The tensor.
        nnz: Number of entries.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.nnz = 0
        self._runs: list[Run] = []
        self._before: list[int] = []

    def append(self, run: Run) -> None:
        """Add the entries of a run of words; runs come in ascending order and do not overlap."""
        if run.values.size:
            self._runs.append(run)
            self._before.append(self.nnz)
            self.nnz += run.values.size

    @classmethod
    def from_entries(cls, spec: TensorSpec, indices: Indices, values: Words) -> Changes:
        """Changes of ascending flat indices, for deltas made in memory."""
        changes = cls(spec)
        edges = np.searchsorted(indices, np.arange(0, spec.words + SEGMENT_WORDS, SEGMENT_WORDS))
        for segment in np.flatnonzero(np.diff(edges)).tolist():
            start = segment * SEGMENT_WORDS
            entries = slice(edges[segment], edges[segment + 1])
            words = min(SEGMENT_WORDS, spec.words - start)
            changes.append(make_run(start, words, indices[entries] - start, values[entries]))
        return changes

    def counts(self, block_log2: int) -> NDArray[np.int64]:
        """Entries of each block, int64 ``[blocks]``.

        Args:
            block_log2: Base-2 logarithm of the words of a block, at least 3.
        """
        counts = np.zeros(-(-self.spec.words >> block_log2), np.int64)
        size = 1 << block_log2
        for run in self._runs:
            first, last = run.start >> block_log2, (run.start + run.words - 1) >> block_log2
            if first == last:
                counts[first] += run.values.size
                continue
            edges = np.arange((first + 1) * size, (last + 1) * size, size) - run.start
            if run.offsets is not None:
                found = np.searchsorted(run.offsets, edges)
                counts[first : last + 1] += np.diff(found, prepend=0, append=run.values.size)
            else:
                starts = np.concatenate([[0], edges >> 3])
                ones = np.add.reduceat(_ONES[run.bits], starts, dtype=np.int64)
                counts[first : last + 1] += ones
        return counts

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
        stop = min(start + (1 << block_log2), self.spec.words)
        indices: list[Indices] = []
        values: list[Words] = []
        at = max(0, bisect_right(self._runs, start, key=_start) - 1)
        for number in range(at, bisect_left(self._runs, stop, key=_start)):
            run = self._runs[number]
            found = _within(run, start - run.start, stop - run.start)
            if found.size:
                first = position - self._before[number]
                indices.append(found + (run.start - start) if run.start != start else found)
                values.append(run.values[first : first + found.size])
                position += found.size
        if len(values) == 1:
            return stop - start, indices[0], values[0]
        empty: Indices = np.empty(0, np.int64)
        return (
            stop - start,
            np.concatenate([empty, *indices]),
            np.concatenate([np.empty(0, self.spec.word_dtype), *values]),
        )

    def blocks(self, block_log2: int) -> Iterator[tuple[int, Indices, Words]]:
        """Entries block by block, in the form of :meth:`block`."""
        position = 0
        for block in range(-(-self.spec.words >> block_log2)):
            words, indices, values = self.block(block_log2, block, position)
            yield words, indices, values
            position += indices.size


def _start(run: Run) -> int:
    return run.start


def _within(run: Run, low: int, high: int) -> Indices:
    """Entries of a run in ``[low, high)``, as words behind its start."""
    low, high = max(low, 0), min(high, run.words)
    if low >= high:
        return np.empty(0, np.int64)
    if run.offsets is not None:
        offsets = run.offsets
        if low or high < run.words:
            first, last = np.searchsorted(offsets, [low, high])
            offsets = offsets[first:last]
        return offsets.astype(np.int64)
    ones = _ones(run.bits[low // 8 : -(-high // 8)])
    return ones + low if low else ones


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
