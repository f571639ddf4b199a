"""Following a delta or a chain from a checkpoint, as it is asked for: to an output or in place.

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
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digest_cache import remember
from sparsedelta.errors import (
    DeltaGivenError,
    SparseDeltaError,
    UsageError,
    WrongBaseError,
)
from sparsedelta.files import FileState
from sparsedelta.hub.named_base import at_named_commit, pin_together
from sparsedelta.locations import LocationLike, as_location, output_path, streamed
from sparsedelta.locked_files import LockedFiles
from sparsedelta.operations.arrows import DiffersError
from sparsedelta.operations.history import (
    DeltaLike,
    History,
    StartNeededError,
    open_all,
    short,
)
from sparsedelta.operations.in_place import InPlace, insist_on_result, lock
from sparsedelta.operations.request import Request
from sparsedelta.operations.result_files import ResultFiles, same_files
from sparsedelta.operations.resuming import go_on
from sparsedelta.operations.route import Route
from sparsedelta.operations.settle import Settled, settle
from sparsedelta.operations.standpoint import (
    Standpoint,
    Whereabouts,
    changed_meanwhile,
    refuse_one_way,
)
from sparsedelta.operations.steps import Pass, Step, Verify
from sparsedelta.operations.undoing import Undo, undoing
from sparsedelta.operations.way_back import WayBack
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import first


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
        deltas: The deltas that were followed, in their order.
        skipped: Deltas of the chain that were not: what they make was there already.
        duplicates: Deltas that were left out since another has the same content digest.
        undo: The delta that was written to lead back, if it was asked for and there was something
            to do.
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
    deltas: Sequence[str] = ()
    skipped: Sequence[str] = ()
    duplicates: Sequence[str] = ()
    undo: str | None = None


def transform(source: LocationLike, deltas: Sequence[DeltaLike], request: Request) -> ApplyReport:
    """Follow deltas from ``source``; see :func:`sparsedelta.apply` for what it raises."""
    if request.stream:
        source = streamed(source)
        deltas = [each if isinstance(each, DeltaReader) else streamed(each) for each in deltas]
    with ExitStack() as stack:
        stack.enter_context(request.ranks.together())
        pool = stack.enter_context(OrderedMap(request.threads))
        deltas = [pin_together(each, request.ranks) for each in deltas]
        settled = None
        location = as_location(source)
        # A dry run writes nothing: it refuses, as those who only read do.
        if isinstance(location, Path) and not request.dry_run:
            settled = first(
                request.ranks,
                lambda: settle(location, pool, lambda head: request.is_continued(head, deltas)),
            )
        try:
            report = _follow(source, deltas, pool, request, stack, is_ended=settled == "ended")
        except SparseDeltaError as error:
            if settled is not None:
                error.add_note(f"the run that was interrupted has been {settled}")
            raise
        return replace(report, settled=settled)


def _follow(
    source: LocationLike,
    deltas: Sequence[DeltaLike],
    pool: OrderedMap,
    request: Request,
    stack: ExitStack,
    *,
    is_ended: bool,
) -> ApplyReport:
    # The checkpoint first: exchanged arguments are then told as such.
    try:
        locked = stack.enter_context(lock(output_path(source))) if request.in_place else None
        start = source if request.reverse else at_named_commit(source, deltas)
        start = pin_together(start, request.ranks)
        checkpoint = stack.enter_context(FileCheckpoint(start))
    except DeltaGivenError as error:
        order = "revert TARGET DELTA …" if request.reverse else "apply BASE DELTA …"
        error.hint = f"the order of arguments is: sparsedelta {order} -o OUT"
        raise
    history = History(open_all(deltas, stack), reverse=request.reverse)
    here = Whereabouts(checkpoint, pool, request.ranks)
    way = _way(history, request, here)
    report = None
    skipped = 0
    if len(way) > 1:
        # Known beforehand at no cost, it spares a pass that would find out that it was the wrong
        # one; nothing is taken for verified.
        skipped = _links_before(history, way, here.remembered(use=request.cache))
    try:
        report = _follow_way(way[skipped:], here, locked, request, is_ended=is_ended)
    except WrongBaseError:
        again = _links_before(history, way, here.fingerprint) if len(way) > 1 else 0
        if again == skipped or again == len(way):
            raise
        skipped = again
        report = _follow_way(way[skipped:], here, locked, request, is_ended=is_ended)
    return replace(
        report,
        skipped=tuple(str(reader.path) for reader in way[:skipped]) + tuple(report.skipped),
        duplicates=tuple(duplicate.path for duplicate in history.duplicates),
    )


def _way(history: History, request: Request, here: Whereabouts) -> Sequence[DeltaReader]:
    """The deltas on the way, in the order in which they are followed."""
    try:
        way = request.way(history)
    except StartNeededError:
        if here.fingerprint not in history.nodes:
            raise WrongBaseError(
                f"{here.checkpoint.location} has the fingerprint {short(here.fingerprint)}: none "
                "of the deltas starts from it or leads to it (SD501)",
                hint="sparsedelta log DELTAS draws where they lead",
            ) from None
        way = request.way(history, here.fingerprint)
    if not way:
        assert request.to is not None  # noqa: S101 (a chain has a delta)
        node = history.find(request.to)
        way = [reader for reader in history.readers if history.end(reader) == node][:1]
        if not way:
            raise UsageError(
                f"no delta leads to {short(node)}: it is where they start",
                hint="sparsedelta revert leads back" if not request.reverse else None,
            )
    return way


def _links_before(history: History, way: Sequence[DeltaReader], fingerprint: str | None) -> int:
    """How many deltas of a way lead to the checkpoint at hand; 0 if it is at no link."""
    starts = [history.start(reader) for reader in way]
    return starts.index(fingerprint) if fingerprint in starts else 0


def _follow_way(
    way: Sequence[DeltaReader],
    here: Whereabouts,
    locked: LockedFiles | None,
    request: Request,
    *,
    is_ended: bool,
) -> ApplyReport:
    route = Route(way, reverse=request.reverse)
    _check_direction(route)
    if request.verify == "touched" and not route.touches:
        raise UsageError(
            f"{route.name} touches no tensor: nothing would be verified", hint="--verify full"
        )
    walk = Standpoint(here, route)
    checkpoint = walk.checkpoint
    written, undo = _Written(), Undo()
    try:
        walk.check_structure()
        files = walk.files(with_files=request.with_files)
        changed = any(
            reader.records or reader.manifest.attachments != Attachments()
            for reader in route.readers
        )
        # Of a run that has been ended just now the way back was written before it was broken off.
        with undoing(walk, replace(request, undo=None) if is_ended else request) as undo:
            if locked is None:
                written = _write(walk, walk.step, files, request, undo.way_back)
            else:
                _change(walk, locked, files, request, undo.way_back)()
    except (DiffersError, WrongBaseError) as error:
        # Before it is called wrong: is it already where the deltas lead?
        insist_on_result(walk, request.verify if locked is not None else "full", error)
        files, undo = same_files(checkpoint), Undo()
        changed = is_ended
        if locked is None:
            try:
                copy = Step.copy(route, checkpoint)
                written = _write(walk, copy, files, request)
            except DiffersError:
                raise changed_meanwhile(checkpoint) from None
    verified: Verify = "full" if locked is None and not changed else request.verify
    if (
        request.cache
        and not request.dry_run
        and request.ranks.rank == 0
        and (changed or (request.out and not route.lean))
    ):
        _remember(walk, files, request.out, verified)
    return ApplyReport(
        fingerprint=route.end,
        verified=verified,
        changed=changed,
        tensors=len(walk.touched) if changed else 0,
        nnz=route.nnz if changed else 0,
        nbytes=sum(stored.spec.nbytes for _, f in files.files for stored in f.tensors),
        files=files.carried,
        unwritten=files.unwritten,
        left_behind=written.left_behind,
        kept=written.kept,
        discarded=written.discarded,
        deltas=tuple(str(reader.path) for reader in way) if changed else (),
        skipped=() if changed else tuple(str(reader.path) for reader in way),
        undo=str(undo.out) if changed and undo.out is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Written:
    """What is told of an output; the attributes are those of :class:`ApplyReport`."""

    left_behind: Sequence[str] = ()
    kept: Sequence[str] = ()
    discarded: bool = False


def _write(
    walk: Standpoint,
    step: Step,
    files: ResultFiles,
    request: Request,
    way_back: WayBack | None = None,
) -> _Written:
    checkpoint, out = walk.checkpoint, request.out
    if out is not None:
        inputs = (*checkpoint.paths, *walk.route.paths)
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
        way_back,
    )
    if out is None or not request.resume or not files.is_directory:
        return _Written(run(step, files))
    left_behind, stage = go_on(run, step, files, out)
    return _Written(left_behind, stage.kept, stage.discarded)


def _remember(walk: Standpoint, files: ResultFiles, out: Path | None, verified: Verify) -> None:
    """Record the digests of the files of a result, which have been synced."""
    leaves = walk.route.leaves(at_end=True)
    if verified == "touched":
        touched = walk.route.specs(at_end=True)
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


def _change(
    walk: Standpoint,
    locked: LockedFiles,
    files: ResultFiles,
    request: Request,
    way_back: WayBack | None,
) -> InPlace:
    return InPlace(
        walk,
        locked,
        files,
        walk.pool,
        request.verify,
        with_files=request.with_files,
        way_back=way_back,
        dry_run=request.dry_run,
        progress=request.progress,
    )


def _check_direction(route: Route) -> None:
    for reader in route.readers if route.reverse else ():
        refuse_one_way(reader, "does not lead back")
