"""``validate``: every problem of a delta file, by the numbered rules of the specification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.container import DeltaReader
from sparsedelta.errors import FormatError, IdentityError, WrongBaseError
from sparsedelta.manifest import TensorRecord
from sparsedelta.operations.apply import prove
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent


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
        problems = list(_problems(reader, threads, progress, has_base=base is not None))
        if not problems and base is not None:
            try:
                report = prove(base, reader, threads=threads)
                if reader.records and not report.changed:
                    problems = [
                        Problem(
                            WrongBaseError.rule,
                            f"{base} is the target of {reader.path}, not its base (SD501)",
                        )
                    ]
            except IdentityError as error:
                problems = [Problem(error.rule, error.message)]
        manifest = reader.manifest
        return ValidationReport(
            path=str(delta),
            problems=tuple(problems),
            tensors=len(manifest.tensors),
            nnz=manifest.nnz,
            base_checked=base is not None and not problems,
        )


def _problem(error: FormatError) -> Problem:
    return Problem(error.rule, error.message)


def _problems(
    reader: DeltaReader, threads: int | None, progress: Progress, *, has_base: bool
) -> Iterator[Problem]:
    try:
        found = [_problem(error) for error in reader.table_problems()]
        if found:  # lengths and counts that lie cannot guide a decoder
            yield from found
            return
        if not has_base:  # with one, apply bounds the work by the size of the base
            reader.check_budget()
    except FormatError as error:
        yield _problem(error)
        return
    with OrderedMap(threads) as pool:
        broken = [_problem(error) for error in _broken_blocks(reader, pool, progress)]
        yield from broken
        if not broken:
            try:
                reader.check_content(has_base=has_base)
            except FormatError as error:
                yield _problem(error)


def _broken_blocks(
    reader: DeltaReader, pool: OrderedMap, progress: Progress
) -> Iterator[FormatError]:
    total = sum(record.nbytes for record in reader.manifest.tensors)
    done = 0

    def check(item: tuple[TensorRecord, int, int]) -> FormatError | None:
        try:
            reader.read_block(*item)
        except FormatError as error:
            return error
        return None

    for record in reader.manifest.tensors:
        for number, part in enumerate(record.parts):
            blocks = range(part.block_count(record.spec.words))
            with pool.mapped(check, ((record, number, block) for block in blocks)) as errors:
                yield from (error for error in errors if error is not None)
            done += part.nbytes
            progress(done, total)
