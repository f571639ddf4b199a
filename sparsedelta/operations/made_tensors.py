"""Tensors that deltas make of a checkpoint, one at a time, verified as they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Final, Literal, TypeAlias

import numpy as np

from sparsedelta.checkpoint import FileCheckpoint, check_unchanged, segment_digests, segments
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, checkpoint_fingerprint, segment_digest, tensor_digest
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.operations.arrows import DiffersError, ReadRun, follow, stays
from sparsedelta.operations.composition import Composition, MergedRun
from sparsedelta.operations.history import DeltaLike, History, open_all
from sparsedelta.operations.moves import MovedTensors
from sparsedelta.operations.result_files import result_files
from sparsedelta.operations.route import Route
from sparsedelta.operations.standpoint import Standpoint, Whereabouts
from sparsedelta.operations.weighted import compose_deltas
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Bytes, TensorSpec

Verify: TypeAlias = Literal["touched", "full"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What deltas are to make of a base; the attributes are arguments of ``load_state_dict``.

    Attributes:
        deltas: The deltas: a chain, or with ``weights`` several of one base.
        weights: Their weights, or None.
        method: How those of one base are put together.
        parameters: Parameters of the method.
        seed: What random methods draw from.
        verify: Whether all tensors of the base are verified, or those that are touched.
    """

    deltas: Sequence[DeltaLike]
    weights: Sequence[float] | None = None
    method: str = "sum"
    parameters: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    verify: Verify = "full"

    def __post_init__(self) -> None:
        if isinstance(self.deltas, str | bytes) or not isinstance(self.deltas, Sequence):
            raise UsageError(f"deltas is {self.deltas!r}, expected a list of deltas")
        if self.verify not in ("touched", "full"):
            raise UsageError(f"verify is {self.verify!r}, expected 'full' or 'touched'")
        if self.weights is None and (self.method != "sum" or self.parameters):
            raise UsageError(
                f"method is {self.method!r}, but a chain is not put together by any",
                hint="several deltas of one base: name their weights",
            )


class MadeTensors(ABC):
    """What deltas make of a checkpoint; implements ``CheckpointReader`` for whole tensors.

    Attributes:
        location: What to call it in messages.
        specs: Every tensor by name.
        paths: Local files that it is read from.
    """

    location = "what the deltas make of the base"

    def __init__(self, checkpoint: FileCheckpoint, pool: OrderedMap, *, verify: Verify) -> None:
        self.checkpoint = checkpoint
        self.specs: Mapping[str, TensorSpec] = {}
        self.paths = checkpoint.paths
        self._pool = pool
        self._is_full = verify == "full"
        self._leaves: dict[str, Digest] = {}
        self._one = Lock()

    def whole(self, name: str) -> Bytes:
        """Bytes of a tensor, in memory of their own; callable from any thread, one at a time.

        Raises:
            WrongBaseError: The base is not that of the deltas.
            VerificationError: A delta does not make of it what it promises.
            NotFiniteError: A number that is met or made is not finite.
            FormatError: A delta breaks a rule.
            CheckpointError: The base cannot be read.
        """
        with self._one:
            return self._whole(name)

    @abstractmethod
    def _whole(self, name: str) -> Bytes: ...

    def carried(self, names: Iterable[str]) -> dict[str, bytes | None]:  # noqa: ARG002
        """Those of some small files that the result has others of than the base; None: no more."""
        return {}

    def finish(self) -> None:
        """Verify what has not been read, as far as was asked for, and that nothing has changed.

        Raises:
            WrongBaseError: The base is not that of the deltas.
        """
        with self._one:
            self._finish()
            check_unchanged(self.checkpoint)

    @abstractmethod
    def _finish(self) -> None: ...

    def _digest(self, name: str) -> Digest:
        """Digest of a tensor of the base, from its words."""
        if name not in self._leaves:
            spec = self.checkpoint.specs[name]
            self._leaves[name] = tensor_digest(spec, segment_digests(self.checkpoint, name))
        return self._leaves[name]

    def _check_leaf(self, name: str, digest: Digest, expected: Digest | None, delta: str) -> None:
        self._leaves[name] = digest
        if expected not in (None, digest):
            raise self._wrong(delta, f"tensor {name!r} differs")

    def _check_all(
        self,
        known: Mapping[str, Digest],
        touched: Iterable[str],
        fingerprint: str | None,
        delta: str,
    ) -> None:
        """Every tensor of the base, those too that nobody has asked for; or those touched."""
        for name in self.checkpoint.specs if self._is_full else touched:
            self._check_leaf(name, self._digest(name), known.get(name), delta)
        if self._is_full:
            found = checkpoint_fingerprint(self._leaves).hex()
            if fingerprint not in (None, found):
                raise self._wrong(delta, f"its fingerprint is {found}, expected {fingerprint}")

    def _wrong(self, delta: str, message: str) -> WrongBaseError:
        return WrongBaseError(
            f"{self.checkpoint.location} is not the base of {delta} (SD501): {message}",
            hint=f"compare: sparsedelta info {delta}, and sparsedelta fingerprint "
            f"{self.checkpoint.location}",
        )


