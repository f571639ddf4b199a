"""A plain writer of deltas, whose every step passes through a named hook.

It encodes one entry at a time and shares nothing with a real writer. Through the hooks an invalid
vector breaks one thing, and all digests and checksums above it are computed over the broken thing:
nothing else is wrong with the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from terms import (
    BITS,
    Part,
    Tensor,
    b3,
    content_digest,
    fingerprint_of,
    tensor_digest,
    word_bytes,
)

SEGMENT = 2**22
MAGIC = b"\x28\xb5\x2f\xfd"
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
        return word_bytes(self.dtype) if self.dtype in BITS else 1

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
        return [b3(data[at : at + step], "segment") for at in range(0, len(data), step)]

    def digest(self, data: bytes) -> tuple[str, bytes]:
        """The name and the tensor digest."""
        return self.name, tensor_digest(self.dtype, tuple(self.shape), self.segments(data))


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
        row += [[len(f), len(s), b3(f)[:8]] for f, s in zip(frames, streams, strict=True)]
        row = hook("row", row, *where)
        table += struct.pack("<I", row[0]) + b"".join(struct.pack("<II8s", *s) for s in row[1:])
        data += b"".join(frames)
    record = {"op": part.op, "nnz": len(part.entries), "block": part.block, "bytes": len(data)}
    return record | part.codecs(), table, data


def identity(
    tensors: list[T], claim: dict[str, str] | None = None, *, wrong_target: bool = False
) -> tuple[str, str, str]:
    """Base and target fingerprint, unless others are claimed, and the content digest."""
    base = fingerprint_of([t.digest(t.data) for t in tensors])
    new = [t.digest(t.data if wrong_target else t.target()) for t in tensors]
    target, touched = fingerprint_of(new), {}
    base, target = (claim or {}).get("base", base), (claim or {}).get("target", target)
    for t in tensors:
        parts = []
        for part in t.parts:
            entries = sorted(part.entries.items())
            indices = np.array([i for i, _ in entries], "<u8")
            words = np.array([v for _, v in entries], f"<u{t.width}")
            parts.append(Part(part.op, indices, words))
        if parts:
            touched[t.name] = Tensor(t.dtype, tuple(t.shape), tuple(parts))
    return base, target, content_digest(base, target, touched)


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
    manifest |= {"tables": b3(tables).hex(), "tensors": records}
    manifest |= {"untouched": [t.name for t in untouched]}
    facts = hook("facts", manifest)  # changes in header and manifest
    meta = {f"sd.{k}": facts[k] for k in ("base", "target", "content", "profile", "version")}
    meta |= {"sd.nnz": str(facts["nnz"]), "sd.invertible": str(facts["invertible"]).lower()}
    text = hook("manifest_text", canonical(hook("manifest", facts)))
    frame = hook("manifest_frame", shrink(text) if shrink_manifest else text)
    meta |= {"sd.manifest": b3(frame).hex(), "sd.manifest_size": str(len(text))}
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
