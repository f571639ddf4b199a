"""What blocks of ``ranked`` hold, decoded as far as that goes without the base: ranks and values.

Many blocks are decoded together, with a step for all of them where one for each class would do: on
small tensors it is the number of steps that takes the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import CodedBlock, StreamError
from sparsedelta.codecs.gap8 import read_gaps
from sparsedelta.codecs.ranked_layout import (
    GAPS,
    MASK,
    ClassEntry,
    RankedBlock,
    parse_block,
)
from sparsedelta.codecs.ranked_numbers import RULE
from sparsedelta.codecs.ranked_values import (
    NEW_WORDS,
    TOPS,
    WIDTHS,
    add_escapes,
    differences,
    join_words,
    unpack,
)
from sparsedelta.words import Bytes, Indices, Words

_U16: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class RankedEntries:
    """Entries of some blocks: block by block, class by class, as the tables have them.

    Attributes:
        blocks: The blocks.
        table: The classes of all blocks.
        stops: For each class the number of entries up to its end.
        ranks: int64 ``[entries]``, ascending within a class.
        lasts: The greatest rank of each class.
        words: Differences of the entries; new words where the class says so.
        is_new: bool ``[entries]``, whether it does; None if none is new.
    """

    blocks: list[RankedBlock]
    table: list[ClassEntry]
    stops: list[int]
    ranks: Indices
    lasts: list[int]
    words: Words
    is_new: NDArray[np.bool_] | None


def read_entries(coded: Sequence[CodedBlock]) -> RankedEntries:
    """Take blocks apart, and decode and check all that needs no base words.

    Args:
        coded: Blocks, each with at least one entry; at least one.

    Raises:
        StreamError: SD417.
    """
    blocks = [parse_block(each) for each in coded]
    table = [entry for block in blocks for entry in block.table]
    stops = list(accumulate(entry.count for entry in table))
    ranks = _read_ranks(table, [part for block in blocks for part in block.ranks])
    lasts = ranks[np.array(stops) - 1].tolist()
    at = iter(lasts)
    for block in blocks:
        # That of a bitmask is compared with the size of its class, which may end in spare bits.
        for entry, last in zip(block.table, at, strict=False):
            if last >= block.elements and entry.index == GAPS:
                raise StreamError(RULE, f"rank {last} among {block.elements} elements")
    words, is_new = _read_words(blocks, table, stops)
    return RankedEntries(blocks, table, stops, ranks, lasts, words, is_new)


def _read_ranks(table: Sequence[ClassEntry], streams: Sequence[memoryview]) -> Indices:
    """Ranks of all classes: bitmasks are read together, and so are gaps."""
    found = {}
    for code, read in ((GAPS, _read_gaps), (MASK, _read_masks)):
        own = [number for number, entry in enumerate(table) if entry.index == code]
        if own:
            counts = [table[number].count for number in own]
            found[code] = read([streams[number] for number in own], counts)
    if len(found) == 1:
        return next(iter(found.values()))
    taken = dict.fromkeys(found, 0)
    parts = []
    for code, run in groupby(table, lambda entry: entry.index):
        start = taken[code]
        taken[code] = start + sum([entry.count for entry in run])
        parts.append(found[code][start : taken[code]])
    return np.concatenate(parts)


def _read_gaps(streams: Sequence[memoryview], counts: Sequence[int]) -> Indices:
    return read_gaps([np.frombuffer(stream, np.uint8) for stream in streams], counts, RULE)


def _read_masks(streams: Sequence[memoryview], counts: Sequence[int]) -> Indices:
    found: Indices = np.unpackbits(_joined(streams), bitorder="little").view(np.bool_).nonzero()[0]
    ends = [8 * end for end in accumulate(map(len, streams))]
    stops = found.searchsorted(ends).tolist()
    if stops != list(accumulate(counts)):
        raise StreamError(RULE, "a bitmask has another number of 1 bits than its class entries")
    for start, stop, end in zip(stops, stops[1:], ends, strict=False):
        found[start:stop] -= end
    return found


def _read_words(
    blocks: Sequence[RankedBlock], table: Sequence[ClassEntry], stops: Sequence[int]
) -> tuple[Words, NDArray[np.bool_] | None]:
    """Differences and new words of all classes, and which are new."""
    values = [parts for block in blocks for parts in block.values]
    found: dict[int, NDArray[Any]] = {}
    for code in {entry.value for entry in table}:
        own = [parts for entry, parts in zip(table, values, strict=True) if entry.value == code]
        if code == NEW_WORDS:
            high, low = zip(*own, strict=True)
            found[code] = join_words(_joined(high), _joined(low))
        elif code:
            found[code] = unpack(_joined([packed for (packed,) in own]), WIDTHS[code])
    symbols = np.zeros(stops[-1], _U16)
    tops = np.empty(stops[-1], np.uint8)
    taken = dict.fromkeys(found, 0)
    for entry, (part, *_), stop in zip(table, values, stops, strict=True):
        picked = slice(stop - entry.count, stop)
        tops[picked] = TOPS[entry.value]
        if entry.value:
            start = taken[entry.value]
            symbols[picked] = found[entry.value][start : start + entry.count]
            slots = 1 if entry.value == NEW_WORDS else 8 // WIDTHS[entry.value]
            taken[entry.value] = start + len(part) * slots
    negative = _read_signs(blocks)
    if NEW_WORDS not in found:
        return _differences(blocks, symbols, tops, negative), None
    counts = [entry.count for entry in table]
    is_new = np.repeat([entry.value == NEW_WORDS for entry in table], counts)
    is_step = ~is_new
    symbols[is_step] = _differences(blocks, symbols[is_step], tops[is_step], negative)
    return symbols, is_new


def _read_signs(blocks: Sequence[RankedBlock]) -> NDArray[np.bool_]:
    """Whether differences are negative: those of each block begin with a byte."""
    bits = np.unpackbits(_joined([block.signs for block in blocks]), bitorder="little")
    marks: NDArray[np.bool_] = bits.view(np.bool_)
    if len(blocks) == 1:
        return marks[: blocks[0].signed]
    starts = accumulate((8 * len(block.signs) for block in blocks), initial=0)
    parts = [marks[at : at + block.signed] for at, block in zip(starts, blocks, strict=False)]
    return np.concatenate(parts)


def _differences(
    blocks: Sequence[RankedBlock],
    symbols: NDArray[np.uint16],
    tops: Bytes,
    negative: NDArray[np.bool_],
) -> Words:
    """Differences of all blocks.

    Args:
        blocks: The blocks.
        symbols: Symbols of their entries that have a sign; becomes the differences.
        tops: The symbol of each that is an escape.
        negative: Whether each is negative.
    """
    escaped: Indices = (symbols == tops).nonzero()[0]
    stops = escaped.searchsorted(list(accumulate(block.signed for block in blocks)))
    halves = [len(block.escapes) // 2 for block in blocks]
    if stops.tolist() != list(accumulate(halves)):
        raise StreamError(RULE, f"{escaped.size} escaped values expected, {sum(halves)} found")
    if escaped.size:
        items = zip(blocks, halves, strict=True)
        low, high = zip(*((b.escapes[:half], b.escapes[half:]) for b, half in items), strict=True)
        add_escapes(symbols, escaped, (_joined(low), _joined(high)), negative)
    return differences(symbols, negative)


def _joined(parts: Sequence[memoryview]) -> Bytes:
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)
