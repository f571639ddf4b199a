"""A strict parser of the headers of checkpoint files.

The usual parsers keep the last of duplicate keys and know fewer dtypes than the format. Here every
lie of a header is an error that names file and tensor: duplicate keys, unknown dtypes, lengths that
do not follow from dtype and shape, holes, overlaps, offsets behind the end of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsedelta.errors import CheckpointError
from sparsedelta.limits import MAX_CHECKPOINT_HEADER_BYTES
from sparsedelta.sources import Source
from sparsedelta.strict_json import Json, parse
from sparsedelta.words import TensorSpec

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and where its data begins in its file, in bytes."""

    spec: TensorSpec
    offset: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A checkpoint file as its header describes it.

    Attributes:
        prefix: The length word and the JSON header, as they stand in the file.
        tensors: The tensors in the order of their data.
        metadata: ``__metadata__``, string to string.
        size: Size of the file in bytes.
    """

    prefix: bytes
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    size: int


def read_layout(file: Source) -> FileLayout:
    """Read and check the header of a checkpoint file.

    Raises:
        CheckpointError: It is no valid safetensors file; says what is wrong, and where.
    """
    path, size = file.location, file.size
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{path} has {size} bytes: too short for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(0, _LENGTH_BYTES))
    if length > min(MAX_CHECKPOINT_HEADER_BYTES, size - _LENGTH_BYTES):
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, expected at most "
            f"{min(MAX_CHECKPOINT_HEADER_BYTES, size - _LENGTH_BYTES)} in a file of {size}",
            hint="is it a safetensors file, and whole? Other formats (.bin, .pt, .gguf) must be "
            "converted first",
        )
    return parse_layout(file.read(0, _LENGTH_BYTES + length), str(path), size=size)


def parse_layout(prefix: bytes, where: str, *, size: int | None = None) -> FileLayout:
    """Check what stands before the first tensor of a checkpoint file.

    Args:
        prefix: The length word and the JSON header.
        where: What to call it in messages.
        size: Size of the file; None: as it follows from the tensors.

    Raises:
        CheckpointError: It is no valid safetensors header; says what is wrong, and where.
    """
    if (
        len(prefix) < _LENGTH_BYTES
        or len(prefix) != _LENGTH_BYTES + struct.unpack_from("<Q", prefix)[0]
    ):
        raise CheckpointError(f"{where}: a header whose length is not what it says")
    if not prefix.startswith(b"{", _LENGTH_BYTES):  # no reader takes white space here
        raise CheckpointError(f"{where}: the header is no strict JSON: it must begin with {{")
    try:
        document = parse(prefix[_LENGTH_BYTES:].rstrip(b" "))
    except ValueError as error:
        raise CheckpointError(f"{where}: the header is no strict JSON: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{where}: the header is no JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ must map strings to strings")
    data_size = None if size is None else size - len(prefix)
    tensors, end = _contiguous(where, document, data_size=data_size)
    stored = tuple(StoredTensor(spec, len(prefix) + offset) for spec, offset in tensors)
    return FileLayout(prefix, stored, metadata, len(prefix) + end)


def build_layout(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """A new header for tensors, in their order but widest words first, as safetensors aligns them.

    Args:
        specs: The tensors.
        metadata: ``__metadata__``; left out if empty.
    """
    ordered = sorted(specs, key=lambda spec: -spec.word_bytes)
    document: dict[str, Json] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in ordered:
        document[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return parse_layout(struct.pack("<Q", len(text)) + text, "the new header")


def _contiguous(
    path: str, document: dict[str, Json], *, data_size: int | None
) -> tuple[list[tuple[TensorSpec, int]], int]:
    tensors = [_entry(path, name, entry) for name, entry in document.items()]
    # Empty tensors may share an offset with the tensor that follows; they go first.
    tensors.sort(key=lambda item: (item[1], item[0].nbytes))
    end = 0
    for spec, offset in tensors:
        if offset != end:
            kind = "a hole" if offset > end else "an overlap"
            raise CheckpointError(
                f"{path}: tensor {spec.name!r:.200} begins at {offset}, expected {end}: {kind}"
            )
        end += spec.nbytes
    if data_size is not None and end != data_size:
        raise CheckpointError(
            f"{path}: the tensors have {end} bytes, the file holds {data_size} after its header",
            hint="the file was cut off or something was appended: get it again",
        )
    return tensors, end


def _entry(path: str, name: str, entry: Json) -> tuple[TensorSpec, int]:
    where = f"{path}: tensor {name!r:.200}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: expected dtype, shape and data_offsets, found {entry!r:.200}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _are_counts(shape):
        raise CheckpointError(f"{where}: dtype {dtype!r:.80}, shape {shape!r:.200}")
    if not _are_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 (start and end)
        raise CheckpointError(f"{where}: data_offsets {offsets!r:.200}")
    try:
        spec = TensorSpec(name, dtype, tuple(shape))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    start, end = offsets
    if end - start != spec.nbytes:
        raise CheckpointError(
            f"{where}: {end - start} bytes in the header, {spec.nbytes} follow from {spec}"
        )
    return spec, start


def _are_counts(value: Json) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
