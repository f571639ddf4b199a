"""``export --raw``: a delta as plain tensors, for readers that know nothing of ours.

Per changed tensor ``NAME.indices`` (I32, or I64 where that is too narrow; flat, ascending, in C
order) and ``NAME.values``. With the base at hand the values are the new elements, in the tensor's
own dtype: what an engine writes into its weights. Without it they are what the delta stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np

from sparsedelta.checkpoint import CheckpointReader, open_checkpoint
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.delta import ADD, DIFFERENCE, NEW, REPLACE, RESIZE
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import StructureError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.origins import Origins
from sparsedelta.operations.rows import verified_spans
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.outputs import check_output, staged
from sparsedelta.progress import Progress, silent
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.safetensors_header import build_layout
from sparsedelta.words import Bytes, Indices, TensorSpec, as_words

_UNSIGNED: Final = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
_I32_WORDS: Final = 1 << 31

_Piece = tuple[str, int, Bytes]
"""Name of a tensor of the output, first word, bytes."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        size: Bytes of the file.
        values: ``elements`` (new elements, in the tensor's dtype) or ``differences`` (mod 2^w).
        changed: Number of tensors written as indices and values.
        whole: Number of tensors written whole: new ones, resized ones.
        dropped: Names of tensors that the target does not have any more.
        renamed: New name to old name.
        nnz: Entries.
    """

    size: int
    values: str
    changed: int
    whole: int
    dropped: tuple[str, ...]
    renamed: dict[str, str]
    nnz: int


def export_raw(
    delta: LocationLike | DeltaReader,
    out: LocationLike,
    *,
    base: LocationLike | CheckpointReader | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write a delta as plain tensors of a safetensors file.

    Args:
        delta: The delta.
        out: The file to write.
        base: Its base: values are then new elements, and its touched tensors are verified.
        force: Replace an existing output.
        progress: Told how many bytes were written, and of how many.

    Raises:
        StructureError: Without a base: a tensor whose new words cannot be told without it.
        WrongBaseError: The base differs where the delta touches it.
        FormatError: The delta breaks a rule.
        OutputError: The output exists, or cannot be written.
    """
    out = output_path(out)
    with ExitStack() as stack:
        reader = open_delta(delta)
        if reader is not delta:
            stack.callback(reader.close)
        checkpoint = None if base is None else open_checkpoint(at_named_commit(base, [reader]))
        if checkpoint is not None and checkpoint is not base:
            stack.callback(checkpoint.close)
        paths = () if checkpoint is None else checkpoint.paths
        refuse_part(reader)
        check_output(out, force=force, inputs=(*reader.paths, *paths))
        kind = _value_kind(reader, with_base=checkpoint is not None)
        records = [record for record in reader.manifest.tensors if record.target is not None]
        specs = [spec for record in records for spec in _specs(record, kind)]
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise StructureError(f"{reader.path}: two tensors of the output would be {twice!r}")
        facts = _facts(reader)
        layout = build_layout(specs, {**_metadata(reader, kind), **facts})
        with (
            staged(out, force=force) as work,
            CheckpointWriter([(out.name, layout)], work, is_directory=False) as writer,
        ):
            done = 0
            for record in records:
                for piece in _pieces(reader, checkpoint, record):
                    writer.write(*piece)
                    done += piece[2].size
                    progress(done, layout.size)
        whole = sum(map(_is_whole, records))
        return ExportReport(
            size=layout.size,
            values=kind,
            changed=len(records) - whole,
            whole=whole,
            dropped=tuple(json.loads(facts["dropped"])),
            renamed=json.loads(facts["renamed"]),
            nnz=reader.manifest.nnz,
        )


def _value_kind(reader: DeltaReader, *, with_base: bool) -> str:
    ops = {part.op for record in reader.manifest.tensors for part in record.parts}
    if with_base:
        return "elements"
    needing = [r.name for r in reader.manifest.tensors if _needs_base(r)]
    if needing or {DIFFERENCE, REPLACE} <= ops:
        name = needing[0] if needing else reader.manifest.tensors[0].name
        raise StructureError(
            f"{reader.path}: the new words of tensor {name!r} cannot be told without its base",
            hint=f"sparsedelta export --raw {reader.path} --base BASE -o OUT",
        )
    return "differences" if DIFFERENCE in ops else "elements"


def _needs_base(record: TensorRecord) -> bool:
    for number in range(record.split, len(record.parts)):
        part = record.parts[number]
        if part.op in (ADD, RESIZE) or (part.op == NEW and part.reference is not None):
            return True
    return False


def _is_whole(record: TensorRecord) -> bool:
    return any(part.op in (NEW, RESIZE) for part in record.parts)


def _specs(record: TensorRecord, kind: str) -> Iterator[TensorSpec]:
    target = record.target
    assert target is not None  # noqa: S101 (the caller has left the dropped ones out)
    if _is_whole(record):
        yield target
    elif record.nnz:
        index = "I32" if target.words < _I32_WORDS else "I64"
        is_packed = target.nbytes == target.words and target.dtype not in ("BOOL", "U8", "I8")
        unsigned = kind == "differences" or (is_packed and not target.dtype.startswith("F8"))
        dtype = _UNSIGNED[target.word_bytes] if unsigned else target.dtype
        yield TensorSpec(f"{target.name}.indices", index, (record.nnz,))
        yield TensorSpec(f"{target.name}.values", dtype, (record.nnz,))


def _metadata(reader: DeltaReader, kind: str) -> dict[str, str]:
    manifest = reader.manifest
    return {
        "format": "sparsedelta-raw",
        "base": manifest.base,
        "target": manifest.target,
        "content": manifest.content,
        "values": kind,
    }


def _facts(reader: DeltaReader) -> dict[str, str]:
    records = reader.manifest.tensors
    gone = [r.base.name for r in records if r.base is not None and r.target is None]
    renamed = {r.name: r.base.name for r in records if r.renamed and r.base is not None}
    return {"dropped": json.dumps(gone), "renamed": json.dumps(renamed)}


def _pieces(
    reader: DeltaReader, checkpoint: CheckpointReader | None, record: TensorRecord
) -> Iterator[_Piece]:
    target = record.target
    assert target is not None  # noqa: S101 (as above)
    if _is_whole(record):
        yield from _whole(reader, checkpoint, record, target)
    elif not record.nnz:
        return  # a rename: told in the metadata
    elif checkpoint is None:
        position = 0
        for number, _ in record.coded:
            for indices, words in reader.blocks(record, number):
                yield from _entries(target, position, indices, words.view(np.uint8))
                position += indices.size
    else:
        position = 0
        origins = Origins(checkpoint, reader)
        needing = [n for n, part in record.coded if part.encoding.needs_base]
        base = origins.words(record, needing[0]) if needing else None
        for start, stop, data in verified_spans(checkpoint, reader, target.name):
            found = reader.slice(target.name, start, min(stop, target.words), base).entries
            indices = np.sort(
                np.concatenate([part.indices for part in found if part.indices is not None])
            )
            words = as_words(data, target.word_bytes)[indices - start]
            yield from _entries(target, position, indices, words.view(np.uint8))
            position += indices.size


def _entries(
    target: TensorSpec, position: int, indices: Indices, values: Bytes
) -> Iterator[_Piece]:
    dtype = np.dtype("<i4" if target.words < _I32_WORDS else "<i8")
    yield f"{target.name}.indices", position, indices.astype(dtype).view(np.uint8)
    yield f"{target.name}.values", position, values


def _whole(
    reader: DeltaReader,
    checkpoint: CheckpointReader | None,
    record: TensorRecord,
    target: TensorSpec,
) -> Iterator[_Piece]:
    if checkpoint is not None:
        for start, _, data in verified_spans(checkpoint, reader, target.name):
            yield target.name, start, data
        return
    for number in range(record.split, len(record.parts)):
        if isinstance(record.parts[number], PartRecord):
            position = 0
            for _, words in reader.blocks(record, number):
                yield target.name, position, words.view(np.uint8)
                position += words.size
