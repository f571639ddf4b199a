"""Valid vectors of `difference` and `replace`, of names, JSON and frames."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zstandard
from dice import Dice
from expected_json import LISTED, Vector, case
from header import MAX_HEADER
from stream_encoder import zstd
from terms import BITS, word_bytes
from vector_records import SEGMENT, P, edited
from vector_samples import WIDTHS, bare_length, bias, flat, tensor


def valid_widths() -> Iterator[Vector]:
    """Each width of `packed`."""
    for p in (0, 1, 2, 4, 8):
        tensors = []
        for dtype, width in WIDTHS.items():
            dice = Dice(100 + p)
            top, full = min(max(1, 2**p - 1), 127), 256**width
            inside = {0: top, 5: full - top, 9: 1, 298: full - 1}
            outside = dice.small(300, 61, width, 120)
            for name, entries in (("inside", inside), ("outside", outside)):
                part = P("difference", entries, "bitmask", "packed", p, 9)
                tensors.append(tensor(f"{name}{8 * width}", dtype, 300, part))
        yield case(f"packed-width-{p}", tensors)


def valid_values() -> Iterator[Vector]:
    """Values at the ends of their ranges, and bits that are numbers only by courtesy."""
    for value in ("packed", "zigzag", "planes"):
        tensors = []
        for dtype, width in WIDTHS.items():
            half = 256**width // 2
            ends = [1, 2 * half - 1, half, half - 1, half + 1, 127, 128, 2 * half - 127, half - 2]
            entries = {3 * i: v for i, v in enumerate(ends)}
            for p in (0, 8) if value == "packed" else (0,):
                part = P("difference", entries, "gap8", value, p)
                tensors.append(tensor(f"ends{p}.{8 * width}", dtype, 30, part))
        yield case(f"extreme-{value}", tensors)
    # -0.0 that stays, -0.0 to 0.0, 0.0 to -0.0, one NaN payload to another, infinity to NaN.
    old = [0x8000, 0x8000, 0x0000, 0x7FC0, 0x7F80, 0x3F80]
    new = [0x8000, 0x0000, 0x8000, 0x7FC1, 0xFFFF, 0x3F81]
    data = struct.pack("<6H", *old)
    steps = {i: (b - a) % 65536 for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    words = {i: new[i] for i in steps}
    for op, entries, value in (("difference", steps, "zigzag"), ("replace", words, "planes")):
        tensors = [edited("w", "BF16", [2, 3], data, [P(op, entries, "gap8", value)])]
        yield case(f"bf16-zeros-and-nans-{op}", tensors)
    same = edited(
        "w", "U8", [256], bytes(256), [P("replace", {i: i for i in range(256)}, "dense", "planes")]
    )
    yield case("replace-dense-unchanged-word", [same])
    every = {i: 1 + i % 3 for i in range(300)}
    tensors = [
        tensor("bitmask", "BF16", 300, P("difference", every, "bitmask", "packed", 2)),
        tensor("dense", "BF16", 300, P("difference", every, "dense")),
        tensor("gap8", "BF16", 300, P("difference", every)),
    ]
    yield case("every-word", tensors)


def valid_counts() -> Iterator[Vector]:
    """As many entries as expected.json lists, and one more."""
    tensors = [
        tensor(f"n{count}", "F32", 300, P("difference", Dice(9).small(300, count, 4)))
        for count in (LISTED, LISTED + 1)
    ]
    yield case("entries-64-and-65", tensors)


def valid_layout() -> Iterator[Vector]:
    """Gaps, blocks, parts, shapes and dtypes."""
    places, at = [], -1
    for gap in (0, 254, 255, 256, 509, 510, 511, 765, 0, 253):
        at += gap + 1
        places.append(at)
    tensors = [tensor("w", "BF16", at + 1, P("difference", dict.fromkeys(places, 1), block=12))]
    tensors += [tensor("first", "U8", 256, P("difference", {255: 1}))]
    tensors += [tensor("last", "U8", 511, P("difference", {510: 1}, block=9))]
    yield case("gaps-254-255-510", tensors)
    tensors = []
    for n in (255, 256, 257, 512):
        tensors += [tensor(f"n{n}", "BF16", n, P("difference", {0: 1, n - 1: 2}))]
    yield case("block-boundaries", tensors)
    tensors = [
        tensor("large", "U16", 300, P("difference", {7: 1, 299: 9}, block=24)),
        tensor("small", "U16", 3000, P("difference", {7: 1, 2999: 9}, "bitmask", "planes")),
    ]
    yield case("block-8-and-24", tensors)
    first = P("difference", {0: 1, 1: 5, 299: 65535}, "bitmask", "packed", 1)
    second = P("replace", {2: 0, 298: 0x7FC1}, "gap8", "planes", 0, 10)
    tensors = [bias(), tensor("w", "BF16", 300, first, second)]
    yield case("two-parts", tensors)
    places = [0, SEGMENT - 1, SEGMENT, SEGMENT + 4]
    parts = [P("difference", dict.fromkeys(places, 255), block=24, compress=True)]
    parts += [P("replace", {9: 9, SEGMENT + 1: 7}, "gap8", "planes", block=20)]
    long = edited("long", "U8", [SEGMENT + 5], bytes(SEGMENT + 5), parts)
    yield case("two-segments", [long])
    tensors = [
        edited("scalar", "F32", [], struct.pack("<f", 1.5), [P("difference", {0: 1})]),
        edited("empty", "F32", [0], b""),
        edited("empty-2d", "BF16", [3, 0, 5], b""),
        edited("dims", "U8", [1] * 63 + [4], b"abcd", [P("difference", {3: 1})]),
    ]
    yield case("shapes", tensors)
    tensors = [bias(), edited("empty", "U8", [0], b"")]
    yield case("empty-delta", tensors)
    yield case("empty-checkpoint", [])
    tensors = []
    for dtype, bits in BITS.items():
        data = bytes(range(bits * 8 // 8)) if dtype != "BOOL" else bytes(8)
        part = P("difference", {len(data) // word_bytes(dtype) - 1: 1})
        tensors.append(edited(dtype.lower(), dtype, [4, 2], data, [part]))
    yield case("dtypes", tensors)


def valid_container() -> Iterator[Vector]:
    """Names, JSON, frames and the header."""
    names = ["\U0001f40e.weight", "\uffff", "\ufb01", "عربي", "漢字", "e\u0301", "\u00e9", "A", "a"]
    names += ['quote" and \\', "../../etc/passwd", " ", "\u2028", "x" * 1024, "\ud7ff", "\ue000"]
    tensors = [
        tensor(name, "BF16", 2, *([P("difference", {i % 2: i + 1})] if i % 2 else []))
        for i, name in enumerate(names)
    ]
    # The same two names, which UTF-16 would order the other way, on the other side.
    tensors += [tensor("\U0001f40e", "U8", 1, P("difference", {0: 1}))]
    tensors += [tensor("\uffff!", "U8", 1, P("difference", {0: 1}))]
    yield case("names", tensors)
    tensors = [bias(), tensor("w", "BF16", 400, P("difference", Dice(5).small(400, 90, 2)))]
    odd = "".join(map(chr, range(32))) + '"\\/\x7f\u0085\u2028\uffff\U0001f40e'
    hints = {"sd.base_repo": "example/base", "sd.base_revision": "main", "x.unknown": odd}
    note = {"tool": "generate.py", odd: odd, "": ""}
    yield case("metadata", tensors, metadata=note, extra=hints)
    for spaces in (0, 7):
        pad = "n" * ((-spaces - bare_length(tensors)) % 8)
        yield case(f"header-padding-{spaces}", tensors, extra={"note": pad})
    longest = {"note": "x" * (MAX_HEADER - bare_length(tensors))}
    yield case("header-longest", tensors, extra=longest)
    yield case("manifest-compressed", tensors, shrink_manifest=True)
    entries = {i: 1 + i % 3 * (i % 7 == 0) for i in range(0, 3000, 2)}
    for index, value in (("gap8", "packed"), ("bitmask", "zigzag"), ("dense", "planes")):
        part = P("difference", entries, index, value, 2, 11, compress=True)
        tensors = [tensor("w", "F32", 3000, part)]
        yield case(f"compressed-{index}-{value}", tensors, shrink_manifest=True)
    frames = [
        zstd((b"\7", 300), declared=300),
        zstd((b"\7", 100), (b"\7" * 5, 0), (b"\7", 195), declared=300),
        zstd((b"\7", 300), declared=300, window=27),
        zstd((b"\7", 300), (b"", 0), declared=300, window=10),
        zstandard.ZstdCompressor(write_checksum=True).compress(b"\7" * 300),
        b"\7" * 300,
    ]
    tensors = [flat(f"w{k}") for k in range(len(frames))]
    hook = lambda f, name, *_: [f[0], frames[int(name.removeprefix("w"))]]  # noqa: E731 - a hook
    yield case("frames", tensors, frames=hook)


def valid_basics() -> Iterator[Vector]:
    """Vectors of differences and replaced words: name, tensors and file."""
    for group in (valid_widths, valid_values, valid_counts, valid_layout, valid_container):
        yield from group()
