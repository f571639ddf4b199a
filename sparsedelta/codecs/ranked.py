"""``ranked``: entries by their rank among words of like exponent (spec/codecs/ranked.md).

Words whose exponent is small change most often, and by most steps: within a class of like exponents
positions and values take fewer bits. A reader forms the same classes from the base words, and so
needs them; they have been verified before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.batches import batched
from sparsedelta.codecs.base import Block, Bounds, CodedBlock, Counts, StreamError
from sparsedelta.codecs.escapes import encode_escapes
from sparsedelta.codecs.gap8 import gaps_of, write_gaps
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range, exponents, histogram
from sparsedelta.codecs.ranked_layout import FLAT, GAPS, MASK, ClassEntry, cuts, write_block
from sparsedelta.codecs.ranked_numbers import RULE
from sparsedelta.codecs.ranked_places import BASE_RULE, Elements, ElementSet, positions
from sparsedelta.codecs.ranked_plan import divide, index_code, is_worth_rows, value_codes
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_select import GROUP_BITS, sets_of
from sparsedelta.codecs.ranked_streams import RankedEntries, read_entries
from sparsedelta.codecs.ranked_values import (
    NEW_WORDS,
    WIDTHS,
    magnitudes,
    pack,
    split_words,
    symbols,
)
from sparsedelta.words import Bytes, Indices, Words

WORD_BYTES: Final = 2
"""Bytes of the words that the codec holds."""

_LEAST: Final = 10
_MOST: Final = 1 << 15
_MOST_PER_ENTRY: Final = 5

_TOGETHER: Final = 1 << 15
"""Blocks are decoded together until there are so many entries: beyond, it is not the steps that
take time, and what is at hand should stay in the cache."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Ranks and values of entries in one stream, BLOCK, class by class."""

    id: ClassVar[str] = "ranked"
    needs_base: ClassVar[bool] = True
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = RULE

    def holds(self, dtype: str) -> bool:
        """Whether words of a dtype have 16 bits, with an exponent among them."""
        return dtype in EXPONENTS

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """One stream: BLOCK."""
        return 1

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """More than any block takes."""
        least = np.full_like(counts, _LEAST)
        return [Bounds(least, _MOST + words + _MOST_PER_ENTRY * counts)]

    def check(self, coded: CodedBlock) -> None:
        """Check all that needs no base words.

        Raises:
            StreamError: SD417.
        """
        read_entries([coded])

    def decode_all(self, coded: Sequence[CodedBlock]) -> list[tuple[Indices, Words]]:
        """The entries of some blocks, each in ascending order unless it allows any.

        Args:
            coded: BLOCK of each, at least one entry, and the base words.

        Raises:
            StreamError: SD417 or SD418 of a block.
        """
        groups = batched(coded, lambda each: each.count, _TOGETHER)
        return [found for group in groups for found in _decode_together(group)]

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
        table, index_streams, value_streams = [], [], []
        rows = zip(division.listed, sizes, codes.tolist(), counts, accumulate(counts), strict=True)
        for each, size, code, count, stop in rows:
            entry = ClassEntry(each, index_code(size, count), code, count)
            own_part = slice(stop - count, stop)
            table.append(entry)
            index_streams.append(_index_stream(entry, ranks[own_part], size))
            if code == NEW_WORDS:
                value_streams.append([part[own_part] for part in new])
            else:
                value_streams.append([pack(narrow[own_part], WIDTHS[code])])
        marks = None if live is None else (live.rows.length, live.marks)
        data = write_block(
            marks,
            table,
            negative=negative[is_step],
            ranks=index_streams,
            values=value_streams,
            escapes=encode_escapes(items, WORD_BYTES),
        )
        return [data]

    def cuts(self, coded: CodedBlock) -> list[int]:
        """Where the parts of BLOCK end that are better compressed by themselves."""
        return cuts(coded)


def _decode_together(coded: Sequence[CodedBlock]) -> Iterator[tuple[Indices, Words]]:
    """The entries of some blocks."""
    entries = read_entries(coded)
    places = _places(coded, entries)
    start = 0
    for each, stored in zip(coded, entries.blocks, strict=True):
        own = slice(start, start + each.count)
        start = own.stop
        indices, words = places[own], entries.words[own]
        if stored.live is not None:
            indices = stored.live.indices(indices)
        if entries.is_new is not None:
            marks = entries.is_new[own]
            steps = words[marks] - _base(each.block)[indices[marks]]
            if not steps.all():
                raise StreamError(BASE_RULE, "a new word is the old one")
            words[marks] = steps
        if not each.block.any_order and len(stored.table) > 1:
            indices, words = _in_order(indices, words, each.block)
        yield indices, words


def _base(block: Block) -> Words:
    if block.base is None:
        raise TypeError("'ranked' needs the base words")
    return block.base


def _places(coded: Sequence[CodedBlock], entries: RankedEntries) -> Indices:
    """Positions of the entries among the elements of the live rows of their blocks."""
    blocks = []
    number = 0
    for each, stored in zip(coded, entries.blocks, strict=True):
        base = _base(each.block)
        words = base if stored.live is None else stored.live.pick(base)
        sets = []
        for entry, ranks in zip(stored.table, stored.ranks, strict=True):
            stop, last = entries.stops[number], entries.lasts[number]
            own = slice(stop - entry.count, stop)
            number += 1
            if entry.range == FLAT:
                fields = exponents(words[entries.ranks[own]], each.block.dtype)
                _check_flat(fields, stored.table)
                continue
            nbytes = len(ranks) if entry.index == MASK else 0
            sets.append(ElementSet(entry.range, own, last, nbytes))
        blocks.append(Elements(words, each.block.dtype, sets))
    return positions(blocks, entries.ranks)


def _check_flat(fields: Bytes, table: Sequence[ClassEntry]) -> None:
    """No entry of the flat class has the exponent of another class; raises StreamError."""
    taken = np.zeros(256, np.bool_)
    for entry in table[:-1]:
        taken[entry.range.low : entry.range.high + 1] = True
    if taken[fields].any():
        raise StreamError(BASE_RULE, "an entry of the flat class belongs to another")


def _in_order(indices: Indices, words: Words, block: Block) -> tuple[Indices, Words]:
    """Entries in ascending order: no difference is 0, so put in their places they are found."""
    dense = np.zeros(block.words, words.dtype)
    dense[indices] = words
    ordered: Indices = dense.nonzero()[0]
    return ordered, dense[ordered]


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
    step = max(GROUP_BITS // fields.size, 1)
    for start in range(0, len(ranges), step):
        own = slice(start, min(start + step, len(ranges)))
        sets = sets_of(fields, ranges[own])
        sizes += sets.count()
        picked = slice(stops[own.start] - counts[own.start], stops[own.stop - 1])
        ranks[picked] = sets.ranks(at[picked], counts[own])
    return ranks, sizes + [fields.size] * (len(counts) - len(ranges))


def _index_stream(entry: ClassEntry, ranks: Indices, size: int) -> Bytes:
    if entry.index == GAPS:
        return write_gaps(gaps_of(ranks))
    marks = np.zeros(size, np.bool_)
    marks[ranks] = True
    return np.packbits(marks, bitorder="little")