class Followed(MadeTensors):
    """What a chain leads to; of a checkpoint at an inner link, what the rest of it leads to."""

    def __init__(
        self,
        checkpoint: FileCheckpoint,
        readers: Sequence[DeltaReader],
        pool: OrderedMap,
        *,
        verify: Verify,
    ) -> None:
        super().__init__(checkpoint, pool, verify=verify)
        way = History(readers).chain()
        skipped = _links_before(checkpoint, way)
        self._is_there = skipped == len(way)
        self.route = route = Route(way[skipped:] or way[-1:], reverse=False)
        self.paths = (*checkpoint.paths, *route.paths)
        if self._is_there:
            self._expected = route.leaves(at_end=True)
            self._fingerprint = route.end
            self._arrows = {name: stays(spec) for name, spec in checkpoint.specs.items()}
        else:
            Standpoint(Whereabouts(checkpoint, pool), route).check_structure()
            self._expected = route.leaves(at_end=False)
            self._fingerprint = route.start
            gone = route.specs(at_end=False)
            self._arrows = {n: stays(s) for n, s in checkpoint.specs.items() if n not in gone}
            for arrow in route.arrows:
                if arrow.result is not None:
                    self._arrows[arrow.result.name] = arrow
        self.specs = {
            name: arrow.result for name, arrow in self._arrows.items() if arrow.result is not None
        }

    def _whole(self, name: str) -> Bytes:
        arrow, spec = self._arrows[name], self.specs[name]
        data = np.empty(spec.nbytes, np.uint8)
        width = spec.word_bytes

        def make(span: tuple[int, int]) -> list[Digest]:
            start, stop = span
            run = np.empty(0, np.uint8)
            if arrow.source is not None and start < arrow.source.words:
                last = min(stop, arrow.source.words)
                run = self.checkpoint.read(arrow.source.name, start, last)
            digests = _digests(run, width) if arrow.stays and self._is_full else []
            (made,) = follow([ReadRun(arrow, start, stop, run)])
            data[start * width : start * width + made.size] = made
            return digests

        try:
            with self._pool.mapped(make, arrow.spans()) as found:
                digests = [digest for each in found for digest in each]
        except DiffersError:
            assert arrow.source is not None  # noqa: S101 (only a source can differ)
            message = f"tensor {arrow.source.name!r} differs"
            raise self._wrong(self.route.name, message) from None
        if arrow.stays:
            if self._is_full:
                digest = tensor_digest(spec, digests)
                self._check_leaf(name, digest, self._expected.get(name), self.route.name)
        elif arrow.source is not None and arrow.is_leaf:
            self._leaves[arrow.source.name] = self._expected[arrow.source.name]
        return data

    def carried(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """What the deltas carry of them."""
        if self._is_there:
            return {}
        files = result_files(self.checkpoint, self.route, with_files=True)
        found: dict[str, bytes | None] = {}
        for name in names:
            if name in files.carried:
                found[name] = files.contents[name]
            elif name in files.dropped:
                found[name] = None
        return found

    def _finish(self) -> None:
        touched = [] if self._is_there else self.route.specs(at_end=False)
        self._check_all(self._expected, touched, self._fingerprint, self.route.name)


def _links_before(checkpoint: FileCheckpoint, way: Sequence[DeltaReader]) -> int:
    """How many deltas of a chain lead to the checkpoint, by what they touch; 0 if it is nowhere.

    It takes a glance at the first segments, and all of them only where that does not tell.
    """
    numbers = [n for n in range(len(way) + 1) if _is_at(checkpoint, way, n, most=1)]
    if len(numbers) > 1:
        numbers = [n for n in numbers if _is_at(checkpoint, way, n, most=None)]
    return numbers[0] if numbers else 0


def _is_at(
    checkpoint: FileCheckpoint, way: Sequence[DeltaReader], number: int, *, most: int | None
) -> bool:
    """Whether tensors are what they are behind so many deltas, by as many segments at most."""
    last = number == len(way)
    for arrow in Route(way[-1:] if last else way[number:], reverse=False).arrows:
        spec, digests = (arrow.result, arrow.after) if last else (arrow.source, arrow.before)
        if spec is None:
            continue
        if checkpoint.specs.get(spec.name) != spec:
            return False
        for run, digest in zip(islice(segments(spec), most), digests or (), strict=False):
            if segment_digest(checkpoint.read(spec.name, *run).data) != digest:
                return False
    return True


class Composed(MadeTensors):
    """What several deltas of one base make together."""

    def __init__(
        self,
        checkpoint: FileCheckpoint,
        composition: Composition,
        pool: OrderedMap,
        *,
        verify: Verify,
    ) -> None:
        super().__init__(checkpoint, pool, verify=verify)
        self._composition = composition
        self.paths = composition.paths
        self.specs = {name: spec for name, (spec, _) in composition.results.items()}
        self._moves = {m.record.target.name: m for m in composition.moves if m.record.target}
        self._delta = composition.tasks[0].name if composition.tasks else "the deltas"

    def _whole(self, name: str) -> Bytes:
        spec = self.specs[name]
        move = self._moves.get(name)
        if move is not None:
            moved = MovedTensors(self.checkpoint, [move])
            data = np.empty(spec.nbytes, np.uint8)
            digests = []
            for start, stop in segments(spec):
                run = moved.read(name, start, stop)
                data[start * spec.word_bytes : stop * spec.word_bytes] = run
                digests.append(segment_digest(run.data))
            base = move.record.base
            before = None if base is None else list(segment_digests(self.checkpoint, base.name))
            move.check(before, digests)
            return data
        words = np.empty(spec.words, spec.word_dtype)

        def keep(run: MergedRun) -> list[Digest]:
            words[run.start : run.start + run.new.size] = run.new
            return run.segments

        found = [d for digests in self._composition.merged(spec, self._pool, keep) for d in digests]
        if self._is_full or self._composition.changes(spec):
            expected = self._composition.leaves.get(name)
            self._check_leaf(name, tensor_digest(spec, found), expected, self._delta)
        return words.view(np.uint8)

    def _finish(self) -> None:
        composition = self._composition
        touched = [
            name for name, spec in self.checkpoint.specs.items() if composition.changes(spec)
        ]
        touched += [m.record.base.name for m in composition.moves if m.record.base is not None]
        self._check_all(composition.leaves, touched, composition.fingerprint, self._delta)


def made_tensors(
    checkpoint: FileCheckpoint, recipe: Recipe, pool: OrderedMap, stack: ExitStack
) -> MadeTensors:
    """What deltas make of a checkpoint.

    Args:
        checkpoint: The base; of a chain, any checkpoint on it.
        recipe: The deltas, and how they are put together.
        pool: Where runs are made, many at a time.
        stack: Closes the deltas that are opened here.

    Raises:
        UsageError: The deltas are no chain, and have no weights; or a bad request.
        WrongBaseError: The checkpoint has other tensors than the base.
        StructureError: Deltas exclude each other.
        FormatError: A delta breaks a rule.
    """
    if recipe.weights is None:
        readers = open_all(recipe.deltas, stack)
        try:
            return Followed(checkpoint, readers, pool, verify=recipe.verify)
        except UsageError as error:
            if len({reader.manifest.base for reader in readers}) == 1 < len(readers):
                error.hint = _NAME_WEIGHTS
            raise
    composition = compose_deltas(
        checkpoint,
        recipe.deltas,
        recipe.weights,
        stack=stack,
        method=recipe.method,
        parameters=recipe.parameters,
        seed=recipe.seed,
    )
    return Composed(checkpoint, composition, pool, verify=recipe.verify)


_NAME_WEIGHTS: Final = "to add them up, say with which weights: weights=[1, 1]"


def _digests(data: Bytes, word_bytes: int) -> list[Digest]:
    size = SEGMENT_WORDS * word_bytes
    return [segment_digest(data[at : at + size].data) for at in range(0, data.size, size)]
