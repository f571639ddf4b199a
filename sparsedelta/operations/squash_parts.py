"""The parts of a squashed record, streamed from the blocks of the deltas it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import Planes, RawWords
from sparsedelta.delta import DIFFERENCE, DROP, NEW, REPLACE, RESIZE, bare_content
from sparsedelta.digests import Digest
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part, encode_words
from sparsedelta.errors import StructureError
from sparsedelta.operations.arrows import Arrow
from sparsedelta.operations.squashing import Merged, Plan, Side, without_base
from sparsedelta.operations.tracing import (
    Loss,
    find_loss,
    is_idle,
    possible_loss,
    spans,
    trace,
)
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import BarePart
from sparsedelta.words import TensorSpec, Words, negate


@dataclass(frozen=True, slots=True)
class PartMaker:
    """Makes the parts of squashed records.

    Attributes:
        pool: Where blocks are decoded and encoded, many at a time.
        forget: Do not store the words of what goes.
        choice: The codecs to use; None for the smallest.
    """

    pool: OrderedMap
    forget: bool
    choice: CodecChoice | None = None

    def record(self, plan: Plan, name: str) -> EncodedTensor:
        """A record of a plan, ready to be written.

        Raises:
            StructureError: Words of the base would have to be stored that no delta holds any more.
            FormatError: A block breaks a rule.
        """
        merged = plan.merged.get(name)
        if merged is not None:
            parts = tuple(self._merged(merged))
            return EncodedTensor(
                merged.base, merged.target, parts, _after(merged.back), _after(merged.ahead)
            )
        gone, fresh = plan.gone.get(name), plan.fresh.get(name)
        return EncodedTensor(
            None if gone is None else gone.spec,
            None if fresh is None else fresh.spec,
            (
                *(() if gone is None else self._gone(gone)),
                *(() if fresh is None else self._fresh(fresh)),
            ),
            () if gone is None else _after(gone.made),
            () if fresh is None else _after(fresh.made),
        )

    def _merged(self, merged: Merged) -> Iterator[EncodedPart]:
        base, target = merged.base, merged.target
        if base.shape != target.shape:
            first, last = sorted((base.words, target.words))
            if target.words >= base.words:
                yield self._carried(RESIZE, target, merged.ahead, first, last)
            elif self._is_forgotten(base, merged.back, first, last):
                yield _bare(RESIZE)
            else:
                yield self._carried(RESIZE, base, merged.back, first, last)
        elif merged.back.after == merged.ahead.after:
            return
        domain = min(base, target, key=lambda spec: spec.words)
        yield from self._changes(
            domain, [merged.ahead, merged.back], lambda run: _merged_run(merged, *run)
        )

    def _gone(self, gone: Side) -> Iterator[EncodedPart]:
        spec, made = gone.spec, gone.made
        if gone.reference is None:
            if self._is_forgotten(spec, made, 0, spec.words):
                yield _bare(DROP)
            else:
                yield self._carried(DROP, spec, made, 0, spec.words)
            return
        is_resized = any(
            hop.carried is not None or hop.result != made.hops[0].result for hop in made.hops
        )
        loss = possible_loss(made)
        if not gone.is_copy or is_resized or loss is not None:
            if gone.was_held and not self.forget:
                raise _lost(spec, gone.reference, loss)
            yield _bare(DROP)
            return
        if made.before != made.after:
            yield from self._changes(spec, [made], lambda run: _back_run(made, *run))
        yield _bare(DROP, gone.reference, made.before)

    def _fresh(self, fresh: Side) -> Iterator[EncodedPart]:
        spec, made = fresh.spec, fresh.made
        if fresh.reference is None:
            yield self._carried(NEW, spec, made, 0, spec.words)
            return
        if made.linked < spec.words and not self.forget:
            raise without_base(
                spec, f"it is a copy of {fresh.reference.name!r} of which rows were cut, and came"
            )
        yield _bare(NEW, fresh.reference, made.before)
        if made.before != made.after:
            yield from self._changes(spec, [made], lambda run: _ahead_run(made, *run))

    def _is_forgotten(self, spec: TensorSpec, back: Arrow, start: int, stop: int) -> bool:
        """Whether the words ``[start, stop)`` of a base tensor are not to be stored.

        Raises:
            StructureError: They should be, and no delta holds them.
        """
        if self.forget:
            return True
        loss = find_loss(back, start, stop)
        if loss is not None and not loss.is_wanted:
            raise _lost(spec, None, loss)
        return loss is not None

    def _carried(
        self, op: str, spec: TensorSpec, made: Arrow, first: int, last: int
    ) -> EncodedPart:
        def read(start: int, stop: int) -> Words:
            found = trace(made, first + start, first + stop)
            if not found.fixed.all():
                raise without_base(spec, "words of it are only known as changed copies")
            return found.values

        value = None if self.choice is None else self.choice.value
        return encode_words(
            last - first,
            spec.word_bytes,
            op,
            read,
            pool=self.pool,
            choice=self.choice if isinstance(value, (Planes, RawWords)) else None,
            name=spec.name,
        )

    def _changes(
        self,
        spec: TensorSpec,
        arrows: list[Arrow],
        compose: Callable[[tuple[int, int]], tuple[Run, Run] | None],
    ) -> Iterator[EncodedPart]:
        """The difference and the replacement that runs add up to, as far as there are any."""
        both = {DIFFERENCE: Changes(spec), REPLACE: Changes(spec)}
        with self.pool.mapped(compose, spans(arrows, 0, spec.words)) as runs:
            for run in runs:
                for changes, found in zip(both.values(), run or (), strict=False):
                    changes.append(found)
        for op, changes in both.items():
            if changes.nnz:
                yield encode_part(changes, op, pool=self.pool, choice=self._choice(op))

    def _choice(self, op: str) -> CodecChoice | None:
        if self.choice is None or op == DIFFERENCE:
            return self.choice
        return self.choice if isinstance(self.choice.value, (Planes, RawWords)) else None


def _merged_run(merged: Merged, start: int, stop: int) -> tuple[Run, Run] | None:
    """Differences and replacements of a run of a tensor that becomes another."""
    ahead, back = merged.ahead, merged.back
    if is_idle(ahead, start, stop):
        return None
    made = trace(ahead, start, stop)
    if not made.fixed.any():
        return _runs(start, made.values, made.fixed)
    # What is behind a word that came whole: a word that went whole, or the same one, changed.
    old = trace(back, start, stop)
    known = made.fixed & old.fixed & ~old.lost
    values = made.values.copy()
    values[known] -= old.values[known]
    replaced = made.fixed & ~known
    if back.source == merged.target:
        linked = replaced & ~old.fixed
        values[linked] = negate(old.values[linked])
        replaced &= ~linked
    return _runs(start, values, replaced)


def _ahead_run(made: Arrow, start: int, stop: int) -> tuple[Run, Run] | None:
    if is_idle(made, start, stop):
        return None
    found = trace(made, start, stop)
    return _runs(start, found.values, found.fixed)


def _back_run(made: Arrow, start: int, stop: int) -> tuple[Run, Run] | None:
    if is_idle(made, start, stop):
        return None
    found = trace(made, start, stop)
    return _runs(start, negate(found.values), found.fixed)


def _runs(start: int, values: Words, replaced: np.ndarray) -> tuple[Run, Run]:
    runs = []
    for marks in ((values != 0) & ~replaced, replaced):
        at = np.flatnonzero(marks)
        runs.append(make_run(start, values.size, at, values[at]))
    return runs[0], runs[1]


def _after(arrow: Arrow) -> tuple[Digest, ...]:
    return arrow.after


def _bare(
    op: str, reference: TensorSpec | None = None, digests: tuple[Digest, ...] | None = ()
) -> EncodedPart:
    name = None if reference is None else reference.name
    rows = b"" if reference is None else b"".join(digests or ())
    return EncodedPart(BarePart(op, name), rows, [], bare_content(op, name))


def _lost(spec: TensorSpec, copy: TensorSpec | None, loss: Loss | None) -> StructureError:
    if loss is not None:
        why = f"{loss.path} does not hold what it was before ({loss.op})"
    else:
        why = f"it lives on in {copy.name if copy else ''!r}, whose rows have changed"
    return StructureError(
        f"the words of tensor {spec.name!r}, which goes, cannot be stored: {why}",
        hint="--forget (forget=True in Python) leaves the words of what goes out: the result then "
        "cannot be reverted",
    )
