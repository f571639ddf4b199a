"""Writes the conformance vectors; `--check` compares the stored ones with what it would write.

The encoder is plain Python, one entry at a time, and shares nothing with a real writer. Every step
passes through a named hook, so that an invalid vector breaks one thing and all digests and
checksums above it are computed over the broken thing: nothing else is wrong with the file.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
import decode as ref  # noqa: E402 - found beside this file, never installed

SEGMENT, LISTED, HEX_MAX, MAX_PERIOD = 2**22, 64, 64, 16
WIDTHS = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}
MAGIC, SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"
Hook = Callable[..., Any]
Row = list[Any]


@dataclass
class P:
    """A part: its entries and how to encode them. `labels` are written in place of the codecs."""

    op: str
    entries: dict[int, int]
    index: str = "gap8"
    value: str = "zigzag"
    width: int = 0
    block: int = 8
    compress: bool = False
    labels: dict[str, Any] = field(default_factory=dict)

    def codecs(self) -> dict[str, Any]:
        """The codecs as the manifest names them."""
        value = {"id": self.value} | ({"width": self.width} if self.value == "packed" else {})
        return {"index": {"id": self.index}, "value": value} | self.labels


@dataclass
class T:
    """A tensor of the base, and the parts that change it (none: untouched)."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes
    parts: list[P] = field(default_factory=list)

    @property
    def width(self) -> int:
        """The bytes of a word (1 for a dtype that only an invalid vector has)."""
        return ref.word_bytes(self.dtype) if self.dtype in ref.BITS else 1

    def target(self) -> bytes:
        """The bytes after the delta."""
        out, w = bytearray(self.data), self.width
        for part in self.parts:
            for i, value in part.entries.items():
                old = int.from_bytes(out[i * w : i * w + w], "little")
                new = value if part.op == "replace" else (old + value) % 256**w
                out[i * w : i * w + w] = new.to_bytes(w, "little")
        return bytes(out)

    def segments(self, data: bytes) -> list[bytes]:
        """The digests of the segments."""
        step = SEGMENT * self.width
        return [ref.b3(data[at : at + step], "segment") for at in range(0, len(data), step)]

    def digest(self, data: bytes) -> tuple[str, bytes]:
        """The name and the tensor digest."""
        return self.name, ref.tensor_digest(self.dtype, tuple(self.shape), self.segments(data))


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


# --- Codecs: one value at a time ---


