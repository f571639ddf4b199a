"""`ranked`: entries by their ranks among the elements of the base (`codecs/ranked.md`).

A block is read in two steps: SD417 needs no base, SD418 does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
from block_codecs import ESCAPE, gaps_of, joined
from encoding import unframe
from terms import Array, RuleError, need

EXPONENTS = {"BF16": (7, 255), "F16": (10, 31)}  # the lowest bit of the field, its greatest value
WIDTHS, WHOLE_WORDS = (0, 1, 2, 4, 8), 5  # the widths of the value codes 0 to 4; the code of words
FLAT = (255, 0)
MAX_VARINT, CONTINUES, MAGNITUDES = 9, 0x80, 2**15


@dataclass
class Group:
    """A class of elements: what a block says of those whose exponents lie in a range.

    Attributes:
        low: The least exponent.
        high: The greatest.
        bitmask: Whether the entries are marked by bits; else they have gaps.
        code: How the values are stored.
        count: The entries.
        marks: IDX: the bits, or the ranks of the entries.
        words: The new words of a class that stores them.
        steps: The differences of any other class.
    """

    low: int
    high: int
    bitmask: bool
    code: int
    count: int
    marks: Array = field(default_factory=lambda: np.empty(0, np.uint8))
    words: Array = field(default_factory=lambda: np.empty(0, "<u2"))
    steps: Array = field(default_factory=lambda: np.empty(0, "<u2"))

    @property
    def flat(self) -> bool:
        """Whether it is FLAT: ranks among all elements."""
        return (self.low, self.high) == FLAT


@dataclass
class Block:
    """A block as far as it is known without the base: its elements, and its classes."""

    elements: Array
    groups: list[Group]


class Cursor:
    """Takes the fields of a block from its bytes, each of them bounded."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        self.at += length
        need("SD417", self.at <= len(self.data), "the block ends inside of a field")
        return self.data[self.at - length : self.at]

    def varint(self) -> int:
        """The next number: LEB128 in as few bytes as it takes, below 2^63."""
        number = 0
        for place in range(MAX_VARINT):
            (byte,) = self.take(1)
            number |= byte % CONTINUES << 7 * place
            if byte < CONTINUES:
                need("SD417", byte or not place, "a number in more bytes than it takes")
                return number
        raise RuleError("SD417", "a number of more than 63 bits")

    def frame(self, least: int, most: int) -> Array:
        """The next frame; how many bytes it may hold is checked before it is decompressed."""
        length, compressed = divmod(self.varint(), 2)
        raw = self.varint() if compressed else length
        need("SD417", least <= raw <= most, f"a frame of {raw} bytes, not {least} to {most}")
        need("SD417", length < raw or not compressed, "a frame that Zstandard did not shrink")
        return np.frombuffer(unframe("SD417", self.take(length), raw), np.uint8)


