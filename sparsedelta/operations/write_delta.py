"""``write_delta``: a delta from changes that are already known, such as entries of one's own.

Where the parts come from is the caller's affair: an optimizer that knows what it moved, an import
of float deltas, a merge. Digests of both ends are taken from the base and from what the parts make
of it, so that the file promises exactly what applying it does: what is read of the base more than
once has to be the same every time.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsedelta.changes import Changes
from sparsedelta.checkpoint import (
    CheckpointReader,
    check_unchanged,
    open_checkpoint,
    segment_digests,
    segments,
)
from sparsedelta.compact import encode_difference
from sparsedelta.delta import (
    ADD,
    DIFFERENCE,
    DROP,
    NEW,
    RESIZE,
    SPARSE_OPS,
    Part,
    TensorDelta,
    bare_content,
)
from sparsedelta.digests import Digest, segment_digest, tensor_digest
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part, encode_words
from sparsedelta.errors import FormatError, StructureError, UsageError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.manifest import COMPACT, PORTABLE, PROFILES, Manifest
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.record_rules import check_sequence, count_problem
from sparsedelta.records import BarePart, TensorRecord
from sparsedelta.rereading import Rereading
from sparsedelta.slices import apply_parts, check_disjoint
from sparsedelta.words import Indices, TensorSpec, Words
from sparsedelta.writer import DeltaWriter


def write_delta(
    base: LocationLike | CheckpointReader,
    tensors: Iterable[TensorDelta],
    out: LocationLike,
    *,
    metadata: Mapping[str, str] | None = None,
    profile: str = PORTABLE,
    lean: bool = False,
    max_shard_size: int | None = None,
    threads: int | None = None,
    force: bool = False,
) -> Manifest:
    """Write the delta that makes the given changes to ``base``.

    Args:
        base: The checkpoint that the changes are made to.
        tensors: What changes, in any order; one record per tensor, each in one of the sequences of
            parts of spec section 5. A tensor of the base without a record stays.
        out: The delta file.
        metadata: Provenance, string to string.
        profile: ``portable`` or ``compact``.
        lean: Leave out the digests of the tensors that stay.
        max_shard_size: Write a set of part files of about this many bytes; None for one file.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.

    Returns:
        The manifest that was written.

    Raises:
        StructureError: Changes that no delta can hold, or that do not fit the base.
        NotFiniteError: An ``add`` meets or gives a number that is not finite (SD505).
        CheckpointError: The base cannot be read, or changes while it is.
        OutputError: The output exists, or cannot be written.
    """
    out = output_path(out)
    if max_shard_size is not None and max_shard_size < 1:
        raise UsageError(f"a shard size of {max_shard_size} bytes, expected at least 1")
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}, expected {' or '.join(PROFILES)}")
    records = sorted(tensors, key=lambda tensor: tensor.name)
    with ExitStack() as stack:
        checkpoint = open_checkpoint(base)
        if checkpoint is not base:
            stack.callback(checkpoint.close)
        check_output(out, force=force, inputs=checkpoint.paths)
        pool = stack.enter_context(OrderedMap(threads))
        writer = stack.enter_context(
            DeltaWriter(
                out,
                metadata=metadata,
                profile=profile,
                lean=lean,
                max_shard_size=max_shard_size,
                force=force,
                inputs=checkpoint.paths,
            )
        )
        ends = _Ends(checkpoint, records)
        for tensor in records:
            writer.add(_encoded(ends, tensor, pool, profile))
            ends.release()
        for name in sorted(checkpoint.specs.keys() - ends.touched):
            writer.add_untouched(name, ends.base_digest(name))
        check_unchanged(checkpoint)
        return writer.finish()


class _Ends:
    """The base, and the target as the records make it of the base."""

    def __init__(self, base: CheckpointReader, records: list[TensorDelta]) -> None:
        self.base = base
        self._readings: dict[str, Rereading] = {}
        self._at_work: set[str] = set()
        self.made = {r.target.name: r for r in records if r.target is not None}
        self.touched = {r.base.name for r in records if r.base is not None}
        names = [record.name for record in records]
        bases = [(record.base or record.spec).name for record in records]
        for listed in (names, bases):
            twice = [name for name, count in Counter(listed).items() if count > 1]
            if twice:
                raise StructureError(f"two changes concern the tensor {twice[0]!r}")
        stay = base.specs.keys() - self.touched
        for name in (*names, *bases):
            if name in stay:
                raise StructureError(f"{name!r} would be made, but the base has a tensor of it")
        for record in records:
            if record.base is not None and base.specs.get(record.base.name) != record.base:
                raise StructureError(
                    f"tensor {record.base.name!r} is {base.specs.get(record.base.name)} in "
                    f"{base.location}, the change is of {record.base}"
                )

    def base_words(self, spec: TensorSpec, start: int, stop: int) -> Words:
        """Words of a base tensor."""
        return self._reading(spec)(start, stop)

    def base_segments(self, spec: TensorSpec) -> tuple[Digest, ...]:
        """Segment digests of a base tensor that a record is about."""
        return self._reading(spec).digests()

    def base_digest(self, name: str) -> Digest:
        """Digest of a base tensor that stays; it may have been read for a copy of it."""
        spec, reading = self.base.specs[name], self._readings.get(name)
        segments = segment_digests(self.base, name) if reading is None else reading.digests()
        return tensor_digest(spec, segments)

    def release(self) -> None:
        """Keep no words; what was read is still known by its digests."""
        for name in self._at_work:
            self._readings[name].release()
        self._at_work.clear()

    def _reading(self, spec: TensorSpec) -> Rereading:
        found = self.base.specs.get(spec.name)
        if found != spec:
            raise StructureError(f"{self.base.location}: {spec.name!r} is {found}, not {spec}")
        self._at_work.add(spec.name)
        return self._readings.setdefault(spec.name, Rereading(self.base, spec))

    def target_words(self, spec: TensorSpec, start: int, stop: int) -> Words:
        """Words of a target tensor."""
        record = self.made.get(spec.name)
        if record is None:
            return self.base_words(spec, start, stop)
        return _made_words(self, record, start, stop)


def _made_words(ends: _Ends, tensor: TensorDelta, start: int, stop: int) -> Words:
    """Words ``[start, stop)`` of the target tensor of a record."""
    target = tensor.target
    assert target is not None  # noqa: S101 (the caller has looked)
    parts = tensor.parts[tensor.split :]
    first = parts[0] if parts else None
    source, carried = tensor.base, None
    if first is not None and first.op == NEW:
        carried = first.words
        source = None
        if first.reference is not None:
            source = TensorSpec(first.reference, target.dtype, target.shape)
    elif first is not None and first.op == RESIZE:
        carried = first.words
    given = 0 if source is None else min(source.words, target.words)
    pieces = [np.empty(0, target.word_dtype)]
    if source is not None and start < given:
        pieces.append(ends.base_words(source, start, min(stop, given)))
    if stop > given and carried is not None:
        pieces.append(carried[max(0, start - given) : stop - given])
    words = np.concatenate(pieces)
    entries = [_within(part, start, stop) for part in parts if part.indices is not None]
    apply_parts(target, words, start, entries)
    return words


def _within(part: Part, start: int, stop: int) -> Part:
    assert part.indices is not None and part.words is not None  # noqa: S101, PT018 (sparse)
    first, last = np.searchsorted(part.indices, [start, stop])
    return replace(part, indices=part.indices[first:last], words=part.words[first:last])


def _encoded(ends: _Ends, tensor: TensorDelta, pool: OrderedMap, profile: str) -> EncodedTensor:
    _check_form(tensor)
    parts = tuple(
        _encoded_part(ends, tensor, number, pool, profile) for number in range(len(tensor.parts))
    )
    record = TensorRecord(tensor.base, tensor.target, tuple(p.record for p in parts))
    problem = count_problem(record)
    if problem:
        raise StructureError(f"tensor {tensor.name!r}: {problem}")
    _check_old_words(ends, tensor, record)
    base, target = tensor.base, tensor.target
    made: list[Digest] = []
    if target is not None:
        for start in range(0, target.words, SEGMENT_WORDS):
            words = _made_words(ends, tensor, start, min(start + SEGMENT_WORDS, target.words))
            made.append(segment_digest(words.view(np.uint8).data))
    old = () if base is None else ends.base_segments(base)
    return EncodedTensor(base, target, parts, old, tuple(made))


def _check_form(tensor: TensorDelta) -> None:
    """Everything that can be said of the parts before a word of them is encoded."""
    where = f"tensor {tensor.name!r}"
    try:
        check_sequence(_outline(tensor), tensor.base, tensor.target)
    except FormatError as error:
        raise StructureError(f"no delta can hold this: {error.message}") from None
    outline = TensorRecord(
        tensor.base, tensor.target, tuple(BarePart(p.op, p.reference) for p in tensor.parts)
    )
    supports: dict[bool, list[Indices]] = {}
    for number, part in enumerate(tensor.parts):
        if part.words is None:
            continue
        spec = outline.changed(number)
        dtype = TensorSpec("", part.dtype, ()).word_dtype if part.dtype else spec.word_dtype
        if part.words.dtype != dtype or part.words.ndim != 1:
            raise StructureError(
                f"{where}, {part.op}: words are {part.words.dtype}, {part.words.ndim}-dimensional, "
                f"expected {dtype}, flat"
            )
        if part.indices is not None:
            supports.setdefault(number < outline.split, []).append(part.indices)
            _check_entries(where, part, outline.domain(number))
    for indices in supports.values():
        try:
            check_disjoint(Path(), tensor.name, indices)
        except FormatError as error:
            raise StructureError(f"{where}: {error.message}") from None


def _outline(tensor: TensorDelta) -> dict[str, object]:
    renamed = None not in (tensor.base, tensor.target) and tensor.base != tensor.target
    source = tensor.base.name if renamed and tensor.base is not None else tensor.name
    parts: list[dict[str, object]] = []
    for part in tensor.parts:
        document: dict[str, object] = {"op": part.op}
        if part.words is not None:
            document["nnz"] = int(part.words.size)
        if part.reference is not None:
            document["from" if part.op == NEW else "to"] = part.reference
        if part.op == ADD:
            document |= {"dtype": part.dtype, "scale": struct.pack(">d", part.scale).hex()}
        elif part.dtype is not None:
            document["dtype"] = part.dtype
        parts.append(document)
    return {
        "name": tensor.name,
        "from": source if source != tensor.name else None,
        "parts": parts,
    }


def _check_entries(where: str, part: Part, domain: int) -> None:
    indices, words = part.entries
    if not indices.size:
        raise StructureError(f"{where}: a {part.op} without entries: leave it out")
    ascend = bool(np.all(indices[1:] > indices[:-1]))
    if indices.dtype != np.int64 or not ascend or indices[0] < 0 or indices[-1] >= domain:
        raise StructureError(
            f"{where}, {part.op}: indices must be int64 and ascend strictly, from 0 on and below "
            f"{domain}"
        )
    if part.op == DIFFERENCE and not words.all():
        raise StructureError(f"{where}: a difference of 0 is no entry")


def _check_old_words(ends: _Ends, tensor: TensorDelta, record: TensorRecord) -> None:
    """Words that ``drop`` and ``resize`` carry are those that revert brings back."""
    base = tensor.base
    if base is None:
        return
    for number, part in enumerate(tensor.parts):
        if part.words is None or part.op not in (DROP, RESIZE):
            continue
        if part.op == RESIZE and tensor.target is not None and tensor.target.words >= base.words:
            continue
        first = base.words - record.domain(number)
        for start in range(first, base.words, SEGMENT_WORDS):
            stop = min(start + SEGMENT_WORDS, base.words)
            if not np.array_equal(
                ends.base_words(base, start, stop), part.words[start - first : stop - first]
            ):
                raise StructureError(
                    f"tensor {tensor.name!r}: the words that {part.op} carries are not those of "
                    f"{ends.base.location}"
                )


def _encoded_part(
    ends: _Ends, tensor: TensorDelta, number: int, pool: OrderedMap, profile: str
) -> EncodedPart:
    part = tensor.parts[number]
    is_away = number < tensor.split
    spec = tensor.base if is_away else tensor.target
    if spec is None:
        raise StructureError(f"tensor {tensor.name!r}: {part.op} of a tensor that is not there")
    if part.words is None:
        return EncodedPart(
            BarePart(part.op, part.reference),
            b"".join(_referred(ends, part, spec)),
            [],
            bare_content(part.op, part.reference),
        )
    if part.op not in SPARSE_OPS:
        carried = part.words
        return encode_words(
            carried.size,
            carried.itemsize,
            part.op,
            lambda start, stop: carried[start:stop],
            pool=pool,
            name=tensor.name,
        )
    assert part.indices is not None  # noqa: S101 (sparse)
    domain = spec
    if tensor.base is not None and tensor.target is not None and not tensor.split:
        domain = min(tensor.base, tensor.target, key=lambda end: end.words)
    dtype = part.dtype if part.op == ADD and part.dtype is not None else domain.dtype
    changes = Changes.from_entries(
        TensorSpec(tensor.name, dtype, domain.shape), part.indices, part.words
    )
    if profile == COMPACT and part.op == DIFFERENCE:
        old = _changed_spec(tensor, number)
        return encode_difference(changes, lambda a, b: ends.base_words(old, a, b), pool=pool)
    encoded = encode_part(changes, part.op, pool=pool)
    if part.op != ADD:
        return encoded
    return replace(
        encoded,
        record=replace(encoded.coded, dtype=part.dtype, scale=part.scale),
        content=replace(encoded.content, dtype=part.dtype, scale=part.scale),
    )


def _changed_spec(tensor: TensorDelta, number: int) -> TensorSpec:
    """The tensor of the base that a difference is added to."""
    made = tensor.parts[tensor.split] if number >= tensor.split else None
    target = tensor.target
    if made is not None and made.op == NEW and made.reference is not None and target is not None:
        return TensorSpec(made.reference, target.dtype, target.shape)
    assert tensor.base is not None  # noqa: S101 (the form has been checked)
    return tensor.base


def _referred(ends: _Ends, part: Part, spec: TensorSpec) -> Iterator[Digest]:
    if part.reference is None:
        return
    other = TensorSpec(part.reference, spec.dtype, spec.shape)
    read = ends.base_words if part.op == NEW else ends.target_words
    for start, stop in segments(other):
        yield segment_digest(read(other, start, stop).view(np.uint8).data)
