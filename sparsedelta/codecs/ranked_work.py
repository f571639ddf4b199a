"""What blocks of ``ranked`` ask of who reads them: the bytes that their frames decode to."""

from __future__ import annotations

from typing import Final

_MORE: Final = 128
"""The bit of a byte of a number that says that another one follows."""

_RANGE_AND_CODES: Final = 3
"""Bytes of a class before the number of its entries."""


def declared_bytes(block: memoryview) -> int:
    """Bytes that the Zstandard frames of a block decode to, by what stands before each of them.

    Nothing is decompressed: only numbers are read, and contents skipped.

    Args:
        block: A block that keeps rule SD417.
    """
    rows, at = _number(block, 0)
    total = 0
    if rows:
        total, at = _frame(block, at)
    classes, at = block[at], at + 1
    for _ in range(classes):
        _, at = _number(block, at + _RANGE_AND_CODES)
    signs, at = _number(block, at)
    at += signs
    while at < len(block):  # whatever follows are frames
        declared, at = _frame(block, at)
        total += declared
    return total


def _number(block: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = block[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < _MORE:
            return number, at
        shift += 7


def _frame(block: memoryview, at: int) -> tuple[int, int]:
    """Bytes that a frame decodes to, none if it is stored, and where the next thing begins."""
    head, at = _number(block, at)
    declared = 0
    if head & 1:
        declared, at = _number(block, at)
    return declared, at + (head >> 1)
