"""The layout of a block of ``ranked``, and all of it that can be checked without the base.

A block lists its classes, and for each of them the ranks of its entries among the elements of the
class and their values. Only :mod:`ranked` knows which elements these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.gap8 import ESCAPE, read_gaps
from sparsedelta.codecs.ranked_classes import Range
from sparsedelta.codecs.ranked_frames import RULE, Cursor, bits, frame, varint
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_values import (
    NEW_WORDS,
    WIDTHS,
    differences,
    join_words,
    packed_bytes,
    read_symbols,
)
from sparsedelta.words import Bytes, Indices, Words

GAPS: Final = 0
MASK: Final = 1
"""Index codes: byte gaps of ranks, or a bit per element of the class."""

FLAT: Final = Range(255, 0)
"""The range of the class that ranks among all elements."""

_WORD_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """A line of the class table: range of exponents, index code, value code, number of entries."""

    range: Range
    index: int
    value: int
    count: int


@dataclass(frozen=True, slots=True)
class RankedBlock:
    """A block as it is stored; entries class by class, in the order of the table.

    Attributes:
        live: Its live rows, or None if all are.
        table: Its classes.
        counts: Entries of each class.
        bits: For each class the bits of the bitmask over it, spare ones included; 0 if it has none.
        ranks: int64 ``[entries]``, ascending within a class.
        words: Differences of the entries; new words where the class says so.
        frame_bytes: What its Zstandard frames decoded to, in bytes.
    """

    live: LiveRows | None
    table: list[ClassEntry]
    counts: list[int]
    bits: list[int]
    ranks: Indices
    words: Words
    frame_bytes: int


def parse_block(
    data: memoryview, count: int, *, words: int, start: int, top_exponent: int
) -> RankedBlock:
    """Take a block apart.

    Args:
        data: The block.
        count: Its entries, at least 1.
        words: Its words.
        start: Flat index of the first.
        top_exponent: The greatest exponent of the dtype.

    Raises:
        StreamError: SD417.
    """
    cursor = Cursor(data)
    live = _read_rows(cursor, words, start)
    elements = words if live is None else live.elements
    table = _read_table(cursor, count, top_exponent)
    signed = sum(entry.count for entry in table if entry.value != NEW_WORDS)
    sign_bytes = cursor.varint()
    if sign_bytes != -(-signed // 8):
        raise StreamError(RULE, f"{sign_bytes} bytes of signs for {signed} differences")
    negative = bits(np.frombuffer(cursor.take(sign_bytes), np.uint8), signed, "the signs")
    escapes = cursor.frame("escaped magnitudes", 0, signed * _WORD_BYTES, _WORD_BYTES)
    ranks = []
    packed: list[list[Bytes]] = []
    for entry in table:
        if entry.index == MASK:
            ranks.append(cursor.frame("a bitmask", 1, -(-elements // 8)))
        else:
            most = entry.count + elements // ESCAPE
            ranks.append(cursor.frame("gaps", entry.count, most))
        if entry.value == NEW_WORDS:
            high = cursor.frame("exponents", entry.count)
            packed.append([high, cursor.frame("signs and mantissas", entry.count)])
        elif entry.value:
            packed.append([cursor.frame("magnitudes", packed_bytes(entry.count, entry.value))])
        else:
            packed.append([])
    cursor.end()
    counts = [entry.count for entry in table]
    masks = [
        8 * found.size if entry.index == MASK else 0
        for entry, found in zip(table, ranks, strict=True)
    ]
    _check_room(table, masks, elements)
    return RankedBlock(
        live,
        table,
        counts,
        masks,
        _read_ranks(table, counts, ranks, elements),
        _read_words(table, counts, packed, negative, escapes),
        cursor.frame_bytes,
    )


def _read_rows(cursor: Cursor, words: int, start: int) -> LiveRows | None:
    length = cursor.varint()
    if not length:
        return None
    rows = row_count(length, words, start)
    marks = bits(cursor.frame("live rows", -(-rows // 8)), rows, "the live rows")
    live = LiveRows.of(marks, length, words, start)
    if not live.elements:
        raise StreamError(RULE, "no row is live")
    return live


def _read_table(cursor: Cursor, count: int, top_exponent: int) -> list[ClassEntry]:
    table = []
    before, left = -1, count
    for number in range(total := cursor.byte()):
        low, high, codes = cursor.take(3)
        each = Range(low, high)
        entry = ClassEntry(each, codes >> 4, codes & 15, cursor.varint())
        if each == FLAT:
            is_fit = number == total - 1 and entry.index == GAPS
        else:
            is_fit = before < each.low <= each.high <= top_exponent
            before = each.high
        if not is_fit or entry.index > MASK or entry.value > NEW_WORDS:
            raise StreamError(
                RULE, f"class {number}: exponents {each.low} to {each.high}, codes {codes}"
            )
        left -= entry.count
        if not entry.count or left < 0:
            raise StreamError(RULE, f"class {number}: {entry.count} entries, {count} in the block")
        table.append(entry)
    if left:
        raise StreamError(RULE, f"{count - left} entries in the classes, {count} in the block")
    return table


def _check_room(table: Sequence[ClassEntry], masks: Sequence[int], elements: int) -> None:
    """Classes but FLAT have no element in common: all of them have room among the elements."""
    taken = 0
    for entry, mask in zip(table, masks, strict=True):
        if entry.range != FLAT:
            taken += max(entry.count, mask - 7)
    if taken > elements:
        raise StreamError(RULE, f"classes over more than the {elements} elements")


def _read_ranks(
    table: Sequence[ClassEntry], counts: Sequence[int], streams: Sequence[Bytes], elements: int
) -> Indices:
    """Ranks of all classes; the gaps of neighbouring ones are summed up together."""
    parts = []
    number = 0
    for index, run in groupby(entry.index for entry in table):
        first, number = number, number + len(list(run))
        if index == GAPS:
            own = counts[first:number]
            ranks = read_gaps(streams[first:number], own, RULE)
            last = max(int(ranks[stop - 1]) for stop in accumulate(own))
            if last >= elements:
                raise StreamError(RULE, f"rank {last} among {elements} elements")
            parts.append(ranks)
        else:
            parts.append(_read_masks(streams[first:number], counts[first:number]))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_masks(streams: Sequence[Bytes], counts: Sequence[int]) -> Indices:
    """Ranks of neighbouring classes with bitmasks."""
    ends = list(accumulate(stream.size for stream in streams))
    together = np.concatenate(streams)
    found = np.flatnonzero(np.unpackbits(together, bitorder="little").view(np.bool_))
    stops = np.searchsorted(found, 8 * np.array(ends)).tolist()
    for start, stop, count in zip([0, *stops], stops, counts, strict=False):
        if stop - start != count:
            raise StreamError(RULE, f"a bitmask of {stop - start} bits for {count} entries")
    for start, stop, end in zip(stops, stops[1:], ends, strict=False):
        found[start:stop] -= 8 * end
    return found


def _read_words(
    table: Sequence[ClassEntry],
    counts: Sequence[int],
    packed: Sequence[Sequence[Bytes]],
    negative: NDArray[np.bool_],
    escapes: Bytes,
) -> Words:
    """Differences and new words of all classes."""
    symbols = np.empty(sum(counts), "<u2")
    tops = np.empty(symbols.size, np.uint8)
    at = 0
    for entry, content in zip(table, packed, strict=True):
        stop = at + entry.count
        if entry.value == NEW_WORDS:
            symbols[at:stop] = join_words(content[0], content[1])
        else:
            tops[at:stop] = (1 << WIDTHS[entry.value]) - 1
            symbols[at:stop] = read_symbols(content[0], entry.value, entry.count) if content else 0
        at = stop
    if negative.size == at:
        return differences(symbols, tops, escapes, negative)
    is_step = np.repeat([entry.value != NEW_WORDS for entry in table], counts)
    symbols[is_step] = differences(symbols[is_step], tops[is_step], escapes, negative)
    return symbols


def write_block(
    live: tuple[int, NDArray[np.bool_]] | None,
    table: Sequence[ClassEntry],
    negative: NDArray[np.bool_],
    escapes: bytes,
    contents: Sequence[Sequence[bytes]],
) -> bytes:
    """Put a block together.

    Args:
        live: Length of a row and a mark for each row; None if all are live.
        table: The class table.
        negative: Signs of all differences, in the order of the classes.
        escapes: Their escaped magnitudes, in byte planes.
        contents: For each class its ranks, then its values, as bytes before they are framed.
    """
    out = [b"\0"]
    if live is not None:
        length, rows = live
        out = [varint(length), frame(np.packbits(rows, bitorder="little").tobytes())]
    out.append(bytes([len(table)]))
    for entry in table:
        out.append(bytes([*entry.range, entry.index << 4 | entry.value]) + varint(entry.count))
    signs = np.packbits(negative, bitorder="little").tobytes()
    out += [varint(len(signs)), signs, frame(escapes)]
    out += [frame(content) for each in contents for content in each]
    return b"".join(out)


__all__ = [
    "FLAT",
    "GAPS",
    "MASK",
    "WIDTHS",
    "ClassEntry",
    "RankedBlock",
    "parse_block",
    "write_block",
]
