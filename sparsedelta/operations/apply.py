"""``apply`` and ``revert``: from one end of a delta to the other, verified bit for bit.

Here it is decided which checkpoint is at hand; the pass over it is in :mod:`steps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.container import DeltaReader, open_delta
from sparsedelta.digests import Digest
from sparsedelta.errors import (
    CheckpointError,
    DeltaGivenError,
    NotInvertibleError,
    WrongBaseError,
)
from sparsedelta.files import check_output
from sparsedelta.operations.identity import tensor_digests
from sparsedelta.operations.steps import DiffersError, Pass, Step
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent

_NAMED_TENSORS: Final = 3
"""How many differing tensors an error names."""


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What apply or revert did.

    Attributes:
        fingerprint: Fingerprint of the output, verified.
        changed: Whether a word was changed; False if the input already was the wanted checkpoint.
        tensors: Number of tensors that were changed.
        nnz: Number of entries that were applied.
        nbytes: Bytes of all tensors of the output.
        left_behind: Files beside the weights that were not copied: other weights, or too large.
    """

    fingerprint: str
    changed: bool
    tensors: int
    nnz: int
    nbytes: int
    left_behind: Sequence[str]


def apply(
    base: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> ApplyReport:
    """Write the target of ``delta``: ``base`` with its changes, bit for bit.

    The output has the files, headers and tensor order of ``base``, and the small files beside its
    weights. A checkpoint that already is the target is copied.

    Args:
        base: The checkpoint the delta starts from: a file, a directory or an index.
        delta: The delta.
        out: The new checkpoint: a file if ``base`` is one, else a directory.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do and verify everything, write nothing.
        progress: Told how many bytes were done, and of how many.

    Raises:
        WrongBaseError: ``base`` is neither the base nor the target of the delta.
        VerificationError: The result is not the target: the delta lies about it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        OutputError: The output exists, or cannot be written.
    """
    return _transform(
        base,
        delta,
        out,
        reverse=False,
        threads=threads,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )


def revert(
    target: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
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
        progress=progress,
    )


def prove(
    base: str | Path,
    delta: str | Path | DeltaReader,
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
        progress=progress,
    )


def _transform(
    source: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path | None,
    *,
    reverse: bool,
    threads: int | None,
    force: bool,
    dry_run: bool,
    progress: Progress,
) -> ApplyReport:
    with ExitStack() as stack:
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
        if reverse and not reader.manifest.invertible:
            raise NotInvertibleError(
                f"{reader.path} was written one-way: it holds no old words",
                hint="make it again without --one-way: sparsedelta diff BASE TARGET -o DELTA",
            )
        if out is not None:
            out = Path(out)
            check_output(
                out,
                force=force,
                inputs=(*checkpoint.paths, reader.path),
                directory=checkpoint.is_directory,
            )
            out = None if dry_run else out
        _check_structure(checkpoint, reader, reverse=reverse)
        pool = stack.enter_context(OrderedMap(threads))
        step = Step.of(reader, reverse=reverse)
        changed = bool(reader.records)
        run = Pass(checkpoint, out, pool, progress, force)
        try:
            left_behind = run(step)
        except DiffersError:
            # Before it is called wrong: is it already where the delta leads?
            found = tensor_digests(checkpoint, pool=pool)
            if found == step.source_leaves:
                raise CheckpointError(
                    f"{checkpoint.location} changed while it was being read"
                ) from None
            if found != step.result_leaves:
                raise _wrong_base(checkpoint, reader, found, step) from None
            changed = False
            try:
                left_behind = run(Step.copy(reader, step))
            except DiffersError:
                raise CheckpointError(
                    f"{checkpoint.location} changed while it was being read"
                ) from None
        manifest = reader.manifest
        return ApplyReport(
            fingerprint=manifest.base if reverse else manifest.target,
            changed=changed,
            tensors=len(manifest.tensors) if changed else 0,
            nnz=manifest.nnz if changed else 0,
            nbytes=sum(spec.nbytes for spec in checkpoint.specs.values()),
            left_behind=left_behind,
        )


def _check_structure(checkpoint: FileCheckpoint, reader: DeltaReader, *, reverse: bool) -> None:
    end = "target" if reverse else "base"
    leaves = {record.spec.name for record in reader.manifest.tensors}
    leaves.update(reader.manifest.untouched)
    missing = sorted(leaves - checkpoint.specs.keys())
    added = sorted(checkpoint.specs.keys() - leaves)
    hint = _identity_hint(checkpoint, reader)
    if missing or added:
        raise WrongBaseError(
            f"{checkpoint.location} is not the {end} of {reader.path} (SD501): "
            f"{_listed('missing', missing)}{'; ' if missing and added else ''}"
            f"{_listed('not in the delta', added)}",
            hint=hint,
        )
    for record in reader.manifest.tensors:
        found = checkpoint.specs[record.spec.name]
        if found != record.spec:
            raise WrongBaseError(
                f"{checkpoint.location} is not the {end} of {reader.path} (SD501): tensor "
                f"{record.spec.name!r} is {found}, expected {record.spec}",
                hint=hint,
            )


def _wrong_base(
    checkpoint: FileCheckpoint,
    reader: DeltaReader,
    found: Mapping[str, Digest],
    step: Step,
) -> WrongBaseError:
    end = "target" if step.reverse else "base"
    expected = reader.manifest.target if step.reverse else reader.manifest.base
    differing = [name for name in found if found[name] != step.source_leaves[name]]
    return WrongBaseError(
        f"{checkpoint.location} is not the {end} of {reader.path} (SD501): expected fingerprint "
        f"{expected[:16]}…; {len(differing)} of {len(found)} tensors differ, the first is "
        f"{differing[0]!r}: expected digest {step.source_leaves[differing[0]].hex()[:16]}…, found "
        f"{found[differing[0]].hex()[:16]}…",
        hint=_identity_hint(checkpoint, reader),
    )


def _identity_hint(checkpoint: FileCheckpoint, reader: DeltaReader) -> str:
    metadata = reader.header.metadata
    repo = metadata.get("sd.base_repo")
    origin = f" (made from {repo}@{metadata.get('sd.base_revision', 'main')})" if repo else ""
    return (
        f"compare: sparsedelta info {reader.path}{origin}, and sparsedelta fingerprint "
        f"{checkpoint.location}"
    )


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(repr(name) for name in names[:_NAMED_TENSORS])
    return f"{len(names)} tensors {kind}: {shown}{', …' if len(names) > _NAMED_TENSORS else ''}"
