"""The terms of the format: dtypes and words, records and parts, digests, broken rules.

Sections 1, 2, 4 and 8 of SPEC.md. Nothing here reads a file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

Array = np.ndarray[Any, np.dtype[Any]]
# A checkpoint in memory: {name: (dtype, shape, bytes)}.
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

SEGMENT = 2**22
BARE = 2**64 - 1  # the nnz of a bare part, where it is hashed

BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | dict.fromkeys(
    ("U16", "I16", "F16", "BF16"), 16
)
BITS |= dict.fromkeys(("U32", "I32", "F32"), 32) | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
FLOATS = ("F16", "BF16", "F32", "F64")
DENSE_OPS = ("new", "drop", "resize")


class RuleError(Exception):
    """The first rule of section 9 that a file or an operation breaks."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def need(code: str, ok: object, message: str) -> None:
    """Raise the code of a rule unless it holds."""
    if not ok:
        raise RuleError(code, message)


# --- Tensors, records, parts (sections 1 to 3) ---


def word_bytes(dtype: str) -> int:
    """The width of a word; a packed sub-byte dtype is a sequence of bytes."""
    return max(1, BITS[dtype] // 8)


@dataclass(frozen=True)
class End:
    """A tensor at one end of a record: what it is, without its words."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def words(self) -> int:
        """The number of words."""
        return math.prod(self.shape) * BITS[self.dtype] // 8 // word_bytes(self.dtype)

    @property
    def segments(self) -> int:
        """The number of segments; an empty tensor has none."""
        return -(-self.words // SEGMENT)


@dataclass(frozen=True)
class Part:
    """One operation of a record.

    Attributes:
        op: The operation.
        indices: Ascending u64; empty for the dense ops, whose words are those of the whole domain.
        words: As many words of W bytes as there are indices, or as the domain has. `None`: bare.
        of: The name in `from` or `to`, or nothing.
        dtype: Of `add`: the dtype of the words.
        scale: Of `add`: the bits of a float64.
        waiting: Of `ranked`, as long as the base is not there: what its entries follow from. Until
            then it has neither indices nor words.
    """

    op: str
    indices: Array
    words: Array | None
    of: str = ""
    dtype: str = ""
    scale: int = 0
    waiting: Any = None


@dataclass(frozen=True)
class Record:
    """What a delta says about one tensor. `source` is `from`, the other name in the base."""

    name: str
    source: str | None
    base: End | None
    target: End | None
    parts: tuple[Part, ...]

    @property
    def base_name(self) -> str:
        """The name in the base."""
        return self.source or self.name


# --- Digests (sections 4 and 8) ---


def b3(data: bytes, context: str | None = None) -> bytes:
    """BLAKE3 of data, in derive-key mode if there is a context."""
    if context is None:
        return blake3(data).digest()
    return blake3(data, derive_key_context=f"sparsedelta 1 {context}").digest()


def text(string: str) -> bytes:
    """A string as it is hashed: its length in bytes, then its UTF-8 bytes."""
    return struct.pack("<I", len(string.encode())) + string.encode()


def typed(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A dtype and a shape as they are hashed."""
    return text(dtype) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)


def segment_digests(dtype: str, data: bytes) -> list[bytes]:
    """The digests of the runs of 2^22 words."""
    step = SEGMENT * word_bytes(dtype)
    return [b3(data[at : at + step], "segment") for at in range(0, len(data), step)]


def tensor_digest(dtype: str, shape: tuple[int, ...], segments: list[bytes]) -> bytes:
    """The digest of a tensor, from those of its segments."""
    length = struct.pack("<Q", len(segments))
    return b3(typed(dtype, shape) + length + b"".join(segments), "tensor")


def tensor_digests(tensors: Tensors) -> dict[str, bytes]:
    """The tensor digest of each tensor of a checkpoint."""
    return {k: tensor_digest(d, s, segment_digests(d, b)) for k, (d, s, b) in tensors.items()}


def fingerprint_of(digests: Iterable[tuple[str, bytes]]) -> str:
    """The fingerprint of a checkpoint, from the names and digests of its tensors."""
    rows = [text(name) + digest for name, digest in sorted(digests)]
    return b3(struct.pack("<Q", len(rows)) + b"".join(rows), "checkpoint").hex()


def fingerprint(tensors: Tensors) -> str:
    """The fingerprint of a checkpoint given as {name: (dtype, shape, bytes)}."""
    return fingerprint_of(tensor_digests(tensors).items())


def content_digest(base: str, target: str, records: Iterable[Record]) -> str:
    """The identity of a delta, whatever its encoding."""
    ordered = sorted(records, key=lambda record: record.name)
    out = bytearray(bytes.fromhex(base + target) + struct.pack("<Q", len(ordered)))
    for record in ordered:
        out += text(record.name) + text(record.source or "")
        for end in (record.base, record.target):
            out += b"\0" if end is None else b"\1" + typed(end.dtype, end.shape)
        out += struct.pack("<I", len(record.parts))
        for part in record.parts:
            out += text(part.op) + text(part.of) + text(part.dtype)
            nnz = BARE if part.words is None else len(part.words)
            out += struct.pack("<QQ", part.scale, nnz)
            out += b3(part.indices.astype("<u8").tobytes(), "indices")
            out += b3(b"" if part.words is None else part.words.tobytes(), "words")
    return b3(bytes(out), "content").hex()
