"""The profile ``compact``: of each part of differences the smaller of two encodings.

``ranked`` needs the base words, to write and to read; where it does not win, or cannot hold the
dtype, the part is written as in the profile ``portable``. The choice is by exact sizes; the
portable encoding is only spared where one block of it shows that it is far larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sparsedelta.changes import Changes
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import (
    Bitmask,
    Dense,
    Encoding,
    Gap8,
    Packed,
    Ranked,
    RawWords,
    Zigzag,
)
from sparsedelta.delta import DIFFERENCE
from sparsedelta.encode import EncodedPart, choose_block_log2, encode_part
from sparsedelta.measure import PartBlocks, Sample, measure, row_bytes
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import ReadWords

RANKED: Final = Encoding(DIFFERENCE, Ranked(), Ranked())

BLOCK_ENTRIES: Final = 1 << 16
"""Entries that a block of ``ranked`` should hold: each of its classes has frames of its own."""

_LEAST_BLOCK_LOG2: Final = 20
"""Blocks are not smaller: their classes would be."""

_SAMPLED_LOG2: Final = 19

_SURE: Final = 4
"""``ranked`` is taken unseen if it is smaller by more than one part in so many."""

_PORTABLE: Final = (
    Encoding(DIFFERENCE, Gap8(), Packed(1)),
    Encoding(DIFFERENCE, Gap8(), Zigzag()),
    Encoding(DIFFERENCE, Bitmask(), Packed(1)),
    Encoding(DIFFERENCE, Bitmask(), Zigzag()),
)
"""Encodings that tell about how many bytes the portable profile would take."""


def choose_ranked_log2(words: int, nnz: int) -> int:
    """Base-2 logarithm of the block size of ``ranked``.

    Blocks hold BLOCK_ENTRIES entries or somewhat fewer, and at least 2^20 words, or all.
    """
    whole = choose_block_log2(words, 0)
    wanted = max(words * BLOCK_ENTRIES // nnz, 1).bit_length() - 1
    return min(max(wanted, _LEAST_BLOCK_LOG2), whole)


def encode_ranked(
    changes: Changes, base: ReadWords, *, pool: OrderedMap, block_log2: int | None = None
) -> EncodedPart:
    """Encode differences with ``ranked``; arguments as in :func:`encode_difference`."""
    if block_log2 is None:
        block_log2 = choose_ranked_log2(changes.spec.words, changes.nnz)
    choice = CodecChoice(RANKED.index, RANKED.value)
    return encode_part(
        changes, DIFFERENCE, pool=pool, choice=choice, block_log2=block_log2, base=base
    )


def encode_difference(
    changes: Changes,
    base: ReadWords,
    *,
    pool: OrderedMap,
    explain: bool = False,
) -> EncodedPart:
    """Encode differences in as few bytes as either encoding takes.

    Args:
        changes: The differences, at least one.
        base: Reads the words that they are added to, in any thread.
        pool: Where blocks are encoded, many at a time.
        explain: Whether ``sizes`` has all encodings that can hold the part.
    """
    if not RANKED.holds(changes.spec.dtype):
        return encode_part(changes, DIFFERENCE, pool=pool, explain=explain)
    ranked = encode_ranked(changes, base, pool=pool)
    size = ranked.tried[RANKED]
    is_sure = size * (_SURE + 1) < portable_bytes(changes, pool) * _SURE
    if is_sure and not explain:
        return ranked
    portable = encode_part(changes, DIFFERENCE, pool=pool, explain=explain)
    is_smaller = size < portable.tried[portable.coded.encoding]
    smaller = ranked if is_sure or is_smaller else portable
    return replace(smaller, tried={**portable.tried, RANKED: size})


def portable_bytes(changes: Changes, pool: OrderedMap) -> int:
    """About how many bytes the portable encoding takes at least, from one block of it.

    Few streams may be best of a few entries, where rows of the block table are longer than what
    they tell of: one stream is the least.
    """
    blocks = PartBlocks(changes, choose_block_log2(changes.spec.words, changes.nnz))
    return _from_one(blocks, _PORTABLE, pool, least=Encoding(DIFFERENCE, Dense(), RawWords()))


def ranked_bytes(changes: Changes, base: ReadWords, pool: OrderedMap) -> int:
    """About how many bytes ``ranked`` takes, from one block of at most 2^19 words."""
    block_log2 = min(choose_ranked_log2(changes.spec.words, changes.nnz), _SAMPLED_LOG2)
    return _from_one(PartBlocks(changes, block_log2, base), (RANKED,), pool)


def _from_one(
    blocks: PartBlocks,
    encodings: Sequence[Encoding],
    pool: OrderedMap,
    least: Encoding | None = None,
) -> int:
    """Bytes of the smallest encoding of a block with about the mean of entries, as of them all.

    Args:
        blocks: The part.
        encodings: The encodings.
        pool: Where blocks are encoded.
        least: The encoding that rows of the block table are counted of; None: of each its own.
    """
    filled = np.flatnonzero(blocks.counts)
    counts = blocks.counts[filled]
    at = int(np.argmin(np.abs(counts - int(counts.mean()))))
    held = int(counts[at])
    sample = Sample([int(filled[at])], [1], 1)
    sizes = measure(blocks, sample, encodings, pool).sizes

    def rows(each: Encoding) -> int:
        return blocks.counts.size * row_bytes(each, blocks.word_bytes)

    return min(
        (size - rows(each)) * blocks.changes.nnz // held + rows(least or each)
        for each, size in sizes.items()
    )


__all__ = [
    "RANKED",
    "choose_ranked_log2",
    "encode_difference",
    "encode_ranked",
    "portable_bytes",
    "ranked_bytes",
]
