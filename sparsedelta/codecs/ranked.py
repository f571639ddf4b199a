"""``ranked``: entries by their rank among words of like exponent (spec/codecs/ranked.md).

Words whose exponent is small change most often, and by most steps: within a class of like exponents
positions and values take fewer bits. A reader forms the same classes from the base words, and so
needs them; they have been verified before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.bitmask import Bitmask
from sparsedelta.codecs.escapes import encode_escapes
from sparsedelta.codecs.gap8 import gaps_of, write_gaps
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range, exponents, holds, members
from sparsedelta.codecs.ranked_frames import RULE
from sparsedelta.codecs.ranked_layout import (
    FLAT,
    GAPS,
    MASK,
    Class,
    ClassEntry,
    RankedBlock,
    parse_block,
    write_block,
)
from sparsedelta.codecs.ranked_plan import divide, index_code, is_worth_rows, value_code
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_values import NEW_WORDS, magnitudes, split_words, symbols
from sparsedelta.words import Bytes, Indices, Words

WORD_BYTES: Final = 2
"""Bytes of the words that the codec holds."""

BASE_RULE: Final = "SD418"
"""What of a block needs its base words."""

_LEAST: Final = 8
_MOST: Final = 1 << 15
_MOST_PER_ENTRY: Final = 5


@dataclass(frozen=True, slots=True)
class RankedIndices:
    """Positions and values in one stream, BLOCK; goes with :class:`RankedValues` only."""

    id: ClassVar[str] = "ranked"
    needs_base: ClassVar[bool] = True
    stored: ClassVar[bool] = True
    rule: ClassVar[str] = RULE

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: BLOCK."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """More than any block takes that is not padded."""
        least = np.full_like(counts, _LEAST)
        return [Bounds(least, _MOST + words + _MOST_PER_ENTRY * counts)]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Not without the values."""
        raise TypeError("'ranked' writes indices and values together")

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:  # noqa: ARG002
        """Not without the values."""
        raise TypeError("'ranked' reads indices and values together")


