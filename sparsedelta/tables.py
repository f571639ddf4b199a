"""``sd.tables``: all digests and block tables (spec section 3.4, rules SD301 to SD307)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.digests import (
    DIGEST_BYTES,
    Digest,
    checkpoint_fingerprint,
    plain_digest,
    segment_count,
    tensor_digest,
)
from sparsedelta.errors import FormatError
from sparsedelta.manifest import Manifest, PartRecord, TensorRecord
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


@dataclass(frozen=True, slots=True)
class TensorTable:
    """Digests and block tables of one touched tensor."""

    base_segments: tuple[Digest, ...]
    target_segments: tuple[Digest, ...]
    parts: tuple[PartTable, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """All of ``sd.tables``.

    Attributes:
        untouched: Digests of the tensors that stay, by name.
        tensors: Tables of the touched tensors, by name.
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


def tables_length(manifest: Manifest) -> int:
    """Length of ``sd.tables`` as it follows from the manifest."""
    total = DIGEST_BYTES * len(manifest.untouched)
    for tensor in manifest.tensors:
        spec = tensor.spec
        total += 2 * DIGEST_BYTES * segment_count(spec.words)
        for part in tensor.parts:
            total += part.block_count(spec.words) * part.row_bytes(spec.word_bytes)
    return total


def check_length(manifest: Manifest, length: int) -> None:
    """Rule SD301, before a byte of the tables is read."""
    expected = tables_length(manifest)
    if length != expected:
        raise FormatError(
            "SD301", f"sd.tables has {length} bytes, {expected} follow from the manifest"
        )


def parse_tables(data: bytes, manifest: Manifest) -> Tables:
    """Split and type ``sd.tables``; :func:`table_problems` checks what it says.

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
    tensors = {}
    offset = 0
    for record in manifest.tensors:
        segments = segment_count(record.spec.words)
        base = tuple(cursor.take(DIGEST_BYTES) for _ in range(segments))
        target = tuple(cursor.take(DIGEST_BYTES) for _ in range(segments))
        parts = []
        for part in record.parts:
            parts.append(_part_table(cursor, record.spec, part, offset))
            offset += part.nbytes
        tensors[record.spec.name] = TensorTable(base, target, tuple(parts))
    return Tables(untouched, tensors)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        start = self._position
        self._position += length
        return self._data[start : self._position]


def _part_table(cursor: _Cursor, spec: TensorSpec, part: PartRecord, offset: int) -> PartTable:
    blocks = part.block_count(spec.words)
    streams = part.encoding.stream_count(spec.word_bytes)
    rows = np.frombuffer(cursor.take(blocks * part.row_bytes(spec.word_bytes)), np.uint8)
    rows = rows.reshape(blocks, part.row_bytes(spec.word_bytes))
    cells = rows[:, 4:].reshape(blocks, streams, 16)
    encoded = _u32(cells[:, :, 0:4])
    offsets = np.full(blocks + 1, offset, np.int64)
    offsets[1:] += np.cumsum(encoded.sum(axis=1))
    return PartTable(
        _u32(rows[:, 0:4]), encoded, _u32(cells[:, :, 4:8]), cells[:, :, 8:16], offsets
    )


def _u32(cells: Bytes) -> NDArray[np.int64]:
    return np.ascontiguousarray(cells).view("<u4")[..., 0].astype(np.int64)


def block_words(words: int, block_log2: int) -> NDArray[np.int64]:
    """Words of each block of a tensor: all alike but the last."""
    blocks = -(-words >> block_log2)
    lengths = np.full(blocks, 1 << block_log2, np.int64)
    if blocks:
        lengths[-1] = words - ((blocks - 1) << block_log2)
    return lengths


def leaf_digests(tables: Tables, manifest: Manifest, *, target: bool) -> dict[str, Digest]:
    """Tensor digests by name, of the target or of the base."""
    leaves = dict(tables.untouched)
    for record in manifest.tensors:
        table = tables.tensors[record.spec.name]
        segments = table.target_segments if target else table.base_segments
        leaves[record.spec.name] = tensor_digest(record.spec, segments)
    return leaves


def table_problems(tables: Tables, manifest: Manifest, data_length: int) -> Iterator[FormatError]:
    """Broken rules of SD303 to SD307, in their order, at most one of a kind per part.

    Args:
        tables: The tables.
        manifest: The manifest.
        data_length: Length of ``sd.data``.
    """
    pairs = [(record, tables.tensors[record.spec.name]) for record in manifest.tensors]
    for check in (_count_problems, _length_problems, _sum_problems):
        for record, table in pairs:
            for part, part_table in zip(record.parts, table.parts, strict=True):
                for rule, message in check(record, part, part_table):
                    yield FormatError(rule, f"tensor {record.spec.name!r}, {part.op}: {message}")
    total = sum(record.nbytes for record in manifest.tensors)
    if total != data_length:
        yield FormatError("SD305", f"sd.data has {data_length} bytes, the parts add up to {total}")
    for key, target in (("base", False), ("target", True)):
        found = checkpoint_fingerprint(leaf_digests(tables, manifest, target=target)).hex()
        stated = manifest.target if target else manifest.base
        if found != stated:
            yield FormatError(
                "SD306",
                f"the {key} fingerprint is {stated}, {found} follows from the tables",
            )
    for record, table in pairs:
        if table.base_segments == table.target_segments:
            yield FormatError(
                "SD307", f"tensor {record.spec.name!r} is touched, but its digests are equal"
            )


def _count_problems(
    record: TensorRecord, part: PartRecord, table: PartTable
) -> Iterator[tuple[str, str]]:
    words = block_words(record.spec.words, part.block_log2)
    for block in np.flatnonzero(table.counts > words)[:1]:
        yield "SD303", f"block {block} has {table.counts[block]} entries in {words[block]} words"
    if table.counts.sum() != part.nnz:
        yield "SD303", f"{table.counts.sum()} entries in the blocks, {part.nnz} in the manifest"


def _length_problems(
    record: TensorRecord, part: PartRecord, table: PartTable
) -> Iterator[tuple[str, str]]:
    words = block_words(record.spec.words, part.block_log2)
    word_bytes = record.spec.word_bytes
    for block, stream in np.argwhere(table.encoded > table.decoded)[:1]:
        yield (
            "SD304",
            f"block {block}, stream {stream}: {table.encoded[block, stream]} bytes for a stream of "
            f"{table.decoded[block, stream]}",
        )
    for stream, (low, high, step) in enumerate(
        part.encoding.bounds(table.counts, words, word_bytes)
    ):
        lengths = table.decoded[:, stream]
        bad = (lengths < low) | (lengths > high) | (lengths % step != 0)
        for block in np.flatnonzero(bad)[:1]:
            yield (
                "SD304",
                f"block {block}, stream {stream}: decoded length {lengths[block]}, expected "
                f"{low[block]} to {high[block]}, a multiple of {step}",
            )


def _sum_problems(
    record: TensorRecord,  # noqa: ARG001 (one signature for all checks)
    part: PartRecord,
    table: PartTable,
) -> Iterator[tuple[str, str]]:
    total = int(table.offsets[-1] - table.offsets[0])
    if total != part.nbytes:
        yield "SD305", f"frames of {total} bytes, {part.nbytes} in the manifest"
