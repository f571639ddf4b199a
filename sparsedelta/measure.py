"""Sizes of encodings of a part: of all its blocks or of a sample, without keeping a byte.

The two codecs of an encoding do not know of each other, so each is encoded and compressed once per
block, in however many encodings it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsedelta.changes import Changes
from sparsedelta.codecs import Block, Dense, Encoding, IndexCodec, Range, UnfitError, ValueCodec
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.parallel import OrderedMap
from sparsedelta.tables import block_words
from sparsedelta.words import Bytes, Indices, Words

BaseWords: TypeAlias = Callable[[int, int], Words]
"""Reads the base words ``[start, stop)`` of a tensor."""

EXACT_BLOCKS: Final = 24
"""Up to so many blocks with entries, a sample is all of them."""

_SAMPLE_BLOCKS: Final = 16
_SAMPLE_SHARE: Final = 64
_SCALE: Final = 1 << 32
_GOLDEN: Final = 0x9E3779B1
"""2^32 over the golden ratio: its multiples are spread evenly, and repeat nothing."""

_UNFIT: Final = -1
"""The size of a block in an encoding that cannot hold it."""

_COUNT_BYTES: Final = 4
_CELL_BYTES: Final = 16


@dataclass(slots=True)
class PartBlocks:
    """The blocks of a part, for any thread.

    Attributes:
        changes: The entries; of an ``add``, whose values have a dtype of their own, under a spec of
            that dtype.
        block_log2: Base-2 logarithm of the words of a block.
        base: Reads base words, for codecs that need them.
        counts: int64 ``[blocks]``, entries of each block.
        words: int64 ``[blocks]``, words of each block.
    """

    changes: Changes
    block_log2: int
    base: BaseWords | None = None
    counts: NDArray[np.int64] = field(init=False)
    words: NDArray[np.int64] = field(init=False)
    _positions: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = self.changes.counts(self.block_log2)
        self.words = block_words(self.changes.spec.words, self.block_log2)
        self._positions = np.cumsum(self.counts) - self.counts

    @property
    def word_bytes(self) -> int:
        """Bytes of a word."""
        return self.changes.spec.word_bytes

    def read(self, number: int, *, base: bool) -> tuple[Block, Indices, Words]:
        """A block, its indices relative to its first word, and its values.

        Args:
            number: Number of the block.
            base: Whether the block is given its base words.
        """
        position = int(self._positions[number])
        words, indices, values = self.changes.block(self.block_log2, number, position)
        given = None
        if base and self.base is not None:
            start = number << self.block_log2
            given = self.base(start, start + words)
        return Block(words, self.word_bytes, given), indices, values


@dataclass(frozen=True, slots=True)
class Sample:
    """Blocks that stand for all blocks with entries.

    Attributes:
        numbers: Their numbers, ascending.
        weights: How many blocks each of them stands for, in units of 1 / ``scale``.
        scale: 1 if the sample is all blocks, and its totals are exact.
    """

    numbers: list[int]
    weights: list[int]
    scale: int

    @classmethod
    def whole(cls, counts: NDArray[np.int64]) -> Sample:
        """All blocks with entries."""
        numbers = np.flatnonzero(counts).tolist()
        return cls(numbers, [1] * len(numbers), 1)

    @classmethod
    def draw(cls, counts: NDArray[np.int64], *, times: int = 1) -> Sample:
        """All blocks with entries, or of many some, by a fixed rule.

        The chance of a block is half by its entries and half the same for all, so that neither a
        crowded corner nor a thin rest is missed. Sums over the sample, weighted by one over the
        chance, are expected to be those over all blocks.

        Args:
            counts: int64 ``[blocks]``, entries of each block.
            times: How many times as many blocks as usual to draw.
        """
        filled = np.flatnonzero(counts)
        draws = times * (_SAMPLE_BLOCKS + filled.size // _SAMPLE_SHARE)
        if filled.size <= max(draws, EXACT_BLOCKS):
            return cls.whole(counts)
        held = counts[filled]
        chances = held + int(held.sum()) // filled.size
        edges = np.cumsum(chances)
        total = int(edges[-1])
        # One point in each of as many equal stretches, at places that match no period of a tensor.
        points = [
            total * (draw * _SCALE + draw * _GOLDEN % _SCALE) // (draws * _SCALE)
            for draw in range(draws)
        ]
        hits = np.searchsorted(edges, points, side="right")
        drawn, often = np.unique(hits, return_counts=True)
        weights = [
            n * total * _SCALE // (draws * chance)
            for chance, n in zip(chances[drawn].tolist(), often.tolist(), strict=True)
        ]
        return cls(filled[drawn].tolist(), weights, _SCALE)

    def total(self, numbers: Iterable[int]) -> int:
        """The sum over all blocks of what is known of the sample: exact, or an estimate."""
        return sum(w * n for w, n in zip(self.weights, numbers, strict=True)) // self.scale


def part_sizes(
    blocks: PartBlocks, sample: Sample, encodings: Sequence[Encoding], pool: OrderedMap
) -> dict[Encoding, int]:
    """Bytes of the whole part, block table included, in each encoding that can hold the sample.

    Args:
        blocks: The part.
        sample: Which blocks to encode; they stand for all.
        encodings: The encodings.
        pool: Where blocks are encoded, many at a time.
    """
    base = any(encoding.needs_base for encoding in encodings)

    def measure(number: int) -> list[int]:
        sizes = _Sizes(*blocks.read(number, base=base))
        return [sizes.of(encoding) for encoding in encodings]

    with pool.mapped(measure, sample.numbers) as measured:
        columns = list(zip(*measured, strict=True))
    return {
        encoding: sample.total(sizes) + blocks.counts.size * row_bytes(encoding, blocks.word_bytes)
        for encoding, sizes in zip(encodings, columns, strict=True)
        if _UNFIT not in sizes
    }


def row_bytes(encoding: Encoding, word_bytes: int) -> int:
    """Bytes that a block takes in the block table."""
    return _COUNT_BYTES + _CELL_BYTES * encoding.stream_count(word_bytes)


class _Sizes:
    """Sizes of one block: of codecs, each computed when it is first asked for."""

    def __init__(self, block: Block, indices: Indices, values: Words) -> None:
        self._block = block
        self._indices = indices
        self._values = values
        self._codecs: dict[tuple[ValueCodec | IndexCodec, IndexCodec | None], int] = {}

    def of(self, encoding: Encoding) -> int:
        """Bytes of the frames in an encoding, or _UNFIT."""
        run = None
        if isinstance(encoding.index, (Dense, Range)):
            length = encoding.index.span(self._indices, self._block)[1]
            if length != self._indices.size:
                run = encoding.index  # its values have padding between them
        index, value = (encoding.index, None), (encoding.value, run)
        split = encoding.index.stream_count(self._block.word_bytes)
        if run is not None and (index not in self._codecs or value not in self._codecs):
            try:
                streams = encoding.encode(self._indices, self._values, self._block)
            except UnfitError:
                return _UNFIT
            self._codecs[index] = _frames(encoding.index, streams[:split])
            self._codecs[value] = _frames(encoding.value, streams[split:])
        if index not in self._codecs:
            streams = encoding.index.encode(self._indices, self._block)
            self._codecs[index] = _frames(encoding.index, streams)
        if value not in self._codecs:
            streams = encoding.value.encode(self._values, self._block)
            self._codecs[value] = _frames(encoding.value, streams)
        return self._codecs[index] + self._codecs[value]


def _frames(codec: IndexCodec | ValueCodec, streams: Sequence[Bytes]) -> int:
    if codec.stored:
        return sum(stream.size for stream in streams)
    return sum(len(encode_frame(stream)) for stream in streams)
