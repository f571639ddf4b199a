"""Frames: a stream as it lies in the file, stored or one Zstandard frame (spec section 3.1)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import zstandard

from sparsedelta.limits import MAX_ZSTD_WINDOW_BYTES
from sparsedelta.words import Bytes

ZSTD_LEVEL: Final = 1
"""Higher levels cost time and gain next to nothing: the streams hold few matches."""

_LEAN_HASH_LOG: Final = 6
_LEAN_MIN_MATCH: Final = 7
"""A compressor that hardly looks for matches. In noise the short ones that level 1 takes cost more
than they save: Huffman codes alone are up to a tenth smaller, and made faster."""

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SMALLEST_ZSTD: Final = 13
"""No stream this short gets shorter: a frame has 6 bytes of header and 3 of a block's."""

_contexts = threading.local()


class FrameError(ValueError):
    """A frame is not what section 3.1 of the specification asks for."""


def _compressors() -> list[zstandard.ZstdCompressor]:
    if not hasattr(_contexts, "compressors"):
        lean = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL, hash_log=_LEAN_HASH_LOG, min_match=_LEAN_MIN_MATCH
        )
        _contexts.compressors = [
            zstandard.ZstdCompressor(compression_params=lean),
            zstandard.ZstdCompressor(level=ZSTD_LEVEL),
        ]
    contexts: list[zstandard.ZstdCompressor] = _contexts.compressors
    return contexts


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    context: zstandard.ZstdDecompressor = _contexts.decompressor
    return context


def encode_frame(data: bytes, cuts: Sequence[int] = ()) -> bytes:
    """The shortest of a stream itself and two Zstandard frames of it.

    Args:
        data: The stream.
        cuts: Where Zstandard blocks end in any case, ascending: each block has its own codes.
    """
    if len(data) < _SMALLEST_ZSTD:
        return data
    if not cuts:
        return min((data, *(context.compress(data) for context in _compressors())), key=len)
    return min((data, *(_in_parts(context, data, cuts) for context in _compressors())), key=len)


def _in_parts(context: zstandard.ZstdCompressor, data: bytes, cuts: Sequence[int]) -> bytes:
    work = context.compressobj(size=len(data))
    view = memoryview(data)
    out = []
    start = 0
    for stop in cuts:
        out += [work.compress(view[start:stop]), work.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
        start = stop
    return b"".join([*out, work.compress(view[start:]), work.flush()])


def decode_frame(frame: bytes | memoryview, length: int) -> Bytes:
    """The stream of ``length`` bytes that a frame holds.

    The caller has bounded ``length``; no more than that is ever allocated, whatever the frame says.

    Raises:
        FrameError: The frame is longer than ``length``, or not exactly one Zstandard frame without
            dictionary that declares ``length`` bytes and decodes to them.
    """
    if len(frame) == length:
        return np.frombuffer(frame, np.uint8)
    if len(frame) > length:
        raise FrameError(f"a frame of {len(frame)} bytes for a stream of {length}")
    if bytes(frame[:4]) != _ZSTD_MAGIC:
        raise FrameError("not a Zstandard frame")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size != length:
            raise FrameError(f"a frame that does not declare its {length} bytes")
        if parameters.dict_id:
            raise FrameError("a frame that needs a dictionary")
        if parameters.window_size > MAX_ZSTD_WINDOW_BYTES:
            raise FrameError(f"a frame with a window of {parameters.window_size} bytes")
        stream = _decompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"a broken Zstandard frame ({error})") from None
    if len(stream) != length:
        raise FrameError(f"a frame of {len(stream)} bytes where {length} are due")
    return np.frombuffer(stream, np.uint8)
