"""`ranked`: entries by their ranks among the elements of the base (`codecs/ranked.md`).

A block is read in two steps: SD417 needs no base, SD418 does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
from block_codecs import ESCAPE, gaps_of, joined
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
        size: The bytes of IDX.
        marks: IDX: the bits, or the ranks of the entries.
        words: The new words of a class that stores them.
        steps: The differences of any other class.
    """

    low: int
    high: int
    bitmask: bool
    code: int
    count: int = 0
    size: int = 0
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

    def array(self, length: int) -> Array:
        """The next bytes, as an array."""
        return np.frombuffer(self.take(length), np.uint8)


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
    length = cursor.varint()
    groups = read_classes(cursor, count, dtype)
    elements = read_rows(cursor, length, n, first)
    check_sizes(groups, elements.size)
    signed = sum(group.count for group in groups if group.code < WHOLE_WORDS)
    signs = bits_of(cursor.array(-(-signed // 8)), signed)
    for group in groups:
        read_index(cursor.array(group.size), group, elements.size)
    symbols = [read_values(cursor, group) for group in groups]
    left = cursor.array(len(data) - cursor.at)
    need("SD417", left.size % 2 == 0, "half an exception")
    read_steps(groups, np.concatenate(symbols), signs, joined(left, 2))
    return Block(elements, groups)


def bits_of(data: Array, count: int) -> Array:
    """So many bits; the others have to be 0."""
    bits = np.unpackbits(data, bitorder="little")
    need("SD417", not bits[count:].any(), "a spare bit is set")
    return bits[:count].astype(np.bool_)


def read_classes(cursor: Cursor, count: int, dtype: str) -> list[Group]:
    """The table of classes."""
    groups: list[Group] = []
    (number,) = cursor.take(1)
    below = -1
    for _ in range(number):
        low, high, codes = cursor.take(3)
        group = Group(low, high, codes >> 4 == 1, codes & 15)
        need("SD417", codes >> 4 <= 1 and group.code <= WHOLE_WORDS, "an unknown code")
        need("SD417", not groups or not groups[-1].flat, "a class behind FLAT")
        if group.flat:
            need("SD417", not group.bitmask, "FLAT with a bitmask")
        else:
            need("SD417", below < low <= high <= EXPONENTS[dtype][1], "ranges that do not ascend")
            below = high
        groups.append(group)
    for group in groups:
        group.count, group.size = cursor.varint(), cursor.varint()
        need("SD417", group.count >= 1, "a class without entries")
    need("SD417", sum(group.count for group in groups) == count, "not the count of the block")
    return groups


def read_rows(cursor: Cursor, length: int, n: int, first: int) -> Array:
    """The places of the elements: those of the words of the block that lie in live rows."""
    if length == 0:
        return np.arange(n)
    rows = (first + np.arange(n)) // length
    rows -= rows[0]
    number = int(rows[-1]) + 1
    live = bits_of(cursor.array(-(-number // 8)), number)
    return np.flatnonzero(live[rows])


def check_sizes(groups: list[Group], elements: int) -> None:
    """How many bytes the ranks of a class may take, and how many elements all have at least."""
    least = 0
    for group in groups:
        low, high = group.count, group.count + elements // ESCAPE
        if group.bitmask:
            low, high = 1, -(-elements // 8)
        need("SD417", low <= group.size <= high, f"ranks of {group.size} bytes")
        if not group.flat:  # that has no elements of its own
            least += max(group.count, 8 * group.size - 7) if group.bitmask else group.count
    need("SD417", least <= elements, "classes of more elements than there are")


def read_index(data: Array, group: Group, elements: int) -> None:
    """IDX of a class."""
    if group.bitmask:
        group.marks = data
        marked = int(np.unpackbits(data).sum())
        need("SD417", marked == group.count, f"{marked} bits for {group.count} entries")
        return
    group.marks = np.cumsum(gaps_of("SD417", data, group.count) + np.uint64(1)) - np.uint64(1)
    need("SD417", group.marks[-1] < elements, "a rank behind the last element")


def read_values(cursor: Cursor, group: Group) -> Array:
    """The new words of a class; or else its symbols are returned."""
    if group.code == WHOLE_WORDS:
        high, low = (cursor.array(group.count).astype("<u2") for _ in range(2))
        group.words = (low & 0x80) << 8 | high << 7 | low & 0x7F
        return np.empty(0, np.uint8)
    width = WIDTHS[group.code]
    if width == 0:
        return np.zeros(group.count, np.uint8)
    used = group.count * width
    bits = bits_of(cursor.array(-(-used // 8)), used).reshape(group.count, width)
    return np.packbits(bits, axis=1, bitorder="little").ravel()


def read_steps(groups: list[Group], symbols: Array, signs: Array, exceptions: Array) -> None:
    """The differences of the classes that have a sign for each entry."""
    groups = [group for group in groups if group.code < WHOLE_WORDS]
    counts = [group.count for group in groups]
    tops = np.repeat([2 ** WIDTHS[group.code] - 1 for group in groups], np.array(counts, int))
    magnitudes = symbols.astype(np.int64)
    escaped = magnitudes == tops
    need("SD417", escaped.sum() == exceptions.size, "another number of exceptions than symbols")
    magnitudes[escaped] += exceptions
    # -2^15 is the one difference of the greatest magnitude.
    need("SD417", (magnitudes < MAGNITUDES - ~signs).all(), "a magnitude is too large")
    steps = np.where(signs, ~magnitudes, magnitudes + 1).astype("<u2")  # ~a is -(a + 1)
    for group, own in zip(groups, np.split(steps, np.cumsum(counts)), strict=False):
        group.steps = own


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
