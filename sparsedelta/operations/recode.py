"""``recode``: the same delta in the other profile, with its base at hand; nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from sparsedelta.attachments import CarriedEnd, CarriedFile, Layout, LayoutEnd
from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.checkpoint import CheckpointReader, check_unchanged, open_checkpoint
from sparsedelta.compact import encode_difference
from sparsedelta.delta import (
    DIFFERENCE,
    SPARSE_OPS,
    EntryHasher,
    PartContent,
    bare_content,
)
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part
from sparsedelta.errors import DAMAGED, FormatError, UsageError
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.manifest import COMPACT, PROFILES, Manifest
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.origins import Origins
from sparsedelta.operations.parts import divide_records
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.words import Indices, ReadWords, Words
from sparsedelta.writer import DeltaWriter


@dataclass(frozen=True, slots=True)
class RecodeReport:
    """What recode wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta, also of one that a dry run did not keep.
        before: Bytes of the delta that was read.
        fallen_back: Touched tensors that the profile ``compact`` holds as ``portable`` does, since
            that takes no more bytes, or since their dtype has no exponents of 16-bit floats.
    """

    manifest: Manifest
    size: int
    before: int
    fallen_back: tuple[str, ...] = ()


def recode(
    delta: LocationLike | DeltaReader,
    base: LocationLike | CheckpointReader,
    out: LocationLike,
    *,
    profile: str,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> RecodeReport:
    """Write a delta in another profile: the same content digest, other bytes.

    Of a delta that this library wrote with its default settings and the same zstd, going to the
    other profile and back gives the same file.

    Args:
        delta: The delta: a file, or the root of a set; the result has as many files.
        base: Its base. The segments are verified that are needed.
        out: The delta to write.
        profile: ``portable`` or ``compact``.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes of tensors were worked through, and of how many.

    Raises:
        UsageError: An unknown profile.
        WrongBaseError: ``base`` differs where the delta needs it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        OutputError: The output exists, or cannot be written.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}, expected {' or '.join(PROFILES)}")
    path = output_path(out)
    with ExitStack() as stack:
        reader = open_delta(delta)
        if reader is not delta:
            stack.callback(reader.close)
        refuse_part(reader)
        checkpoint = open_checkpoint(base)
        if checkpoint is not base:
            stack.callback(checkpoint.close)
        inputs = (*reader.paths, *checkpoint.paths)
        check_output(path, force=force, inputs=inputs)
        pool = stack.enter_context(OrderedMap(threads))
        origins = Origins(checkpoint, reader)
        report = write_recoded(
            reader,
            origins,
            path,
            profile=profile,
            pool=pool,
            inputs=inputs,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
        check_unchanged(checkpoint)
        return report


def write_recoded(
    reader: DeltaReader,
    origins: Origins,
    out: Path,
    *,
    profile: str,
    pool: OrderedMap,
    inputs: Sequence[Path] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> RecodeReport:
    """Write a delta in a profile; see :func:`recode`.

    Args:
        reader: The delta.
        origins: The words that its parts are applied to.
        out: The delta to write.
        profile: Its profile.
        pool: Where blocks are decoded and encoded, many at a time.
        inputs: Files that are not overwritten.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes of tensors were worked through, and of how many.
    """
    manifest, hints = reader.manifest, reader.header.metadata
    coder = _Recoder(reader, origins, pool, profile)
    sizes = {
        name: max(end.nbytes for end in (record.base, record.target) if end is not None)
        for name, record in reader.records.items()
    }
    total, done = sum(sizes.values()), 0
    with DeltaWriter(
        out,
        metadata=manifest.metadata,
        base_repo=hints.get("sd.base_repo"),
        base_revision=hints.get("sd.base_revision"),
        profile=profile,
        lean=manifest.lean,
        plan=_plan(reader, sizes),
        force=force,
        ends=(manifest.base, manifest.target) if manifest.lean else None,
        inputs=inputs,
    ) as writer:
        for name, digest in reader.tables.untouched.items():
            writer.add_untouched(name, digest)
        fallen_back = []
        for name, record in reader.records.items():
            tensor = coder.record(record)
            writer.add(tensor)
            if profile == COMPACT and not tensor.record.needs_base:
                fallen_back.append(name)
            done += sizes[name]
            progress(done, total)
        layout, files = _attachments(reader, writer)
        writer.attach(layout, files)
        written = writer.finish(dry_run=dry_run, check=lambda made: _check_content(reader, made))
        return RecodeReport(written, writer.size, reader.size, tuple(fallen_back))


def _check_content(reader: DeltaReader, made: Manifest) -> None:
    if made.content != reader.manifest.content:
        raise FormatError(
            "SD410",
            f"{reader.path}: the content digest is {reader.manifest.content}, {made.content} "
            "follows from the entries",
            hint=DAMAGED,
        )


def _plan(reader: DeltaReader, sizes: Mapping[str, int]) -> dict[str, int] | None:
    """The part file of each record: that of the delta, if the records of each follow each other."""
    if not reader.is_set:
        return None
    homes = {r.name: n for n, file in enumerate(reader.files) for r in file.manifest.tensors}
    plan = {name: homes[name] for name in sizes}
    if all(before <= after for before, after in pairwise(plan.values())):
        return plan
    return divide_records(sizes, len(reader.files))


def _attachments(
    reader: DeltaReader, writer: DeltaWriter
) -> tuple[Layout | None, tuple[CarriedFile, ...]]:
    found = reader.manifest.attachments
    blobs = [writer.blob(reader.read_blob(number)) for number in range(len(found.blobs))]

    def end(each: LayoutEnd | None) -> LayoutEnd | None:
        if each is None:
            return None
        files = tuple(replace(file, header=blobs[file.header]) for file in each.files)
        return LayoutEnd(files, each.index and (each.index[0], blobs[each.index[1]]))

    def carried(each: CarriedEnd | None) -> CarriedEnd | None:
        if each is None or each.blob is None:
            return each
        return replace(each, blob=blobs[each.blob])

    layout = found.layout and {key: end(each) for key, each in found.layout.items()}
    files = tuple(CarriedFile(f.name, carried(f.base), carried(f.target)) for f in found.files)
    return layout, files


@dataclass(frozen=True, slots=True)
class _Recoder:
    """Makes the records of a delta in a profile."""

    reader: DeltaReader
    origins: Origins
    pool: OrderedMap
    profile: str

    def record(self, record: TensorRecord) -> EncodedTensor:
        """A record, ready to be written."""
        table = self.reader.tables.tensors[record.name]
        return EncodedTensor(
            record.base,
            record.target,
            tuple(self._part(record, number) for number in range(len(record.parts))),
            table.base_segments,
            table.target_segments,
        )

    def _part(self, record: TensorRecord, number: int) -> EncodedPart:
        part = record.parts[number]
        if not isinstance(part, PartRecord):
            table = self.reader.tables.tensors[record.name]
            rows = b"" if part.reference is None else b"".join(table.other_segments(number))
            return EncodedPart(part, rows, [], bare_content(part.op, part.reference))
        needs_base = part.encoding.needs_base
        if part.op != DIFFERENCE or needs_base == (self.profile == COMPACT):
            return self._copied(record, number, part)
        base = self.origins.words(record, number)
        changes = self._changes(record, number, part, base if needs_base else None)
        if self.profile != COMPACT:
            return encode_part(changes, DIFFERENCE, pool=self.pool)
        made = encode_difference(changes, base, pool=self.pool)
        own = part.nbytes + part.block_count(record.domain(number)) * part.row_bytes(
            record.word_bytes(number)
        )
        return made if min(made.tried.values()) < own else self._copied(record, number, part)

    def _changes(
        self, record: TensorRecord, number: int, part: PartRecord, base: ReadWords | None
    ) -> Changes:
        domain, size = record.domain(number), 1 << part.block_log2

        def run(block: int) -> Run:
            start = block * size
            stop = min(start + size, domain)
            known = None if base is None else base(start, stop)
            indices, words = self.reader.read_block(record, number, block, base=known)
            return make_run(start, stop - start, indices, words)

        ends = [end for end in (record.base, record.target) if end is not None]
        spec = record.changed(number)
        if not record.split and len(ends) > 1:
            spec = min(ends, key=lambda end: end.words)
        changes = Changes(replace(spec, name=record.name))
        with self.pool.mapped(run, range(part.block_count(domain))) as runs:
            for each in runs:
                changes.append(each)
        return changes

    def _copied(self, record: TensorRecord, number: int, part: PartRecord) -> EncodedPart:
        """A part as it is stored; its blocks are decoded all the same, for the content digest."""
        size = 1 << part.block_log2
        base = self.origins.words(record, number) if part.encoding.needs_base else None
        is_sparse = part.op in SPARSE_OPS

        def take(block: int) -> tuple[bytes, list[bytes], Indices, Words]:
            start = block * size
            stop = min(start + size, record.domain(number))
            known = None if base is None else base(start, stop)
            indices, words = self.reader.read_block(record, number, block, base=known)
            row, frames = self.reader.home(record).read_stored(record, number, block)
            return row, frames, indices + start if is_sparse else indices[:0], words

        entries = EntryHasher()
        rows: list[bytes] = []
        frames: list[bytes] = []
        with self.pool.mapped(take, range(part.block_count(record.domain(number)))) as blocks:
            for row, found, indices, words in blocks:
                rows.append(row)
                frames += found
                entries.update(indices, words)
        content = PartContent(part.op, part.nnz, *entries.digests(), None, part.dtype, part.scale)
        return EncodedPart(part, b"".join(rows), frames, content)
