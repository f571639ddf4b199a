"""Sizes of encodings of a part: of all its blocks or of a sample.

The two codecs of an encoding do not know of each other, so each is encoded and compressed once per
block, in however many encodings it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.changes import Changes
from sparsedelta.codecs import (
    AnyCodec,
    AnyIndexCodec,
    Block,
    CodedBlock,
    Dense,
    Encoding,
    IndexCodec,
    Range,
    UnfitError,
    ValueCodec,
)
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.parallel import OrderedMap
from sparsedelta.tables import block_words
from sparsedelta.words import Bytes, Indices, ReadWords, Words

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
    base: ReadWords | None = None
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
        spec = self.changes.spec
        row = prod(spec.shape[1:]) if len(spec.shape) > 1 else 0
        block = Block(words, self.word_bytes, given, spec.dtype, number << self.block_log2, row)
        return block, indices, values


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


class Frames(NamedTuple):
    """The frames of one codec for one block.

    Attributes:
        frames: They.
        decoded: Length of each stream.
        nbytes: Length of all frames.
    """

    frames: list[bytes]
    decoded: list[int]
    nbytes: int


class TriedBlock:
    """One block in many encodings: of each codec it is coded once, when it is first asked for.

    Args:
        block: The block.
        indices: Its indices, relative to its first word.
        values: Its values.
    """

    def __init__(self, block: Block, indices: Indices, values: Words) -> None:
        self.indices = indices
        self.values = values
        self._block = block
        self._joint: dict[Encoding, Frames] = {}
        self._indices: dict[IndexCodec, Frames] = {}
        self._values: dict[tuple[ValueCodec, IndexCodec | None], Frames] = {}
        self._known: dict[bytes, bytes] = {}

    def frames(self, encoding: Encoding) -> tuple[Frames, Frames]:
        """Frames of the indices and of the values.

        Raises:
            UnfitError: The encoding cannot hold the block.
        """
        if encoding.joint is not None:
            if encoding not in self._joint:
                streams = encoding.encode(self.indices, self.values, self._block)
                cuts = encoding.cuts(CodedBlock(streams, self.indices.size, self._block))
                self._joint[encoding] = self._frames(encoding.joint, streams, cuts)
            return self._joint[encoding], Frames([], [], 0)
        index, value = encoding.pair
        run = self._run(index)
        if run is not None or not self.indices.size:
            if index not in self._indices or (value, run) not in self._values:
                streams = encoding.encode(self.indices, self.values, self._block)
                split = index.stream_count(self._block.word_bytes)
                self._indices[index] = self._frames(index, streams[:split])
                self._values[value, run] = self._frames(value, streams[split:])
        else:
            if index not in self._indices:
                streams = index.encode(self.indices, self._block)
                self._indices[index] = self._frames(index, streams)
            if (value, None) not in self._values:
                streams = value.encode(self.values, self._block)
                self._values[value, None] = self._frames(value, streams)
        return self._indices[index], self._values[value, run]

    def _run(self, index: AnyIndexCodec) -> IndexCodec | None:
        """The index codec, if its values have padding between them in this block."""
        if not isinstance(index, (Dense, Range)) or not self.indices.size:
            return None
        return index if index.span(self.indices, self._block)[1] != self.indices.size else None

    def _frames(
        self, codec: AnyCodec, streams: Sequence[Bytes], cuts: Sequence[int] = ()
    ) -> Frames:
        frames = [self._frame(codec, stream, cuts) for stream in streams]
        return Frames(frames, [stream.size for stream in streams], sum(map(len, frames)))

    def _frame(self, codec: AnyCodec, stream: Bytes, cuts: Sequence[int]) -> bytes:
        # Some codecs share streams: the signs are the same at every width.
        content = stream.tobytes()
        frame = content if codec.stored else self._known.get(content)
        if frame is None:
            frame = self._known[content] = encode_frame(content, cuts)
        return frame

    def sizes(self, encodings: Sequence[Encoding]) -> list[int]:
        """Bytes of the frames in each encoding, or _UNFIT."""
        sizes = []
        parts: dict[AnyCodec, int] = {}
        for encoding in encodings:
            index, value = parts.get(encoding.index), parts.get(encoding.value)
            if index is None or value is None or self._run(encoding.index) is not None:
                try:
                    index, value = (frames.nbytes for frames in self.frames(encoding))
                except UnfitError:
                    sizes.append(_UNFIT)
                    continue
                if self._run(encoding.index) is None:
                    parts[encoding.index], parts[encoding.value] = index, value
            sizes.append(index + value)
        return sizes


@dataclass(frozen=True, slots=True)
class Measured:
    """What blocks take in some encodings.

    Attributes:
        sizes: Bytes of the whole part, block table included, in each encoding that can hold it.
        blocks: The blocks that were coded, by their numbers, if they were to be kept.
    """

    sizes: Mapping[Encoding, int]
    blocks: Mapping[int, TriedBlock]


def measure(
    blocks: PartBlocks,
    sample: Sample,
    encodings: Sequence[Encoding],
    pool: OrderedMap,
    *,
    keep: bool = False,
) -> Measured:
    """Code a sample of the blocks of a part.

    Args:
        blocks: The part.
        sample: Which blocks to code; they stand for all.
        encodings: The encodings.
        pool: Where blocks are coded, many at a time.
        keep: Whether the coded blocks are wanted, not their sizes only.
    """
    base = any(encoding.needs_base for encoding in encodings)

    def code(number: int) -> tuple[list[int], TriedBlock | None]:
        block = TriedBlock(*blocks.read(number, base=base))
        return block.sizes(encodings), block if keep else None

    with pool.mapped(code, sample.numbers) as coded:
        rows, kept = zip(*coded, strict=True)
    sizes = {
        encoding: sample.total(sizes) + blocks.counts.size * row_bytes(encoding, blocks.word_bytes)
        for encoding, sizes in zip(encodings, zip(*rows, strict=True), strict=True)
        if _UNFIT not in sizes
    }
    pairs = zip(sample.numbers, kept, strict=True)
    return Measured(sizes, {number: block for number, block in pairs if block is not None})


def row_bytes(encoding: Encoding, word_bytes: int) -> int:
    """Bytes that a block takes in the block table."""
    return _COUNT_BYTES + _CELL_BYTES * encoding.stream_count(word_bytes)
