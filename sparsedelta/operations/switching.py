"""From one set of deltas on a live model to another: worked out first, then written, or undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from sparsedelta.boxes import Box
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.live_entries import LiveEntries, Patch, patches_of
from sparsedelta.live_tensors import LiveTensor, LiveTensors, settled
from sparsedelta.merging.settings import finite_number
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A delta that is on a model, active or not.

    Attributes:
        path: Where it lies, for messages.
        content: Its content digest.
        base: Fingerprint of its base.
        specs: The tensors that it changes, by the model's names.
        entries: What it changes in what is here of them.
    """

    path: str
    content: str
    base: str
    specs: Mapping[str, TensorSpec]
    entries: Mapping[str, LiveEntries]

    @property
    def nnz(self) -> int:
        """Entries that are here."""
        return sum(entries.nnz for entries in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(entries.nbytes for entries in self.entries.values())

    def rest(self) -> None:
        """Keep what it changes on the host alone, until it has part."""
        for entries in self.entries.values():
            entries.rest()


@dataclass(frozen=True, slots=True, eq=False)
class TensorState:
    """What a tensor holds.

    Attributes:
        active: The deltas that have part in it, and their weights.
        patches: What is put over its base words, in this order.
        spec: The whole tensor, as it was when the deltas were added; None: no delta has part.
    """

    active: tuple[tuple[LiveEntries, float], ...]
    patches: tuple[Patch, ...]
    spec: TensorSpec | None = None

    def is_of(self, active: tuple[tuple[LiveEntries, float], ...]) -> bool:
        """Whether these deltas, with these weights, are what it holds."""
        return len(active) == len(self.active) and all(
            one[0] is other[0] and one[1] == other[1]
            for one, other in zip(active, self.active, strict=True)
        )


State: TypeAlias = Mapping[str, TensorState]
"""What the tensors hold that do not hold their base words, by the model's names."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a delta of a stack is set."""

    weight: float
    is_enabled: bool


def finite_weight(name: str, weight: float) -> float:
    """A weight as float64.

    Raises:
        UsageError: It is none, or not finite.
    """
    number = finite_number(weight)
    if number is None:
        raise UsageError(f"the weight of {name!r} is {weight!r:.60}, expected a finite number")
    return number


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What a stack knows of its model; one value, so that all of it changes at once.

    Attributes:
        held: The deltas that are on the model, by name.
        settings: How each of them is set.
        state: What the tensors hold.
    """

    held: Mapping[str, Held]
    settings: Mapping[str, Setting]
    state: State

    @property
    def active(self) -> dict[str, float]:
        """Weight of each delta that has part, by name: enabled, and not of weight 0."""
        return active(self.settings)


def active(settings: Mapping[str, Setting]) -> dict[str, float]:
    """Weight of each delta that has part, by name."""
    return {n: own.weight for n, own in settings.items() if own.is_enabled and own.weight != 0}


BASE: Final[State] = MappingProxyType({})


def plan(active: Mapping[str, float], held: Mapping[str, Held], before: State) -> State:
    """Work out what a set of deltas makes of each tensor; writes nothing.

    Args:
        active: Weight by name.
        held: All deltas by name.
        before: A state of which what stays is taken over.

    Raises:
        NotFiniteError: A number that is met or made is not finite.
        StructureError: Deltas exclude each other.
    """
    after: dict[str, TensorState] = {}
    names = dict.fromkeys(name for delta in active for name in held[delta].entries)
    for name in names:
        parts = tuple(
            (held[delta].entries[name], weight)
            for delta, weight in active.items()
            if name in held[delta].entries
        )
        known = before.get(name)
        if known is not None and known.is_of(parts):
            after[name] = known
            continue
        spec = next(held[d].specs[name] for d in active if name in held[d].specs)
        after[name] = TensorState(parts, patches_of(spec, parts[0][0].box, parts), spec)
    return after


def touched(live: LiveTensors, before: State, after: State) -> Mapping[str, LiveTensor]:
    """The tensors that are other in ``after``, by the model's names.

    Raises:
        StructureError: One of them is not what it was when deltas were added.
    """
    return {
        name: _as_added(live, name, before, after)
        for name in {**before, **after}
        if before.get(name, _NOTHING) is not after.get(name, _NOTHING)
    }


def write(tensors: Mapping[str, LiveTensor], before: State, after: State) -> None:
    """Write what is other in ``after``; if that fails, what was there is put back.

    Time is in proportion to the entries of the deltas that come and go.

    Args:
        tensors: What :func:`touched` gives.
        before: What they hold.
        after: What they shall hold.

    Raises:
        UndoneError: It failed, and they hold ``before`` again. After any other error nobody knows
            what they hold.
    """
    begun: list[str] = []
    try:
        for name, tensor in tensors.items():
            begun.append(name)
            old, new = before.get(name, _NOTHING), after.get(name, _NOTHING)
            staying = {id(entries) for entries, _ in new.active}
            leaving = (entries for entries, _ in old.active if id(entries) not in staying)
            _put(tensor, leaving, new)
        settled(live.local for live in tensors.values())
    except BaseException as error:
        try:
            for name in begun:
                old, new = before.get(name, _NOTHING), after.get(name, _NOTHING)
                _put(tensors[name], (entries for entries, _ in (*old.active, *new.active)), old)
            settled(live.local for live in tensors.values())
        except BaseException:  # noqa: BLE001 (what went wrong first is what is to be told)
            raise error from None
        raise UndoneError(error) from error


def all_of(live: LiveTensors, held: Iterable[Held]) -> Everything:
    """All entries of some deltas.

    Raises:
        StructureError: A tensor is not what it was when they were added.
    """
    every = list(held)
    specs = {name: spec for delta in every for name, spec in delta.specs.items()}
    return {
        name: (_unchanged(live.live(name), specs[name], entries[0].box), entries)
        for name, entries in entries_of(every).items()
    }


def entries_of(held: Iterable[Held]) -> dict[str, list[LiveEntries]]:
    """What deltas change in each tensor, by the model's names."""
    found: dict[str, list[LiveEntries]] = {}
    for delta in held:
        for name, entries in delta.entries.items():
            found.setdefault(name, []).append(entries)
    return found


Everything: TypeAlias = Mapping[str, tuple[LiveTensor, Sequence[LiveEntries]]]
"""Tensors and all entries in them, by the model's names."""


def repair(everything: Everything, after: State) -> None:
    """Write ``after`` over whatever is there of the entries of all deltas."""
    for name, (tensor, every) in everything.items():
        _put(tensor, every, after.get(name, _NOTHING))
    settled(tensor.local for tensor, _ in everything.values())


class UndoneError(Exception):
    """A write failed, and what was there has been put back.

    Attributes:
        cause: What went wrong.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


_NOTHING: Final = TensorState((), ())


def _as_added(live: LiveTensors, name: str, *states: State) -> LiveTensor:
    state = next(state[name] for state in states if name in state)
    assert state.spec is not None  # noqa: S101 (only of what no delta has part in)
    return _unchanged(live.live(name), state.spec, state.active[0][0].box)


def _unchanged(tensor: LiveTensor, spec: TensorSpec, box: Box) -> LiveTensor:
    """Insist that words of a tensor are still what they were: their bits mean nothing elsewhere."""
    hint = "give the model its dtype and its parameters back, or make a new Stack on the new ones"
    if (tensor.spec.dtype, tensor.spec.shape) != (spec.dtype, spec.shape):
        raise StructureError(
            f"tensor {tensor.name!r} of the model is {tensor.spec} now, was {spec} when the delta "
            "was added",
            hint=hint,
        )
    if tensor.box != box:
        raise StructureError(
            f"tensor {tensor.name!r} of the model is sharded in another way now, {tensor.box}, "
            f"than when the delta was added, {box}",
            hint=hint,
        )
    return tensor


def _put(tensor: LiveTensor, leaving: Iterable[LiveEntries], state: TensorState) -> None:
    for entries in leaving:
        entries.back.put(tensor.local)
    for patch in state.patches:
        patch.put(tensor.local)
