"""From the entries of a part, or from its words, to its bytes.

First it is found out which encoding is the smallest, on a sample of the blocks if there are many;
then the part is coded in it. A single block is coded once: it is kept from the search. The bytes do
not depend on the number of threads, nor on whether sizes are to be explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from sparsedelta.changes import Changes
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import (
    AnyValueCodec,
    Block,
    Dense,
    Encoding,
    Planes,
    RawWords,
    UnfitError,
)
from sparsedelta.delta import EntryHasher, PartContent, tensor_content
from sparsedelta.digests import Digest
from sparsedelta.errors import UsageError
from sparsedelta.limits import MAX_BLOCK_LOG2, MIN_BLOCK_LOG2
from sparsedelta.measure import PartBlocks, TriedBlock, row_bytes
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import BarePart, PartRecord, TensorRecord
from sparsedelta.smallest import choose
from sparsedelta.tables import row
from sparsedelta.words import Indices, ReadWords, TensorSpec, Words

BLOCK_ENTRIES: Final = 1 << 15
"""Entries that a block should hold: fewer cost bytes (a frame has its own entropy tables), more
cost random access."""

DENSE_BLOCK_LOG2: Final = 22
"""Block size of the dense ops: a segment."""

_SMALLEST: Final = "leave the choice of codecs out: the smallest that fit are taken"


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """A part, ready to be written.

    Attributes:
        record: Its record in the manifest.
        rows: What it adds to the tables: its block table, or the digests of what it refers to.
        frames: Its frames, in order.
        content: What of it enters the content digest.
        tried: Bytes, block table included, of the encodings that were tried on all blocks; the
            chosen one is always among them.
    """

    record: PartRecord | BarePart
    rows: bytes
    frames: list[bytes]
    content: PartContent
    tried: Mapping[Encoding, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """What was tried, by descriptions of the encodings."""
        return {encoding.describe(): size for encoding, size in self.tried.items()}

    @property
    def coded(self) -> PartRecord:
        """The record of a part that carries words."""
        if not isinstance(self.record, PartRecord):
            raise TypeError(f"a part of op {self.record.op!r} that carries nothing")
        return self.record


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A touched tensor, ready to be written.

    Attributes:
        base: The tensor in the base, or None.
        target: The tensor in the target, or None.
        parts: Its parts.
        base_segments: Segment digests of the base tensor.
        target_segments: Segment digests of the target tensor.
    """

    base: TensorSpec | None
    target: TensorSpec | None
    parts: tuple[EncodedPart, ...]
    base_segments: tuple[Digest, ...]
    target_segments: tuple[Digest, ...]

    @property
    def record(self) -> TensorRecord:
        """Its record in the manifest."""
        return TensorRecord(self.base, self.target, tuple(part.record for part in self.parts))

    @property
    def tables(self) -> bytes:
        """What it adds to the tables."""
        digests = b"".join((*self.base_segments, *self.target_segments))
        return digests + b"".join(part.rows for part in self.parts)

    @property
    def content(self) -> bytes:
        """What of it enters the content digest."""
        return tensor_content(self.base, self.target, (part.content for part in self.parts))


