"""Following a delta from a checkpoint, as it is asked for: to an output or in place.

Here it is decided which checkpoint is at hand; the pass over it is in :mod:`steps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sparsedelta.attachments import Attachments
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta_reader import DeltaReader, open_delta
from sparsedelta.digest_cache import remember
from sparsedelta.errors import (
    DeltaGivenError,
    NotInvertibleError,
    SparseDeltaError,
    UsageError,
    WrongBaseError,
)
from sparsedelta.files import FileState
from sparsedelta.journal import Head
from sparsedelta.locations import LocationLike, as_location, output_path
from sparsedelta.locked_files import LockedFiles
from sparsedelta.operations.arrows import DiffersError
from sparsedelta.operations.in_place import InPlace, insist_on_result, lock
from sparsedelta.operations.result_files import ResultFiles, same_files
from sparsedelta.operations.resuming import go_on
from sparsedelta.operations.settle import Settled, settle
from sparsedelta.operations.standpoint import (
    Standpoint,
    changed_meanwhile,
    refuse_part,
    touched_specs,
)
from sparsedelta.operations.steps import Pass, Step, Verify
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.ranks import ALONE, Ranks, first


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What apply or revert did.

    Attributes:
        fingerprint: Fingerprint of the output.
        verified: What was verified: ``"full"``, so that the fingerprint is that of the output; or
            ``"touched"``, the tensors that the delta names and no others.
        changed: Whether there was something to do; False if the input already was the wanted
            checkpoint.
        tensors: Number of tensors that were changed.
        nnz: Number of entries that were applied.
        nbytes: Bytes of all tensors of the output.
        files: Names of the carried files that were written beside the weights.
        unwritten: Names of carried files that were not written, and why.
        left_behind: Files beside the weights that were not copied: other weights, or too large.
        settled: What became of a run in place that had been interrupted: ``"undone"``, ``"ended"``,
            or None if there was none.
        kept: Files of the output that an interrupted run had finished: verified, not made again.
        discarded: Whether what an interrupted run had left was of other inputs, and was removed.
    """

    fingerprint: str
    verified: Verify
    changed: bool
    tensors: int
    nnz: int
    nbytes: int
    files: Sequence[str]
    unwritten: Mapping[str, str]
    left_behind: Sequence[str]
    settled: Settled | None = None
    kept: Sequence[str] = ()
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """How a delta is to be followed; the attributes are the arguments of :func:`apply`."""

    reverse: bool
    threads: int | None
    progress: Progress
    out: Path | None = None
    in_place: bool = False
    verify: Verify = "full"
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    with_files: bool = True
    cache: bool = True
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if self.verify not in ("full", "touched"):
            raise UsageError(f"verify is {self.verify!r}, expected 'full' or 'touched'")
        if self.in_place and (self.out is not None or self.force):
            raise UsageError(
                "in place there is no output to name or to replace",
                hint="either --in-place, or -o OUT",
            )
        if self.ranks.size > 1 and (self.in_place or self.resume):
            raise UsageError(
                f"{self.ranks.size} ranks cannot share a run in place, nor one that is resumed",
                hint="run one process: without torchrun",
            )

    def is_continued(self, head: Head, delta: LocationLike | DeltaReader) -> bool:
        """Whether a run that was interrupted is to be ended: the same one, if so.

        Raises:
            UsageError: It is another one.
        """
        if not (self.resume and self.in_place):
            return False
        with ExitStack() as stack:
            reader = open_delta(delta)
            if reader is not delta:
                stack.enter_context(reader)
            content = reader.manifest.content
        if (head.content, head.reverse, head.with_files) != (
            content,
            self.reverse,
            self.with_files,
        ):
            raise UsageError(
                f"the run that was interrupted is another one: sparsedelta {head.verb} with "
                f"{head.delta}, content digest {head.content}, expected {content}",
                hint="without --resume it is undone first",
            )
        return True


def transform(
    source: LocationLike, delta: LocationLike | DeltaReader, request: Request
) -> ApplyReport:
    """Follow a delta from ``source``; see :func:`sparsedelta.apply` for what it raises."""
    with ExitStack() as stack:
        stack.enter_context(request.ranks.together())
        pool = stack.enter_context(OrderedMap(request.threads))
        settled = None
        location = as_location(source)
        # A dry run writes nothing: it refuses, as those who only read do.
        if isinstance(location, Path) and not request.dry_run:
            settled = first(
                request.ranks,
                lambda: settle(location, pool, lambda head: request.is_continued(head, delta)),
            )
        try:
            report = _follow(source, delta, pool, request, stack, is_ended=settled == "ended")
        except SparseDeltaError as error:
            if settled is not None:
                error.add_note(f"the run that was interrupted has been {settled}")
            raise
        return replace(report, settled=settled)


