"""Fuzz the codecs: for any streams of a block, both readers name the same rule, or the same words.

An input is a small recipe: op, codecs, width of words, words of the block, count, and streams whose
lengths are pressed into those that SD304 allows, so that every input reaches a decoder.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Final

import harness

with harness.instrumented():
    from sparsedelta.codecs import Block, StreamError
    from sparsedelta.codecs.encoding import DENSE_OPS, ENTRY_OPS, Encoding

import numpy as np
from block_codecs import Coded, lengths_fit
from streams import read_block
from terms import RuleError

INDEXES: Final = ("gap8", "gap8-split", "bitmask", "range", "dense", "raw")
VALUES: Final = (
    *({"id": "packed", "width": width} for width in (0, 1, 2, 4, 8)),
    *({"id": name} for name in ("zigzag", "planes", "raw")),
)


def _encodings() -> Iterator[Encoding]:
    for op in (*ENTRY_OPS, *DENSE_OPS):
        for index in INDEXES:
            for value in VALUES:
                try:
                    yield Encoding.from_json(op, {"id": index}, value)
                except ValueError:
                    continue


ENCODINGS: Final = tuple(_encodings())
WIDTHS: Final = (1, 2, 4, 8)
HEAD: Final = struct.Struct("<BBHH")


def _lengths(encoding: Encoding, width: int, words: int, count: int, wish: int) -> list[int]:
    counts, sizes = np.array([count]), np.array([words])
    values = count
    if encoding.index.id == "dense":
        values = words
    elif encoding.index.id == "range":
        values = count + wish % (words - count + 1)
    split = encoding.index.stream_count(width)
    bounds = list(encoding.index.bounds(counts, sizes, width))
    bounds += encoding.value.bounds(np.array([values]), sizes, width)
    found = []
    for number, (low, high, step) in enumerate(bounds):
        spread = (int(high[0]) - int(low[0])) // step
        own = wish >> 4 if number < split else wish
        found.append(int(low[0]) + own % (spread + 1) * step)
    return found


def one_input(data: bytes) -> None:
    """The law, for one input."""
    if len(data) < HEAD.size:
        return
    which, shape, words, wish = HEAD.unpack_from(data)
    encoding = ENCODINGS[which % len(ENCODINGS)]
    width, words = WIDTHS[shape & 3], 1 + words % 600
    count = 1 + (shape >> 2) % words
    if encoding.op in DENSE_OPS:
        count = words
    rest = memoryview(data)[HEAD.size :]
    streams = []
    for length in _lengths(encoding, width, words, count, wish):
        piece, rest = bytes(rest[:length]), rest[length:]
        streams.append(np.frombuffer(piece.ljust(length, b"\0"), np.uint8))
    check(encoding, width, words, count, streams)


def check(
    encoding: Encoding, width: int, words: int, count: int, streams: list[np.ndarray]
) -> None:
    """Both readers decode a block alike."""
    value = encoding.value
    part = Coded(
        encoding.op,
        encoding.index.id,
        value.id,
        getattr(value, "width", 0),
        words,
        width,
        count,
        24,
        sum(stream.size for stream in streams),
    )
    sizes = np.array([stream.size for stream in streams], np.int64)[None]
    one, whole = np.array([count]), np.array([words])
    stored = np.where(encoding.stored(width), sizes, 0)
    fits = not list(encoding.length_faults(one, whole, stored, sizes, width))
    assert fits == lengths_fit(part, one, whole, sizes), f"SD304 of {sizes} in {encoding}"
    if not fits:
        return
    rule = code = ""
    try:
        indices, values = encoding.decode(streams, count, Block(words, width))
    except StreamError as error:
        rule = error.rule
    try:
        places, expected = read_block(part, streams, words, count)
    except RuleError as error:
        code = error.code
    assert rule == code, f"the package says {rule!r}, the reference {code!r}: {encoding}"
    if not rule:
        assert np.array_equal(indices, places)
        assert np.array_equal(values, expected)
        assert values.size == count


def seeds() -> Iterator[bytes]:
    """True blocks of every encoding."""
    rng = random.Random(0)  # noqa: S311 (no cryptography)
    for which, encoding in enumerate(ENCODINGS):
        for shape in range(4):
            width = WIDTHS[shape]
            words = rng.randint(2, 300)
            count = words if encoding.op in DENSE_OPS else rng.randint(1, min(words, 63))
            found = sorted(rng.sample(range(words), count))
            if encoding.index.id in ("dense", "range") and encoding.op not in DENSE_OPS:
                found = list(range(found[0], min(words, found[0] + count)))
                if encoding.index.id == "dense" and encoding.op != "difference":
                    found = list(range(words))
            count = len(found)
            small = [rng.choice((1, 2, 3, 2 ** (8 * width) - 1, 100)) for _ in found]
            block = Block(words, width)
            indices = np.array(found, np.int64)
            streams = encoding.encode(indices, np.array(small, f"<u{width}"), block)
            head = HEAD.pack(which, shape | ((count - 1) << 2) & 0xFF, words - 1, 0)
            yield head + b"".join(stream.tobytes() for stream in streams)


if __name__ == "__main__":
    harness.main(one_input, seeds)
