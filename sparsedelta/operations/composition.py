"""Several tasks on one base, put together: structure first, then the words, run by run.

Every run of a tensor of the base is verified before a task's entries are decoded on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.errors import NotFiniteError, WrongBaseError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.merging.aligned import Aligned, align, joined
from sparsedelta.merging.outcome import Outcome, TensorMethod
from sparsedelta.merging.overlap import Overlap, overlap_of
from sparsedelta.operations.moves import Move
from sparsedelta.operations.pairing import Pair
from sparsedelta.operations.tasks import Task
from sparsedelta.parallel import OrderedMap
from sparsedelta.rounding import FLOATS, is_finite, to_float64
from sparsedelta.words import Indices, TensorSpec, Words, as_words

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, eq=False)
class MergedRun:
    """A run of words of a tensor, before and after.

    Attributes:
        start: First word.
        old: Words of the base.
        new: Words of the result; the same array where nothing has changed.
        segments: Segment digests of the base.
    """

    start: int
    old: Words
    new: Words
    segments: list[Digest]


class _Read(NamedTuple):
    """A run of the base, verified."""

    start: int
    words: Words
    segments: list[Digest]


class Composition:
    """Tasks on one base, and the words that they make together.

    Args:
        base: The base.
        tasks: The tasks.
        method: Gives the method for each tensor.
        moves: What becomes of tensors that come, go or get another name or shape.
        leaves: Tensor digests of the base, as far as they are known without reading it.
        fingerprint: Fingerprint of the base, if it is known.
        weights: Weight of each task, to be told.
        provenance: What is recorded of all this.

    Attributes:
        overlaps: What the tasks have in common, by tensor, as far as it has been seen.
    """

    def __init__(
        self,
        base: CheckpointReader,
        tasks: Sequence[Task],
        method: Callable[[TensorSpec], TensorMethod],
        *,
        moves: Sequence[Move] = (),
        leaves: Mapping[str, Digest] = MappingProxyType({}),
        fingerprint: str | None = None,
        weights: Sequence[float] = (),
        provenance: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.base = base
        self.tasks = tasks
        self.moves = moves
        self.leaves = leaves
        self.fingerprint = fingerprint
        self.weights = tuple(weights)
        self.provenance = provenance
        self.overlaps: dict[str, Overlap] = {}
        self._method = method

    @property
    def paths(self) -> tuple[Path, ...]:
        """All local files that are read."""
        return (*self.base.paths, *(path for task in self.tasks for path in task.paths))

    @property
    def results(self) -> dict[str, tuple[TensorSpec, str | None]]:
        """Every tensor of the result, and the name of the one that it takes the place of."""
        gone = {move.record.base.name for move in self.moves if move.record.base is not None}
        stay = {name: (spec, name) for name, spec in self.base.specs.items() if name not in gone}
        made = {
            move.record.target.name: (move.record.target, move.source)
            for move in self.moves
            if move.record.target is not None
        }
        return {**stay, **made}

    @property
    def pairs(self) -> list[tuple[Pair, Move | None]]:
        """What becomes of every tensor, ascending by name."""
        gone = {move.record.base.name for move in self.moves if move.record.base is not None}
        stay = [(Pair(s, s), None) for name, s in self.base.specs.items() if name not in gone]
        moved = [(move.pair, move) for move in self.moves]
        return sorted([*stay, *moved], key=lambda item: item[0].name)

    def changes(self, spec: TensorSpec) -> bool:
        """Whether words of a tensor of the base may change."""
        if any(task.changes(spec) for task in self.tasks):
            return True
        return spec.dtype in FLOATS and self._method(spec).moves_all

    def merged(
        self, spec: TensorSpec, pool: OrderedMap, work: Callable[[MergedRun], _Result]
    ) -> Iterator[_Result]:
        """Go through a tensor of the base, run by run.

        Args:
            spec: The tensor.
            pool: Where runs are read, verified and put together, many at a time.
            work: What to do with each; called in any thread.

        Yields:
            What ``work`` returns, in the order of the runs.

        Raises:
            WrongBaseError: The base is not the tasks'.
            NotFiniteError: A number that is met or made is not finite.
            StructureError: Tasks exclude each other.
        """
        method = self._method(spec)
        known = [(t, found) for t in self.tasks if (found := t.segments(spec)) is not None]
        size = max((SEGMENT_WORDS, *(task.span(spec) for task in self.tasks)))
        starts = range(0, spec.words, size)

        def read(start: int) -> _Read:
            stop = min(start + size, spec.words)
            words = as_words(self.base.read(spec.name, start, stop), spec.word_bytes)
            return _Read(start, words, self._verified(spec, start, words, known))

        def keep(start: int) -> _Result:
            own = read(start)
            return work(MergedRun(start, own.words, own.words, own.segments))

        def take(start: int) -> tuple[_Result, Overlap]:
            own = read(start)
            aligned = self._aligned(spec, own)
            run = _changed(spec, own, aligned.indices - start, method(aligned, 0.0))
            return work(run), overlap_of(aligned)

        if not self.changes(spec):
            with pool.mapped(keep, starts) as kept:
                yield from kept
        elif method.is_whole:
            yield from self._whole(spec, method, (read, starts), pool, work)
        else:
            with pool.mapped(take, starts) as taken:
                for result, overlap in taken:
                    self._see(spec, overlap)
                    yield result

    def _whole(
        self,
        spec: TensorSpec,
        method: TensorMethod,
        reading: tuple[Callable[[int], _Read], range],
        pool: OrderedMap,
        work: Callable[[MergedRun], _Result],
    ) -> Iterator[_Result]:
        """The same, for a method that has to see all entries: the base is read twice."""
        read, starts = reading

        def gather(start: int) -> tuple[Aligned, Overlap, float]:
            own = read(start)
            aligned = self._aligned(spec, own)
            square = _square(spec, own) if method.needs_norm else 0.0
            return aligned, overlap_of(aligned), square

        with pool.mapped(gather, starts) as gathered:
            runs = list(gathered)
        for _, overlap, _ in runs:
            self._see(spec, overlap)
        whole = joined([aligned for aligned, _, _ in runs])
        outcome = method(whole, sum(square for _, _, square in runs))

        def finish(start: int) -> _Result:
            own = read(start)
            low, high = np.searchsorted(whole.indices, [start, start + own.words.size])
            made = Outcome(outcome.words[low:high], outcome.elsewhere)
            return work(_changed(spec, own, whole.indices[low:high] - start, made))

        with pool.mapped(finish, starts) as finished:
            yield from finished

    def _verified(
        self,
        spec: TensorSpec,
        start: int,
        old: Words,
        known: Sequence[tuple[Task, tuple[Digest, ...]]],
    ) -> list[Digest]:
        digests = [
            segment_digest(old[at : at + SEGMENT_WORDS].view(np.uint8).data)
            for at in range(0, old.size, SEGMENT_WORDS)
        ]
        first = start // SEGMENT_WORDS
        for task, segments in known:
            if list(segments[first : first + len(digests)]) != digests:
                raise WrongBaseError(
                    f"{self.base.location} is not the base of {task.name} (SD501): tensor "
                    f"{spec.name!r} differs there",
                    hint=f"compare: sparsedelta info {task.name}, and sparsedelta fingerprint "
                    f"{self.base.location}",
                )
        return digests

    def _see(self, spec: TensorSpec, overlap: Overlap) -> None:
        before = self.overlaps.get(spec.name)
        self.overlaps[spec.name] = overlap if before is None else before + overlap

    def _aligned(self, spec: TensorSpec, run: _Read) -> Aligned:
        found = [task.entries(spec, run.start, run.words) for task in self.tasks]
        return align(spec, run.start, run.words, found)


def _changed(spec: TensorSpec, read: _Read, at: Indices, outcome: Outcome) -> MergedRun:
    """A run in which the words of some elements are others."""
    old = new = read.words
    if outcome.elsewhere is not None:
        new = outcome.elsewhere(old)
    elif at.size:
        new = old.copy()
    if at.size:
        new[at] = outcome.words
    if outcome.elsewhere is not None:
        _insist_finite(spec, read.start, new)
    return MergedRun(read.start, old, new, read.segments)


def _square(spec: TensorSpec, read: _Read) -> float:
    """Sum of the squares of the base in a run."""
    if spec.dtype not in FLOATS:
        return 0.0
    _insist_finite(spec, read.start, read.words)
    numbers = to_float64(read.words, spec.dtype)
    with np.errstate(over="ignore"):
        return float((numbers * numbers).sum())


def _insist_finite(spec: TensorSpec, start: int, words: Words) -> None:
    """Insist on numbers, where those of a whole tensor are computed with."""
    finite = is_finite(words, spec.dtype)
    if not finite.all():
        raise NotFiniteError(
            f"tensor {spec.name!r}, index {start + int(finite.argmin())}: a number that is met or "
            f"made is not finite in {spec.dtype} (SD505)",
            hint="this method computes with all of the tensor; sum only with what tasks change",
        )
