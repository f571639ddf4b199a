"""Writing what tasks make together as a checkpoint: one pass, nothing else on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from sparsedelta.checkpoint import FileCheckpoint, check_unchanged, segments
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.companions import find_companions
from sparsedelta.digests import Digest, checkpoint_fingerprint, segment_digest, tensor_digest
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.merging.overlap import Overlap, by_kind, total
from sparsedelta.operations.composition import Composition, MergedRun
from sparsedelta.operations.files_left_out import files_left_out, notes_of
from sparsedelta.operations.moves import Move, MovedTensors
from sparsedelta.operations.pairing import Pair
from sparsedelta.operations.result_files import edited_files
from sparsedelta.outputs import check_output, output_errors, staged
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.ranks import Ranks, first, own, watched
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True)
class ComposedReport:
    """What tasks on one base were made into.

    Attributes:
        fingerprint: Fingerprint of the output.
        base: Fingerprint of the base.
        parents: Names of the tasks, in the order of the matrices of ``overlaps``.
        weights: Their weights.
        tensors: Number of tensors that are not the base's.
        nnz: Number of words of the base that were changed.
        nbytes: Bytes of all tensors of the output.
        overlaps: What the tasks have in common, by tensor.
        left_behind: Files beside the weights that were not copied: other weights, or too large.
        files_left_out: Files that the tasks bring along and the output has not, by the task's
            name: those of the base stand.
    """

    fingerprint: str
    base: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    tensors: int
    nnz: int
    nbytes: int
    overlaps: dict[str, Overlap]
    left_behind: Sequence[str]
    files_left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return notes_of(self.files_left_out)

    @property
    def overlap(self) -> Overlap:
        """What the tasks have in common, in all tensors."""
        return total(self.overlaps.values(), len(self.parents))

    @property
    def kinds(self) -> dict[str, Overlap]:
        """What they have in common, by kind of module."""
        return by_kind(self.overlaps)


@dataclass(slots=True)
class _Tensor:
    """What is known of a tensor when all of it has been written."""

    pair: Pair
    base: list[Digest] = field(default_factory=list)
    target: list[Digest] = field(default_factory=list)
    nnz: int = 0


def write_checkpoint(
    composition: Composition,
    out: Path | None,
    *,
    pool: OrderedMap,
    progress: Progress,
    ranks: Ranks,
    force: bool,
    dry_run: bool,
) -> ComposedReport:
    """Write what tasks make of a base, modelled on the files of the base.

    Args:
        composition: The tasks on their base.
        out: The output: a file if the base is one, else a directory; None: dry runs only.
        pool: Where runs are made, many at a time.
        progress: Told how many bytes were done, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.

    Raises:
        WrongBaseError: The base is not the tasks'.
        StructureError: The tasks exclude each other.
        NotFiniteError: A number that is met or made is not finite.
        OutputError: The output cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    base = composition.base
    if not isinstance(base, FileCheckpoint):
        raise UsageError(f"{base.location} has no files that an output could be modelled on")
    if out is not None:
        wanted, is_directory = out, base.is_directory
        first(
            ranks,
            lambda: check_output(
                wanted, force=force, inputs=composition.paths, directory=is_directory
            ),
        )
    if dry_run:
        out = None
    left_out = files_left_out(base, composition.tasks)
    results = composition.results
    files = edited_files(base, results)
    companions = find_companions(base)
    with ExitStack() as stack:
        writer = None
        if out is not None and ranks.rank == 0:
            work = stack.enter_context(staged(out, directory=files.is_directory, force=force))
            writer = CheckpointWriter(files.files, work, is_directory=files.is_directory)
            ranks.share(work.absolute())
        elif out is not None:
            stack.enter_context(output_errors(out))
            work = ranks.share(None)
            writer = CheckpointWriter(
                files.files, work, is_directory=files.is_directory, create=False
            )
        if writer is not None:
            stack.callback(writer.close)
        made = _write(composition, writer, pool, watched(ranks, progress), ranks)
        check_unchanged(base)
        if writer is not None and ranks.rank:
            writer.sync()
        every = ranks.share([tensor for found in ranks.gather(made) for tensor in found])
        found = _fingerprint(every, target=False)
        if composition.fingerprint not in (None, found):
            raise _wrong_base(composition, every, found)
        if writer is not None and ranks.rank == 0:
            writer.copy_companions(base.root, files.companions(companions))
            writer.write_files(files.contents)
    ranks.share(None)  # the output has its name
    seen = [each for own in ranks.gather(composition.overlaps) for each in own.items()]
    return ComposedReport(
        _fingerprint(every, target=True),
        _fingerprint(every, target=False),
        tuple(task.name for task in composition.tasks),
        composition.weights,
        sum(t.pair.base != t.pair.target or t.base != t.target for t in every),
        sum(tensor.nnz for tensor in every),
        sum(spec.nbytes for spec, _ in results.values()),
        dict(sorted(ranks.share(seen))),
        companions.left_behind,
        left_out,
    )


