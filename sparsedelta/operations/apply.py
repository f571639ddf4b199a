"""``apply`` and ``revert``: from one end of a delta to the other, verified bit for bit.

How they are carried out is in :mod:`following`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from sparsedelta.checkpoint import local_paths
from sparsedelta.errors import UsageError
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.operations.as_portable import portable
from sparsedelta.operations.following import ApplyReport, transform
from sparsedelta.operations.history import DeltaLike, History, open_all
from sparsedelta.operations.request import Request
from sparsedelta.operations.steps import Verify
from sparsedelta.outputs import refuse_overlap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks


def apply(
    base: LocationLike,
    delta: DeltaLike | Sequence[DeltaLike],
    out: LocationLike | None = None,
    *,
    in_place: bool = False,
    verify: Verify = "full",
    resume: bool = False,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    with_files: bool = True,
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
    to: str | None = None,
    stream: bool = False,
    undo: LocationLike | None = None,
) -> ApplyReport:
    """Write the target of ``delta``: ``base`` with its changes, bit for bit.

    Several deltas are a chain, whatever their order: each leads to where another starts, and all of
    them are followed in one pass over ``base``. A base that is at a link of the chain already is
    followed from there. Deltas that are no chain are refused: nothing is guessed into a sum.

    The output has the files that the delta records for its target, byte for byte; without such a
    record those of ``base``, as far as the tensors are the same. The small files beside the weights
    of ``base`` are copied, and those that the delta carries written. A checkpoint that already is
    the target is copied.

    In place ``base`` itself becomes the target, through a journal: whatever interrupts it, the next
    call undoes it or, with ``resume``, ends it. A checkpoint that already is the target is left
    alone.

    Args:
        base: The checkpoint the delta starts from: a file, a directory or an index.
        delta: The delta, or those of a chain, in any order; of several with the same content digest
            one is followed.
        out: The new checkpoint: a file if ``base`` is one and the target is recorded as one, else a
            directory. None: in place.
        in_place: Change the files of ``base``; the result must have files of their names and sizes.
        verify: ``"full"``: every tensor and the fingerprint, before and after. ``"touched"``: the
            tensors that the delta names; the others are copied as they are, or left alone.
        resume: Go on with a run that was interrupted: in place, end it instead of undoing it; into
            a directory, keep what is finished when this run is interrupted, and what the last one
            kept. That is verified, and removed if it is of other inputs.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do and verify everything but a recorded SHA-256 of files; write nothing.
        with_files: Write the files that the delta carries, if the output is a directory.
        progress: Told how many bytes were done, and of how many: by this rank.
        cache: Whether the digests of the result are recorded beside its files, for later runs that
            compare it: see :mod:`sparsedelta.digest_cache`. What is verified is always read.
        ranks: The processes that do this together, each with tensors of its own. All of them call
            this alike; rank 0 makes the files and gives them their names.
        to: Fingerprint of the checkpoint to lead to, or its first hex digits, where the deltas fork
            or the end of the chain is not meant.
        stream: Read what lies on the Hub by ranges, as other URLs are read, instead of bringing it
            into the client's cache first: nothing but the output is then on disk.
        undo: Also write the portable delta that leads from the result back to ``base``, whatever
            the profile of the deltas: afterwards only ``base`` itself could make it. It is written
            in the same pass where only words change, and is there before ``base`` is changed in
            place. It is not written if there is nothing to do.

    Raises:
        NotInvertibleError: With ``undo``: a delta does not lead back.
        WrongBaseError: ``base`` is neither the base nor the target of the delta.
        VerificationError: The result is not the target: the delta lies about it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        UnfinishedError: ``base`` is half changed, and cannot be put right.
        OutputError: The output exists, or cannot be written; ``base`` cannot be changed in place.
        UsageError: Neither or both of ``out`` and ``in_place``; nothing would be verified; the run
            to resume is another one; deltas that are no chain.
        RankError: Another rank failed; nothing is left behind.
    """
    _check_output_is_named(out, in_place=in_place)
    request = Request(
        reverse=False,
        threads=threads,
        progress=progress,
        out=None if out is None else output_path(out),
        in_place=in_place,
        to=to,
        verify=verify,
        resume=resume,
        force=force,
        dry_run=dry_run,
        with_files=with_files,
        cache=cache,
        ranks=ranks,
        stream=stream,
        undo=None if undo is None else output_path(undo),
    )
    return transform(base, _listed(delta), request)


def revert(
    target: LocationLike,
    delta: DeltaLike | Sequence[DeltaLike],
    out: LocationLike | None = None,
    *,
    in_place: bool = False,
    verify: Verify = "full",
    resume: bool = False,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    with_files: bool = True,
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
    to: str | None = None,
    stream: bool = False,
    base: LocationLike | None = None,
) -> ApplyReport:
    """Write the base of ``delta``: ``target`` with its changes undone, bit for bit.

    Arguments and errors are those of :func:`apply`, with the ends exchanged. A compact delta is
    read with its base, which is needed then, and only then: where the deltas start is ``base``.

    Raises:
        NotInvertibleError: The delta was written one-way; or it is compact, and ``base`` is None.
    """
    _check_output_is_named(out, in_place=in_place)
    request = Request(
        reverse=True,
        threads=threads,
        progress=progress,
        out=None if out is None else output_path(out),
        in_place=in_place,
        to=to,
        verify=verify,
        resume=resume,
        force=force,
        dry_run=dry_run,
        with_files=with_files,
        cache=cache,
        ranks=ranks,
        stream=stream,
    )
    if base is None:
        return transform(target, _listed(delta), request)
    with ExitStack() as stack:
        way = History(open_all(_listed(delta), stack)).chain()
        if request.out is not None:
            paths = (path for reader in way for path in reader.paths)
            refuse_overlap(request.out, (*paths, *local_paths(base)))
        folder = request.out.parent if request.out is not None else output_path(target).parent
        return transform(
            target,
            stack.enter_context(portable(way, base, folder, threads=threads, verb="revert")),
            request,
        )


def prove(
    base: LocationLike,
    delta: DeltaLike | Sequence[DeltaLike],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> ApplyReport:
    """Prove that applying ``delta`` to ``base`` gives its target, without writing anything.

    Arguments and errors are those of :func:`apply`.
    """
    request = Request(reverse=False, threads=threads, progress=progress, dry_run=True)
    return transform(base, _listed(delta), request)


def _listed(delta: DeltaLike | Sequence[DeltaLike]) -> Sequence[DeltaLike]:
    return delta if isinstance(delta, (list, tuple)) else [delta]  # type: ignore[list-item]


def _check_output_is_named(out: LocationLike | None, *, in_place: bool) -> None:
    if out is None and not in_place:
        raise UsageError("an output is missing", hint="name it: -o OUT; or --in-place")
