"""``ranked``: entries by their rank among words of like exponent (spec/codecs/ranked.md).

Words whose exponent is small change most often, and by most steps: within a class of like exponents
positions and values take fewer bits. A reader forms the same classes from the base words, and so
needs them; they have been verified before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, Bounds, CodedBlock, Counts, StreamError
from sparsedelta.codecs.escapes import encode_escapes
from sparsedelta.codecs.gap8 import gaps_of, write_gaps
from sparsedelta.codecs.packed import pack
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range, exponents, histogram
from sparsedelta.codecs.ranked_frames import RULE
from sparsedelta.codecs.ranked_layout import (
    FLAT,
    GAPS,
    ClassEntry,
    RankedBlock,
    parse_block,
    write_block,
)
from sparsedelta.codecs.ranked_plan import divide, index_code, is_worth_rows, value_codes
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_select import BitSets, groups
from sparsedelta.codecs.ranked_values import NEW_WORDS, WIDTHS, magnitudes, split_words, symbols
from sparsedelta.words import Bytes, Indices, Words

WORD_BYTES: Final = 2
"""Bytes of the words that the codec holds."""

BASE_RULE: Final = "SD418"
"""What of a block needs its base words."""

_LEAST: Final = 8
_MOST: Final = 1 << 15
_MOST_PER_ENTRY: Final = 5


@dataclass(frozen=True, slots=True)
class Ranked:
    """Ranks and values of entries in one stream, BLOCK, class by class."""

    id: ClassVar[str] = "ranked"
    needs_base: ClassVar[bool] = True
    stored: ClassVar[bool] = True
    rule: ClassVar[str] = RULE

    def holds(self, dtype: str) -> bool:
        """Whether words of a dtype have 16 bits, with an exponent among them."""
        return dtype in EXPONENTS

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: BLOCK."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """More than any block takes that is not padded."""
        least = np.full_like(counts, _LEAST)
        return [Bounds(least, _MOST + words + _MOST_PER_ENTRY * counts)]

    def check(self, coded: CodedBlock) -> None:
        """Check all that needs no base words.

        Raises:
            StreamError: SD417.
        """
        _parse(*coded)

    def decode_all(self, coded: Sequence[CodedBlock]) -> list[tuple[Indices, Words]]:
        """The entries of some blocks."""
        return [self.decode(*each) for each in coded]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> tuple[Indices, Words]:
        """The entries of a block, in ascending order unless the block allows any.

        Args:
            streams: BLOCK.
            count: Its entries, at least 1.
            block: The block, with its base words.

        Raises:
            StreamError: SD417 or SD418.
        """
        parsed = _parse(streams, count, block)
        base = _base(block)
        live = parsed.live
        fields = exponents(base if live is None else live.pick(base), block.dtype)
        found = _places(fields, parsed)
        if live is not None:
            found = live.indices(found)
        words = parsed.words
        is_new = [entry.value == NEW_WORDS for entry in parsed.table]
        if any(is_new):
            marks = np.repeat(is_new, parsed.counts)
            steps = words[marks] - base[found[marks]]
            if not steps.all():
                raise StreamError(BASE_RULE, "a new word is the old one")
            words[marks] = steps
        if block.any_order or len(parsed.table) == 1:
            return found, words
        # No difference is 0: put in their places, they are found again in order.
        dense = np.zeros(block.words, words.dtype)
        dense[found] = words
        ordered: Indices = np.flatnonzero(dense)
        return ordered, dense[ordered]

    def encode(self, indices: Indices, values: Words, block: Block) -> list[Bytes]:
        """BLOCK of some entries.

        Args:
            indices: int64 ``[count]``, ascending, at least one.
            values: Differences, none of them 0.
            block: The block, with its base words, dtype, start and row length.
        """
        elements = base = _base(block)
        at = indices
        live = _live_rows(indices, block)
        if live is not None:
            elements, at = live.rows.pick(base), live.rows.positions(indices)
        fields = exponents(elements, block.dtype)
        own = fields[at]
        division = divide(histogram(fields), np.bincount(own, minlength=256))
        classes = division.classes[own]
        order = np.argsort(classes, kind="stable")
        at, indices, values = at[order], indices[order], values[order]
        counts = np.bincount(classes).tolist()
        ranks, sizes = _ranks(fields, at, division.ranges, counts)
        found, negative = magnitudes(values)
        new = split_words(base[indices] + values)
        codes = value_codes(found, new, np.array(counts))
        is_step = np.repeat(codes != NEW_WORDS, counts)
        narrow, items = symbols(found, np.repeat(codes, counts))
        table = [
            ClassEntry(each, index_code(size, count), code, count)
            for each, size, code, count in zip(
                division.listed, sizes, codes.tolist(), counts, strict=True
            )
        ]
        contents = []
        for entry, size, stop in zip(table, sizes, accumulate(counts), strict=True):
            own_part = slice(stop - entry.count, stop)
            content = [_index_stream(entry, ranks[own_part], size)]
            if entry.value == NEW_WORDS:
                content += [part[own_part] for part in new]
            elif entry.value:
                content.append(pack(narrow[own_part], WIDTHS[entry.value]))
            contents.append([part.tobytes() for part in content])
        escapes = encode_escapes(items, WORD_BYTES).tobytes()
        rows = None if live is None else (live.rows.length, live.marks)
        data = write_block(rows, table, negative[is_step], escapes, contents)
        return [np.frombuffer(data, np.uint8)]


def _parse(streams: Sequence[Bytes], count: int, block: Block) -> RankedBlock:
    (stream,) = streams
    return parse_block(
        stream.data,
        count,
        words=block.words,
        start=block.start,
        top_exponent=EXPONENTS[block.dtype][1],
    )


def _base(block: Block) -> Words:
    if block.base is None:
        raise TypeError("'ranked' needs the base words")
    return block.base


def _places(fields: Bytes, parsed: RankedBlock) -> Indices:
    """Positions of the entries among the elements of live rows, class by class."""
    ranges = [entry.range for entry in parsed.table]
    counts, ranks = parsed.counts, parsed.ranks
    stops = list(accumulate(counts))
    has_flat = ranges[-1] == FLAT
    if has_flat:
        ranges.pop()
    places = ranks.copy()
    least = [int(ranks[stop - 1]) + 1 for stop in stops]
    for group in groups(fields.size, counts[: len(ranges)], least):
        own = group.ranges
        sets = group.of(fields, ranges)
        for size, bits, stop in zip(sets.sizes, parsed.bits[own], stops[own], strict=True):
            if bits and bits != -(-size // 8) * 8:
                raise StreamError(BASE_RULE, f"a bitmask of {bits} bits over {size} elements")
            if ranks[stop - 1] >= size:
                raise StreamError(BASE_RULE, f"rank {ranks[stop - 1]} in a class of {size}")
        picked = slice(stops[own.start] - counts[own.start], stops[own.stop - 1])
        places[picked] = sets.positions(ranks[picked], counts[own])
    if has_flat:
        taken = np.zeros(256, np.bool_)
        for each in ranges:
            taken[each.low : each.high + 1] = True
        if taken[fields[ranks[-counts[-1] :]]].any():
            raise StreamError(BASE_RULE, "an entry of the flat class belongs to another")
    return places


class _Live(NamedTuple):
    """Live rows, and a mark for each row."""

    rows: LiveRows
    marks: NDArray[np.bool_]


def _live_rows(indices: Indices, block: Block) -> _Live | None:
    """The live rows, if it pays to leave the others out."""
    length = block.row
    if not length:
        return None
    count = row_count(length, block.words, block.start)
    marks = np.zeros(count, np.bool_)
    marks[(indices + block.start % length) // length] = True
    rows = LiveRows.of(marks, length, block.words, block.start)
    if not is_worth_rows(block.words, rows.elements, indices.size, count, rows.rows.size):
        return None
    return _Live(rows, marks)


def _ranks(
    fields: Bytes, at: Indices, ranges: Sequence[Range], counts: Sequence[int]
) -> tuple[Indices, list[int]]:
    """Ranks of the entries, which lie class by class, and how many elements each class has."""
    sizes: list[int] = []
    ranks = at.copy()
    stops = list(accumulate(counts))
    for own, _ in groups(fields.size, counts[: len(ranges)]):
        sets = BitSets(fields, ranges[own])
        sizes += sets.sizes
        picked = slice(stops[own.start] - counts[own.start], stops[own.stop - 1])
        ranks[picked] = sets.ranks(at[picked], counts[own])
    return ranks, sizes + [fields.size] * (len(counts) - len(ranges))


def _index_stream(entry: ClassEntry, ranks: Indices, size: int) -> Bytes:
    if entry.index == GAPS:
        return write_gaps(gaps_of(ranks))
    marks = np.zeros(size, np.bool_)
    marks[ranks] = True
    return np.packbits(marks, bitorder="little")
