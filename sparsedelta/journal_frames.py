"""What a journal consists of: runs of changed words, and small files that are replaced."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from blake3 import blake3

from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import Indices, Words, word_dtype

FRAME: Final = struct.Struct("<B7xQ")
"""Before a payload: its kind and its length. Behind it stands a checksum of both."""

CHECKSUM_BYTES: Final = 8
HEAD, RUN, SMALL_FILE, TRAILER = b"HRFE"

_RUN: Final = struct.Struct("<IBB2xIIQ")
_SMALL: Final = struct.Struct("<H6xQQ")
_ABSENT: Final = (1 << 64) - 1
_ALL, _BITS, _HALVES = range(3)
_HALF_LOG2: Final = 16

Buffers: TypeAlias = Sequence[bytes | memoryview]
"""A frame in pieces, the last of them its checksum."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Words of one file that change.

    Attributes:
        file: Number of the file in the head.
        offset: Byte of the file at which the run begins.
        words: Words of the run, at most 2^22.
        positions: Which of them change, ascending; None: all.
        old: The changed words before.
        new: The changed words after.
    """

    file: int
    offset: int
    words: int
    positions: Indices | None
    old: Words
    new: Words


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A small file that is replaced as a whole; None where it is absent."""

    name: str
    old: bytes | None
    new: bytes | None


def run_frame(run: Run) -> Buffers:
    """A run as it stands in a journal."""
    layout, places = _encode_positions(run)
    fields = (run.file, run.old.dtype.itemsize, layout, run.words, run.old.size, run.offset)
    values = (words.view(np.uint8).data for words in (run.old, run.new))
    return frame(RUN, [_RUN.pack(*fields), *places, *values])


def small_frame(small: SmallFile) -> Buffers:
    """A small file as it stands in a journal."""
    name = os.fsencode(small.name)
    sizes = [_ABSENT if end is None else len(end) for end in (small.old, small.new)]
    parts = (name, small.old or b"", small.new or b"")
    return frame(SMALL_FILE, [_SMALL.pack(len(name), *sizes), *parts])


def frame(kind: int, payload: Buffers) -> Buffers:
    """A frame of a kind around a payload."""
    header = FRAME.pack(kind, sum(memoryview(part).nbytes for part in payload))
    state = blake3(header)
    for part in payload:
        state.update(part)
    return [header, *payload, state.digest(CHECKSUM_BYTES)]


def _encode_positions(run: Run) -> tuple[int, Buffers]:
    at = run.positions
    if at is None:
        return _ALL, []
    halves = -(-run.words >> _HALF_LOG2)
    if 4 * halves + 2 * at.size < run.words // 8:
        edges = np.arange(halves + 1) << _HALF_LOG2
        counts = np.diff(np.searchsorted(at, edges)).astype("<u4")
        return _HALVES, [counts.tobytes(), at.astype("<u2").tobytes()]
    mask = np.zeros(run.words, np.bool_)
    mask[at] = True
    return _BITS, [np.packbits(mask, bitorder="little").tobytes()]


def _decode_positions(layout: int, data: memoryview, words: int, count: int) -> Indices | None:
    if layout == _ALL:
        return None
    if layout == _BITS:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=words, bitorder="little")
        return np.flatnonzero(bits)
    halves = -(-words >> _HALF_LOG2)
    counts = np.frombuffer(data[: 4 * halves], "<u4")
    low = np.frombuffer(data[4 * halves :], "<u2")
    if low.size != count or int(counts.sum()) != count:
        raise ValueError("counts that do not fit")
    positions: Indices = np.repeat(np.arange(halves) << _HALF_LOG2, counts) + low
    return positions


def decode_run(payload: memoryview) -> Run:
    """A run from the payload of its frame; raises ValueError or struct.error."""
    file, width, layout, words, count, offset = _RUN.unpack_from(payload)
    values = width * count
    data = payload[_RUN.size :]
    places = data[: len(data) - 2 * values]
    positions = _decode_positions(layout, places, words, count)
    found = words if positions is None else positions.size
    if positions is not None and count:
        inside = int(positions[-1]) < words and bool(np.all(positions[1:] > positions[:-1]))
    else:
        inside = True
    if found != count or not inside or not count <= words <= SEGMENT_WORDS:
        raise ValueError("positions that do not fit")
    dtype = word_dtype(width)
    old = np.frombuffer(data[len(places) : len(places) + values], dtype)
    return Run(
        file, offset, words, positions, old, np.frombuffer(data[len(data) - values :], dtype)
    )


def decode_small(payload: memoryview) -> SmallFile:
    """A small file from the payload of its frame; raises ValueError or struct.error."""
    length, *sizes = _SMALL.unpack_from(payload)
    at = _SMALL.size + length
    name = os.fsdecode(bytes(payload[_SMALL.size : at]))
    if name in ("", ".", "..") or "/" in name:
        raise ValueError("a name that is a path")
    ends: list[bytes | None] = []
    for size in sizes:
        ends.append(None if size == _ABSENT else bytes(payload[at : at + size]))
        at += 0 if size == _ABSENT else size
    if at != len(payload):
        raise ValueError("lengths that do not fit")
    return SmallFile(name, ends[0], ends[1])
