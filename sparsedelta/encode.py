"""From the entries of a tensor to the smallest encoding of them.

Every candidate is encoded and compressed, block by block, and its exact size is added up; then the
smallest is written. No size is guessed. Candidates that cannot win are left out beforehand:
``bitmask`` below one entry in 64 words, where even run lengths of its zeros lose to gaps, ``dense``
below one in 8, and packed widths that more than half of the values would escape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from sparsedelta.changes import Changes
from sparsedelta.codecs import (
    Bitmask,
    Block,
    Dense,
    Encoding,
    Gap8,
    IndexCodec,
    Packed,
    Planes,
    ValueCodec,
    Zigzag,
)
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.codecs.packed import WIDTHS
from sparsedelta.delta import DIFFERENCE, EntryHasher, PartContent
from sparsedelta.limits import MAX_BLOCK_LOG2, MIN_BLOCK_LOG2
from sparsedelta.manifest import PartRecord
from sparsedelta.parallel import OrderedMap
from sparsedelta.tables import row
from sparsedelta.words import Indices, Words

BLOCK_ENTRIES: Final = 1 << 15
"""Entries that a block should hold: fewer cost bytes (a frame has its own entropy tables), more
cost random access."""

BaseWords: TypeAlias = Callable[[int, int], Words]
"""Reads the base words ``[start, stop)`` of a tensor."""

_CELL_BYTES: Final = 16
"""What a stream costs in the block table."""

_BITMASK_FROM: Final = 64
_DENSE_FROM: Final = 8
_ESCAPES_UP_TO: Final = 2


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """A part, ready to be written.

    Attributes:
        record: Its record in the manifest.
        rows: Its block table.
        frames: Its frames, in order.
        content: What of it enters the content digest.
    """

    record: PartRecord
    rows: bytes
    frames: list[bytes]
    content: PartContent


def choose_block_log2(words: int, nnz: int) -> int:
    """Base-2 logarithm of a block size: holds about BLOCK_ENTRIES entries, or the whole tensor."""
    wanted = min(words, words * BLOCK_ENTRIES // max(nnz, 1))
    return min(max((wanted - 1).bit_length(), MIN_BLOCK_LOG2), MAX_BLOCK_LOG2)


def encode_part(
    changes: Changes,
    op: str,
    *,
    pool: OrderedMap,
    encoding: Encoding | None = None,
    block_log2: int | None = None,
    base: BaseWords | None = None,
) -> EncodedPart:
    """Encode the entries of one part.

    Args:
        changes: The entries; at least one.
        op: ``difference`` or ``replace``.
        pool: Where blocks are encoded, many at a time.
        encoding: Which encoding to use; by default the smallest.
        block_log2: Block size; by default by the density.
        base: Reads base words, for an ``encoding`` that needs them.
    """
    if block_log2 is None:
        block_log2 = choose_block_log2(changes.spec.words, changes.nnz)
    if encoding is None:
        encoding = smallest_encoding(changes, op, pool=pool, block_log2=block_log2)
    word_bytes = changes.spec.word_bytes
    chosen = encoding

    def encode_block(item: tuple[int, int, Indices, Words]) -> tuple[bytes, list[bytes]]:
        start, words, indices, values = item
        given = base(start, start + words) if chosen.needs_base and base is not None else None
        streams = chosen.encode(indices, values, Block(words, word_bytes, given))
        frames = [encode_frame(stream) for stream in streams]
        cells = [(frame, len(stream)) for frame, stream in zip(frames, streams, strict=True)]
        return row(indices.size, cells), frames

    entries = EntryHasher()

    def blocks_while_hashing() -> Iterator[tuple[int, int, Indices, Words]]:
        start = 0
        for words, indices, values in changes.blocks(block_log2):
            entries.update(indices + start, values)
            yield start, words, indices, values
            start += words

    rows: list[bytes] = []
    frames: list[bytes] = []
    with pool.mapped(encode_block, blocks_while_hashing()) as blocks:
        for block_row, block_frames in blocks:
            rows.append(block_row)
            frames += block_frames
    nbytes = sum(map(len, frames))
    record = PartRecord(changes.nnz, block_log2, chosen, nbytes)
    content = PartContent(op, changes.nnz, *entries.digests())
    return EncodedPart(record, b"".join(rows), frames, content)


def smallest_encoding(changes: Changes, op: str, *, pool: OrderedMap, block_log2: int) -> Encoding:
    """The encoding of the fewest bytes, tables included; the first of equals."""
    sizes = encoding_sizes(changes, op, pool=pool, block_log2=block_log2)
    return min(sizes, key=lambda encoding: sizes[encoding])


def encoding_sizes(
    changes: Changes, op: str, *, pool: OrderedMap, block_log2: int
) -> dict[Encoding, int]:
    """Exact bytes of every candidate, frames and block table."""
    word_bytes = changes.spec.word_bytes
    index_codecs, value_codecs, dense_codecs = _candidates(changes, op)

    def measure(item: tuple[int, Indices, Words]) -> list[int]:
        words, indices, values = item
        block = Block(words, word_bytes)
        if not indices.size:
            return [0] * (len(index_codecs) + len(value_codecs) + len(dense_codecs))
        dense = [
            Encoding(op, Dense(), value).encode(indices, values, block) for value in dense_codecs
        ]
        return [
            sum(len(encode_frame(stream)) for stream in streams)
            for streams in (
                *(index.encode(indices, block) for index in index_codecs),
                *(value.encode(values, block) for value in value_codecs),
                *dense,
            )
        ]

    with pool.mapped(measure, changes.blocks(block_log2)) as measured:
        rows = list(measured)
    totals = np.array(rows, np.int64).sum(axis=0).tolist()
    sizes = {}
    for i, index in enumerate(index_codecs):
        for j, value in enumerate(value_codecs):
            sizes[Encoding(op, index, value)] = totals[i] + totals[len(index_codecs) + j]
    for j, value in enumerate(dense_codecs):
        sizes[Encoding(op, Dense(), value)] = totals[len(index_codecs) + len(value_codecs) + j]
    return {
        encoding: size + len(rows) * _CELL_BYTES * encoding.stream_count(word_bytes)
        for encoding, size in sizes.items()
    }


def _candidates(
    changes: Changes, op: str
) -> tuple[list[IndexCodec], list[ValueCodec], list[ValueCodec]]:
    words, nnz = changes.spec.words, changes.nnz
    index_codecs: list[IndexCodec] = [Gap8()]
    if nnz * _BITMASK_FROM >= words:
        index_codecs.append(Bitmask())
    if op != DIFFERENCE:
        return index_codecs, [Planes()], [Planes()] if nnz == words else []
    packed: list[ValueCodec] = [Packed(width) for width in _packed_widths(changes)]
    plain: list[ValueCodec] = [Zigzag(), Planes()]
    return index_codecs, packed + plain, plain if nnz * _DENSE_FROM >= words else []


def _packed_widths(changes: Changes) -> list[int]:
    limit = int(np.iinfo(changes.spec.word_dtype).max) // 2
    widths = []
    for width in WIDTHS:
        top = changes.spec.word_dtype.type(min((1 << width) - 1, limit))
        span = changes.spec.word_dtype.type(2 * int(top))
        # |d| <= top, both signs at once: d + top wraps around into [0, 2 * top].
        kept = sum(int(np.count_nonzero(run + top <= span)) for run in changes.runs)
        if width == 0 or (changes.nnz - kept) * _ESCAPES_UP_TO <= changes.nnz:
            widths.append(width)
    return widths
