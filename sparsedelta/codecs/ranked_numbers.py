"""Numbers and bits inside a block of ``ranked`` (spec/codecs/ranked.md)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.words import Bytes

RULE: Final = "SD417"
"""What of a block needs no base words."""

_MAX_BYTES: Final = 9
_MORE: Final = 128
"""The bit of a byte of a number that says that another one follows."""


def write_number(number: int) -> bytes:
    """A number below 2^63 as LEB128, as short as it can be."""
    out = bytearray()
    while number >= _MORE:
        out.append(number & 127 | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_number(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and where it ends.

    Raises:
        IndexError: The data ends before it.
        StreamError: It has not its one form, or is too large.
    """
    byte = data[at]
    if byte < _MORE:  # most have one byte
        return byte, at + 1
    number = 0
    for place in range(_MAX_BYTES):
        byte = data[at + place]
        number |= (byte & 127) << 7 * place
        if byte < _MORE:
            if not byte:
                raise StreamError(RULE, "a number has more bytes than it needs")
            return number, at + place + 1
    raise StreamError(RULE, "a number is 2^63 or more")


def read_bits(data: memoryview, count: int, what: str) -> NDArray[np.bool_]:
    """As many bits, from the least significant one of each byte on.

    Args:
        data: As many bytes as hold them.
        count: Number of bits.
        what: What they are, for an error.

    Raises:
        StreamError: A bit behind them is 1.
    """
    check_spare(data, count, what)
    packed: Bytes = np.frombuffer(data, np.uint8)
    found: NDArray[np.bool_] = np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)
    return found


def check_spare(data: memoryview, count: int, what: str) -> None:
    """Bits behind the first ``count`` are 0 in as many bytes as hold them; raises StreamError."""
    if count % 8 and data[-1] >> count % 8:
        raise StreamError(RULE, f"a spare bit of {what} is 1")
