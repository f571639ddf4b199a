"""The records of a chain of deltas as one: which tensor leads to which, and by which parts.

A tensor that stays itself all along is one record, under whatever names. What is dropped or new on
the way, copied or made of a copy, is followed in both directions: forward it is known what a tensor
of the target is made of, backward where the words of a tensor of the base are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sparsedelta.delta import DROP, NEW
from sparsedelta.digests import Digest, tensor_digest
from sparsedelta.errors import StructureError
from sparsedelta.operations.arrows import Arrow
from sparsedelta.operations.route import Route
from sparsedelta.operations.tracing import possible_loss
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True)
class Merged:
    """A tensor that becomes another, or itself: the record of all that happens to it on the way.

    Attributes:
        base: The tensor in the base.
        target: The tensor in the target.
        ahead: What makes the target.
        back: What makes the base again, as far as it is known.
    """

    base: TensorSpec
    target: TensorSpec
    ahead: Arrow
    back: Arrow


@dataclass(frozen=True, slots=True)
class Side:
    """A tensor that goes, or one that comes.

    Attributes:
        op: ``drop`` or ``new``.
        spec: The tensor.
        made: What makes it: of a tensor that goes, on the way back.
        was_held: Whether, of one that goes, a delta of the chain says what its words were.
    """

    op: str
    spec: TensorSpec
    made: Arrow
    was_held: bool = True

    @property
    def reference(self) -> TensorSpec | None:
        """The tensor of the other end that it is a copy of, or None: it has words of its own."""
        return origin(self.made)

    @property
    def is_copy(self) -> bool:
        """Whether that tensor has its dtype and shape at the other end too."""
        other = self.reference
        return other is not None and (other.dtype, other.shape) == (
            self.spec.dtype,
            self.spec.shape,
        )


@dataclass(slots=True)
class Plan:
    """The records of a squashed delta, before anything is read but tables.

    Attributes:
        merged: Tensors that become another, by their names in the target.
        gone: Tensors that go, by name.
        fresh: Tensors that come, by name.
        untouched: Digests of tensors that are, in the end, what they were.
    """

    merged: dict[str, Merged] = field(default_factory=dict)
    gone: dict[str, Side] = field(default_factory=dict)
    fresh: dict[str, Side] = field(default_factory=dict)
    untouched: dict[str, Digest] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the records, ascending."""
        return sorted({*self.merged, *self.gone, *self.fresh})

    def sources(self, name: str) -> Iterator[Arrow]:
        """The arrows that a record is made from."""
        merged = self.merged.get(name)
        if merged is not None:
            yield from (merged.ahead, merged.back)
        for sides in (self.gone, self.fresh):
            if name in sides:
                yield sides[name].made


def plan_squash(ahead: Route, back: Route) -> Plan:
    """Which records a chain comes to.

    Args:
        ahead: The chain.
        back: The same the other way round, whether or not it leads back.

    Raises:
        StructureError: What happens to a tensor cannot be said without the base.
    """
    makes = {arrow.result.name: arrow for arrow in ahead.arrows if arrow.result is not None}
    undoes = {arrow.result.name: arrow for arrow in back.arrows if arrow.result is not None}
    plan = Plan()
    for arrow in makes.values():
        if arrow.source is not None and arrow.is_leaf:
            _merge(plan, arrow, undoes[arrow.source.name])
    went = undoes.keys() - {merged.base.name for merged in plan.merged.values()}
    for name in sorted(went):
        copy = _lives_on(makes, undoes[name])
        if copy is not None:  # that was a rename, in several steps
            _merge(plan, copy, undoes[name])
        else:
            plan.gone[name] = Side(DROP, _result(undoes[name]), undoes[name])
    for name, arrow in makes.items():
        if name not in plan.merged:
            plan.fresh[name] = Side(NEW, _result(arrow), arrow)
    for name in sorted(plan.gone.keys() & plan.fresh.keys()):
        if _is_replaced_in_kind(plan.gone[name], plan.fresh[name]):
            _merge(plan, plan.fresh.pop(name).made, plan.gone.pop(name).made)
    _part_clashing(plan)
    _leave_out(plan)
    _check_copies(plan)
    return plan


