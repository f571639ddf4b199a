"""Digests of segments and tensors, and fingerprints of checkpoints (spec section 4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from blake3 import blake3

from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import TensorSpec

DIGEST_BYTES: Final = 32
SEGMENT_CONTEXT: Final = "sparsedelta 1 segment"
"""What segment digests are derived with (spec section 4)."""


Digest: TypeAlias = bytes
"""32 bytes of BLAKE3."""


def hasher(context: str) -> blake3:
    """A BLAKE3 object in derive-key mode."""
    return blake3(derive_key_context=context)


def plain_digest(data: bytes | memoryview) -> Digest:
    """BLAKE3 of ``data`` without a context: manifest, tables and checksums of frames."""
    return blake3(data).digest()


def segment_count(words: int) -> int:
    """Number of segments of a tensor of ``words`` words."""
    return -(-words // SEGMENT_WORDS)


def segment_digest(data: bytes | memoryview) -> Digest:
    """Digest of the bytes of one segment: at most 2^22 words."""
    return blake3(data, derive_key_context=SEGMENT_CONTEXT).digest()


def segment_hasher() -> blake3:
    """What digests a segment piece by piece."""
    return hasher(SEGMENT_CONTEXT)


def encode_text(text: str) -> bytes:
    """A string as it enters a digest: u32 length in bytes, then UTF-8."""
    data = text.encode("utf-8")
    return struct.pack("<I", len(data)) + data


def encode_structure(dtype: str, shape: Iterable[int]) -> bytes:
    """Dtype and shape as they enter a digest: text, u32 dimensions, each as u64."""
    dimensions = tuple(shape)
    return encode_text(dtype) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)


def encode_end(spec: TensorSpec | None) -> bytes:
    """A tensor at one end of a record as it enters a digest: u8 0, or u8 1 and its structure."""
    return b"\0" if spec is None else b"\1" + encode_structure(spec.dtype, spec.shape)


def tensor_digest(spec: TensorSpec, segments: Iterable[Digest]) -> Digest:
    """Digest of a tensor from the digests of its segments, in order."""
    digests = list(segments)
    state = hasher("sparsedelta 1 tensor")
    state.update(encode_structure(spec.dtype, spec.shape))
    state.update(struct.pack("<Q", len(digests)))
    state.update(b"".join(digests))
    return state.digest()


def checkpoint_fingerprint(tensors: Mapping[str, Digest]) -> Digest:
    """Fingerprint of a checkpoint from the digests of all its tensors, in any order."""
    state = hasher("sparsedelta 1 checkpoint")
    state.update(struct.pack("<Q", len(tensors)))
    for name in sorted(tensors):  # by code points, which is by UTF-8 bytes
        state.update(encode_text(name) + tensors[name])
    return state.digest()