def read_ranked(data: bytes, n: int, first: int, count: int, dtype: str) -> Block:
    """Check SD417 for a block of n words with so many entries.

    Args:
        data: The stream of the block.
        n: The words of the block.
        first: The index of its first word in the domain.
        count: Its entries, at least 1.
        dtype: That of the tensor: BF16 or F16.
    """
    cursor = Cursor(data)
    elements = read_rows(cursor, n, first)
    groups = read_classes(cursor, count, dtype)
    signed = sum(group.count for group in groups if group.code < WHOLE_WORDS)
    need("SD417", cursor.varint() == -(-signed // 8), "another number of sign bytes")
    signs = bits_of(np.frombuffer(cursor.take(-(-signed // 8)), np.uint8), signed)
    planes = cursor.frame(0, 2 * signed)
    need("SD417", planes.size % 2 == 0, "half an exception")
    exceptions = joined(planes, 2)
    left = elements.size  # that can still lie in a class
    for group in groups:
        left -= read_index(cursor, group, elements.size)
        need("SD417", left >= 0, "classes of more elements than there are")
        if group.code == WHOLE_WORDS:
            high, low = (cursor.frame(group.count, group.count).astype("<u2") for _ in range(2))
            group.words = (low & 0x80) << 8 | high << 7 | low & 0x7F
            continue
        own, signs = signs[: group.count], signs[group.count :]
        used = read_steps(cursor, group, own, exceptions)
        exceptions = exceptions[used:]
    need("SD417", exceptions.size == 0, "more exceptions than symbols for them")
    need("SD417", cursor.at == len(data), "bytes behind the block")
    return Block(elements, groups)


def bits_of(data: Array, count: int) -> Array:
    """So many bits; the others have to be 0."""
    bits = np.unpackbits(data, bitorder="little")
    need("SD417", not bits[count:].any(), "a spare bit is set")
    return bits[:count].astype(np.bool_)


def read_rows(cursor: Cursor, n: int, first: int) -> Array:
    """The places of the elements: those of the words of the block that lie in live rows."""
    length = cursor.varint()
    if length == 0:
        return np.arange(n)
    rows = (first + np.arange(n)) // length
    rows -= rows[0]
    size = int(rows[-1]) + 1
    live = bits_of(cursor.frame(-(-size // 8), -(-size // 8)), size)
    return np.flatnonzero(live[rows])


def read_classes(cursor: Cursor, count: int, dtype: str) -> list[Group]:
    """The table of classes."""
    groups: list[Group] = []
    (number,) = cursor.take(1)
    below = -1
    for _ in range(number):
        low, high, codes = cursor.take(3)
        group = Group(low, high, codes >> 4 == 1, codes & 15, cursor.varint())
        need("SD417", codes >> 4 <= 1 and group.code <= WHOLE_WORDS, "an unknown code")
        need("SD417", group.count >= 1, "a class without entries")
        need("SD417", not groups or not groups[-1].flat, "a class behind FLAT")
        if group.flat:
            need("SD417", not group.bitmask, "FLAT with a bitmask")
        else:
            need("SD417", below < low <= high <= EXPONENTS[dtype][1], "ranges that do not ascend")
            below = high
        groups.append(group)
    need("SD417", sum(group.count for group in groups) == count, "not the count of the block")
    return groups


def read_index(cursor: Cursor, group: Group, elements: int) -> int:
    """IDX of a class; returns how many elements the class has at least (FLAT: none of its own)."""
    count = group.count
    need("SD417", count <= elements, "more entries than elements")
    if group.bitmask:
        group.marks = cursor.frame(1, -(-elements // 8))
        marked = int(np.unpackbits(group.marks).sum())
        need("SD417", marked == count, f"{marked} bits for {count} entries")
        return max(count, 8 * group.marks.size - 7)
    gaps = gaps_of("SD417", cursor.frame(count, count + elements // ESCAPE), count)
    group.marks = np.cumsum(gaps + np.uint64(1)) - np.uint64(1)
    need("SD417", group.marks[-1] < elements, "a rank behind the last element")
    return 0 if group.flat else count


def read_steps(cursor: Cursor, group: Group, signs: Array, exceptions: Array) -> int:
    """The differences of a class; returns how many exceptions it has used."""
    count, width = group.count, WIDTHS[group.code]
    size, top = -(-count * width // 8), 2**width - 1
    symbols = np.zeros(count, np.uint8)
    if width:
        packed = cursor.frame(size, size)
        symbols = np.concatenate([packed >> place & top for place in range(0, 8, width)])
        need("SD417", not symbols[count:].any(), "a spare bit is set")
    magnitudes = symbols[:count].astype(np.int64)
    escaped = magnitudes == top
    used = int(escaped.sum())
    need("SD417", used <= exceptions.size, "fewer exceptions than symbols for them")
    magnitudes[escaped] += exceptions[:used]
    # -2^15 is the one difference of the greatest magnitude.
    need("SD417", (magnitudes < MAGNITUDES - ~signs).all(), "a magnitude is too large")
    group.steps = np.where(signs, ~magnitudes, magnitudes + 1).astype("<u2")  # ~a is -(a + 1)
    return used


def entries_of(block: Block, old: Array, dtype: str) -> tuple[Array, Array]:
    """Check SD418; return the indices in the block, ascending, and the differences.

    Args:
        block: The block.
        old: The words of the base in this block.
        dtype: That of the tensor.
    """
    shift, mask = EXPONENTS[dtype]
    exponents = old[block.elements] >> shift & mask
    taken = np.zeros(block.elements.size, np.bool_)  # by the classes so far: FLAT is the last
    places, steps = [], []
    for group in block.groups:
        members = (group.low <= exponents) & (exponents <= group.high)
        size = block.elements.size if group.flat else int(members.sum())
        ranks = group.marks
        if group.bitmask:
            bits = np.unpackbits(group.marks, bitorder="little")
            fits = group.marks.size == -(-size // 8) and not bits[size:].any()
            need("SD418", fits, "a bitmask of another length than its class, or a spare bit")
            ranks = np.flatnonzero(bits)
        need("SD418", ranks[-1] < size, "a rank behind the last element of its class")
        if group.flat:
            need("SD418", not taken[ranks].any(), "an element of a listed class in FLAT")
            found = block.elements[ranks]
        else:
            found = block.elements[members][ranks]
        taken |= members
        if group.code == WHOLE_WORDS:
            group.steps = group.words - old[found]
            need("SD418", group.steps.all(), "a new word that is the old one")
        places.append(found)
        steps.append(group.steps)
    every = np.concatenate(places)
    order = np.argsort(every)
    return cast("Array", every[order].astype(np.uint64)), np.concatenate(steps)[order]
