"""``validate``: every problem of a delta file, by the numbered rules of the specification."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sparsedelta.attachments import LayoutEnd
from sparsedelta.container import DeltaFile
from sparsedelta.delta import (
    SPARSE_OPS,
    EntryHasher,
    PartContent,
    bare_content,
    tensor_content,
)
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import plain_digest
from sparsedelta.errors import (
    FormatError,
    IdentityError,
    NotFiniteError,
    UsageError,
    WrongBaseError,
)
from sparsedelta.limits import MAX_PROBLEMS
from sparsedelta.locations import LocationLike, as_location
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.apply import prove
from sparsedelta.operations.result_files import check_carried, misfit, read_layouts
from sparsedelta.operations.standpoint import refuse_part, touched_specs
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import check_disjoint
from sparsedelta.words import Indices, TensorSpec, Words


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: its code, such as ``SD403``, and where it is broken."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was checked and what was found.

    Attributes:
        path: The delta file.
        problems: Every problem found; checking goes on as far as what is broken still allows.
        tensors: Touched tensors of the delta; 0 if its manifest cannot be read.
        nnz: Entries of the delta; 0 if its manifest cannot be read.
        base_checked: Whether applying to a base was proven to give the target.
        unread: Tensors of which entries can only be read with the base at hand, and were not: of
            these the frames were checked, of the delta not its content digest.
    """

    path: str
    problems: tuple[Problem, ...]
    tensors: int
    nnz: int
    base_checked: bool
    unread: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def validate(
    delta: LocationLike,
    *,
    base: LocationLike | None = None,
    headers: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """Check a delta file against every rule, and optionally against its base.

    Args:
        delta: The delta file.
        base: Its base; if given, applying is proven to give the target, without writing it. The
            SHA-256 of files is compared only when they are written.
        headers: Check headers and manifests only (rules SD1xx, SD2xx and SD6xx): of a remote delta
            nothing else is read.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes of streams were decoded, and of how many.

    Raises:
        CheckpointError: A file cannot be read.
        UsageError: Both ``base`` and ``headers``.
    """
    if headers and base is not None:
        raise UsageError("a proof with the base needs more than headers", hint="one or the other")
    try:
        reader = DeltaReader(delta) if headers else open_delta(delta)
    except FormatError as error:
        problems = (_problem(error), *map(_problem, error.others))
        return ValidationReport(str(as_location(delta)), problems, 0, 0, base_checked=False)
    with reader:
        if headers:
            manifest = reader.manifest
            where, count = str(as_location(delta)), len(manifest.tensors)
            return ValidationReport(where, (), count, manifest.nnz, base_checked=False)
        of_base, is_bounded = _against_base(reader, base, threads, progress)
        with OrderedMap(threads) as pool:
            found = _problems(reader, pool, progress, is_bounded=is_bounded)
            of_file = [_problem(problem) for problem in islice(found, MAX_PROBLEMS)]
            known = {problem.rule for problem in of_file}
            # What stopped the proof is told once, with what else is broken in the same way.
            problems = (*of_file, *(problem for problem in of_base if problem.rule not in known))
        manifest = reader.manifest
        return ValidationReport(
            path=str(as_location(delta)),
            problems=problems,
            tensors=len(manifest.tensors),
            nnz=manifest.nnz,
            base_checked=base is not None and not of_base and not problems,
            unread=0 if base is not None else sum(r.needs_base for r in manifest.tensors),
        )


def _against_base(
    reader: DeltaReader, base: LocationLike | None, threads: int | None, progress: Progress
) -> tuple[list[Problem], bool]:
    # What is wrong with the base, and whether its size bounds the work of decoding: only once its
    # tensors are known to be those of the delta.
    if base is None:
        return [], False
    refuse_part(reader)
    try:
        report = prove(base, reader, threads=threads, progress=progress)
    except IdentityError as error:
        return [Problem(error.rule, error.message)], False
    except NotFiniteError as error:
        return [Problem("SD505", error.message)], True
    except FormatError as error:
        return [_problem(error)], False
    if reader.records and not report.changed:
        message = f"{as_location(base)} is the target of {reader.path}, not its base (SD501)"
        return [Problem(WrongBaseError.rule, message)], True
    return [], True


def _problem(error: FormatError) -> Problem:
    return Problem(error.rule, error.message)


def _problems(
    reader: DeltaReader, pool: OrderedMap, progress: Progress, *, is_bounded: bool
) -> Iterator[FormatError]:
    try:
        found = list(islice(reader.table_problems(), MAX_PROBLEMS))
        if found:  # lengths and counts that lie cannot guide a decoder
            yield from found
            return
        if not is_bounded:
            reader.check_budget()
    except FormatError as error:
        yield error
        return
    contents: dict[str, bytes] = {}
    broken = False
    done = _Progress(progress, sum(record.nbytes for record in reader.manifest.tensors))
    for file in reader.files:
        records = file.manifest.tensors
        broken_blocks = _broken_blocks(reader, records, pool, done, contents)
        found = list(islice(broken_blocks, MAX_PROBLEMS))
        broken_blocks.close()
        if not found:
            found = list(_broken_whole(reader, file, contents))
        broken = broken or bool(found)
        yield from found
    if reader.is_set and not broken and not reader.needs_base:
        try:
            reader.check_content(reader.root, contents)
        except FormatError as error:
            yield error
    yield from _broken_blobs(reader)


def _broken_whole(
    reader: DeltaReader, file: DeltaFile, contents: dict[str, bytes]
) -> Iterator[FormatError]:
    """What is broken though every block can be decoded."""
    try:
        readable = [record for record in file.manifest.tensors if not record.needs_base]
        for record in readable:
            _check_disjoint(reader, record)
        if len(readable) == len(file.manifest.tensors):
            reader.check_content(file, contents)
    except FormatError as error:
        yield error


def _check_disjoint(reader: DeltaReader, record: TensorRecord) -> None:
    """Rule SD409 for a whole tensor, a block at a time.

    Raises:
        FormatError: Two parts hold an index, or a block breaks a rule.
    """
    numbers = [n for n, part in record.coded if part.op in SPARSE_OPS and n >= record.split]
    if len(numbers) == 1 or not numbers:
        return
    # Blocks are aligned powers of two: the largest holds whole blocks of every part.
    largest = max(1 << part.block_log2 for n, part in record.coded if n in numbers)
    domain = record.domain(numbers[0])
    for start in range(0, domain, largest):
        stop = min(start + largest, domain)
        found = [
            np.concatenate([i for i, _ in reader.blocks(record, number, start, stop)])
            for number in numbers
        ]
        check_disjoint(reader.path, record.name, found)


def _broken_blobs(reader: DeltaReader) -> Iterator[FormatError]:
    # Each blob is decoded once here, however many files refer to it.
    attachments = reader.manifest.attachments
    digests: list[str] = []
    for number in range(len(attachments.blobs)):
        try:
            digests.append(plain_digest(reader.read_blob(number)).hex())
        except FormatError as error:
            yield error
            return
    for key, target in (("base", False), ("target", True)):
        end = (attachments.layout or {}).get(key)
        if end is not None:
            yield from _broken_layout(reader, end, target=target)
    for file in attachments.files:
        for found in (file.base, file.target):
            if found is not None and found.blob is not None:
                try:
                    check_carried(reader, file.name, digests[found.blob], found.digest)
                except FormatError as error:
                    yield error


def _broken_layout(reader: DeltaReader, end: LayoutEnd, *, target: bool) -> Iterator[FormatError]:
    manifest = reader.manifest
    found: dict[str, TensorSpec] = {}
    try:
        for _, layout in read_layouts(reader, end):
            found.update((stored.spec.name, stored.spec) for stored in layout.tensors)
    except FormatError as error:
        yield error
        return
    touched = touched_specs(reader, target=target)
    expected = {*touched, *manifest.untouched}
    wrong = sorted(expected - found.keys())
    other = touched_specs(reader, target=not target).keys() - expected
    wrong += sorted(found.keys() & other if manifest.lean else found.keys() - expected)
    wrong += [name for name, spec in touched.items() if found.get(name, spec) != spec]
    if wrong:
        yield misfit(reader, f"tensor {wrong[0]!r:.100} is not as the delta has it")


class _Progress:
    """Adds up what was done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress(self._done, self._total)


def _broken_blocks(
    reader: DeltaReader,
    records: Sequence[TensorRecord],
    pool: OrderedMap,
    progress: _Progress,
    contents: dict[str, bytes],
) -> Generator[FormatError, None, None]:
    # One pass: what decodes enters the content digest, what does not is a problem.

    def decode(item: tuple[TensorRecord, int, int]) -> tuple[Indices, Words] | FormatError | None:
        record, number, block = item
        part = record.parts[number]
        assert isinstance(part, PartRecord)  # noqa: S101 (only coded parts have blocks)
        try:
            if part.encoding.needs_base:
                reader.home(record).check_block(record, number, block)
                return None
            indices, words = reader.read_block(record, number, block)
        except FormatError as error:
            return error
        return indices + (block << part.block_log2), words

    for record in records:
        parts = []
        for number, part in enumerate(record.parts):
            if not isinstance(part, PartRecord):
                parts.append(bare_content(part.op, part.reference))
                continue
            entries = EntryHasher()
            is_sparse = part.op in SPARSE_OPS
            blocks = range(part.block_count(record.domain(number)))
            with pool.mapped(decode, ((record, number, block) for block in blocks)) as decoded:
                for result in decoded:
                    if isinstance(result, FormatError):
                        yield result
                    elif result is not None:
                        indices, words = result
                        entries.update(indices if is_sparse else indices[:0], words)
            parts.append(
                PartContent(part.op, part.nnz, *entries.digests(), None, part.dtype, part.scale)
            )
            progress.add(part.nbytes)
        contents[record.name] = tensor_content(record.base, record.target, parts)