def _result(arrow: Arrow) -> TensorSpec:
    assert arrow.result is not None  # noqa: S101 (it makes a tensor)
    return arrow.result


def _merge(plan: Plan, ahead: Arrow, back: Arrow) -> None:
    merged = Merged(_result(back), _result(ahead), ahead, back)
    plan.merged[merged.target.name] = merged


def origin(arrow: Arrow) -> TensorSpec | None:
    """The tensor that an arrow makes a copy of, or None: all its words are carried."""
    is_resized = any(hop.result.words != arrow.words for hop in arrow.hops)
    return None if is_resized and not arrow.linked else arrow.source


def _lives_on(makes: Mapping[str, Arrow], back: Arrow) -> Arrow | None:
    """What makes the copy in which a base tensor lives on that went itself, or None."""
    base = _result(back)
    place = origin(back)
    for name in (base.name, None if place is None else place.name):
        copy = None if name is None else makes.get(name)
        if copy is not None and origin(copy) == base and not copy.is_leaf:
            return copy
    return None


def _is_replaced_in_kind(gone: Side, fresh: Side) -> bool:
    """Whether a tensor went and one of its name came whose rows have the same form.

    All words of both are known then, or they say how the one follows from the other.
    """
    old, new = gone.spec, fresh.spec
    rows = len(old.shape) == len(new.shape) > 0 and old.shape[1:] == new.shape[1:]
    if old.dtype != new.dtype or not (rows or old.shape == new.shape):
        return False
    if fresh.reference is None and gone.reference is None:
        return possible_loss(gone.made) is None
    return fresh.reference is None and gone.reference == new


def _part_clashing(plan: Plan) -> None:
    """Take renames apart whose names are not free: two records cannot share one (spec 3.3).

    Their ends are then a tensor that goes, living on in another, and one that comes as a copy.
    """
    while True:
        clashing = [
            merged
            for name, merged in plan.merged.items()
            if merged.base.name != name and (name in plan.gone or merged.base.name in plan.fresh)
        ]
        if not clashing:
            return
        for merged in clashing:
            base, target = merged.base, merged.target
            if (base.dtype, base.shape) != (target.dtype, target.shape):
                raise without_base(
                    target, f"it was {base.name!r} of another shape, a name that is not free"
                )
            del plan.merged[target.name]
            plan.gone[base.name] = Side(DROP, base, merged.back, was_held=False)
            plan.fresh[target.name] = Side(NEW, target, merged.ahead)


def _leave_out(plan: Plan) -> None:
    """Leave out what is in the end what it was, whatever happened to it on the way."""
    for name, merged in list(plan.merged.items()):
        if merged.base == merged.target and merged.back.after == merged.ahead.after:
            del plan.merged[name]
            plan.untouched[name] = _digest(merged.ahead)
    for name in plan.gone.keys() & plan.fresh.keys():
        gone, fresh = plan.gone[name], plan.fresh[name]
        if gone.spec == fresh.spec and gone.made.after == fresh.made.after:
            del plan.gone[name], plan.fresh[name]
            plan.untouched[name] = _digest(fresh.made)


def _check_copies(plan: Plan) -> None:
    """Insist that what comes as a copy has the dtype and shape of its original."""
    for side in plan.fresh.values():
        if side.reference is not None and not side.is_copy:
            raise without_base(
                side.spec, f"it is a copy of {side.reference.name!r}, {side.reference}"
            )


def _digest(arrow: Arrow) -> Digest:
    return tensor_digest(_result(arrow), arrow.after)


def without_base(spec: TensorSpec, why: str) -> StructureError:
    """The error of a record that would need words which no delta of the chain holds."""
    return StructureError(
        f"tensor {spec.name!r} cannot be squashed without the base: {why}",
        hint="follow the chain: sparsedelta apply BASE D1 D2 … -o TARGET; then sparsedelta diff "
        "BASE TARGET -o DELTA",
    )