def choose_block_log2(words: int, nnz: int) -> int:
    """Base-2 logarithm of a block size: holds about BLOCK_ENTRIES entries, or the whole tensor."""
    wanted = min(words, words * BLOCK_ENTRIES // max(nnz, 1))
    return min(max((wanted - 1).bit_length(), MIN_BLOCK_LOG2), MAX_BLOCK_LOG2)


def encode_part(
    changes: Changes,
    op: str,
    *,
    pool: OrderedMap,
    choice: CodecChoice | None = None,
    block_log2: int | None = None,
    base: ReadWords | None = None,
    explain: bool = False,
) -> EncodedPart:
    """Encode the entries of one part.

    Args:
        changes: The entries, at least one. The values of an ``add`` have a dtype of their own: its
            changes have a spec of that dtype.
        op: ``difference``, ``replace`` or ``add``.
        pool: Where blocks are encoded, many at a time.
        choice: Which codecs to use; by default the smallest.
        block_log2: Block size; by default by the density.
        base: Reads base words, for codecs that need them.
        explain: Whether ``sizes`` has all encodings that can hold the part.

    Raises:
        UsageError: The codecs that were chosen cannot hold the part.
    """
    spec = changes.spec
    if block_log2 is None:
        block_log2 = choose_block_log2(spec.words, changes.nnz)
    size_log2 = block_log2
    blocks = PartBlocks(changes, size_log2, base)
    try:
        chosen = choose(blocks, op, choice, pool=pool, explain=explain)
        encoding = chosen.encoding

        def encode(number: int) -> _EncodedBlock:
            block = chosen.blocks.get(number)
            if block is None:
                block = TriedBlock(*blocks.read(number, base=encoding.needs_base))
            return _encoded(block, encoding, number << size_log2)

        part = _collect(encoding, size_log2, pool, encode, blocks.counts.size)
    except UnfitError as error:
        raise _unfit(op, error, spec.name) from None
    return replace(part, tried={**chosen.sizes, **part.tried})


def encode_words(
    words: int,
    word_bytes: int,
    op: str,
    read: ReadWords,
    *,
    pool: OrderedMap,
    choice: CodecChoice | None = None,
    block_log2: int | None = None,
    name: str | None = None,
) -> EncodedPart:
    """Encode all words of a dense op: ``planes`` or ``raw``, whichever is smaller.

    The words are read a block at a time, twice if they do not compress; the frames are kept.

    Args:
        words: Words of the part's domain; of 0 words there are no blocks.
        word_bytes: Bytes of a word.
        op: ``new``, ``drop`` or ``resize``.
        read: Reads them.
        pool: Where blocks are read and encoded, many at a time.
        choice: Which value codec to use; by default the smaller. Indices are ``dense`` in any case.
        block_log2: Block size; by default a segment, or all words if they are fewer.
        name: Name of the tensor, for an error.

    Raises:
        UsageError: The value codec that was chosen cannot hold the part.
    """
    if block_log2 is None:
        block_log2 = min(max((words - 1).bit_length(), MIN_BLOCK_LOG2), DENSE_BLOCK_LOG2)
    size_log2 = block_log2
    values: list[AnyValueCodec] = [Planes(), RawWords()]
    if choice is not None and choice.value is not None:
        values = [choice.value]
    try:
        encodings = [Encoding(op, Dense(), value) for value in values]
    except ValueError as error:
        raise _unfit(op, error, name) from None
    no_indices: Indices = np.empty(0, np.int64)
    count = -(-words >> size_log2)

    def part_in(encoding: Encoding) -> EncodedPart:
        def encode(number: int) -> _EncodedBlock:
            start = number << size_log2
            block = Block(min(1 << size_log2, words - start), word_bytes)
            values = read(start, start + block.words)
            coded = TriedBlock(block, np.arange(block.words), values)
            return _encoded(coded, encoding, 0)._replace(indices=no_indices)

        return _collect(encoding, size_log2, pool, encode, count)

    best = part_in(encodings[0])
    sizes = dict(best.tried)
    for raw in encodings[1:]:  # its size is known beforehand
        size = words * word_bytes + count * row_bytes(raw, word_bytes)
        if size < min(sizes.values()):
            best = part_in(raw)
        sizes[raw] = size
    return replace(best, tried=sizes)


class _EncodedBlock(NamedTuple):
    """A block, encoded; of its entries, what enters the content digest."""

    row: bytes
    frames: list[bytes]
    indices: Indices
    values: Words


def _encoded(coded: TriedBlock, encoding: Encoding, start: int) -> _EncodedBlock:
    both = coded.frames(encoding)
    frames = [frame for half in both for frame in half.frames]
    cells = [cell for half in both for cell in zip(half.frames, half.decoded, strict=True)]
    return _EncodedBlock(
        row(coded.indices.size, cells), frames, coded.indices + start, coded.values
    )


def _collect(
    encoding: Encoding,
    block_log2: int,
    pool: OrderedMap,
    encode: Callable[[int], _EncodedBlock],
    count: int,
) -> EncodedPart:
    entries = EntryHasher()
    nnz = 0
    rows: list[bytes] = []
    frames: list[bytes] = []
    with pool.mapped(encode, range(count)) as blocks:
        for block in blocks:
            rows.append(block.row)
            frames += block.frames
            entries.update(block.indices, block.values)
            nnz += block.values.size
    nbytes = sum(map(len, frames))
    table = b"".join(rows)
    return EncodedPart(
        PartRecord(nnz, block_log2, encoding, nbytes),
        table,
        frames,
        PartContent(encoding.op, nnz, *entries.digests()),
        {encoding: nbytes + len(table)},
    )


def _unfit(op: str, error: ValueError, name: str | None) -> UsageError:
    where = "" if name is None else f"tensor {name!r}: "
    return UsageError(f"{where}the chosen codecs cannot hold its {op}: {error}", hint=_SMALLEST)
