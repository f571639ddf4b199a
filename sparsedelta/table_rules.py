"""What the tables of a delta have to fulfil: rules SD303 to SD308 (spec section 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs import Encoding
from sparsedelta.delta import DENSE_OPS, DROP, NEW
from sparsedelta.digests import checkpoint_fingerprint, tensor_digest
from sparsedelta.errors import FormatError
from sparsedelta.manifest import Manifest
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.tables import PartTable, Tables, TensorTable, touched_leaves, words_of_blocks


def block_problems(tables: Tables, manifest: Manifest, data_length: int) -> Iterator[FormatError]:
    """Broken rules of SD303 to SD305 of one file, in their order, at most one of a kind per part.

    Args:
        tables: Its tables.
        manifest: Its manifest.
        data_length: Length of its ``sd.data``.
    """
    parts = [
        _CodedPart(record, number, part, tables.tensors[record.name].blocks(number))
        for record in manifest.tensors
        for number, part in record.coded
    ]
    if parts:
        for check in (_count_problems, _length_problems, _sum_problems):
            if next(check(parts), None) is not None:  # of all parts at once; which of them is it?
                for each in parts:
                    for rule, message in check([each]):
                        where = f"tensor {each.record.name!r}, {each.part.op}"
                        yield FormatError(rule, f"{where}: {message}")
    total = sum(record.nbytes for record in manifest.tensors)
    total += sum(blob.nbytes for blob in manifest.attachments.blobs)
    if total != data_length:
        yield FormatError(
            "SD305", f"sd.data has {data_length} bytes, parts and blobs add up to {total}"
        )


def digest_problems(tables: Tables, manifest: Manifest, *, is_part: bool) -> Iterator[FormatError]:
    """Broken rules of SD306 to SD308 of a delta, in their order.

    Args:
        tables: The tables of all its files.
        manifest: Its manifest, with the records of all its files.
        is_part: Whether it is one part file of a set by itself, which does not know the others.
    """
    if not is_part:
        yield from _fingerprint_problems(tables, manifest)
    for record in manifest.tensors:
        problem = _end_problem(record, tables.tensors[record.name])
        if problem:
            yield FormatError("SD307", f"tensor {record.name!r}: {problem}")
    yield from _reference_problems(tables, manifest, is_part=is_part)


def _fingerprint_problems(tables: Tables, manifest: Manifest) -> Iterator[FormatError]:
    """Broken clauses of rule SD306; none can be seen in a lean delta."""
    if manifest.lean:
        return
    for key, target in (("base", False), ("target", True)):
        leaves = {**tables.untouched, **touched_leaves(tables, manifest, target=target)}
        found = checkpoint_fingerprint(leaves).hex()
        stated = manifest.target if target else manifest.base
        if found != stated:
            yield FormatError(
                "SD306",
                f"the {key} fingerprint is {stated}, {found} follows from the tables",
            )


def _end_problem(record: TensorRecord, table: TensorTable) -> str | None:
    # What a run of changes starts from and leads to differs exactly if there is a change.
    base, target, split = record.base, record.target, record.split
    pairs = []
    if split and record.parts[split - 1].reference is not None:
        pairs.append((record.parts[: split - 1], table.base_segments, split - 1))
    made = record.parts[split:]
    if made and made[0].op == NEW and made[0].reference is not None:
        pairs.append((made[1:], table.target_segments, split))
    for changes, ours, number in pairs:
        if (ours == table.other_segments(number)) == bool(changes):
            return f"{record.parts[number].op} of {record.parts[number].reference!r:.100}" + (
                " changes words, but the digests are equal"
                if changes
                else " changes nothing, but the digests differ"
            )
    if base is None or target is None:
        return None
    if split:
        same = tensor_digest(base, table.base_segments) == tensor_digest(
            target, table.target_segments
        )
        return "dropped and made anew, but the digests are equal" if same else None
    if (base.dtype, base.shape) != (target.dtype, target.shape):
        return None
    if (table.base_segments == table.target_segments) == bool(record.parts):
        kind = "is touched, but its digests are equal"
        return kind if record.parts else "is renamed only, but its digests differ"
    return None


def _reference_problems(
    tables: Tables, manifest: Manifest, *, is_part: bool
) -> Iterator[FormatError]:
    """Broken clauses of rule SD308, as far as the tensors are known.

    In a lean delta a name that no record has, at either end, may be that of an untouched tensor; in
    a part file any name that is not taken at the end in question, that of a tensor of another part.
    """
    if all(part.reference is None for record in manifest.tensors for part in record.parts):
        return
    names = {record.name for record in manifest.tensors}
    base_names = {(record.base or record.spec).name for record in manifest.tensors}
    for op, target in ((NEW, False), (DROP, True)):
        leaves = {**tables.untouched, **touched_leaves(tables, manifest, target=target)}
        for record in manifest.tensors:
            for number, part in enumerate(record.parts):
                if part.op != op or part.reference is None:
                    continue
                found = leaves.get(part.reference)
                taken = names | base_names if not is_part else base_names if op == NEW else names
                is_known = part.reference in taken or not (is_part or manifest.lean)
                if found is None and not is_known:
                    continue
                segments = tables.tensors[record.name].other_segments(number)
                if found != tensor_digest(record.changed(number), segments):
                    yield FormatError(
                        "SD308",
                        f"tensor {record.name!r}: {op} of {part.reference!r:.100}, which is "
                        f"{'another tensor' if found else 'not there'}",
                    )


class _CodedPart(NamedTuple):
    """A coded part, its record and its number there, and its block table."""

    record: TensorRecord
    number: int
    part: PartRecord
    table: PartTable


def _words(parts: Sequence[_CodedPart]) -> NDArray[np.int64]:
    """Words of each block of some parts."""
    words = [record.domain(number) for record, number, _, _ in parts]
    return words_of_blocks(words, [each.part.block_log2 for each in parts])


def _count_problems(parts: Sequence[_CodedPart]) -> Iterator[tuple[str, str]]:
    """What breaks rule SD303 in some parts: all that does in one, the first of several."""
    counts, words = np.concatenate([each.table.counts for each in parts]), _words(parts)
    blocks = [each.table.counts.size for each in parts]
    is_dense = np.repeat([each.part.op in DENSE_OPS for each in parts], blocks)
    for block in np.flatnonzero(np.where(is_dense, counts != words, counts > words))[:1]:
        yield "SD303", f"block {block} has {counts[block]} entries in {words[block]} words"
    for each in parts:
        total = int(each.table.counts.sum())
        if total != each.part.nnz:
            yield "SD303", f"{total} entries in the blocks, {each.part.nnz} in the manifest"


def _length_problems(parts: Sequence[_CodedPart]) -> Iterator[tuple[str, str]]:
    """What breaks rule SD304: parts of one encoding are looked at together."""
    groups: dict[tuple[Encoding, int], list[_CodedPart]] = {}
    for each in parts:
        word_bytes = each.record.word_bytes(each.number)
        groups.setdefault((each.part.encoding, word_bytes), []).append(each)
    for (encoding, word_bytes), alike in groups.items():
        for message in encoding.length_faults(
            np.concatenate([each.table.counts for each in alike]),
            _words(alike),
            np.concatenate([each.table.encoded for each in alike]),
            np.concatenate([each.table.decoded for each in alike]),
            word_bytes,
        ):
            yield "SD304", message


def _sum_problems(parts: Sequence[_CodedPart]) -> Iterator[tuple[str, str]]:
    """What breaks rule SD305 in some parts."""
    for each in parts:
        total = int(each.table.offsets[-1] - each.table.offsets[0])
        if total != each.part.nbytes:
            yield "SD305", f"frames of {total} bytes, {each.part.nbytes} in the manifest"
