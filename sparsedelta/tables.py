"""``sd.tables``: all digests and block tables (spec section 3.4, rules SD301 and SD302)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsedelta.digests import (
    DIGEST_BYTES,
    Digest,
    plain_digest,
    segment_count,
    tensor_digest,
)
from sparsedelta.errors import FormatError
from sparsedelta.manifest import Manifest
from sparsedelta.records import PartRecord
from sparsedelta.words import Bytes, TensorSpec

CHECKSUM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class PartTable:
    """The block table of one part.

    Attributes:
        counts: int64 ``[blocks]``, entries per block.
        encoded: int64 ``[blocks, streams]``, lengths of the frames in the file.
        decoded: int64 ``[blocks, streams]``, lengths of the streams.
        checksums: uint8 ``[blocks, streams, 8]``.
        offsets: int64 ``[blocks + 1]``, where each block's frames begin in ``sd.data``.
    """

    counts: NDArray[np.int64]
    encoded: NDArray[np.int64]
    decoded: NDArray[np.int64]
    checksums: Bytes
    offsets: NDArray[np.int64]


_Part: TypeAlias = PartTable | tuple[Digest, ...] | None


@dataclass(frozen=True, slots=True)
class TensorTable:
    """Digests and block tables of one touched tensor.

    Attributes:
        base_segments: Segment digests of the base tensor; empty if there is none.
        target_segments: Segment digests of the target tensor; empty if there is none.
        parts: For each part its block table; the segment digests of the tensor that a ``new`` is
            copied from or a ``drop`` leads to; or None.
    """

    base_segments: tuple[Digest, ...]
    target_segments: tuple[Digest, ...]
    parts: tuple[_Part, ...]

    def blocks(self, number: int) -> PartTable:
        """The block table of a coded part."""
        table = self.parts[number]
        if not isinstance(table, PartTable):
            raise TypeError(f"part {number} has no blocks")
        return table

    def other_segments(self, number: int) -> tuple[Digest, ...]:
        """Segment digests of the tensor that a part refers to."""
        table = self.parts[number]
        if not isinstance(table, tuple):
            raise TypeError(f"part {number} refers to no tensor")
        return table


@dataclass(frozen=True, slots=True)
class Tables:
    """All of ``sd.tables``.

    Attributes:
        untouched: Digests of the tensors that stay, by name.
        tensors: Tables of the touched tensors, by name of the record.
    """

    untouched: Mapping[str, Digest]
    tensors: Mapping[str, TensorTable]


def row(count: int, streams: list[tuple[bytes, int]]) -> bytes:
    """A row of a block table.

    Args:
        count: Entries of the block.
        streams: Frame and decoded length of each stream.
    """
    cells = [count.to_bytes(4, "little")]
    for frame, decoded in streams:
        cells += [
            len(frame).to_bytes(4, "little"),
            decoded.to_bytes(4, "little"),
            plain_digest(frame)[:CHECKSUM_BYTES],
        ]
    return b"".join(cells)


def _segments(spec: TensorSpec | None) -> int:
    return 0 if spec is None else segment_count(spec.words)


def tables_length(manifest: Manifest) -> int:
    """Length of ``sd.tables`` as it follows from the manifest."""
    total = DIGEST_BYTES * len(manifest.untouched)
    for record in manifest.tensors:
        total += DIGEST_BYTES * (_segments(record.base) + _segments(record.target))
        for number, part in enumerate(record.parts):
            if isinstance(part, PartRecord):
                blocks = part.block_count(record.domain(number))
                total += blocks * part.row_bytes(record.word_bytes(number))
            elif part.reference is not None:
                total += DIGEST_BYTES * _segments(record.changed(number))
    return total


def check_length(manifest: Manifest, length: int) -> None:
    """Rule SD301, before a byte of the tables is read."""
    expected = tables_length(manifest)
    if length != expected:
        raise FormatError(
            "SD301", f"sd.tables has {length} bytes, {expected} follow from the manifest"
        )


def parse_tables(data: bytes, manifest: Manifest) -> Tables:
    """Split and type ``sd.tables``; :mod:`table_rules` checks what it says.

    Args:
        data: Its bytes; their number has passed :func:`check_length`.
        manifest: The manifest.

    Raises:
        FormatError: Its digest is not the one the manifest states (SD302).
    """
    if plain_digest(data).hex() != manifest.tables:
        raise FormatError("SD302", "sd.tables does not have the digest that the manifest states")
    cursor = _Cursor(data)
    untouched = {name: cursor.take(DIGEST_BYTES) for name in manifest.untouched}
    tensors: list[tuple[tuple[Digest, ...], tuple[Digest, ...], list[_Part]]] = []
    coded: dict[int, list[_Rows]] = {}
    offset = 0
    for record in manifest.tensors:
        parts: list[_Part] = []
        tensors.append((cursor.digests(record.base), cursor.digests(record.target), parts))
        for number, part in enumerate(record.parts):
            if not isinstance(part, PartRecord):
                changed = record.changed(number)
                parts.append(cursor.digests(changed) if part.reference is not None else None)
                continue
            width = part.row_bytes(record.word_bytes(number))
            own = cursor.take(part.block_count(record.domain(number)) * width)
            coded.setdefault(width, []).append(_Rows(parts, number, own, offset))
            parts.append(None)
            offset += part.nbytes
    for width, rows in coded.items():
        _set_tables(rows, width)
    ends = zip(manifest.tensors, tensors, strict=True)
    return Tables(
        untouched,
        {record.name: TensorTable(base, target, tuple(p)) for record, (base, target, p) in ends},
    )


class _Rows(NamedTuple):
    """A block table that is not yet read.

    Attributes:
        parts: The tables of its tensor.
        number: Its number among them.
        data: Its rows.
        offset: Where the frames of the part begin in ``sd.data``.
    """

    parts: list[_Part]
    number: int
    data: bytes
    offset: int


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        start = self._position
        self._position += length
        return self._data[start : self._position]

    def digests(self, spec: TensorSpec | None) -> tuple[Digest, ...]:
        return tuple(self.take(DIGEST_BYTES) for _ in range(_segments(spec)))


def _set_tables(tables: Sequence[_Rows], width: int) -> None:
    """Read block tables, all with rows of ``width`` bytes, and set them: most have one row."""
    rows = np.frombuffer(b"".join([each.data for each in tables]), np.uint8).reshape(-1, width)
    cells = rows[:, 4:].reshape(len(rows), (width - 4) // 16, 16)
    counts, checksums = _u32(rows[:, 0:4]), cells[:, :, 8:16]
    encoded, decoded = _u32(cells[:, :, 0:4]), _u32(cells[:, :, 4:8])
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(encoded.sum(axis=1), out=ends[1:])
    stop = 0
    for parts, number, data, offset in tables:
        start, stop = stop, stop + len(data) // width
        own = slice(start, stop)
        offsets = ends[start : stop + 1] + (offset - ends[start])
        parts[number] = PartTable(counts[own], encoded[own], decoded[own], checksums[own], offsets)


def _u32(cells: Bytes) -> NDArray[np.int64]:
    return np.ascontiguousarray(cells).view("<u4")[..., 0].astype(np.int64)


def block_words(words: int, block_log2: int) -> NDArray[np.int64]:
    """Words of each block of a tensor: all alike but the last."""
    return words_of_blocks([words], [block_log2])


def words_of_blocks(words: Sequence[int], block_log2: Sequence[int]) -> NDArray[np.int64]:
    """Words of each block of some tensors, one tensor after the other, as :func:`block_words`."""
    sizes, log2 = np.array(words, np.int64), np.array(block_log2, np.int64)
    blocks = -(-sizes >> log2)
    lengths = np.repeat(np.left_shift(1, log2), blocks)
    last = np.cumsum(blocks)[blocks > 0] - 1
    lengths[last] = (sizes - (blocks - 1 << log2))[blocks > 0]
    return lengths


def touched_leaves(tables: Tables, manifest: Manifest, *, target: bool) -> dict[str, Digest]:
    """Tensor digests of the touched tensors of one end, by their names there."""
    leaves = {}
    for record in manifest.tensors:
        spec = record.target if target else record.base
        if spec is not None:
            table = tables.tensors[record.name]
            segments = table.target_segments if target else table.base_segments
            leaves[spec.name] = tensor_digest(spec, segments)
    return leaves
