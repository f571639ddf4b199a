"""``validate``: every problem of a delta file, by the numbered rules of the specification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

from sparsedelta.attachments import LayoutEnd
from sparsedelta.checkpoint import FileCheckpoint, check_unchanged
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import plain_digest
from sparsedelta.errors import (
    FormatError,
    IdentityError,
    NotFiniteError,
    UsageError,
    WrongBaseError,
)
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.limits import MAX_PROBLEMS
from sparsedelta.locations import LocationLike, as_location
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.apply import prove
from sparsedelta.operations.entry_rules import EntryCheck
from sparsedelta.operations.origins import Origins
from sparsedelta.operations.result_files import check_carried, misfit, read_layouts
from sparsedelta.operations.standpoint import refuse_part, touched_specs
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.words import TensorSpec


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
        base: Its base; if given, applying is proven to give the target, without writing it, and
            what only the base decodes is checked like all else. The SHA-256 of files is compared
            only when they are written.
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
        with OrderedMap(threads) as pool, _origins(reader, base) as origins:
            entries, of_file = _of_file(reader, origins, pool, progress, is_bounded=is_bounded)
            if entries.wrong is not None and not of_base:  # it changed since the proof
                of_base = [Problem(entries.wrong.rule, entries.wrong.message)]
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
            unread=len(entries.unread),
        )


@contextmanager
def _origins(reader: DeltaReader, base: LocationLike | None) -> Iterator[Origins | None]:
    """The base, where entries can only be read with it; whether it is the right one shows then."""
    if base is None or not reader.needs_base:
        yield None
        return
    with FileCheckpoint(at_named_commit(base, [reader])) as checkpoint:
        yield Origins(checkpoint, reader)
        check_unchanged(checkpoint)


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


def _of_file(
    reader: DeltaReader,
    origins: Origins | None,
    pool: OrderedMap,
    progress: Progress,
    *,
    is_bounded: bool,
) -> tuple[EntryCheck, list[Problem]]:
    """What was found out about entries, and all that is wrong with the delta."""
    entries = EntryCheck(reader, pool, progress, origins=origins)
    try:
        found = list(islice(reader.table_problems(), MAX_PROBLEMS))
        if found:  # lengths and counts that lie cannot guide a decoder
            return entries, list(map(_problem, found))
        if not is_bounded:
            reader.check_budget()
    except FormatError as error:
        return entries, [_problem(error)]
    broken = chain(entries.problems(), _broken_blobs(reader))
    return entries, [_problem(error) for error in islice(broken, MAX_PROBLEMS)]


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
