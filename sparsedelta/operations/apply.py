"""``apply`` and ``revert``: from one end of a delta to the other, verified bit for bit.

Here it is decided which checkpoint is at hand; the pass over it is in :mod:`steps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.attachments import Attachments
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta_reader import DeltaReader, open_delta
from sparsedelta.errors import (
    DeltaGivenError,
    NotInvertibleError,
    WrongBaseError,
)
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.operations.arrows import DiffersError
from sparsedelta.operations.result_files import ResultFiles, same_files
from sparsedelta.operations.standpoint import Standpoint, changed_meanwhile, refuse_part
from sparsedelta.operations.steps import Pass, Step
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, first


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What apply or revert did.

    Attributes:
        fingerprint: Fingerprint of the output, verified.
        changed: Whether there was something to do; False if the input already was the wanted
            checkpoint.
        tensors: Number of tensors that were changed.
        nnz: Number of entries that were applied.
        nbytes: Bytes of all tensors of the output.
        files: Names of the carried files that were written beside the weights.
        unwritten: Names of carried files that were not written, and why.
        left_behind: Files beside the weights that were not copied: other weights, or too large.
    """

    fingerprint: str
    changed: bool
    tensors: int
    nnz: int
    nbytes: int
    files: Sequence[str]
    unwritten: Mapping[str, str]
    left_behind: Sequence[str]


def apply(
    base: LocationLike,
    delta: LocationLike | DeltaReader,
    out: LocationLike,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    with_files: bool = True,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> ApplyReport:
    """Write the target of ``delta``: ``base`` with its changes, bit for bit.

    The output has the files that the delta records for its target, byte for byte; without such a
    record those of ``base``, as far as the tensors are the same. The small files beside the weights
    of ``base`` are copied, and those that the delta carries written. A checkpoint that already is
    the target is copied.

    Args:
        base: The checkpoint the delta starts from: a file, a directory or an index.
        delta: The delta.
        out: The new checkpoint: a file if ``base`` is one and the target is recorded as one, else a
            directory.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do and verify everything but a recorded SHA-256 of files; write nothing.
        with_files: Write the files that the delta carries, if the output is a directory.
        progress: Told how many bytes were done, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own. All of them call
            this alike; rank 0 makes the files and gives them their names.

    Raises:
        WrongBaseError: ``base`` is neither the base nor the target of the delta.
        VerificationError: The result is not the target: the delta lies about it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        OutputError: The output exists, or cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    return _transform(
        base,
        delta,
        out,
        reverse=False,
        threads=threads,
        force=force,
        dry_run=dry_run,
        with_files=with_files,
        progress=progress,
        ranks=ranks,
    )


def revert(
    target: LocationLike,
    delta: LocationLike | DeltaReader,
    out: LocationLike,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    with_files: bool = True,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> ApplyReport:
    """Write the base of ``delta``: ``target`` with its changes undone, bit for bit.

    Arguments and errors are those of :func:`apply`, with the ends exchanged.

    Raises:
        NotInvertibleError: The delta was written one-way.
    """
    return _transform(
        target,
        delta,
        out,
        reverse=True,
        threads=threads,
        force=force,
        dry_run=dry_run,
        with_files=with_files,
        progress=progress,
        ranks=ranks,
    )


def prove(
    base: LocationLike,
    delta: LocationLike | DeltaReader,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> ApplyReport:
    """Prove that applying ``delta`` to ``base`` gives its target, without writing anything.

    Arguments and errors are those of :func:`apply`.
    """
    return _transform(
        base,
        delta,
        None,
        reverse=False,
        threads=threads,
        force=False,
        dry_run=True,
        with_files=True,
        progress=progress,
        ranks=ALONE,
    )


def _transform(
    source: LocationLike,
    delta: LocationLike | DeltaReader,
    out: LocationLike | None,
    *,
    reverse: bool,
    threads: int | None,
    force: bool,
    dry_run: bool,
    with_files: bool,
    progress: Progress,
    ranks: Ranks,
) -> ApplyReport:
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        # The checkpoint first: exchanged arguments are then told as such.
        try:
            checkpoint = stack.enter_context(FileCheckpoint(source))
        except DeltaGivenError as error:
            order = "revert TARGET DELTA" if reverse else "apply BASE DELTA"
            error.hint = f"the order of arguments is: sparsedelta {order} -o OUT"
            raise
        reader = open_delta(delta)
        if reader is not delta:
            stack.enter_context(reader)
        _check_direction(reader, reverse=reverse)
        pool = stack.enter_context(OrderedMap(threads))
        walk = Standpoint(checkpoint, reader, pool, reverse=reverse, ranks=ranks)
        out = None if out is None else output_path(out)
        try:
            walk.check_structure()
            files = walk.files(with_files=with_files)
            first(ranks, lambda: _check_out(out, checkpoint, reader, files, force=force))
            changed = bool(reader.records) or reader.manifest.attachments != Attachments()
            run = Pass(checkpoint, None if dry_run else out, pool, progress, force, ranks)
            left_behind = run(walk.step, files)
        except (DiffersError, WrongBaseError) as error:
            # Before it is called wrong: is it already where the delta leads?
            walk.insist_on_result(error)
            files = same_files(checkpoint)
            first(ranks, lambda: _check_out(out, checkpoint, reader, files, force=force))
            changed = False
            run = Pass(checkpoint, None if dry_run else out, pool, progress, force, ranks)
            try:
                left_behind = run(Step.copy(reader, checkpoint, reverse=reverse), files)
            except DiffersError:
                raise changed_meanwhile(checkpoint) from None
        manifest = reader.manifest
        return ApplyReport(
            fingerprint=manifest.base if reverse else manifest.target,
            changed=changed,
            tensors=len(manifest.tensors) if changed else 0,
            nnz=manifest.nnz if changed else 0,
            nbytes=sum(stored.spec.nbytes for _, f in files.files for stored in f.tensors),
            files=files.carried,
            unwritten=files.unwritten,
            left_behind=left_behind,
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


def _check_out(
    out: Path | None,
    checkpoint: FileCheckpoint,
    reader: DeltaReader,
    files: ResultFiles,
    *,
    force: bool,
) -> None:
    if out is not None:
        inputs = (*checkpoint.paths, *reader.paths)
        check_output(out, force=force, inputs=inputs, directory=files.is_directory)
