"""The valid vectors, and what a reader finds in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import zstandard
from structure import MAX_HEADER
from terms import BITS, b3, word_bytes
from vector_encoder import SEGMENT, P, T, build, identity, zstd
from vector_samples import WIDTHS, bare_length, bias, flat, tensor

LISTED, HEX_MAX, MAX_PERIOD = 64, 64, 16
Valid = tuple[str, list[T], bytes]
BLOCKY = (0, 1, 255, 700, 701, 767, 768, 1023, 1029)  # of 1030 words: blocks 1 of 0..4 is empty


class Dice:
    """A tiny generator (64-bit LCG), the same in every language and version."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        """The next number below a limit of at most 2^31."""
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % limit

    def some(self, n: int, count: int) -> list[int]:
        """Ascending, distinct indices below n."""
        chosen: set[int] = set()
        while len(chosen) < count:
            chosen.add(self.below(n))
        return sorted(chosen)

    def small(self, n: int, count: int, width: int, top: int = 9) -> dict[int, int]:
        """Entries with signed values up to top, never 0."""
        return {
            i: (1 + self.below(top)) * (1 - 2 * self.below(2)) % 256**width
            for i in self.some(n, count)
        }


def combinations() -> Iterator[tuple[str, str, str]]:
    """The allowed combinations of op, index codec and value codec."""
    for index in ("gap8", "bitmask", "dense"):
        for value in ("packed", "zigzag", "planes"):
            if (index, value) != ("dense", "packed"):
                yield "difference", index, value
        yield "replace", index, "planes"


def valid_codecs() -> Iterator[Valid]:
    """Each allowed combination, at every word width, over empty and short blocks."""
    for op, index, value in combinations():
        tensors = [bias()]
        for dtype, width in WIDTHS.items():
            dice, n = Dice(width), 1030
            places: tuple[int, ...] = BLOCKY
            if (op, index) == ("replace", "dense"):
                places = tuple(range(256)) + tuple(range(768, 1030))
            values = dice.small(n, n, width, 100)
            part = P(op, {i: values[i] for i in places}, index, value, 4)
            tensors.append(tensor(f"w{8 * width}", dtype, n, part))
        yield f"{op}-{index}-{value}", tensors, build(tensors)
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
        yield f"packed-width-{p}", tensors, build(tensors)


def valid_values() -> Iterator[Valid]:
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
        yield f"extreme-{value}", tensors, build(tensors)
    # -0.0 that stays, -0.0 to 0.0, 0.0 to -0.0, one NaN payload to another, infinity to NaN.
    old = [0x8000, 0x8000, 0x0000, 0x7FC0, 0x7F80, 0x3F80]
    new = [0x8000, 0x0000, 0x8000, 0x7FC1, 0xFFFF, 0x3F81]
    data = struct.pack("<6H", *old)
    steps = {i: (b - a) % 65536 for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    words = {i: new[i] for i in steps}
    for op, entries, value in (("difference", steps, "zigzag"), ("replace", words, "planes")):
        tensors = [T("w", "BF16", [2, 3], data, [P(op, entries, "gap8", value)])]
        yield f"bf16-zeros-and-nans-{op}", tensors, build(tensors)
    same = T(
        "w", "U8", [256], bytes(256), [P("replace", {i: i for i in range(256)}, "dense", "planes")]
    )
    yield "replace-dense-unchanged-word", [same], build([same])
    every = {i: 1 + i % 3 for i in range(300)}
    tensors = [
        tensor("bitmask", "BF16", 300, P("difference", every, "bitmask", "packed", 2)),
        tensor("dense", "BF16", 300, P("difference", every, "dense")),
        tensor("gap8", "BF16", 300, P("difference", every)),
    ]
    yield "every-word", tensors, build(tensors)


def valid_counts() -> Iterator[Valid]:
    """As many entries as expected.json lists, and one more."""
    tensors = [
        tensor(f"n{count}", "F32", 300, P("difference", Dice(9).small(300, count, 4)))
        for count in (LISTED, LISTED + 1)
    ]
    yield "entries-64-and-65", tensors, build(tensors)


def valid_layout() -> Iterator[Valid]:
    """Gaps, blocks, parts, shapes and dtypes."""
    places, at = [], -1
    for gap in (0, 254, 255, 256, 509, 510, 511, 765, 0, 253):
        at += gap + 1
        places.append(at)
    tensors = [tensor("w", "BF16", at + 1, P("difference", dict.fromkeys(places, 1), block=12))]
    tensors += [tensor("first", "U8", 256, P("difference", {255: 1}))]
    tensors += [tensor("last", "U8", 511, P("difference", {510: 1}, block=9))]
    yield "gaps-254-255-510", tensors, build(tensors)
    tensors = []
    for n in (255, 256, 257, 512):
        tensors += [tensor(f"n{n}", "BF16", n, P("difference", {0: 1, n - 1: 2}))]
    yield "block-boundaries", tensors, build(tensors)
    tensors = [
        tensor("large", "U16", 300, P("difference", {7: 1, 299: 9}, block=24)),
        tensor("small", "U16", 3000, P("difference", {7: 1, 2999: 9}, "bitmask", "planes")),
    ]
    yield "block-8-and-24", tensors, build(tensors)
    first = P("difference", {0: 1, 1: 5, 299: 65535}, "bitmask", "packed", 1)
    second = P("replace", {2: 0, 298: 0x7FC1}, "gap8", "planes", 0, 10)
    tensors = [bias(), tensor("w", "BF16", 300, first, second)]
    yield "two-parts", tensors, build(tensors)
    long = T("long", "U8", [SEGMENT + 5], bytes(SEGMENT + 5))
    places = [0, SEGMENT - 1, SEGMENT, SEGMENT + 4]
    long.parts = [P("difference", dict.fromkeys(places, 255), block=24, compress=True)]
    long.parts += [P("replace", {9: 9, SEGMENT + 1: 7}, "gap8", "planes", block=20)]
    yield "two-segments", [long], build([long])
    tensors = [
        T("scalar", "F32", [], struct.pack("<f", 1.5), [P("difference", {0: 1})]),
        T("empty", "F32", [0], b""),
        T("empty-2d", "BF16", [3, 0, 5], b""),
        T("dims", "U8", [1] * 63 + [4], b"abcd", [P("difference", {3: 1})]),
    ]
    yield "shapes", tensors, build(tensors)
    tensors = [bias(), T("empty", "U8", [0], b"")]
    yield "empty-delta", tensors, build(tensors)
    yield "empty-checkpoint", [], build([])
    tensors = []
    for dtype, bits in BITS.items():
        data = bytes(range(bits * 8 // 8)) if dtype != "BOOL" else bytes(8)
        part = P("difference", {len(data) // word_bytes(dtype) - 1: 1})
        tensors.append(T(dtype.lower(), dtype, [4, 2], data, [part]))
    yield "dtypes", tensors, build(tensors)


def valid_container() -> Iterator[Valid]:
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
    yield "names", tensors, build(tensors)
    tensors = [bias(), tensor("w", "BF16", 400, P("difference", Dice(5).small(400, 90, 2)))]
    odd = "".join(map(chr, range(32))) + '"\\/\x7f\u0085\u2028\uffff\U0001f40e'
    yield (
        "metadata",
        tensors,
        build(
            tensors,
            metadata={"tool": "generate.py", odd: odd, "": ""},
            extra={"sd.base_repo": "example/base", "sd.base_revision": "main", "x.unknown": odd},
        ),
    )
    for spaces in (0, 7):
        note = "n" * ((-spaces - bare_length(tensors)) % 8)
        yield f"header-padding-{spaces}", tensors, build(tensors, extra={"note": note})
    yield (
        "header-longest",
        tensors,
        build(tensors, extra={"note": "x" * (MAX_HEADER - bare_length(tensors))}),
    )
    yield "manifest-compressed", tensors, build(tensors, shrink_manifest=True)
    entries = {i: 1 + i % 3 * (i % 7 == 0) for i in range(0, 3000, 2)}
    for index, value in (("gap8", "packed"), ("bitmask", "zigzag"), ("dense", "planes")):
        part = P("difference", entries, index, value, 2, 11, compress=True)
        tensors = [tensor("w", "F32", 3000, part)]
        yield f"compressed-{index}-{value}", tensors, build(tensors, shrink_manifest=True)
    frames = [
        zstd((b"\7", 300), declared=300),
        zstd((b"\7", 100), (b"\7" * 5, 0), (b"\7", 195), declared=300),
        zstd((b"\7", 300), declared=300, window=27),
        zstd((b"\7", 300), (b"", 0), declared=300, window=10),
        zstandard.ZstdCompressor(write_checksum=True).compress(b"\7" * 300),
        b"\7" * 300,
    ]
    tensors = [flat(f"w{k}") for k in range(len(frames))]
    yield (
        "frames",
        tensors,
        build(tensors, frames=lambda f, name, *_: [f[0], frames[int(name.removeprefix("w"))]]),
    )


def valid() -> Iterator[Valid]:
    """All valid vectors: name, tensors and file."""
    for group in (valid_codecs, valid_values, valid_counts, valid_layout, valid_container):
        yield from group()


# --- What a reader finds ---


def recipe(data: bytes) -> dict[str, Any]:
    """Bytes as hex, or as hex that is repeated some times."""
    for period in range(1, MAX_PERIOD + 1):
        times, rest = divmod(len(data), period)
        if len(data) > HEX_MAX and not rest and data == data[:period] * times:
            return {"repeat": data[:period].hex(), "times": times}
    return {"hex": data.hex()}


def expected(tensors: list[T]) -> dict[str, Any]:
    """What a reader finds in the delta of these tensors, and the base to apply it to."""
    tensors = sorted(tensors, key=lambda t: t.name.encode())
    base, target, content = identity(tensors)
    records, nnz = [], 0
    for t in tensors:
        parts = []
        for part in t.parts:
            entries = sorted(part.entries.items())
            nnz += len(entries)
            record: dict[str, Any] = {"op": part.op, "nnz": len(entries)}
            if len(entries) <= LISTED:
                record["indices"] = [i for i, _ in entries]
                record["words"] = [f"{v:0{2 * t.width}x}" for _, v in entries]
            else:
                indices = b"".join(i.to_bytes(8, "little") for i, _ in entries)
                words = b"".join(v.to_bytes(t.width, "little") for _, v in entries)
                record["indices_b3"], record["words_b3"] = (b3(b).hex() for b in (indices, words))
            parts.append(record)
        if parts:
            records.append({"name": t.name, "dtype": t.dtype, "shape": t.shape, "parts": parts})
    return {
        "base": base,
        "target": target,
        "content": content,
        "invertible": all(p.op != "replace" for t in tensors for p in t.parts),
        "nnz": nnz,
        "tensors": records,
        "base_tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": t.shape, "bytes": recipe(t.data)}
            for t in tensors
        ],
    }
