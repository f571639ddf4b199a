"""Deltas of one base and their weights: opened, related to the base, and put in an order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from sparsedelta.checkpoint import CheckpointReader, open_checkpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.hub.named_base import at_named_commit, pin_together
from sparsedelta.locations import LocationLike
from sparsedelta.merging.methods import BoundMethod, Method, method_named, settings_of
from sparsedelta.merging.outcome import TensorMethod
from sparsedelta.merging.settings import Settings, finite_number
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.composition import Composition
from sparsedelta.operations.moves import find_moves
from sparsedelta.operations.standpoint import touched_specs
from sparsedelta.operations.tasks import DeltaTask
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import Ranks
from sparsedelta.rounding import FLOATS, FP8
from sparsedelta.words import TensorSpec


@contextmanager
def composing(
    base: LocationLike | CheckpointReader,
    deltas: Sequence[LocationLike | DeltaReader],
    weights: Sequence[float] | None,
    *,
    method: str,
    parameters: Mapping[str, object] | None,
    seed: int,
    fp8_arithmetic: bool,
    threads: int | None,
    ranks: Ranks,
) -> Iterator[tuple[Composition, OrderedMap]]:
    """While deltas are put together: what they make, and where it is made; closed afterwards.

    The arguments and what is raised are those of :func:`compose_deltas`.

    Raises:
        CheckpointError: The base cannot be read.
        RankError: Another rank failed.
    """
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        deltas = [pin_together(each, ranks) for each in deltas]
        start = pin_together(at_named_commit(base, deltas), ranks)
        checkpoint = open_checkpoint(start)
        if checkpoint is not base:
            stack.callback(checkpoint.close)
        pool = stack.enter_context(OrderedMap(threads))
        composition = compose_deltas(
            checkpoint,
            deltas,
            weights,
            stack=stack,
            method=method,
            parameters=parameters or {},
            seed=seed,
            fp8_arithmetic=fp8_arithmetic,
        )
        yield composition, pool


def compose_deltas(
    base: CheckpointReader,
    deltas: Sequence[LocationLike | DeltaReader],
    weights: Sequence[float] | None,
    *,
    stack: ExitStack,
    method: str,
    parameters: Mapping[str, object],
    seed: int,
    fp8_arithmetic: bool = False,
) -> Composition:
    """The composition of deltas that start at one base.

    Args:
        base: The base.
        deltas: The deltas.
        weights: A weight per delta; None: 1 each.
        stack: Closes the deltas that are opened here.
        method: Name of the method.
        parameters: Its parameters.
        seed: What random methods draw from.
        fp8_arithmetic: Whether ``sum`` computes with numbers of 8 bits.

    Raises:
        UsageError: No delta is left, a weight is not finite, an unknown method or parameter.
        WrongBaseError: The deltas start at different bases, or not at this one.
        StructureError: They exclude each other.
    """
    rule = method_named(method)
    if weights is not None and (isinstance(weights, str) or not isinstance(weights, Iterable)):
        raise UsageError(f"weights is {weights!r}, expected a number for each delta")
    given = [1.0] * len(deltas) if weights is None else list(weights)
    chosen = [math.nan if (w := finite_number(each)) is None else w for each in given]
    if len(chosen) != len(deltas):
        raise UsageError(f"{len(chosen)} weights for {len(deltas)} deltas, expected one for each")
    settings = settings_of(rule, parameters, chosen, seed)
    tasks: list[DeltaTask] = []
    for delta, own, weight in zip(deltas, given, chosen, strict=True):
        if not math.isfinite(weight):
            raise UsageError(f"{delta}: its weight is {own!r:.60}, expected a finite number")
        reader = open_delta(delta)
        if reader is not delta:
            stack.enter_context(reader)
        tasks.append(DeltaTask(reader))
    if not tasks:
        raise UsageError(
            "no delta is named: there is nothing to put together",
            hint="sparsedelta compose --base BASE D1 D2:0.5 -o OUT",
        )
    order = [n for n, weight in enumerate(chosen) if weight != 0]
    readers = [task.reader for task in tasks]
    check_bases(readers)
    for reader in readers:
        check_base(base, reader)
    if not rule.is_ordered:  # so that nothing depends on the order in which they were named
        order.sort(key=lambda n: (tasks[n].identity, settings.tasks[n].weight))
    settings = settings.chosen(order, [tasks[n].identity for n in order])
    used = [tasks[n] for n in order]
    rule.check(len(used))
    return Composition(
        base,
        used,
        _with_fp8(rule, settings, base) if fp8_arithmetic else rule.bind(settings),
        moves=find_moves(used, lambda number, _: settings.weights[number]),
        leaves=base_leaves(readers),
        fingerprint=readers[0].manifest.base,
        weights=settings.weights,
        provenance=_provenance(rule, parameters, used, settings.weights, seed),
    )


def _with_fp8(
    rule: Method, settings: Settings, base: CheckpointReader
) -> Callable[[TensorSpec], TensorMethod]:
    """The method that also computes with 8 bits, but for tensors that are scaled by another one."""
    if rule.name not in ("sum", "task_arithmetic"):
        raise UsageError(f"--fp8-arithmetic goes with the method sum, not with {rule.name}")
    wide = BoundMethod(rule, replace(settings, computed=(*FLOATS, *FP8)))
    scales: dict[str, str] = {}
    for name in base.specs:
        place, _, last = name.rpartition(".")
        if "scale" in last:
            scales[place] = name

    def method(spec: TensorSpec) -> TensorMethod:
        scale = scales.get(spec.name.rpartition(".")[0])
        if scale is None or scale == spec.name or spec.dtype not in FP8:
            return wide
        note = f"; {scale!r} beside it scales it, so that its numbers mean nothing alone"
        return BoundMethod(rule, replace(settings, note=note))

    return method


def check_bases(readers: Sequence[DeltaReader]) -> None:
    """Insist that all deltas start at the same base.

    Raises:
        WrongBaseError: Two do not; names both.
    """
    for other in readers[1:]:
        one = readers[0]
        if other.manifest.base == one.manifest.base:
            continue
        ends = [(one, other), (other, one)]
        follows = next(((a, b) for a, b in ends if a.manifest.target == b.manifest.base), None)
        raise WrongBaseError(
            f"{one.path} and {other.path} start at different bases: {one.manifest.base[:16]}… and "
            f"{other.manifest.base[:16]}…",
            hint="only deltas of one base are put together"
            if follows is None
            else f"{follows[1].path} goes on where {follows[0].path} ends: that is a chain, which "
            "sparsedelta squash makes one delta of",
        )


def check_base(base: CheckpointReader, reader: DeltaReader) -> None:
    """Insist on the names, dtypes and shapes that a delta knows of its base.

    Raises:
        WrongBaseError: They are others.
    """
    touched = touched_specs(reader, target=False)
    known = touched.keys() | set(reader.manifest.untouched)
    extra = set() if reader.manifest.lean else base.specs.keys() - known
    for name in sorted(extra | known):
        found, expected = base.specs.get(name), touched.get(name)
        if name in extra or found is None or (expected is not None and found != expected):
            what = expected or ("one that stays" if name in known else "none of this name")
            raise WrongBaseError(
                f"{base.location} is not the base of {reader.path} (SD501): tensor {name!r} is "
                f"{found or 'missing'}, expected {what}",
                hint=f"compare: sparsedelta info {reader.path}, and sparsedelta fingerprint "
                f"{base.location}",
            )


def base_leaves(readers: Sequence[DeltaReader]) -> dict[str, Digest]:
    """Tensor digests of the base, as far as deltas know them."""
    leaves: dict[str, Digest] = {}
    for reader in readers:
        leaves |= reader.leaves(target=False)
    return leaves


def _provenance(
    method: Method,
    parameters: Mapping[str, object],
    tasks: Sequence[DeltaTask],
    weights: Sequence[float],
    seed: int,
) -> dict[str, str]:
    parents = [
        {"content": task.identity, "target": task.reader.manifest.target, "weight": weight}
        for task, weight in zip(tasks, weights, strict=True)
    ]
    found = {"compose.method": method.name, "compose.parents": json.dumps(parents)}
    if parameters:
        found["compose.parameters"] = json.dumps(dict(parameters), sort_keys=True, default=str)
    if method.is_random:
        found["compose.seed"] = str(seed)
    return found