def _follow(
    source: LocationLike,
    delta: LocationLike | DeltaReader,
    pool: OrderedMap,
    request: Request,
    stack: ExitStack,
    *,
    is_ended: bool,
) -> ApplyReport:
    # The checkpoint first: exchanged arguments are then told as such.
    try:
        locked = stack.enter_context(lock(output_path(source))) if request.in_place else None
        checkpoint = stack.enter_context(FileCheckpoint(source))
    except DeltaGivenError as error:
        order = "revert TARGET DELTA" if request.reverse else "apply BASE DELTA"
        error.hint = f"the order of arguments is: sparsedelta {order} -o OUT"
        raise
    reader = open_delta(delta)
    if reader is not delta:
        stack.enter_context(reader)
    _check_direction(reader, reverse=request.reverse)
    if request.verify == "touched" and not reader.records:
        raise UsageError(
            f"{reader.path} touches no tensor: nothing would be verified", hint="--verify full"
        )
    walk = Standpoint(checkpoint, reader, pool, reverse=request.reverse, ranks=request.ranks)
    written = _Written()
    try:
        walk.check_structure()
        files = walk.files(with_files=request.with_files)
        changed = bool(reader.records) or reader.manifest.attachments != Attachments()
        if locked is None:
            written = _write(walk, walk.step, files, request)
        else:
            _change(walk, locked, files, request)()
    except (DiffersError, WrongBaseError) as error:
        # Before it is called wrong: is it already where the delta leads?
        insist_on_result(walk, request.verify if locked is not None else "full", error)
        files = same_files(checkpoint)
        changed = is_ended
        if locked is None:
            try:
                copy = Step.copy(reader, checkpoint, reverse=request.reverse)
                written = _write(walk, copy, files, request)
            except DiffersError:
                raise changed_meanwhile(checkpoint) from None
    verified: Verify = "full" if locked is None and not changed else request.verify
    if (
        request.cache
        and not request.dry_run
        and request.ranks.rank == 0
        and (changed or (request.out and not reader.manifest.lean))
    ):
        _remember(walk, files, request.out, verified)
    manifest = reader.manifest
    return ApplyReport(
        fingerprint=manifest.base if request.reverse else manifest.target,
        verified=verified,
        changed=changed,
        tensors=len(manifest.tensors) if changed else 0,
        nnz=manifest.nnz if changed else 0,
        nbytes=sum(stored.spec.nbytes for _, f in files.files for stored in f.tensors),
        files=files.carried,
        unwritten=files.unwritten,
        left_behind=written.left_behind,
        kept=written.kept,
        discarded=written.discarded,
    )


@dataclass(frozen=True, slots=True)
class _Written:
    """What is told of an output; the attributes are those of :class:`ApplyReport`."""

    left_behind: Sequence[str] = ()
    kept: Sequence[str] = ()
    discarded: bool = False


def _write(walk: Standpoint, step: Step, files: ResultFiles, request: Request) -> _Written:
    checkpoint, out = walk.checkpoint, request.out
    if out is not None:
        inputs = (*checkpoint.paths, *walk.reader.paths)
        wanted, force, directory = out, request.force, files.is_directory
        first(
            request.ranks,
            lambda: check_output(wanted, force=force, inputs=inputs, directory=directory),
        )
    out = None if request.dry_run else out
    run = Pass(
        checkpoint,
        out,
        walk.pool,
        request.progress,
        request.force,
        request.ranks,
        request.verify if step is walk.step else "full",
    )
    if out is None or not request.resume or not files.is_directory:
        return _Written(run(step, files))
    left_behind, stage = go_on(run, step, files, out)
    return _Written(left_behind, stage.kept, stage.discarded)


def _remember(walk: Standpoint, files: ResultFiles, out: Path | None, verified: Verify) -> None:
    """Record the digests of the files of a result, which have been synced."""
    leaves = walk.reader.leaves(target=not walk.reverse)
    if verified == "touched":
        touched = touched_specs(walk.reader, target=not walk.reverse)
        leaves = {name: leaves[name] for name in touched}
    base = walk.checkpoint.root if out is None else out
    for name, layout in files.files:
        path: object = base / name if isinstance(base, Path) else None
        if not files.is_directory:
            path = out or walk.checkpoint.files[0].source.location
        names = [stored.spec.name for stored in layout.tensors]
        found = {name: leaves[name] for name in names if name in leaves}
        if isinstance(path, Path):
            with contextlib.suppress(OSError):
                remember(path, FileState.of(path.stat()), found, verified)


def _change(walk: Standpoint, locked: LockedFiles, files: ResultFiles, request: Request) -> InPlace:
    return InPlace(
        walk,
        locked,
        files,
        walk.pool,
        request.verify,
        with_files=request.with_files,
        dry_run=request.dry_run,
        progress=request.progress,
    )


def _check_direction(reader: DeltaReader, *, reverse: bool) -> None:
    refuse_part(reader)
    if reverse and not reader.manifest.invertible:
        lost = next(record for record in reader.manifest.tensors if not record.invertible)
        raise NotInvertibleError(
            f"{reader.path} does not lead back (SD503): it does not hold the old words of "
            f"{lost.name!r} ({', '.join(part.op for part in lost.parts)})",
            hint="make it again without --one-way and --forget: "
            "sparsedelta diff BASE TARGET -o DELTA",
        )
