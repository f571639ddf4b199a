"""The layout of a block of ``ranked``, and all of it that can be checked without the base.

A block lists its classes, and for each of them the ranks of its entries among the elements of the
class and their values. Only :mod:`ranked` knows which elements these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.escapes import decode_escapes
from sparsedelta.codecs.gap8 import ESCAPE, read_sums
from sparsedelta.codecs.ranked_classes import Range
from sparsedelta.codecs.ranked_frames import RULE, Cursor, bits, frame, varint
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_values import (
    LARGEST,
    NEW_WORDS,
    WIDTHS,
    check_magnitudes,
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
class Class:
    """A class of a block.

    Attributes:
        entry: Its line of the table.
        ranks: Ranks of its entries, int64, ascending.
        bits: Bits of the bitmask over the class that they came from, spare ones included, or 0.
        words: Their differences, or their new words.
    """

    entry: ClassEntry
    ranks: Indices
    bits: int
    words: Words


@dataclass(frozen=True, slots=True)
class RankedBlock:
    """A block as it is stored.

    Attributes:
        live: Its live rows, or None if all are.
        classes: Its classes, in the order of the table.
    """

    live: LiveRows | None
    classes: tuple[Class, ...]


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
    taken = 0
    ranks: list[tuple[Indices, int]] = []
    values: list[tuple[Bytes, Bytes | None]] = []
    for entry in table:
        ranks.append(_read_ranks(cursor, entry, elements))
        if entry.range != FLAT:  # the other classes have no element in common
            taken += max(entry.count, ranks[-1][1] - 7)
        if taken > elements:
            raise StreamError(RULE, f"classes over more than the {elements} elements")
        if entry.value == NEW_WORDS:
            high = cursor.frame("exponents", entry.count)
            values.append((high, cursor.frame("signs and mantissas", entry.count)))
        elif entry.value:
            packed = cursor.frame("magnitudes", packed_bytes(entry.count, entry.value))
            values.append((read_symbols(packed, entry.value, entry.count), None))
        else:
            values.append((np.zeros(entry.count, np.uint8), None))
    cursor.end()
    changed = _differences(table, values, negative, escapes)
    classes = []
    at = 0
    for entry, found, (high, low) in zip(table, ranks, values, strict=True):
        if low is not None:
            classes.append(Class(entry, *found, join_words(high, low)))
        else:
            classes.append(Class(entry, *found, changed[at : at + entry.count]))
            at += entry.count
    return RankedBlock(live, tuple(classes))


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
        each, codes = Range(cursor.byte(), cursor.byte()), cursor.byte()
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


def _read_ranks(cursor: Cursor, entry: ClassEntry, elements: int) -> tuple[Indices, int]:
    """Ranks of a class, and the bits of its bitmask, or 0."""
    if entry.index == MASK:
        mask = cursor.frame("a bitmask", 1, -(-elements // 8))
        found = np.flatnonzero(np.unpackbits(mask, bitorder="little").view(np.bool_))
        if found.size != entry.count:
            raise StreamError(RULE, f"a bitmask of {found.size} bits for {entry.count} entries")
        return found, 8 * mask.size
    gaps = cursor.frame("gaps", entry.count, entry.count + elements // ESCAPE)
    ranks: Indices = read_sums(gaps, entry.count, RULE) + np.arange(entry.count)
    if ranks[-1] >= elements:
        raise StreamError(RULE, f"rank {ranks[-1]} among {elements} elements")
    return ranks, 0


def _differences(
    table: Sequence[ClassEntry],
    values: Sequence[tuple[Bytes, Bytes | None]],
    negative: NDArray[np.bool_],
    escapes: Bytes,
) -> Words:
    packed = [(e, found) for e, (found, low) in zip(table, values, strict=True) if low is None]
    if not packed:
        narrow = np.empty(0, np.uint8)
    elif len(packed) == 1:
        narrow = packed[0][1]
    else:
        narrow = np.concatenate([found for _, found in packed])
    tops = np.array([(1 << WIDTHS[entry.value]) - 1 for entry, _ in packed], np.uint8)
    escaped = np.flatnonzero(narrow == np.repeat(tops, [entry.count for entry, _ in packed]))
    symbols = narrow.astype("<u2")
    items = decode_escapes(escapes, escaped.size, _WORD_BYTES, RULE)
    if items.size and int(items.max()) > LARGEST:
        raise StreamError(RULE, "an escaped magnitude is out of range")
    symbols[escaped] += items
    check_magnitudes(symbols, negative)
    return differences(symbols, negative)


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
    "Class",
    "ClassEntry",
    "RankedBlock",
    "parse_block",
    "write_block",
]