def _write(
    composition: Composition,
    writer: CheckpointWriter | None,
    pool: OrderedMap,
    progress: Progress,
    ranks: Ranks,
) -> list[_Tensor]:
    pairs = composition.pairs
    sizes = [_nbytes(pair) for pair, _ in pairs]
    mine = [pairs[n] for n in own(ranks, sizes)]
    whole, done = sum(_nbytes(pair) for pair, _ in mine), 0
    alone = OrderedMap(1)

    def small(item: tuple[Pair, Move | None]) -> _Tensor:
        return _take(composition, writer, item, alone)

    def each() -> Iterator[_Tensor]:
        for is_small, group in groupby(mine, key=lambda item: _is_small(item[0])):
            if is_small:
                with pool.mapped(small, group) as found:
                    yield from found
            else:
                for item in group:
                    yield _take(composition, writer, item, pool)

    made = []
    for tensor in each():
        made.append(tensor)
        done += _nbytes(tensor.pair)
        progress(done, whole)
    return made


def _nbytes(pair: Pair) -> int:
    return sum(spec.nbytes for spec in (pair.base, pair.target) if spec is not None)


def _is_small(pair: Pair) -> bool:
    return all(s is None or s.words <= SEGMENT_WORDS for s in (pair.base, pair.target))


def _take(
    composition: Composition,
    writer: CheckpointWriter | None,
    item: tuple[Pair, Move | None],
    pool: OrderedMap,
) -> _Tensor:
    pair, move = item
    tensor = _Tensor(pair)
    if move is not None:
        _move(composition, writer, tensor, move, pool)
        return tensor
    spec = pair.base
    assert spec is not None  # noqa: S101 (what does not move is in the base)

    def work(run: MergedRun) -> tuple[list[Digest], list[Digest], int]:
        if writer is not None:
            writer.write(spec.name, run.start, run.new.view(np.uint8))
        if run.new is run.old:
            return run.segments, run.segments, 0
        parts = (run.new[at : at + SEGMENT_WORDS] for at in range(0, run.new.size, SEGMENT_WORDS))
        after = [segment_digest(part.view(np.uint8).data) for part in parts]
        return run.segments, after, int(np.count_nonzero(run.new != run.old))

    for before, after, nnz in composition.merged(spec, pool, work):
        tensor.base += before
        tensor.target += after
        tensor.nnz += nnz
    return tensor


def _move(
    composition: Composition,
    writer: CheckpointWriter | None,
    tensor: _Tensor,
    move: Move,
    pool: OrderedMap,
) -> None:
    def digest(run: tuple[TensorSpec, bool, int, int]) -> Digest:
        spec, is_target, start, stop = run
        data = (target if is_target else composition.base).read(spec.name, start, stop)
        if is_target and writer is not None:
            writer.write(spec.name, start, data)
        return segment_digest(data.data)

    target = MovedTensors(composition.base, [move])
    for spec, digests, is_target in (
        (tensor.pair.base, tensor.base, False),
        (tensor.pair.target, tensor.target, True),
    ):
        if spec is not None:
            runs = ((spec, is_target, *run) for run in segments(spec))
            with pool.mapped(digest, runs) as made:
                digests.extend(made)
    move.check(tensor.base if tensor.pair.base is not None else None, tensor.target)


def _fingerprint(tensors: Sequence[_Tensor], *, target: bool) -> str:
    leaves = {}
    for tensor in tensors:
        spec = tensor.pair.target if target else tensor.pair.base
        if spec is not None:
            leaves[spec.name] = tensor_digest(spec, tensor.target if target else tensor.base)
    return checkpoint_fingerprint(leaves).hex()


def _wrong_base(composition: Composition, tensors: Sequence[_Tensor], found: str) -> WrongBaseError:
    names = (
        tensor.pair.base.name
        for tensor in tensors
        if tensor.pair.base is not None
        and composition.leaves.get(tensor.pair.base.name)
        not in (None, tensor_digest(tensor.pair.base, tensor.base))
    )
    first = next(names, None)
    which = "" if first is None else f"; the first tensor that differs is {first!r}"
    return WrongBaseError(
        f"{composition.base.location} is not the base of {composition.tasks[0].name} (SD501): its "
        f"fingerprint is {found}, expected {composition.fingerprint}{which}"
    )