def bits_of(flags: list[bool]) -> bytes:
    """Flags as bits, the first in the lowest bit of the first byte."""
    out = bytearray(-(-len(flags) // 8))
    for i, flag in enumerate(flags):
        out[i // 8] |= flag << (i % 8)
    return bytes(out)


def byte_planes(words: list[int], width: int) -> list[bytes]:
    """Byte j of every word, for each j."""
    return [bytes(word >> 8 * j & 255 for word in words) for j in range(width)]


def encode_index(codec: str, places: list[int], n: int) -> list[bytes]:
    """The streams of an index codec for a block of n words."""
    if codec == "gap8":
        out, last = bytearray(), -1
        for i in places:
            gap, last = i - last - 1, i
            out += b"\xff" * (gap // 255) + bytes([gap % 255])
        return [bytes(out)]
    if codec == "bitmask":
        return [bits_of([i in set(places) for i in range(n)])]
    return []


def encode_value(codec: str, words: list[int], width: int, p: int) -> list[bytes]:
    """The streams of a value codec."""
    if codec == "planes":
        return byte_planes(words, width)
    half, full = 256**width // 2, 256**width
    signed = [word - full if word >= half else word for word in words]
    if codec == "zigzag":
        z = [2 * s if s >= 0 else -2 * s - 1 for s in signed]
        rest = [k - 255 for k in z if k >= 255]  # noqa: PLR2004 - the symbol of the page
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


# --- The container ---


def canonical(value: object) -> bytes:
    """Canonical JSON (3.2)."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode()


def encode_part(t: T, number: int, hook: Hook) -> tuple[dict[str, Any], bytes, bytes]:
    """The part of the manifest, the block table and the frames."""
    part = t.parts[number]
    n, size, table, data = len(t.data) // t.width, 2**part.block, b"", b""
    for block in range(-(-n // size)):
        where = (t.name, number, block)
        words = min(size, n - block * size)
        entries = sorted((i - block * size, v) for i, v in part.entries.items())
        entries = [(i, v) for i, v in entries if 0 <= i < words]
        places, values = [i for i, _ in entries], [v for _, v in entries]
        if part.index == "dense" and entries:
            values = [dict(entries).get(i, 0) for i in range(words)]
        streams = encode_index(part.index, places, words if entries else 0)
        streams += encode_value(part.value, values, t.width, part.width)
        streams = hook("streams", streams, *where)
        frames = [shrink(s) if part.compress else s for s in streams]
        frames = hook("frames", frames, *where)
        row: Row = [len(entries)]
        row += [[len(f), len(s), ref.b3(f)[:8]] for f, s in zip(frames, streams, strict=True)]
        row = hook("row", row, *where)
        table += struct.pack("<I", row[0]) + b"".join(struct.pack("<II8s", *s) for s in row[1:])
        data += b"".join(frames)
    record = {"op": part.op, "nnz": len(part.entries), "block": part.block, "bytes": len(data)}
    return record | part.codecs(), table, data


def identity(
    tensors: list[T], claim: dict[str, str] | None = None, *, wrong_target: bool = False
) -> tuple[str, str, str]:
    """Base and target fingerprint, unless others are claimed, and the content digest."""
    base = ref.fingerprint_of([t.digest(t.data) for t in tensors])
    new = [t.digest(t.data if wrong_target else t.target()) for t in tensors]
    target, touched = ref.fingerprint_of(new), {}
    base, target = (claim or {}).get("base", base), (claim or {}).get("target", target)
    for t in tensors:
        parts = []
        for part in t.parts:
            entries = sorted(part.entries.items())
            indices = np.array([i for i, _ in entries], "<u8")
            words = np.array([v for _, v in entries], f"<u{t.width}")
            parts.append(ref.Part(part.op, indices, words))
        if parts:
            touched[t.name] = ref.Tensor(t.dtype, tuple(t.shape), tuple(parts))
    return base, target, ref.content_digest(base, target, touched)


def build(
    tensors: list[T],
    *,
    metadata: dict[str, str] | None = None,
    extra: dict[str, str] | None = None,
    shrink_manifest: bool = False,
    ordered: bool = True,
    wrong_target: bool = False,
    claim: dict[str, str] | None = None,
    **hooks: Hook,
) -> bytes:
    """A delta file, with hooks for what is to be broken."""

    def hook(name: str, value: Any, *where: Any) -> Any:  # noqa: ANN401 - each its own type
        return hooks[name](value, *where) if name in hooks else value

    if ordered:
        tensors = sorted(tensors, key=lambda t: t.name.encode())
    base, target, content = identity(tensors, claim, wrong_target=wrong_target)
    touched, untouched = [t for t in tensors if t.parts], [t for t in tensors if not t.parts]
    tables, data = b"".join(t.digest(t.data)[1] for t in untouched), b""
    records: list[dict[str, Any]] = []
    for t in touched:
        tables += b"".join(t.segments(t.data))
        tables += b"".join(t.segments(t.data if wrong_target else t.target()))
        parts: list[dict[str, Any]] = []
        for number in range(len(t.parts)):
            record, table, frames = encode_part(t, number, hook)
            parts, tables, data = [*parts, record], tables + table, data + frames
        records.append({"name": t.name, "dtype": t.dtype, "shape": t.shape, "parts": parts})
    tables, data = hook("tables", tables), hook("data", data)
    manifest: dict[str, Any] = {
        "base": base,
        "target": target,
        "content": content,
        "version": "0.1",
    }
    manifest |= {"profile": "portable", "must_understand": [], "metadata": metadata or {}}
    manifest |= {"nnz": sum(p["nnz"] for r in records for p in r["parts"])}
    manifest |= {"invertible": all(p.op != "replace" for t in tensors for p in t.parts)}
    manifest |= {"tables": ref.b3(tables).hex(), "tensors": records}
    manifest |= {"untouched": [t.name for t in untouched]}
    facts = hook("facts", manifest)  # changes in header and manifest
    meta = {f"sd.{k}": facts[k] for k in ("base", "target", "content", "profile", "version")}
    meta |= {"sd.nnz": str(facts["nnz"]), "sd.invertible": str(facts["invertible"]).lower()}
    text = hook("manifest_text", canonical(hook("manifest", facts)))
    frame = hook("manifest_frame", shrink(text) if shrink_manifest else text)
    meta |= {"sd.manifest": ref.b3(frame).hex(), "sd.manifest_size": str(len(text))}
    header: dict[str, Any] = {
        "__metadata__": hook("meta", meta | {"format": "sparsedelta"} | (extra or {}))
    }
    at = 0
    for name, body in (("sd.manifest", frame), ("sd.tables", tables), ("sd.data", data)):
        offsets = [at, at + len(body)]
        header[name], at = (
            {"dtype": "U8", "shape": [len(body)], "data_offsets": offsets},
            offsets[1],
        )
    text = hook("header_text", canonical(hook("header", header)))
    text = hook("padded", text + b" " * (-len(text) % 8))
    whole = struct.pack("<Q", len(text)) + text + hook("body", frame + tables + data)
    return bytes(hook("file", whole))


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
                record["indices_b3"], record["words_b3"] = (
                    ref.b3(b).hex() for b in (indices, words)
                )
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


# --- Valid vectors ---

Valid = tuple[str, list[T], bytes]
BLOCKY = (0, 1, 255, 700, 701, 767, 768, 1023, 1029)  # of 1030 words: blocks 1 of 0..4 is empty


def tensor(name: str, dtype: str, n: int, *parts: P) -> T:
    """A vector-shaped tensor whose bytes repeat, so that its recipe is short."""
    width = ref.word_bytes(dtype)
    return T(name, dtype, [n], bytes.fromhex("007f80ff3fc00180")[:width] * n, list(parts))


def bias() -> T:
    """An untouched tensor."""
    return T("bias", "F32", [2], struct.pack("<ff", 1.0, -0.0))


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
    for dtype, bits in ref.BITS.items():
        data = bytes(range(bits * 8 // 8)) if dtype != "BOOL" else bytes(8)
        part = P("difference", {len(data) // ref.word_bytes(dtype) - 1: 1})
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
        build(tensors, extra={"note": "x" * (ref.MAX_HEADER - bare_length(tensors))}),
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


def flat(name: str = "w") -> T:
    """A tensor whose streams are runs of one byte, for Zstandard frames made by hand."""
    part = P("replace", dict.fromkeys(range(300), 7), "gap8", "planes", 0, 9)
    return tensor(name, "U8", 300, part)


def bare_length(tensors: list[T]) -> int:
    """The length of the header with an empty note and without padding."""
    file = build(tensors, extra={"note": ""}, padded=lambda text: text.rstrip(b" "))
    return int.from_bytes(file[:8], "little")


def valid() -> Iterator[Valid]:
    """All valid vectors: name, tensors and file."""
    for group in (valid_codecs, valid_values, valid_counts, valid_layout, valid_container):
        yield from group()


# --- Invalid vectors ---

Invalid = tuple[str, str, bytes]  # name (which begins with the code), why, file


def put(value: object, *path: str | int) -> Hook:
    """A hook that sets the value at a path of a JSON value."""

    def hook(root: Any, *_: object) -> Any:  # noqa: ANN401 - any JSON value
        root = node = json.loads(json.dumps(root))
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return root

    return hook


def drop(*path: str | int) -> Hook:
    """A hook that removes a key."""

    def hook(root: Any) -> Any:  # noqa: ANN401 - any JSON value
        root = node = json.loads(json.dumps(root))
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        return root

    return hook


def swap(old: str, new: str | bytes) -> Hook:
    """A hook that replaces the first occurrence of a text that must be there."""

    def hook(text: bytes) -> bytes:
        if old.encode() not in text:
            raise ValueError(old)
        return text.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)

    return hook


def at_block(block: int, change: Callable[[list[Any]], list[Any]]) -> Hook:
    """A hook for the streams, frames or row of one block of every part."""
    return lambda value, _name, _part, number: change(list(value)) if number == block else value


def stream(k: int, new: Callable[[bytes], bytes], block: int = 0) -> Hook:
    """A hook that changes stream k of a block."""
    return at_block(block, lambda s: [*s[:k], new(s[k]), *s[k + 1 :]])


def simple(
    index: str = "gap8", value: str = "zigzag", width: int = 4, dtype: str = "BF16"
) -> list[T]:
    """A tensor of two blocks (256 and 144 words) with entries in both, and an untouched one."""
    entries = {
        0: 1,
        3: 2,
        10: 256 ** WIDTHS[dtype] - 3,
        255: 1,
        256: 5,
        399: 256 ** WIDTHS[dtype] - 1,
    }
    return [bias(), tensor("w", dtype, 400, P("difference", entries, index, value, width))]


def invalid_header() -> Iterator[Invalid]:
    """Rules SD101 to SD103."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **how)

    yield bad("sd101-empty-file", "no byte", file=lambda _: b"")
    yield bad("sd101-seven-bytes", "shorter than the length", file=lambda f: f[:7])
    yield bad("sd101-short-header", "the file ends in the header", file=lambda f: f[:200])
    yield bad("sd101-huge-length", "N is 2^64 - 1", file=lambda f: b"\xff" * 8 + f[8:])
    note = {"note": "x" * (ref.MAX_HEADER + 8 - bare_length(base))}
    yield bad("sd101-long-header", "N is 65,536", extra=note)
    note = {"note": "x" * ((4 - bare_length(base)) % 8)}
    yield bad("sd101-odd-length", "N mod 8 is 4", extra=note, padded=lambda t: t.rstrip(b" "))

    note = {"note": "?"}
    for name, why, new in (
        ("utf8", "a byte that is not UTF-8", b'"note":"\xff"'),
        ("overlong", "an overlong UTF-8 sequence", b'"note":"\xc0\xaf"'),
        ("raw-surrogate", "a surrogate encoded in UTF-8", b'"note":"\xed\xa0\x80"'),
        ("duplicate-key", "a key twice", b'"note":"?","note":"?"'),
        ("raw-control", "a raw control character in a string", b'"note":"\x01"'),
        ("bad-escape", "an escape that JSON does not have", b'"note":"\\x41"'),
        ("trailing-comma", "a comma before the brace", b'"note":"?",'),
        ("nan", "NaN is no JSON", b'"note":NaN'),
        ("infinity", "-Infinity is no JSON", b'"note":-Infinity'),
    ):
        hook = swap('"note":"?"', new)
        if name == "trailing-comma":
            hook = swap("}}", b"},}")
        yield bad(f"sd102-{name}", why, extra=note, header_text=hook)
    yield bad("sd102-no-json", "an empty header", header_text=lambda _: b"")
    yield bad("sd102-bom", "a byte order mark", header_text=lambda t: b"\xef\xbb\xbf" + t)
    yield bad("sd102-array", "an array, not an object", header_text=lambda t: b"[" + t + b"]")
    yield bad("sd102-newline", "a line end after the object", header_text=lambda t: t + b"\n")
    yield bad("sd102-nul", "a NUL after the object", header_text=lambda t: t + b"\0")
    yield bad("sd102-two-objects", "a second object", header_text=lambda t: t + b"{}")
    yield bad("sd102-unclosed", "the last brace is missing", header_text=lambda t: t[:-1])

    for name, why, new in (
        ("space-inside", "a space between key and value", b'"note": "?"'),
        ("escaped-slash", "an escape that is not needed", b'"note":"\\/"'),
        ("escaped-letter", "a letter as \\u0041", b'"note":"\\u0041"'),
        ("upper-case-hex", "an upper-case hex digit", b'"note":"\\u001F"'),
        ("long-escape", "\\u000a instead of \\n", b'"note":"\\u000a"'),
        ("lone-surrogate", "an escape of a lone surrogate", b'"note":"\\ud800"'),
        ("escaped-pair", "a pair of escaped surrogates", b'"note":"\\ud83d\\udc0e"'),
    ):
        yield bad(f"sd103-{name}", why, extra=note, header_text=swap('"note":"?"', new))
    yield bad("sd103-leading-space", "a space before the object", header_text=lambda t: b" " + t)
    yield bad("sd103-unsorted", "keys out of order", header_text=_rotate)
    utf16 = {"\uffff": "", "\U0001f40e": ""}
    hook = swap('"\uffff":"","\U0001f40e":""', '"\U0001f40e":"","\uffff":""')
    yield bad("sd103-utf16-order", "keys in the order of UTF-16", extra=utf16, header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[-0,')
    yield bad("sd103-minus-zero", "-0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[0.0,')
    yield bad("sd103-fraction", "0.0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[0e0,')
    yield bad("sd103-exponent", "0e0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[' + "9" * 5000 + ",")
    yield bad("sd103-huge-number", "a number of 5,000 digits", header_text=hook)
    hook = swap('{"__metadata__"', '{"__metadata":' + "[" * 8 + "]" * 8 + ',"__metadata__"')
    yield bad("sd103-depth-9", "depth 9", header_text=hook)
    note = {"note": "x" * (-bare_length(base) % 8)}
    hook = lambda text: text.rstrip(b" ") + b" " * 8  # noqa: E731 - a text of 8k bytes
    yield bad("sd103-eight-spaces", "8 spaces", extra=note, padded=hook)


def invalid_metadata() -> Iterator[Invalid]:
    """Rules SD104 to SD107."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **how)

    yield bad("sd104-no-metadata", "no __metadata__", header=drop("__metadata__"))
    yield bad("sd104-array", "__metadata__ is an array", header=put([], "__metadata__"))
    yield bad("sd104-number", "a value is a number", meta=put(1, "note"))
    yield bad("sd104-null", "a value is null", meta=put(None, "sd.base_repo"))
    yield bad("sd104-no-format", "no format", meta=drop("format"))
    yield bad("sd104-format", "another format", meta=put("pt", "format"))
    for version in ("0.2", "1.0", "0.1.0", "0.01", ""):
        name = f"sd105-version-{version or 'empty'}"
        yield bad(name, f"version {version!r}", meta=put(version, "sd.version"))
    yield bad("sd105-no-version", "no version", meta=drop("sd.version"))

    for key in ref.HEADER:
        name = f"sd106-no-{key.removeprefix('sd.').replace('_', '-')}"
        yield bad(name, f"{key} is missing", meta=drop(key))
    for name, key, value in (
        ("upper-case", "sd.base", "A" * 64),
        ("63-digits", "sd.target", "a" * 63),
        ("65-digits", "sd.manifest", "a" * 65),
        ("line-end", "sd.content", "a" * 64 + "\n"),
        ("leading-zero", "sd.nnz", "06"),
        ("plus", "sd.nnz", "+6"),
        ("arabic-digit", "sd.nnz", "\u0666"),
        ("size-hex", "sd.manifest_size", "0x10"),
        ("size-empty", "sd.manifest_size", ""),
        ("true", "sd.invertible", "True"),
        ("profile", "sd.profile", "compact"),
    ):
        yield bad(f"sd106-{name}", f"{key} is {value!r}", meta=put(value, key))

    yield bad("sd107-fourth", "a fourth tensor", header=put(_tensor(0, 0), "sd.extra"))
    yield bad("sd107-no-data", "sd.data is missing", header=drop("sd.data"))
    yield bad("sd107-dtype", "dtype I8", header=put("I8", "sd.tables", "dtype"))
    yield bad("sd107-key", "an unknown key", header=put(0, "sd.tables", "align"))
    yield bad("sd107-null", "a tensor is null", header=put(None, "sd.tables"))
    yield bad("sd107-bool", "false for 0", header=put(False, "sd.manifest", "data_offsets", 0))
    yield bad("sd107-string", "a string for 0", header=put("0", "sd.manifest", "data_offsets", 0))
    yield bad("sd107-one-offset", "one offset", header=put([0], "sd.manifest", "data_offsets"))
    yield bad("sd107-no-offset", "no offset", header=put([], "sd.manifest", "data_offsets"))
    yield bad("sd107-two-dimensions", "two dimensions", header=_reshape)
    yield bad("sd107-length", "the shape is not the length", header=put([1], "sd.data", "shape"))
    yield bad(
        "sd107-reversed",
        "an end before its start",
        header=put([9, 0], "sd.manifest", "data_offsets"),
    )
    yield bad("sd107-trailing-byte", "a byte after the data", file=lambda f: f + b"\0")
    yield bad("sd107-missing-byte", "the last byte is missing", file=lambda f: f[:-1])
    yield bad("sd107-gap", "a gap after the manifest", header=_gap, body=lambda b: b"\0" + b)
    yield bad("sd107-order", "the tables come first", header=_tables_first, body=lambda b: b)
    yield bad("sd107-overlap", "tables begin in the manifest", header=_overlap)


def _tensor(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def _rotate(text: bytes) -> bytes:
    header = json.loads(text)
    ordered = {k: header[k] for k in ("__metadata__", "sd.manifest", "sd.tables", "sd.data")}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()


def _reshape(header: dict[str, Any]) -> dict[str, Any]:
    header["sd.data"]["shape"] = [1, *header["sd.data"]["shape"]]
    return header


def _gap(header: dict[str, Any]) -> dict[str, Any]:
    for name in ref.SECTIONS:
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [start + 1, end + 1]
    return header


def _tables_first(header: dict[str, Any]) -> dict[str, Any]:
    manifest, tables = (header[name]["shape"][0] for name in ref.SECTIONS[:2])
    header["sd.tables"] = _tensor(0, tables)
    header["sd.manifest"] = _tensor(tables, tables + manifest)
    return header


def _overlap(header: dict[str, Any]) -> dict[str, Any]:
    start, end = header["sd.tables"]["data_offsets"]
    header["sd.tables"] = _tensor(start - 1, end)
    return header


def invalid_manifest() -> Iterator[Invalid]:
    """Rules SD201 to SD206."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **({"metadata": {"note": "?"}} | how))

    yield bad("sd201-manifest", "another note", body=swap('"note":"?"', '"note":"!"'))
    yield bad("sd201-header", "another digest", meta=put("0" * 64, "sd.manifest"))

    yield bad("sd202-too-large", "2^27 + 1", meta=put(str(2**27 + 1), "sd.manifest_size"))
    yield bad("sd202-huge", "a number of 5,000 digits", meta=put("9" * 5000, "sd.manifest_size"))
    yield bad("sd202-just-too-large", "a frame of 2^27 + 1 bytes", **_just_too_large())
    yield bad("sd202-zero", "a size of 0", meta=put("0", "sd.manifest_size"))
    yield bad("sd202-larger", "stored, but too long by one", manifest_frame=lambda f: f + b" ")
    yield bad("sd202-smaller", "stored, but short by one", manifest_frame=lambda f: f[:-1])
    small = zstandard.ZstdCompressor(level=9).compress
    unsized = zstandard.ZstdCompressor(level=9, write_content_size=False).compress
    for name, why, hook in (
        ("trailing", "a byte after the frame", lambda f: small(f) + b"\0"),
        ("truncated", "the frame lacks its last byte", lambda f: small(f)[:-1]),
        ("skippable", "a skippable frame comes first", lambda f: SKIPPABLE + bytes(4) + small(f)),
        ("unsized", "the frame declares no content size", unsized),
        ("bomb", "declares 2^40 bytes", lambda _: zstd((b"[", 9), declared=2**40)),
        ("lie", "declares more than it holds", lambda f: zstd((b"[", 9), declared=len(f))),
    ):
        yield bad(f"sd202-{name}", why, manifest_frame=hook)

    for name, why, old, new in (
        ("space", "a space", '"note":"?"', b'"note": "?"'),
        ("duplicate-key", "a key twice", '"note":"?"', b'"note":"?","note":"?"'),
        ("utf8", "a byte that is not UTF-8", '"note":"?"', b'"note":"\xff"'),
        ("escape", "an escape that is not needed", '"note":"?"', b'"note":"\\u0041"'),
        ("lone-surrogate", "a lone surrogate", '"note":"?"', b'"note":"\\udfff"'),
        ("fraction", "6.0", '"nnz":6,"profile"', b'"nnz":6.0,"profile"'),
        ("exponent", "6e0", '"nnz":6,"profile"', b'"nnz":6e0,"profile"'),
        ("leading-zero", "06", '"nnz":6,"profile"', b'"nnz":06,"profile"'),
        ("negative", "-6", '"nnz":6,"profile"', b'"nnz":-6,"profile"'),
        ("above-2-53", "2^53", '"nnz":6,"profile"', b'"nnz":9007199254740992,"profile"'),
        (
            "huge-number",
            "5,000 digits",
            '"nnz":6,"profile"',
            b'"nnz":' + b"9" * 5000 + b',"profile"',
        ),
        ("nan", "NaN", '"nnz":6,"profile"', b'"nnz":NaN,"profile"'),
        ("depth-9", "depth 9", '"must_understand":[]', b'"must_understand":' + b"[" * 8 + b"]" * 8),
    ):
        yield bad(f"sd203-{name}", why, manifest_text=swap(old, new))
    yield bad("sd203-unsorted", "keys not in order", manifest_text=_reverse)
    utf16 = {"\uffff": "", "\U0001f40e": ""}
    hook = swap('"\uffff":"","\U0001f40e":""', '"\U0001f40e":"","\uffff":""')
    yield bad("sd203-utf16-order", "keys in UTF-16 order", metadata=utf16, manifest_text=hook)
    yield bad("sd203-bom", "a byte order mark", manifest_text=lambda t: b"\xef\xbb\xbf" + t)
    yield bad("sd203-newline", "a line end", manifest_text=lambda t: t + b"\n")
    yield bad("sd203-empty", "no text", manifest_text=lambda _: b"")
    deep = b"[" * 100_000 + b"]" * 100_000
    yield bad("sd203-deep", "depth 100,000", manifest_text=lambda _: deep, shrink_manifest=True)

    record, part = ("tensors", 0), ("tensors", 0, "parts", 0)
    wrong_forms: tuple[tuple[str, str, Hook], ...] = (
        ("depth-8", "arrays to depth 8", put([[[[[[[]]]]]]], "must_understand")),
        ("array", "an array", lambda _: []),
        ("null", "null", lambda _: None),
        ("unknown-key", "a reserved key", put([], "parents")),
        ("no-untouched", "a key is missing", drop("untouched")),
        ("no-metadata", "a key is missing", drop("metadata")),
        ("base-upper-case", "upper-case hex", put("A" * 64, "base")),
        ("tables-short", "63 digits", put("a" * 63, "tables")),
        ("invertible-number", "1 for true", put(1, "invertible")),
        ("metadata-number", "a value that is no string", put({"a": 1}, "metadata")),
        ("metadata-array", "an array", put([], "metadata")),
        ("must-understand-number", "a feature that is no string", put([1], "must_understand")),
        ("nnz-string", "a string for a number", put("6", "nnz")),
        ("nnz-bool", "true for a number", put(True, "nnz")),
        ("profile", "an unknown profile", put("compact", "profile")),
        ("version", "another version", put("0.2", "version")),
        ("tensors-object", "an object", put({}, "tensors")),
        ("untouched-number", "a name that is no string", put([0], "untouched")),
        ("record-unknown-key", "a reserved key", put([0, 1], *record, "slice")),
        ("record-no-shape", "a key is missing", drop(*record, "shape")),
        ("shape-string", "a string for a number", put(["400"], *record, "shape")),
        ("shape-bool", "true for a number", put([True, 400], *record, "shape")),
        ("shape-number", "a number for an array", put(400, *record, "shape")),
        ("parts-object", "an object for an array", put({}, *record, "parts")),
        ("part-unknown-key", "an unknown key", put(0, *part, "offset")),
        ("part-no-bytes", "a key is missing", drop(*part, "bytes")),
        ("part-null", "a part is null", put(None, *part)),
        ("op-number", "an op that is no string", put(1, *part, "op")),
        ("block-null", "null for a number", put(None, *part, "block")),
        ("index-string", "a codec that is no object", put("gap8", *part, "index")),
        ("value-no-id", "a codec without id", put({"width": 4}, *part, "value")),
        ("value-id-number", "an id that is no string", put({"id": 8}, *part, "value")),
    )
    for name, why, hook in wrong_forms:
        yield bad(f"sd204-{name}", why, manifest=hook)

    for key, text in (("nnz", "7"), ("invertible", "false")):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put(text, f"sd.{key}"))
    for key in ("base", "target", "content"):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put("0" * 64, f"sd.{key}"))
    huge = put("6" * 5000, "sd.nnz")
    yield bad("sd205-nnz-huge", "a number of 5,000 digits", meta=huge)
    yield bad("sd206-feature", "a feature", manifest=put(["rows"], "must_understand"))
    yield bad("sd206-empty-feature", "an empty feature", manifest=put([""], "must_understand"))


def _just_too_large() -> dict[str, Hook]:
    """A manifest with a long note: one byte too many, and nothing else wrong with it."""
    size = 2**27 + 1

    def frame(text: bytes) -> bytes:
        head, tail = (half.encode() for half in text.decode().split("?"))
        blocks, rest = [(head, 0)], size - len(head) - len(tail)
        while rest:
            blocks.append((b"?", min(rest, 2**17)))
            rest -= blocks[-1][1]
        return zstd(*blocks, (tail, 0), declared=size)

    return {"manifest_frame": frame, "meta": put(str(size), "sd.manifest_size")}


def _reverse(text: bytes) -> bytes:
    pairs = reversed(json.loads(text).items())
    return json.dumps(dict(pairs), separators=(",", ":"), ensure_ascii=False).encode()


def one(name: str) -> T:
    """A touched tensor of one word."""
    return tensor(name, "U8", 1, P("difference", {0: 1}))


def invalid_layout() -> Iterator[Invalid]:
    """Rules SD207 to SD212."""
    for name, why in (
        ("", "an empty name"),
        ("a\0", "U+0000"),
        ("a\x1f", "U+001F"),
        ("a\n", "a line end"),
        ("a\x7f", "U+007F"),
        ("a\u0080", "U+0080"),
        ("a\u009f", "U+009F"),
        ("x" * 1025, "1,025 bytes"),
        ("\u00e9" * 513, "1,026 bytes in 513 characters"),
    ):
        label = f"sd207-{why.lower().replace('+', '').replace(',', '').replace(' ', '-')}"
        yield f"{label}-touched", why, build([one(name)])
        yield f"{label}-untouched", why, build([tensor(name, "U8", 1), one("w")])
    untouched = tensor("w", "U8", 1)
    for name, why, tensors in (
        ("twice-touched", "a name twice", [one("w"), one("w")]),
        ("twice-untouched", "a name twice", [untouched, untouched]),
        ("both", "a name touched and untouched", [one("w"), untouched]),
        ("order-touched", "b before a", [one("b"), one("a")]),
        ("order-untouched", "b before a", [tensor("b", "U8", 1), tensor("a", "U8", 1)]),
        ("utf16-touched", "UTF-16 order", [one("\U0001f40e"), one("\uffff")]),
        (
            "utf16-untouched",
            "UTF-16 order",
            [tensor("\U0001f40e", "U8", 1), tensor("\uffff", "U8", 1)],
        ),
    ):
        yield f"sd207-{name}", why, build(tensors, ordered=False)

    for name, why, dtype, shape in (
        ("dtype", "an unknown dtype", "Q8", [4]),
        ("lower-case", "a dtype in lower case", "u8", [4]),
        ("torch-name", "the name of another library", "bfloat16", [4]),
        ("empty-dtype", "an empty dtype", "", [4]),
        ("65-dimensions", "65 dimensions", "U8", [1] * 64 + [4]),
        ("half-byte", "3 elements of 4 bits", "F4", [3]),
        ("quarter-byte", "5 elements of 6 bits", "F6_E2M3", [5]),
        ("words", "2^48 + 1 words", "U8", [2**48 + 1]),
        ("product", "2^106 words", "F64", [2**53 - 1, 2**53 - 1]),
    ):
        t = T("w", dtype, shape, b"abcd", [P("difference", {1: 1})])
        yield f"sd208-{name}", why, build([t])

    two = P("difference", {2: 1})
    for name, why, parts in (
        ("reserved", "a reserved op", [P("add", {1: 1})]),
        ("unknown", "an unknown op", [P("xor", {1: 1})]),
        ("order", "replace, then difference", [P("replace", {1: 1}, value="planes"), two]),
        ("same-twice", "two differences", [P("difference", {1: 1}), two]),
        (
            "three",
            "three parts",
            [P("difference", {1: 1}), *(P("replace", {i: 1}, value="planes") for i in (0, 2))],
        ),
    ):
        yield f"sd209-{name}", why, build([tensor("w", "U8", 4, *parts)])
    yield "sd209-none", "no part", build([one("w")], facts=put([], "tensors", 0, "parts"))

    for name, why, labels in (
        ("index", "an unknown index codec", {"index": {"id": "runs"}}),
        ("reserved", "a reserved index codec", {"index": {"id": "raw"}}),
        ("value", "an unknown value codec", {"value": {"id": "huffman"}}),
        ("exchanged", "a value codec for the index", {"index": {"id": "planes"}}),
        ("width-3", "a width of 3", {"value": {"id": "packed", "width": 3}}),
        ("width-16", "a width of 16", {"value": {"id": "packed", "width": 16}}),
        ("width-missing", "no width", {"value": {"id": "packed"}}),
        ("width-bool", "true for 1", {"value": {"id": "packed", "width": True}}),
        ("width-string", "a string", {"value": {"id": "packed", "width": "4"}}),
        ("parameter", "a parameter of no codec", {"index": {"id": "gap8", "width": 8}}),
        ("null-parameter", "a parameter that is null", {"value": {"id": "packed", "width": None}}),
    ):
        part = P("difference", {1: 1}, value="packed", width=4, labels=labels)
        yield f"sd210-{name}", why, build([tensor("w", "BF16", 4, part)])
    every = {i: 1 + i for i in range(4)}
    for name, part in (
        ("replace-zigzag", P("replace", every)),
        ("replace-packed", P("replace", every, value="packed", width=4)),
        ("replace-dense-zigzag", P("replace", every, "dense")),
        ("dense-packed", P("difference", every, "dense", "packed", 4)),
        ("block-7", P("difference", every, block=7)),
        ("block-25", P("difference", every, block=25)),
        ("block-0", P("difference", every, block=0)),
    ):
        yield f"sd210-{name}", name.replace("-", " "), build([tensor("w", "BF16", 4, part)])

    part = P("difference", {0: 1})
    parts = [part, P("replace", {}, value="planes")]
    yield "sd211-zero", "a part without entries", build([tensor("w", "U8", 4, *parts)])
    hook = put(5, "tensors", 0, "parts", 0, "nnz")
    yield (
        "sd211-words",
        "5 entries in 4 words",
        build([tensor("w", "U8", 4, part)], facts=lambda m: put(5, "nnz")(hook(m))),
    )
    parts = [P("difference", dict.fromkeys((0, 1, 2), 1))]
    parts += [P("replace", dict.fromkeys((1, 2, 3), 1), value="planes")]
    yield "sd211-sum", "3 + 3 entries in 4 words", build([tensor("w", "U8", 4, *parts)])
    yield "sd211-total", "another sum", build(simple(), facts=put(7, "nnz"))
    yield "sd211-largest-total", "2^53 - 1", build(simple(), facts=put(2**53 - 1, "nnz"))
    empty = T("w", "U8", [0], b"", [P("difference", {})])
    first = put(1, "tensors", 0, "parts", 0, "nnz")
    yield (
        "sd211-empty-tensor",
        "an entry of an empty tensor",
        build([empty], facts=lambda m: put(1, "nnz")(first(m))),
    )
    yield "sd212-true", "true with a replace", build([flat()], facts=put(True, "invertible"))
    yield "sd212-false", "false without one", build(simple(), facts=put(False, "invertible"))


def invalid_tables() -> Iterator[Invalid]:
    """Rules SD301 to SD307."""
    base = simple()

    def bad(name: str, why: str, tensors: list[T] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
        return name, why, build(tensors or base, **how)

    yield bad("sd301-long", "a byte too many", tables=lambda t: t + b"\0")
    yield bad("sd301-short", "a byte too few", tables=lambda t: t[:-1])
    yield bad("sd301-no-tables", "no byte at all", tables=lambda _: b"")
    vast = [T("w", "U8", [2**48], b"abcd", [P("difference", {1: 1})])]
    yield bad("sd301-vast", "2^48 words, and tables for 4", vast)
    yield bad("sd302-digest", "another digest", manifest=put("0" * 64, "tables"))
    yield bad("sd302-bit", "a bit of the tables", body=_flip_table_bit)

    over = dict.fromkeys(range(256), 1) | {300: 1}
    tensors = [tensor("w", "BF16", 400, P("difference", over))]
    hook = lambda r, _n, _p, b: [[257, 0][b], *r[1:]]  # noqa: E731 - a row of each block
    yield bad("sd303-words", "257 entries in 256 words", tensors, row=hook)
    yield bad("sd303-sum", "one entry fewer than nnz", row=at_block(1, lambda r: [1, *r[1:]]))
    huge = at_block(0, lambda r: [2**32 - 1, *r[1:]])
    yield bad("sd303-huge", "2^32 - 1 entries", row=huge)

    longer = at_block(0, lambda f: [f[0] + b"\0", *f[1:]])
    yield bad("sd304-encoded", "an encoded length above the decoded", frames=longer)
    for name, why, tensors, hook in (
        ("gap8-short", "GAPS shorter than the count", simple(), stream(0, lambda s: s[1:])),
        ("gap8-long", "GAPS too long", simple(), stream(0, lambda s: b"\xff\xff" + s)),
        ("bitmask", "BITS of 31 bytes", simple("bitmask"), stream(0, lambda s: s[:-1])),
        ("bitmask-long", "BITS of 33 bytes", simple("bitmask"), stream(0, lambda s: s + b"\0")),
        ("sign-short", "SIGN too short", simple(value="packed"), stream(1, lambda _: b"")),
        ("mag-long", "MAG too long", simple(value="packed"), stream(2, lambda s: s + b"\0")),
        ("sym-short", "SYM too short", simple(), stream(1, lambda s: s[1:])),
        ("plane-long", "a plane too long", simple(value="planes"), stream(2, lambda s: s + b"\0")),
        ("sign", "SIGN too long", simple(value="packed"), stream(1, lambda s: s + b"\0")),
        ("mag", "MAG too short", simple(value="packed"), stream(2, lambda s: s[:-1])),
        ("mag-0", "MAG of width 0", simple(value="packed", width=0), stream(2, lambda _: b"\0")),
        ("exc-odd", "EXC of half a word", simple(value="packed"), stream(3, lambda s: s + b"\0")),
        ("exc-long", "EXC above m words", simple(value="packed"), stream(3, lambda _: bytes(10))),
        ("sym", "SYM too long", simple(), stream(1, lambda s: s + b"\1")),
        ("zigzag-exc-odd", "EXC of half a word", simple(), stream(2, lambda s: s + b"\0")),
        ("zigzag-exc-long", "EXC above m words", simple(), stream(2, lambda _: bytes(10))),
        ("plane", "a plane too short", simple(value="planes"), stream(2, lambda s: s[1:])),
        ("dense", "values for the entries only", simple("dense"), stream(0, lambda s: s[:4])),
    ):
        yield bad(f"sd304-{name}", why, tensors, streams=hook)
    gap = [tensor("w", "BF16", 400, P("difference", {0: 1}))]
    yield bad(
        "sd304-empty-block", "bytes of an empty block", gap, streams=stream(1, lambda _: b"\1", 1)
    )

    yield bad("sd305-bytes", "bytes is one too many", facts=_more_bytes)
    yield bad("sd305-data", "a byte that no part holds", data=lambda d: d + b"\0")
    two = [T(n, "U8", [4], b"abcd", [P("difference", {1: 1})]) for n in "ab"]
    yield bad("sd305-shift", "a byte counted for another part", two, facts=_shift_bytes)

    for key in ("base", "target"):
        yield bad(f"sd306-{key}", f"another {key}", claim={key: "0" * 64})
    flip = lambda t: bytes([t[0] ^ 1]) + t[1:]  # noqa: E731 - the digest of the untouched tensor
    yield bad("sd306-untouched", "another digest of an untouched tensor", tables=flip)
    yield bad("sd307-same", "a touched tensor that stays the same", wrong_target=True)


def _flip_table_bit(body: bytes) -> bytes:
    start = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]  # behind the manifest
    return body[:start] + bytes([body[start] ^ 1]) + body[start + 1 :]


def _more_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["tensors"][0]["parts"][0]["bytes"] += 1
    return manifest


def _shift_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    for record, step in zip(manifest["tensors"], (1, -1), strict=True):
        record["parts"][0]["bytes"] += step
    return manifest


def bad(name: str, why: str, tensors: list[T], **how: Any) -> Invalid:  # noqa: ANN401
    """An invalid vector."""
    return name, why, build(tensors, **how)


def only(*items: int, width: int) -> Callable[[bytes], bytes]:
    """A change of a stream to byte planes of these items."""
    return lambda _: b"".join(byte_planes(list(items), width))


def _with_second(frame: bytes, frames: list[bytes], *_: object) -> list[bytes]:
    return [frames[0], frame]


def invalid_frames() -> Iterator[Invalid]:
    """Rules SD401 and SD402."""

    def wrong_sum(k: int, block: int) -> Hook:
        return at_block(block, lambda r: [*r[: k + 1], [*r[k + 1][:2], bytes(8)], *r[k + 2 :]])

    yield bad("sd401-first", "a checksum", simple(), row=wrong_sum(0, 0))
    yield bad("sd401-last", "a checksum of the last block", simple(), row=wrong_sum(1, 1))
    yield bad("sd401-empty-stream", "zeros for an empty stream", simple(), row=wrong_sum(2, 0))
    sparse = [tensor("w", "BF16", 600, P("difference", {0: 1, 599: 1}))]
    yield bad("sd401-empty-block", "zeros for an empty block", sparse, row=wrong_sum(0, 1))

    good = zstd((b"\7", 300), declared=300)
    for name, why, frame in (
        ("no-zstd", "not Zstandard", b"\7" * 40),
        ("empty", "no byte for 300", b""),
        ("magic-only", "nothing but the magic number", MAGIC),
        ("declares-more", "declares 2^40 bytes", zstd((b"\7", 300), declared=2**40)),
        ("declares-less", "declares 299 bytes", zstd((b"\7", 300), declared=299)),
        ("holds-less", "declares 300 bytes, holds 299", zstd((b"\7", 299), declared=300)),
        ("holds-more", "declares 300 bytes, holds 301", zstd((b"\7", 301), declared=300)),
        ("holds-nothing", "declares 300 bytes, holds none", zstd((b"", 0), declared=300)),
        ("unsized", "declares no size", zstd((b"\7", 300), declared=None, window=10)),
        ("trailing-byte", "a byte after the frame", good + b"\0"),
        ("second-empty-frame", "an empty frame after it", good + zstd((b"", 0), declared=0)),
        ("two-halves", "two frames of 150 bytes", zstd((b"\7", 150), declared=150) * 2),
        ("skippable-before", "a skippable frame first", SKIPPABLE + bytes(4) + good),
        ("skippable-after", "a skippable frame after it", good + SKIPPABLE + bytes(4)),
        ("skippable-only", "a skippable frame", SKIPPABLE + struct.pack("<I", 300) + b"\7" * 250),
        ("truncated", "the last byte is missing", good[:-1]),
        ("dictionary", "a dictionary id", zstd((b"\7", 300), declared=300, dictionary=1)),
        ("window", "a window of 2^28", zstd((b"\7", 300), declared=300, window=28)),
        (
            "checksum",
            "a wrong checksum in the frame",
            zstd((b"\7", 300), declared=300, checksum=bytes(4)),
        ),
        ("reserved-bit", "the reserved bit", good[:4] + bytes([good[4] | 8]) + good[5:]),
        ("legacy", "a frame of Zstandard 0.7", b"\x27\xb5\x2f\xfd" + good[4:]),
    ):
        frames = partial(_with_second, frame)
        yield bad(f"sd402-{name}", why, [flat()], frames=frames)


def invalid_index() -> Iterator[Invalid]:
    """Rules SD403 to SD405."""
    for name, why, new in (
        ("fewer", "one gap fewer than the count", lambda _: b"\xff\2"),
        ("more", "one gap more than the count", lambda s: s + b"\0"),
        ("open", "the last byte is 255", lambda s: s + b"\xff"),
        ("outside", "the last index is behind the block", lambda _: b"\0\xff\x90"),
        ("far-outside", "gaps of 509 and 144", lambda _: b"\xff\xfe\x90"),
    ):
        loose = [tensor("w", "BF16", 400, P("difference", {0: 1, 3: 1}, block=9))]
        yield bad(f"sd403-{name}", why, loose, streams=stream(0, new))
    inside = stream(0, lambda s: s[:-1] + bytes([s[-1] + 1]))
    yield bad("sd403-next-block", "an index of the next block", simple(), streams=inside)
    last = stream(0, lambda s: s[:-1] + bytes([s[-1] + 1]), 1)
    yield bad("sd403-outside-short-block", "behind the last, short block", simple(), streams=last)

    bits = [tensor("w", "BF16", 13, P("difference", {0: 1, 12: 1}, "bitmask"))]
    for name, why, new in (
        ("fewer", "one bit fewer than the count", lambda s: bytes([0, s[1]])),
        ("more", "one bit more than the count", lambda s: bytes([3, s[1]])),
        ("spare", "a spare bit in the place of an entry", lambda s: bytes([s[0], 0x20])),
        ("last-spare", "a spare bit too many", lambda s: bytes([s[0], s[1] | 0x80])),
    ):
        yield bad(f"sd404-{name}", why, bits, streams=stream(0, new))

    zero, one_more = (lambda s: b"\0" + s[1:]), (lambda s: s[:1] + b"\2" + s[2:])
    for value in ("zigzag", "planes"):
        yield bad(
            f"sd405-{value}-fewer", "a value less", simple("dense", value), streams=stream(0, zero)
        )
        yield bad(
            f"sd405-{value}-more",
            "a value more",
            simple("dense", value),
            streams=stream(0, one_more),
        )
    part = P("replace", dict.fromkeys(range(5), 1), "dense", "planes")
    yield bad("sd405-replace", "5 of 6 words", [tensor("w", "U8", 6, part)])


def invalid_value() -> Iterator[Invalid]:
    """Rules SD406 and SD407."""

    def packed(p: int, dtype: str = "BF16") -> list[T]:
        return [tensor("w", dtype, 30, P("difference", {0: 1, 9: 1, 29: 2}, "gap8", "packed", p))]

    for name, why, tensors, k, new in (
        ("spare-sign", "a spare bit of SIGN", packed(4), 1, lambda s: bytes([s[0] | 8])),
        ("spare-mag", "a spare bit of MAG", packed(4), 2, lambda s: bytes([s[0], s[1] | 0x80])),
        ("spare-mag-1", "a spare bit of MAG", packed(1), 2, lambda s: bytes([s[0] | 0x80])),
        ("few-exceptions", "an exception is missing", packed(1), 3, lambda _: b""),
        ("many-exceptions", "an exception too many", packed(1), 3, only(0, 0, width=2)),
        ("needless-exception", "an exception for no symbol", packed(4), 3, only(0, width=2)),
        ("exception", "a is 2^15", packed(1), 3, only(2**15 - 1, width=2)),
        ("exception-wraps", "a is 2^16", packed(1), 3, only(2**16 - 1, width=2)),
        ("minus-zero", "-2^15 with sign 0", packed(1), 3, only(2**15 - 2, width=2)),
        ("minus-zero-64", "-2^63 with sign 0", packed(1, "F64"), 3, only(2**63 - 2, width=8)),
        ("wraps-64", "a is 2^64", packed(1, "F64"), 3, only(2**64 - 1, width=8)),
        ("symbol", "the symbol 200 for 8 bits", packed(8, "U8"), 2, lambda s: b"\xc8" + s[1:]),
        (
            "symbol-sign",
            "the symbol 127 for 8 bits, sign 0",
            packed(8, "U8"),
            2,
            lambda s: b"\x7f" + s[1:],
        ),
    ):
        yield bad(f"sd406-{name}", why, tensors, streams=stream(k, new))
    hook = at_block(0, lambda s: [s[0], s[1], b"\xff" + s[2][1:], b"\0"])
    yield bad("sd406-symbol-255", "the symbol 255 for 8 bits", packed(8, "U8"), streams=hook)

    def zigzag(dtype: str) -> list[T]:
        high = 256 ** WIDTHS[dtype] // 2
        return [tensor("w", dtype, 30, P("difference", {0: 1, 9: high, 29: 2}))]

    for name, why, tensors, new in (
        ("few", "an exception is missing", zigzag("BF16"), lambda _: b""),
        ("many", "an exception too many", zigzag("BF16"), only(0, 0, width=2)),
        ("large", "an item of 2^16 - 255", zigzag("BF16"), only(2**16 - 255, width=2)),
        ("large-8", "an item of 1 for 8 bits", zigzag("U8"), only(1, width=1)),
        ("large-32", "an item of 2^32 - 1", zigzag("F32"), only(2**32 - 1, width=4)),
        ("large-64", "an item of 2^64 - 255", zigzag("F64"), only(2**64 - 255, width=8)),
    ):
        yield bad(f"sd407-{name}", why, tensors, streams=stream(2, new))
    dense = [tensor("w", "BF16", 30, P("difference", {9: 2**15}, "dense"))]
    yield bad("sd407-dense", "an exception is missing", dense, streams=stream(1, lambda _: b""))


def invalid_entries() -> Iterator[Invalid]:
    """Rules SD408 to SD410."""
    for index in ("gap8", "bitmask"):
        for value in ("zigzag", "planes"):
            tensors = [tensor("w", "BF16", 9, P("difference", {0: 0, 8: 1}, index, value))]
            yield bad(f"sd408-{index}-{value}", "a difference of 0", tensors)
    parts = [P("difference", {0: 1, 5: 1}), P("replace", {5: 7, 9: 7}, value="planes")]
    yield bad("sd409-overlap", "word 5 in both parts", [tensor("w", "U8", 30, *parts)])
    parts = [P("difference", {299: 1}), P("replace", {299: 7}, value="planes", block=9)]
    yield bad("sd409-blocks", "one word, by other blocks", [tensor("w", "U8", 300, *parts)])
    yield bad("sd410-content", "another digest", simple(), facts=put("0" * 64, "content"))
    other = stream(1, lambda s: bytes([s[0] ^ 4]) + s[1:])
    yield bad("sd410-entries", "another value than digested", simple(), streams=other)
    moved = stream(0, lambda s: bytes([s[0] + 1, s[1] - 1]) + s[2:])
    yield bad("sd410-indices", "another index than digested", simple(), streams=moved)


def invalid() -> Iterator[Invalid]:
    """All invalid vectors."""
    groups = (
        *(invalid_header, invalid_metadata, invalid_manifest, invalid_layout),
        *(invalid_tables, invalid_frames, invalid_index, invalid_value, invalid_entries),
    )
    for group in groups:
        yield from group()


# --- Files ---


def dump(value: object) -> bytes:
    """JSON for people: lists of numbers on one line, and ASCII, so that editors keep the names."""
    text = json.dumps(value, indent=1)
    flat = re.sub(r"\[\n([^\[\]{}]*)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return (flat + "\n").encode()


def everything() -> dict[str, bytes]:
    """All vectors: path below this folder and bytes."""
    files: dict[str, bytes] = {}

    def add(path: str, data: bytes, result: object) -> None:
        if f"{path}.safetensors" in files:
            raise ValueError(path)
        files[f"{path}.safetensors"] = data
        files[f"{path}.expected.json"] = dump(result)

    for name, tensors, data in valid():
        add(f"valid/{name}", data, expected(tensors))
    for name, why, data in invalid():
        add(f"invalid/{name}", data, {"rule": name[:5].upper(), "why": why})
    return files


def outcome(data: bytes) -> object:
    """What the reference makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        try:
            return ref.describe(ref.decode(path))
        except ref.RuleError as error:
            return error.code


def differences() -> Iterator[str]:
    """What differs between the stored vectors and those that would be written.

    Builds of Zstandard may compress differently: where a file holds a frame, what a reader makes
    of it has to be the same instead.
    """
    files = everything()
    stored = {
        p.relative_to(HERE).as_posix() for k in ("valid", "invalid") for p in (HERE / k).iterdir()
    }
    yield from sorted(f"{name}: only stored" for name in stored - files.keys())
    for name, data in files.items():
        if name not in stored:
            yield f"{name}: missing"
            continue
        old = (HERE / name).read_bytes()
        framed = name.endswith(".safetensors") and MAGIC in old and MAGIC in data
        if old != data and not (framed and outcome(old) == outcome(data)):
            yield f"{name}: differs"


def write() -> None:
    """Write the vectors and their index."""
    files = everything()
    for kind in ("valid", "invalid"):
        (HERE / kind).mkdir(exist_ok=True)
        for path in (HERE / kind).iterdir():
            path.unlink()
    for name, data in files.items():
        (HERE / name).write_bytes(data)
    index = {name: ref.b3(data).hex() for name, data in sorted(files.items())}
    (HERE / "index.json").write_bytes(dump(index))


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        write()
        return 0
    found = list(differences())
    print("\n".join(found) or "the stored vectors are those that would be written")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
