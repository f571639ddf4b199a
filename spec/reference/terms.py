"""The terms of the format: dtypes and words, digests and fingerprints, entries, broken rules.

Sections 1, 2, 4 and 8 of SPEC.md. Nothing here reads a file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

SEGMENT = 2**22

BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | dict.fromkeys(
    ("U16", "I16", "F16", "BF16"), 16
)
BITS |= dict.fromkeys(("U32", "I32", "F32"), 32) | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)


class RuleError(Exception):
    """The first rule of section 9 that a file or an operation breaks."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def need(code: str, ok: object, message: str) -> None:
    """Raise the code of a rule unless it holds."""
    if not ok:
        raise RuleError(code, message)


# --- Entries and words (sections 1 and 2) ---


@dataclass(frozen=True)
class Part:
    """Entries of a tensor under one operation: ascending u64 indices, and words of W bytes."""

    op: str
    indices: Array
    words: Array


@dataclass(frozen=True)
class Tensor:
    """A touched tensor."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def word_bytes(dtype: str) -> int:
    """The width of a word; a packed sub-byte dtype is a sequence of bytes."""
    return max(1, BITS[dtype] // 8)


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


def fingerprint_of(digests: list[tuple[str, bytes]]) -> str:
    """The fingerprint of a checkpoint, from the names and digests of its tensors."""
    rows = b"".join(text(name) + digest for name, digest in sorted(digests))
    return b3(struct.pack("<Q", len(digests)) + rows, "checkpoint").hex()


def fingerprint(tensors: Tensors) -> str:
    """The fingerprint of a checkpoint given as {name: (dtype, shape, bytes)}."""
    return fingerprint_of(
        [(k, tensor_digest(d, s, segment_digests(d, b))) for k, (d, s, b) in tensors.items()]
    )


def content_digest(base: str, target: str, tensors: dict[str, Tensor]) -> str:
    """The identity of a delta, whatever its encoding."""
    out = bytearray(bytes.fromhex(base + target) + struct.pack("<Q", len(tensors)))
    for name, t in tensors.items():
        out += text(name) + typed(t.dtype, t.shape) + struct.pack("<I", len(t.parts))
        for part in t.parts:
            out += text(part.op) + struct.pack("<Q", len(part.indices))
            out += b3(part.indices.astype("<u8").tobytes(), "indices")
            out += b3(part.words.tobytes(), "words")
    return b3(bytes(out), "content").hex()
