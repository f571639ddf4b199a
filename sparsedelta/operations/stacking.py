"""``apply_stack``: several deltas of one base, written as the checkpoint that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UsageError
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.operations.composed_checkpoint import ComposedReport, write_checkpoint
from sparsedelta.operations.weighted import composing
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks


def apply_stack(
    base: LocationLike,
    deltas: Sequence[LocationLike | DeltaReader],
    out: LocationLike | None,
    *,
    weights: Sequence[float] | None = None,
    method: str = "sum",
    parameters: Mapping[str, object] | None = None,
    seed: int = 0,
    fp8_arithmetic: bool = False,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> ComposedReport:
    """Write what several deltas make together of the base that they all start from.

    The words are those that :func:`sparsedelta.compose` and :func:`sparsedelta.apply` give. All
    tensors of the base are verified.

    Args:
        base: The base: a file, a directory or an index.
        deltas: The deltas, in any order.
        out: The new checkpoint: a file if ``base`` is one, else a directory. None: dry runs only.
        weights: A weight per delta; None: 1 each.
        method: See :func:`sparsedelta.compose`.
        parameters: See there.
        seed: See there.
        fp8_arithmetic: See there.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do and verify everything; write nothing.
        progress: Told how many bytes were done, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        UsageError: No output, no delta, weights that are not finite, an unknown method.
        WrongBaseError: The deltas start at different bases, or not at this one.
        StructureError: They exclude each other.
        NotFiniteError: A number that is met or made is not finite.
        FormatError: A delta breaks a rule.
        CheckpointError: The base cannot be read.
        OutputError: The output exists, or cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    if out is None and not dry_run:
        raise UsageError("an output is missing", hint="name it: -o OUT")
    path = None if out is None else output_path(out)
    with composing(
        base,
        deltas,
        weights,
        method=method,
        parameters=parameters,
        seed=seed,
        fp8_arithmetic=fp8_arithmetic,
        threads=threads,
        ranks=ranks,
    ) as (composition, pool):
        return write_checkpoint(
            composition,
            path,
            pool=pool,
            progress=progress,
            ranks=ranks,
            force=force,
            dry_run=dry_run,
        )