@dataclass(frozen=True, slots=True)
class RankedValues:
    """Values that are in the stream of :class:`RankedIndices`."""

    id: ClassVar[str] = "ranked"
    needs_base: ClassVar[bool] = True
    stored: ClassVar[bool] = True
    rule: ClassVar[str] = RULE

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """No stream."""
        return 0

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """No stream."""
        return []

    def encode(self, values: Words, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Nothing beside BLOCK."""
        return []

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:  # noqa: ARG002
        """Never asked for: no run holds such values."""
        raise TypeError("'ranked' reads indices and values together")

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:  # noqa: ARG002
        """Not without the indices."""
        raise TypeError("'ranked' reads indices and values together")


def work(counts: Counts, words: Counts) -> Counts:
    """Bytes that the frames of blocks decode to, at most: what a work budget counts."""
    return np.where(counts, words + _MOST_PER_ENTRY * counts, 0)


def _dtype(block: Block) -> str:
    if block.dtype not in EXPONENTS:
        raise TypeError(f"'ranked' holds {' and '.join(EXPONENTS)}, not {block.dtype}")
    return block.dtype


def check(stream: Bytes, count: int, block: Block) -> RankedBlock:
    """Take a block apart, without its base.

    Args:
        stream: BLOCK.
        count: Its entries, at least 1.
        block: Its words, dtype and start.

    Raises:
        StreamError: SD417.
    """
    return parse_block(
        stream.data,
        count,
        words=block.words,
        start=block.start,
        top_exponent=EXPONENTS[_dtype(block)][1],
    )


def decode(stream: Bytes, count: int, block: Block) -> tuple[Indices, Words]:
    """The entries of a block, in ascending order unless the block allows any.

    Args:
        stream: BLOCK.
        count: Its entries, at least 1.
        block: The block, with its base words.

    Raises:
        StreamError: SD417 or SD418.
    """
    parsed = check(stream, count, block)
    base = block.base
    if base is None:
        raise TypeError("'ranked' needs the base words")
    live = parsed.live
    fields = exponents(base, _dtype(block))
    if live is not None:
        fields = live.pick(fields)
    places = _places(fields, parsed.classes)
    found = np.concatenate(places)
    if live is not None:
        found = live.indices(found)
    values = []
    at = 0
    for each, where in zip(parsed.classes, places, strict=True):
        words = each.words
        if each.entry.value == NEW_WORDS:
            words = words - base[found[at : at + where.size]]
            if not words.all():
                raise StreamError(BASE_RULE, "a new word is the old one")
        values.append(words)
        at += where.size
    changed = np.concatenate(values)
    if block.any_order:
        return found, changed
    # No difference is 0: put in their places, they are found again in order.
    dense = np.zeros(block.words, changed.dtype)
    dense[found] = changed
    ordered: Indices = np.flatnonzero(dense)
    return ordered, dense[ordered]


def _places(fields: Bytes, classes: Sequence[Class]) -> list[Indices]:
    """Positions of the entries of each class among the elements of live rows."""
    places: list[Indices | None] = [None] * len(classes)
    listed = [each.entry.range for each in classes if each.entry.range != FLAT]
    for found in members(fields, listed):
        each = classes[found.number]
        size = found.size
        if each.bits and each.bits != -(-size // 8) * 8:
            raise StreamError(BASE_RULE, f"a bitmask of {each.bits} bits over {size} elements")
        if each.ranks[-1] >= size:
            raise StreamError(BASE_RULE, f"rank {each.ranks[-1]} in a class of {size}")
        places[found.number] = found.positions(each.ranks)
    if len(listed) < len(classes):
        flat = classes[-1].ranks
        taken = fields[flat]
        if any(holds(taken, each).any() for each in listed):
            raise StreamError(BASE_RULE, "an entry of the flat class belongs to another")
        places[-1] = flat
    return [place for place in places if place is not None]


def encode(indices: Indices, values: Words, block: Block) -> Bytes:
    """BLOCK of some entries.

    Args:
        indices: int64 ``[count]``, ascending, at least one.
        values: Differences, none of them 0.
        block: The block, with its base words, dtype, start and row length.
    """
    base = block.base
    if base is None:
        raise TypeError("'ranked' needs the base words")
    fields = exponents(base, _dtype(block))
    live = _live_rows(indices, block)
    at = indices
    rows = None
    if live is not None:
        found, rows = live
        fields, at = found.pick(fields), found.positions(indices)
    own = fields[at]
    sizes = np.bincount(fields, minlength=256)
    division = divide(sizes, np.bincount(own, minlength=256))
    ranges = [*division.ranges, FLAT] if division.flat.any() else division.ranges
    chosen = [np.flatnonzero(holds(own, each)) for each in division.ranges]
    if len(ranges) > len(chosen):
        chosen.append(np.flatnonzero(division.flat[own]))
    ranks = _ranks(fields, at, chosen, division.ranges)
    found_all, negative = magnitudes(values)
    split = split_words(base[indices] + values)
    table: list[ClassEntry] = []
    contents: list[list[bytes]] = []
    escaped, signs = [np.empty(0, np.uint16)], [np.empty(0, np.bool_)]
    for each, picked, (index, rank_bytes) in zip(ranges, chosen, ranks, strict=True):
        words = split[0][picked], split[1][picked]
        code = value_code(found_all[picked], words)
        content = [rank_bytes]
        if code == NEW_WORDS:
            content += [part.tobytes() for part in words]
        else:
            packed, items = symbols(found_all[picked], code)
            content += [packed.tobytes()] * (code > 0)
            escaped.append(items)
            signs.append(negative[picked])
        table.append(ClassEntry(each, index, code, picked.size))
        contents.append(content)
    data = write_block(
        rows,
        table,
        np.concatenate(signs),
        encode_escapes(np.concatenate(escaped), WORD_BYTES).tobytes(),
        contents,
    )
    return np.frombuffer(data, np.uint8)


def _live_rows(
    indices: Indices, block: Block
) -> tuple[LiveRows, tuple[int, NDArray[np.bool_]]] | None:
    """The live rows, if it pays to leave the others out."""
    length = block.row
    if not length:
        return None
    count = row_count(length, block.words, block.start)
    marks = np.zeros(count, np.bool_)
    marks[(indices + block.start % length) // length] = True
    live = LiveRows.of(marks, length, block.words, block.start)
    if not is_worth_rows(block.words, live.elements, indices.size, count, live.rows.size):
        return None
    return live, (length, marks)


def _ranks(
    fields: Bytes, at: Indices, chosen: Sequence[Indices], ranges: Sequence[Range]
) -> list[tuple[int, bytes]]:
    """Index code and bytes of the ranks of each class."""
    found: list[tuple[int, bytes] | None] = [None] * len(chosen)
    for each in members(fields, ranges):
        places = each.ranks(at[chosen[each.number]])
        code = index_code(each.size, places.size)
        if code == MASK:
            (stream,) = Bitmask().encode(places, Block(each.size, WORD_BYTES))
        else:
            stream = write_gaps(gaps_of(places))
        found[each.number] = code, stream.tobytes()
    if len(chosen) > len(ranges):
        found[-1] = GAPS, write_gaps(gaps_of(at[chosen[-1]])).tobytes()
    return [each for each in found if each is not None]
