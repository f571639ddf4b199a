"""``validate``: every problem of a delta file, by the numbered rules of the specification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.container import DeltaReader
from sparsedelta.delta import EntryHasher, PartContent, content_digest, tensor_content
from sparsedelta.errors import FormatError, IdentityError, WrongBaseError
from sparsedelta.manifest import TensorRecord
from sparsedelta.operations.apply import prove
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.words import Indices, Words


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
    """

    path: str
    problems: tuple[Problem, ...]
    tensors: int
    nnz: int
    base_checked: bool

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def validate(
    delta: str | Path,
    *,
    base: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """Check a delta file against every rule, and optionally against its base.

    Args:
        delta: The delta file.
        base: Its base; if given, applying is proven to give the target, without writing it.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes of streams were decoded, and of how many.

    Raises:
        CheckpointError: A file cannot be read.
    """
    try:
        reader = DeltaReader(delta)
    except FormatError as error:
        return ValidationReport(str(delta), (_problem(error),), 0, 0, base_checked=False)
    with reader:
        of_base, is_bounded = _against_base(reader, base, threads)
        with OrderedMap(threads) as pool:
            found = _problems(reader, pool, progress, is_bounded=is_bounded)
            problems = (*map(_problem, found), *of_base)
        manifest = reader.manifest
        return ValidationReport(
            path=str(delta),
            problems=problems,
            tensors=len(manifest.tensors),
            nnz=manifest.nnz,
            base_checked=base is not None and not problems,
        )


def _against_base(
    reader: DeltaReader, base: str | Path | None, threads: int | None
) -> tuple[list[Problem], bool]:
    # What is wrong with the base, and whether its size bounds the work of decoding: only once its
    # tensors are known to be those of the delta.
    if base is None:
        return [], False
    try:
        report = prove(base, reader, threads=threads)
    except IdentityError as error:
        return [Problem(error.rule, error.message)], False
    except FormatError:
        return [], False  # found again below, with all others
    if reader.records and not report.changed:
        message = f"{base} is the target of {reader.path}, not its base (SD501)"
        return [Problem(WrongBaseError.rule, message)], True
    return [], True


def _problem(error: FormatError) -> Problem:
    return Problem(error.rule, error.message)


def _problems(
    reader: DeltaReader, pool: OrderedMap, progress: Progress, *, is_bounded: bool
) -> Iterator[FormatError]:
    try:
        found = list(reader.table_problems())
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
    for problem in _broken_blocks(reader, pool, progress, contents):
        broken = True
        yield problem
    if broken:
        return
    try:
        for record in reader.manifest.tensors:
            reader.check_disjoint(record)
        manifest = reader.manifest
        reader.check_content(content_digest(manifest.base, manifest.target, contents))
    except FormatError as error:
        yield error


def _broken_blocks(
    reader: DeltaReader, pool: OrderedMap, progress: Progress, contents: dict[str, bytes]
) -> Iterator[FormatError]:
    # One pass: what decodes enters the content digest, what does not is a problem.
    total = sum(record.nbytes for record in reader.manifest.tensors)
    done = 0

    def decode(item: tuple[TensorRecord, int, int]) -> tuple[Indices, Words] | FormatError:
        record, number, block = item
        try:
            indices, words = reader.read_block(record, number, block)
        except FormatError as error:
            return error
        return indices + (block << record.parts[number].block_log2), words

    for record in reader.manifest.tensors:
        parts = []
        for number, part in enumerate(record.parts):
            entries = EntryHasher()
            blocks = range(part.block_count(record.spec.words))
            with pool.mapped(decode, ((record, number, block) for block in blocks)) as decoded:
                for result in decoded:
                    if isinstance(result, FormatError):
                        yield result
                    else:
                        entries.update(*result)
            parts.append(PartContent(part.op, part.nnz, *entries.digests()))
            done += part.nbytes
            progress(done, total)
        contents[record.spec.name] = tensor_content(record.spec, parts)
