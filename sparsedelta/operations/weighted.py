"""Deltas of one base and their weights: opened, related to the base, and put in an order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta_reader import DeltaReader, open_delta
from sparsedelta.digests import Digest
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.locations import LocationLike
from sparsedelta.merging.methods import Method, method_named, settings_of
from sparsedelta.operations.composition import Composition
from sparsedelta.operations.moves import find_moves
from sparsedelta.operations.standpoint import touched_specs
from sparsedelta.operations.tasks import DeltaTask, Task


def compose_deltas(
    base: CheckpointReader,
    deltas: Sequence[LocationLike | DeltaReader],
    weights: Sequence[float] | None,
    *,
    stack: ExitStack,
    method: str,
    parameters: Mapping[str, object],
    seed: int,
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

    Raises:
        UsageError: No delta is left, a weight is not finite, an unknown method or parameter.
        WrongBaseError: The deltas start at different bases, or not at this one.
        StructureError: They exclude each other.
    """
    rule = method_named(method)
    chosen = [1.0] * len(deltas) if weights is None else [float(each) for each in weights]
    if len(chosen) != len(deltas):
        raise UsageError(f"{len(chosen)} weights for {len(deltas)} deltas, expected one for each")
    settings = settings_of(rule, parameters, chosen, seed)
    tasks: list[DeltaTask] = []
    for delta, weight in zip(deltas, chosen, strict=True):
        if not math.isfinite(weight):
            raise UsageError(f"{delta}: its weight is {weight!r}, expected a finite number")
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
        rule.bind(settings),
        moves=find_moves(used, lambda number, _: settings.weights[number]),
        leaves=base_leaves(readers),
        fingerprint=readers[0].manifest.base,
        weights=settings.weights,
        provenance=_provenance(rule, parameters, used, settings.weights, seed),
    )


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


def carried_notes(tasks: Sequence[Task]) -> tuple[str, ...]:
    """What is to be said of the small files that deltas carry: they cannot be put together."""
    notes = []
    for task in tasks:
        files = task.reader.manifest.attachments.files if isinstance(task, DeltaTask) else ()
        if files:
            names = ", ".join(file.name for file in files)
            notes.append(f"files that {task.name} carries are left out: {names}")
    return tuple(notes)
