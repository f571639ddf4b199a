"""The streams of a part: codecs, and reading block by block (section 6, SD401 to SD408)."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
from encoding import unframe
from structure import ESCAPE, Layout
from terms import Array, Part, b3, need


def read_index(part: Layout, streams: list[bytes], n: int, count: int) -> Array:
    """The indices of a block of n words, from the streams of its index (of its value if dense)."""
    raw = [np.frombuffer(stream, np.uint8) for stream in streams]
    if part.index == "gap8":
        ends = raw[0] != ESCAPE
        places = np.cumsum(raw[0] + ends.astype(np.uint64))
        ok = ends.sum() == count and ends[-1] and places[-1] <= n
        need("SD403", ok, "count, an open gap, or an index outside the block")
        return cast("Array", places[ends] - 1)
    if part.index == "bitmask":
        bits = np.unpackbits(raw[0], bitorder="little")
        need("SD404", bits.sum() == count and not bits[n:].any(), "count or spare bits")
        return np.flatnonzero(bits)
    # A zigzag value is 0 exactly if its symbol is.
    present = np.any(raw[:1] if part.value == "zigzag" else raw, axis=0) | (part.op == "replace")
    need("SD405", present.sum() == count, "a dense block holds another number of entries")
    return np.flatnonzero(present)


def joined(planes: bytes, width: int) -> Array:
    """Words from their byte planes."""
    array = np.frombuffer(planes, np.uint8).reshape(width, len(planes) // width)
    return np.ascontiguousarray(array.T).view(f"<u{width}").ravel()


def read_values(part: Layout, streams: list[bytes], m: int) -> Array:
    """The m words of a block from the streams of its value codec."""
    code, bits, p = ("SD406" if part.value == "packed" else "SD407"), 8 * part.W, part.p
    if part.value == "planes":
        return joined(b"".join(streams), part.W)
    rest = joined(streams[-1], part.W).astype(np.uint64)
    if part.value == "packed":
        sign = np.unpackbits(np.frombuffer(streams[0], np.uint8), bitorder="little")
        mag, top, limit = np.frombuffer(streams[1], np.uint8), 2**p - 1, 2 ** (bits - 1) - 1
        symbols = np.concatenate([mag >> k & top for k in range(0, 8, p)] if p else [sign[:m] * 0])
        need(code, not sign[m:].any() and not symbols[m:].any(), "spare bits")
    else:
        symbols, top, limit = np.frombuffer(streams[0], np.uint8), ESCAPE, 2**bits - 1
    number = symbols[:m].astype(np.uint64)
    need(code, rest.size == (number == top).sum(), "the number of exceptions")
    need(code, rest.size == 0 or int(rest.max()) + top <= limit, "an exception is too large")
    number[number == top] += rest
    if part.value == "packed":  # ~a is -(a + 1)
        need(code, (number + (sign[:m] == 0) <= limit).all(), "a magnitude is too large")
        number = np.where(sign[:m], ~number, number + 1)
    else:
        number = np.where(number & 1, ~(number >> 1), number >> 1)
    return cast("Array", number.astype(f"<u{part.W}"))


def read_part(part: Layout, data: io.BytesIO) -> Part:
    """Check SD401 to SD408, block by block."""
    indices, words = [], []
    for k, (row, size) in enumerate(zip(part.rows, part.sizes(), strict=True)):
        count, n, frames = int(row["count"]), int(size), []
        for stream in row["streams"]:
            frames.append(data.read(int(stream["encoded"])))
            need("SD401", b3(frames[-1])[:8] == stream["checksum"].tobytes(), "a checksum")
        lengths = row["streams"]["decoded"].tolist()
        streams = [unframe("SD402", f, length) for f, length in zip(frames, lengths, strict=True)]
        if count:
            index = read_index(part, streams, n, count)
            if part.index == "dense":
                values = read_values(part, streams, n)[index]
            else:
                values = read_values(part, streams[1:], count)
            need("SD408", part.op == "replace" or values.all(), "a difference of 0")
            indices.append(index.astype(np.uint64) + np.uint64(k << part.block))
            words.append(values)
    return Part(part.op, np.concatenate(indices), np.concatenate(words))
