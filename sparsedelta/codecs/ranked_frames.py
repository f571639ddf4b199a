"""Numbers and frames inside a block of ``ranked`` (spec/codecs/ranked.md)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import StreamError
from sparsedelta.codecs.frames import FrameError, decode_frame, encode_frame
from sparsedelta.words import Bytes

RULE: Final = "SD417"
"""What of a block needs no base words."""

_MAX_VARINT_BYTES: Final = 9
_MORE: Final = 128
"""The bit of a byte of a number that says that another one follows."""
_STORED_UP_TO: Final = 24
"""Frames as short as this are stored: there is next to nothing to gain."""


def varint(number: int) -> bytes:
    """A number below 2^63 as LEB128, as short as it can be."""
    out = bytearray()
    while number >= _MORE:
        out.append(number & 127 | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def frame(data: bytes) -> bytes:
    """A byte string with its length before it: as it is, or as a Zstandard frame if shorter."""
    stored = varint(len(data) << 1) + data
    if len(data) <= _STORED_UP_TO:
        return stored
    packed = encode_frame(data)
    if len(packed) == len(data):
        return stored
    return min(stored, varint(len(packed) << 1 | 1) + varint(len(data)) + packed, key=len)


class Cursor:
    """Reads a block from front to end; every method raises StreamError where it cannot go on.

    Args:
        data: The block.

    Attributes:
        frame_bytes: What the Zstandard frames that have been read decoded to, in bytes.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self.frame_bytes = 0

    def byte(self) -> int:
        """The next byte."""
        at = self._position
        if at == len(self._data):
            raise self._ended()
        self._position = at + 1
        return self._data[at]

    def take(self, length: int) -> memoryview:
        """The next ``length`` bytes."""
        start = self._position
        if length > len(self._data) - start:
            raise self._ended()
        self._position = start + length
        return self._data[start : self._position]

    def _ended(self) -> StreamError:
        return StreamError(RULE, f"the block ends after {len(self._data)} bytes, inside a field")

    def varint(self) -> int:
        """The next number."""
        at = self._position
        if at < len(self._data) and self._data[at] < _MORE:  # most have one byte
            self._position = at + 1
            return self._data[at]
        number = 0
        for at in range(_MAX_VARINT_BYTES):
            byte = self.byte()
            number |= (byte & 127) << 7 * at
            if byte < _MORE:
                if not byte and at:
                    raise StreamError(RULE, "a number has more bytes than it needs")
                return number
        raise StreamError(RULE, "a number is 2^63 or more")

    def frame(self, what: str, low: int, high: int | None = None, step: int = 1) -> Bytes:
        """The next frame, decoded.

        Args:
            what: What it holds, for an error.
            low: Least length of its content, in bytes.
            high: Greatest length; by default the least. It bounds what is allocated.
            step: The length is a multiple of it.
        """
        high = low if high is None else high
        head = self.varint()
        length = head >> 1
        size = self.varint() if head & 1 else length
        if not low <= size <= high or size % step:
            raise StreamError(
                RULE, f"{what} of {size} bytes, expected {low} to {high}, a multiple of {step}"
            )
        if head & 1 and length >= size:
            raise StreamError(RULE, f"{what}: a frame that is compressed, and not shorter")
        data = self.take(length)
        self.frame_bytes += size if head & 1 else 0
        try:
            return decode_frame(data, size)
        except FrameError as error:
            raise StreamError(RULE, f"{what}: {error}") from None

    def end(self) -> None:
        """Insist that nothing is left."""
        rest = len(self._data) - self._position
        if rest:
            raise StreamError(RULE, f"{rest} bytes behind the last frame of the block")


def bits(data: Bytes, count: int, what: str, rule: str = RULE) -> NDArray[np.bool_]:
    """The first ``count`` bits of some bytes, least significant first, bool ``[count]``.

    Args:
        data: As many bytes as hold them.
        count: Number of bits.
        what: What they are, for an error.
        rule: The rule that is broken otherwise.

    Raises:
        StreamError: A bit behind them is 1.
    """
    if count % 8 and int(data[-1]) >> count % 8:
        raise StreamError(rule, f"a spare bit of {what} is 1")
    found: NDArray[np.bool_] = np.unpackbits(data, count=count, bitorder="little").view(np.bool_)
    return found
