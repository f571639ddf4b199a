"""``compose``: one delta of several that start at the same base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.manifest import Manifest
from sparsedelta.merging.overlap import Overlap, by_kind, total
from sparsedelta.operations.composed_delta import write_composed
from sparsedelta.operations.composition import Composition
from sparsedelta.operations.files_left_out import files_left_out, notes_of
from sparsedelta.operations.parts import DeltaOutput
from sparsedelta.operations.weighted import composing
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, first


@dataclass(frozen=True, slots=True)
class ComposeReport:
    """What a composition found and wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta, also of one that a dry run did not keep.
        parents: Names of the deltas that were put together, in the order of the matrices.
        weights: Their weights.
        overlaps: What they have in common, by tensor.
        files_left_out: Files that the deltas bring along and the result has not, by the delta's
            name: those of the base stand.
    """

    manifest: Manifest
    size: int
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    overlaps: Mapping[str, Overlap]
    files_left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return notes_of(self.files_left_out)

    @property
    def overlap(self) -> Overlap:
        """What the deltas have in common, in all tensors."""
        return total(self.overlaps.values(), len(self.parents))

    @property
    def kinds(self) -> dict[str, Overlap]:
        """What they have in common, by kind of module."""
        return by_kind(self.overlaps)


def compose(
    base: LocationLike | CheckpointReader,
    deltas: Sequence[LocationLike | DeltaReader],
    out: LocationLike,
    *,
    weights: Sequence[float] | None = None,
    method: str = "sum",
    parameters: Mapping[str, object] | None = None,
    seed: int = 0,
    fp8_arithmetic: bool = False,
    lean: bool = False,
    max_shard_size: int | None = None,
    shards: int | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> ComposeReport:
    """Write one delta of several that start at the same base.

    With ``sum`` the result depends on the deltas and their weights alone: neither on their order
    nor on how they are encoded. Where one delta of weight 1 alone changes an element, that element
    becomes what the delta makes of it, bit for bit; elsewhere numbers are added, see
    :mod:`sparsedelta.merging.summing`.
    Only those tensors of the base are read that a delta touches.

    Args:
        base: The base of all deltas.
        deltas: The deltas.
        out: The delta to write.
        weights: A weight per delta; None: 1 each. One of weight 0 is left out.
        method: How they are put together: ``sum``, or another of docs/composing.md.
        parameters: Parameters of the method, such as ``density``: a number, or one per delta.
        seed: What random methods draw from.
        fp8_arithmetic: Let ``sum`` compute with F8_E5M2 and F8_E4M3, too, but for tensors with a
            scale beside them.
        lean: Leave out the digests of the tensors that stay.
        max_shard_size: Write a set of part files of about this many bytes; None for one file.
        shards: Write a set of this many part files. By default the number of ranks.
        metadata: Provenance, string to string, beside what is recorded of the parents.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes were put together, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        UsageError: No delta is left, weights that are not finite, an unknown method or parameter.
        WrongBaseError: The deltas start at different bases, or not at this one.
        StructureError: They exclude each other: see docs/composing.md.
        NotFiniteError: A number that is met or made is not finite; names tensor and index.
        FormatError: A delta breaks a rule.
        CheckpointError: The base cannot be read.
        OutputError: The output exists, or cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    out = output_path(out)
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
        output = DeltaOutput(
            out,
            lean=lean,
            max_shard_size=max_shard_size,
            shards=shards,
            metadata=metadata or {},
            force=force,
            dry_run=dry_run,
        )
        return composed_delta(composition, output, pool=pool, progress=progress, ranks=ranks)


def composed_delta(
    composition: Composition,
    output: DeltaOutput,
    *,
    pool: OrderedMap,
    progress: Progress,
    ranks: Ranks,
) -> ComposeReport:
    """Write the delta from the base to what tasks make of it; see :func:`write_composed`."""
    first(
        ranks,
        lambda: check_output(output.out, force=output.force, inputs=composition.paths),
    )
    left_out = files_left_out(composition.base, composition.tasks)
    manifest, size, overlaps = write_composed(
        composition, output, pool=pool, progress=progress, ranks=ranks
    )
    return ComposeReport(
        manifest,
        size,
        tuple(task.name for task in composition.tasks),
        composition.weights,
        overlaps,
        left_out,
    )
