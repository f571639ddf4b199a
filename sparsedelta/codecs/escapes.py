"""Escaped values as words in byte planes: the EXC stream of ``packed`` and ``zigzag``."""

from __future__ import annotations

import numpy as np

from sparsedelta.codecs.base import StreamError
from sparsedelta.words import Bytes, Words, word_dtype


def encode_escapes(items: Words, word_bytes: int) -> Bytes:
    """Byte planes of the items, lowest byte first."""
    planes = items.astype(word_dtype(word_bytes), copy=False).view(np.uint8)
    return np.ascontiguousarray(planes.reshape(-1, word_bytes).T).reshape(-1)


def decode_escapes(stream: Bytes, count: int, word_bytes: int, rule: str) -> Words:
    """The ``count`` items of an EXC stream.

    Raises:
        StreamError: The stream holds another number of items.
    """
    if stream.size != count * word_bytes:
        raise StreamError(
            rule, f"{count} escaped values expected, {stream.size / word_bytes:g} found"
        )
    planes = np.ascontiguousarray(stream.reshape(word_bytes, count).T)
    return planes.reshape(-1).view(word_dtype(word_bytes))
