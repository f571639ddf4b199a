"""The layout of a block of ``ranked``: which bytes hold what (spec/codecs/ranked.md).

A block lists its classes, and for each of them the ranks of its entries among the elements of the
class and their values. What these are is read by :mod:`ranked_streams`, for many blocks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import CodedBlock, StreamError
from sparsedelta.codecs.gap8 import ESCAPE
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range
from sparsedelta.codecs.ranked_numbers import (
    RULE,
    check_spare,
    read_bits,
    read_number,
    write_number,
)
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_values import NEW_WORDS, WIDTHS, value_bytes
from sparsedelta.words import Bytes

GAPS: Final = 0
MASK: Final = 1
"""Index codes: byte gaps of ranks, or a bit per element of the class."""

FLAT: Final = Range(255, 0)
"""The range of the class that ranks among all elements."""

_WORD_BYTES: Final = 2
_LINE_BYTES: Final = 3
_CUT_FROM: Final = 40
"""A part gets Huffman codes of its own from so many bytes on."""


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """A line of the class table.

    Attributes:
        range: Its exponents.
        index: Its index code.
        value: Its value code.
        count: Number of its entries.
    """

    range: Range
    index: int
    value: int
    count: int


class RankedBlock(NamedTuple):
    """A block, taken apart. Its classes are in the order of the table.

    Attributes:
        live: Its live rows, or None if all are.
        elements: Elements of the live rows.
        table: Its classes.
        signed: How many entries have a sign.
        signs: Their signs.
        ranks: The ranks of each class, as its index code has them.
        values: The values of each class, as its value code has them: a byte string or two.
        escapes: Items of escaped magnitudes: all low bytes, then all high ones.
    """

    live: LiveRows | None
    elements: int
    table: list[ClassEntry]
    signed: int
    signs: memoryview
    ranks: list[memoryview]
    values: list[list[memoryview]]
    escapes: memoryview


def parse_block(coded: CodedBlock) -> RankedBlock:
    """Take a block apart; ranks and values themselves are not looked at.

    Args:
        coded: The block, with one stream and at least one entry.

    Raises:
        StreamError: SD417.
    """
    (stream,) = coded.streams
    data = stream.data
    try:
        return _parse(data, coded)
    except IndexError:
        raise StreamError(RULE, f"the block ends after {len(data)} bytes, inside a field") from None


def _parse(data: memoryview, coded: CodedBlock) -> RankedBlock:
    block = coded.block
    length, at = read_number(data, 0)
    table, lengths, at = _read_table(data, at, coded)
    live, elements = None, block.words
    if length:
        rows = row_count(length, block.words, block.start)
        marks, at = _take(data, at, -(-rows // 8))
        live = LiveRows.of(
            read_bits(marks, rows, "the live rows"), length, block.words, block.start
        )
        elements = live.elements
        if not elements:
            raise StreamError(RULE, "no row is live")
    _check_room(table, lengths, elements)
    signed = sum([entry.count for entry in table if entry.value != NEW_WORDS])
    signs, at = _take(data, at, -(-signed // 8))
    check_spare(signs, signed, "the signs")
    ranks = []
    for nbytes in lengths:
        own, at = _take(data, at, nbytes)
        ranks.append(own)
    values = []
    for entry in table:
        size, is_split = value_bytes(entry.value, entry.count)
        own, at = _take(data, at, size)
        if is_split:
            low, at = _take(data, at, size)
            values.append([own, low])
            continue
        check_spare(own, entry.count * WIDTHS[entry.value], "the magnitudes")
        values.append([own])
    if (len(data) - at) % _WORD_BYTES:
        raise StreamError(RULE, f"{len(data) - at} bytes of escaped magnitudes")
    return RankedBlock(live, elements, table, signed, signs, ranks, values, data[at:])


def _take(data: memoryview, at: int, length: int) -> tuple[memoryview, int]:
    """The next bytes, and where they end."""
    stop = at + length
    if stop > len(data):
        raise IndexError
    return data[at:stop], stop


def _read_table(
    data: memoryview, at: int, coded: CodedBlock
) -> tuple[list[ClassEntry], list[int], int]:
    """The class table, the bytes of ranks that each class has, and where the table ends."""
    total = data[at]
    lines, at = _take(data, at + 1, _LINE_BYTES * total)
    top = EXPONENTS[coded.block.dtype][1]
    table, lengths = [], []
    before, left = -1, coded.count
    for number in range(total):
        low, high, codes = lines[_LINE_BYTES * number : _LINE_BYTES * (number + 1)]
        index, value = codes >> 4, codes & 15
        if (low, high) == FLAT:
            is_fit = number == total - 1 and index == GAPS
        else:
            is_fit = before < low <= high <= top
            before = high
        if not is_fit or index > MASK or value > NEW_WORDS:
            raise StreamError(RULE, f"class {number}: exponents {low} to {high}, codes {codes}")
        count, at = read_number(data, at)
        nbytes, at = read_number(data, at)
        left -= count
        if not count or left < 0:
            raise StreamError(RULE, f"class {number}: {count} entries, {coded.count} in the block")
        table.append(ClassEntry(Range(low, high), index, value, count))
        lengths.append(nbytes)
    if left:
        raise StreamError(
            RULE, f"{coded.count - left} entries in the classes, {coded.count} in the block"
        )
    return table, lengths, at


def _check_room(table: Sequence[ClassEntry], lengths: Sequence[int], elements: int) -> None:
    """Ranks take bytes as they can, and classes but FLAT, which are disjoint, have room."""
    taken = 0
    for number, (entry, nbytes) in enumerate(zip(table, lengths, strict=True)):
        if entry.index == MASK:
            low, high = 1, -(-elements // 8)
        else:
            low, high = entry.count, entry.count + elements // ESCAPE
        if not low <= nbytes <= high:
            raise StreamError(
                RULE, f"class {number}: {nbytes} bytes of ranks, expected {low} to {high}"
            )
        if entry.range != FLAT:
            taken += max(entry.count, 8 * nbytes - 7) if entry.index == MASK else entry.count
    if taken > elements:
        raise StreamError(RULE, f"classes over more than the {elements} elements")


def write_block(
    live: tuple[int, NDArray[np.bool_]] | None,
    table: Sequence[ClassEntry],
    *,
    negative: NDArray[np.bool_],
    ranks: Sequence[Bytes],
    values: Sequence[Sequence[Bytes]],
    escapes: Bytes,
) -> Bytes:
    """Put a block together.

    Args:
        live: Length of a row and a mark for each row; None if all are live.
        table: The class table.
        negative: Signs of all differences, in the order of the classes.
        ranks: The ranks of each class.
        values: The values of each class.
        escapes: Escaped magnitudes, in byte planes.
    """
    head = [write_number(0 if live is None else live[0]), bytes([len(table)])]
    head += [bytes([*entry.range, entry.index << 4 | entry.value]) for entry in table]
    for entry, each in zip(table, ranks, strict=True):
        head += [write_number(entry.count), write_number(each.size)]
    parts = [np.frombuffer(b"".join(head), np.uint8)]
    if live is not None:
        parts.append(np.packbits(live[1], bitorder="little"))
    parts.append(np.packbits(negative, bitorder="little"))
    return np.concatenate([*parts, *ranks, *(part for each in values for part in each), escapes])


def cuts(coded: CodedBlock) -> list[int]:
    """Where parts of a block end, which are better compressed by codes of their own.

    Args:
        coded: A block that :func:`write_block` has made.
    """
    parsed = parse_block(coded)
    parts = [*parsed.ranks, *(part for each in parsed.values for part in each), parsed.escapes]
    sizes = [len(part) for part in parts]
    first = coded.streams[0].size - sum(sizes)
    found, last = [], 0
    for end in accumulate(sizes, initial=first):
        if end - last >= _CUT_FROM:
            found.append(end)
            last = end
    return found
