"""Fuzz the header: for any bytes, the package and the reference name the same rule of SD1xx.

The first byte chooses whether the rest is a whole file, or the JSON of a header that is given the
length word, the spaces and the data that it asks for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Final

import harness

with harness.instrumented():
    from sparsedelta.errors import FormatError
    from sparsedelta.header import header_length, parse_header

from header import read_header
from sources import names, source
from terms import RuleError

MAX_DATA: Final = 1 << 16
MAX_DEPTH: Final = 8


def of_package(file: bytes) -> str:
    """The rule that the package names, or ""."""
    try:
        length = header_length(file[:8], len(file))
        parse_header(file[8 : 8 + length], len(file))
    except FormatError as error:
        return error.rule
    return ""


def of_reference(file: bytes) -> str:
    """The rule that the reference names, or ""."""
    try:
        read_header(file)
    except RuleError as error:
        return error.code
    return ""


def whole(text: bytes) -> bytes:
    """A file with this header, and as many bytes behind it as the header says."""
    text += b" " * (-len(text) % 8)
    try:
        end = json.loads(text)["sd.data"]["data_offsets"][1]
        size = end if isinstance(end, int) and 0 <= end <= MAX_DATA else 0
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        size = 0
    return struct.pack("<Q", len(text)) + text + bytes(size)


def is_deep(file: bytes) -> bool:
    """Whether a text may be nested deeper than 8, whatever stands in its strings."""
    return file.count(b"[") + file.count(b"{") > MAX_DEPTH


def one_input(data: bytes) -> None:
    """The law, for one input."""
    file = data[1:] if data[:1] < b"\x80" else whole(data[1:])
    package, reference = of_package(file), of_reference(file)
    if is_deep(file) and {package, reference} <= {"SD102", "SD103"}:
        return  # section 9 lets a reader say SD103 at once
    assert package == reference, f"the package says {package!r}, the reference {reference!r}"


def seeds() -> Iterator[bytes]:
    """The headers of the vectors, each in both ways."""
    for name in names():
        for file in source(name).files.values():
            (length,) = struct.unpack_from("<Q", file)
            yield b"\0" + file
            yield b"\xff" + file[8 : 8 + length].rstrip()


if __name__ == "__main__":
    harness.main(one_input, seeds)
