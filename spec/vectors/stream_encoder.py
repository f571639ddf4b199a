"""Encodes the streams of blocks one value at a time, and Zstandard frames by hand.

Shares nothing with a real writer, nor with the reference.
"""

from __future__ import annotations

import struct

import zstandard

MAGIC = b"\x28\xb5\x2f\xfd"


def bits_of(flags: list[bool]) -> bytes:
    """Flags as bits, the first in the lowest bit of the first byte."""
    out = bytearray(-(-len(flags) // 8))
    for i, flag in enumerate(flags):
        out[i // 8] |= flag << (i % 8)
    return bytes(out)


def byte_planes(words: list[int], width: int) -> list[bytes]:
    """Byte j of every word, for each j."""
    return [bytes(word >> 8 * j & 255 for word in words) for j in range(width)]


def gaps_in_bytes(gaps: list[int]) -> bytes:
    """Gaps as `gap8` writes them."""
    return b"".join(b"\xff" * (gap // 255) + bytes([gap % 255]) for gap in gaps)


def encode_index(codec: str, places: list[int], n: int, k: int = 0) -> list[bytes]:
    """The streams of an index codec for a block of n words; k is that of `gap8-split`."""
    gaps = [i - last - 1 for last, i in zip([-1, *places], places, strict=False)]
    if not places:
        return [b""] * {"dense": 0, "gap8-split": 2}.get(codec, 1)
    if codec == "gap8":
        return [gaps_in_bytes(gaps)]
    if codec == "gap8-split":
        planes = [bits_of([bool(gap >> t & 1) for gap in gaps]) for t in range(k)]
        return [gaps_in_bytes([gap >> k for gap in gaps]), bytes([k]) + b"".join(planes)]
    if codec == "bitmask":
        return [bits_of([i in set(places) for i in range(n)])]
    if codec == "range":
        return [struct.pack("<II", places[0], places[-1] - places[0] + 1)]
    return [struct.pack(f"<{len(places)}I", *places)] if codec == "raw" else []


def encode_value(codec: str, words: list[int], width: int, p: int) -> list[bytes]:
    """The streams of a value codec."""
    if codec == "planes":
        return byte_planes(words, width)
    if codec == "raw":
        return [b"".join(word.to_bytes(width, "little") for word in words)]
    half, full = 256**width // 2, 256**width
    signed = [word - full if word >= half else word for word in words]
    if codec == "zigzag":
        z = [2 * s if s >= 0 else -2 * s - 1 for s in signed]
        rest = [k - 255 for k in z if k >= 255]  # noqa: PLR2004 - the page
        return [bytes(min(k, 255) for k in z), b"".join(byte_planes(rest, width))]
    top, magnitudes = 2**p - 1, [abs(s) - 1 for s in signed]
    mag = bytearray(-(-len(words) * p // 8))
    for i, a in enumerate(magnitudes):
        if p:
            mag[i % len(mag)] |= min(a, top) << (i // len(mag) * p)
    rest = [a - top for a in magnitudes if a >= top]
    sign = bits_of([s < 0 for s in signed])
    return [sign, bytes(mag), b"".join(byte_planes(rest, width))]


def shrink(plain: bytes) -> bytes:
    """A frame (3.1): compressed if that is smaller."""
    small = zstandard.ZstdCompressor(level=9, write_checksum=False).compress(plain)
    return min(small, plain, key=len)


def zstd(
    *blocks: tuple[bytes, int],
    declared: int | None,
    window: int | None = None,
    dictionary: int = 0,
    checksum: bytes = b"",
) -> bytes:
    """A Zstandard frame by hand: blocks of (byte, times), or of (bytes, 0) as they are."""
    flags = (declared is not None) * 0xC0 | (window is None) * 0x20 | bool(checksum) * 4
    out = MAGIC + bytes([flags | bool(dictionary)])
    out += b"" if window is None else bytes([(window - 10) << 3])
    out += bytes([dictionary]) * bool(dictionary)
    out += b"" if declared is None else struct.pack("<Q", declared)
    for k, (raw, times) in enumerate(blocks):
        head = (times or len(raw)) << 3 | (times > 0) << 1 | (k == len(blocks) - 1)
        out += struct.pack("<I", head)[:3] + raw
    return out + checksum
