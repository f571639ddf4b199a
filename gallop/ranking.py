"""A ranking over tensors that come in groups: exact, in the memory of what it chooses.

The gradients of all tensors may be more than fits, so that they come a group at a time. After each
group a ranking keeps the entries that may still be chosen, at most ``k`` of them with their keys,
and forgets the rest: whatever comes later, an entry that ``k`` others precede stays out. What it
has kept takes part in the next group's top-k like a tensor. The result is that of one top-k over
everything, ties included, because groups come in the order of the tensors. The alternatives are
worse: a histogram over all groups, another inside its bin and a third pass for the indices would
run the model three times over each group; holding all keys would need what the gradients need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gallop.sampling import Sample
from gallop.sifting import Observer, Thinned, show, sift
from gallop.topk import (
    ALONE,
    Choice,
    Exchange,
    Place,
    ScoreSource,
    Threshold,
    find_threshold,
    take,
    threshold_at,
)

__all__ = ["Ranked", "Ranking", "TensorRankings"]

_ALL = 1  # the bit pattern of the smallest positive key


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """What a ranking chose.

    Attributes:
        indices: Per tensor, in the order they came, the sorted positions chosen here, int64.
        count: How many entries were chosen, on all ranks.
        threshold: The key of the threshold; None if nothing was chosen, or each tensor has its
            own.
        thresholds: Those of the tensors that have their own.
        ties: How many keys equal it, in all tensors and ranks.
        ties_taken: How many of those were chosen.
    """

    indices: dict[str, NDArray[np.int64]]
    count: int
    threshold: float | None
    ties: int
    ties_taken: int
    thresholds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    positions: NDArray[np.int64]
    keys: Tensor | None


class Ranking:
    """Chooses the entries with the largest keys of all tensors given to it.

    Args:
        k: How many to choose, on all ranks together.
        exchange: How ranks tell each other their counts.
        sample: Which entries estimate the threshold; None to find it exactly. With a sample, more
            or fewer than ``k`` entries may be chosen.
        places: By name where the entries held here lie in the whole tensor; none of whole ones.
    """

    __slots__ = (
        "_dropped",
        "_exchange",
        "_k",
        "_kept",
        "_places",
        "_sample",
        "_sampled",
        "_threshold",
    )

    def __init__(
        self,
        k: int,
        *,
        exchange: Exchange = ALONE,
        sample: Sample | None = None,
        places: Mapping[str, Place] = MappingProxyType({}),
    ) -> None:
        self._k = k
        self._places = places
        self._exchange = exchange
        self._sample = sample
        self._sampled = torch.empty(0)
        self._kept: dict[str, _Kept] = {}
        self._threshold: Threshold | None = None
        self._dropped = 0

    def add(
        self,
        tensors: Sequence[tuple[str, ScoreSource]],
        *,
        last: bool,
        thinned: Mapping[str, Thinned] = MappingProxyType({}),
        observe: Observer | None = None,
    ) -> None:
        """Rank the next tensors together with what was kept of those before them.

        Args:
            tensors: Names and keys.
            last: Whether no more will come. The keys of what is kept are then let go.
            thinned: By name a sample of the keys, which saves passes over them and changes nothing
                else; of all tensors, or of none.
            observe: Is shown every chunk of keys once.
        """
        tensors = self._sifted(tensors, thinned, observe)
        names = [*self._kept, *(name for name, _ in tensors)]
        sources = [*map(_source, self._kept.values()), *(source for _, source in tensors)]
        if self._sample is None:
            threshold = find_threshold(sources, self._k, exchange=self._exchange)
        else:
            threshold = self._estimate(sources, tensors, self._sample, last=last)
        choice = take(
            sources,
            threshold,
            exchange=self._exchange,
            with_scores=not last,
            places=self._places_of(names),
        )
        self._count_dropped(threshold)
        self._keep(names, choice)

    def _sifted(
        self,
        tensors: Sequence[tuple[str, ScoreSource]],
        thinned: Mapping[str, Thinned],
        observe: Observer | None,
    ) -> Sequence[tuple[str, ScoreSource]]:
        # Those of which all keys are looked at; of the others what may be chosen is kept.
        sources = [source for _, source in tensors]
        if not thinned or self._sample is not None:
            show(sources, observe)
            return tensors
        already = [kept.keys for kept in self._kept.values() if kept.keys is not None]
        found = sift(
            sources,
            [thinned[name] for name, _ in tensors],
            self._k,
            exchange=self._exchange,
            already=already,
            observe=observe,
        )
        if found is None:
            return tensors
        for (name, _), each in zip(tensors, found, strict=True):
            self._kept[name] = _Kept(each.positions, each.scores)
        return ()

    def cut(self, k: int) -> Ranked:
        """Choose fewer: the first ``k`` of what is kept. Needs keys, so not after a last group.

        Args:
            k: How many, at most as many as the ranking was made for.

        Returns:
            What was chosen.
        """
        sources = [_source(kept) for kept in self._kept.values()]
        threshold = find_threshold(sources, k, exchange=self._exchange)
        places = self._places_of(self._kept)
        choice = take(sources, threshold, exchange=self._exchange, places=places)
        self._keep(list(self._kept), choice)
        self._threshold, self._dropped = threshold, 0
        return self.result()

    def result(self) -> Ranked:
        """Return what is chosen of all tensors so far."""
        found = self._threshold
        return Ranked(
            {name: kept.positions for name, kept in self._kept.items()},
            count=0 if found is None else found.above + found.ties_taken,
            threshold=None if found is None else found.value,
            ties=0 if found is None else found.ties_taken + self._dropped,
            ties_taken=0 if found is None else found.ties_taken,
        )

    def _places_of(self, names: Iterable[str]) -> list[Place]:
        return [partial(self._flat, name) for name in names]

    def _flat(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        kept = self._kept.get(name)
        held = positions if kept is None else kept.positions[positions]
        return self._places[name](held) if name in self._places else held

    def _keep(self, names: Iterable[str], choice: Choice) -> None:
        keys: Iterable[Tensor | None] = choice.scores or [None] * len(choice.indices)
        for name, found, chosen in zip(names, choice.indices, keys, strict=True):
            earlier = self._kept.get(name)
            positions = found if earlier is None else earlier.positions[found]
            self._kept[name] = _Kept(positions, chosen)

    def _count_dropped(self, threshold: Threshold | None) -> None:
        # Entries at the threshold that are no longer kept, but do count as ties.
        if threshold is not None:
            same = self._threshold is not None and self._threshold.bits == threshold.bits
            earlier = self._dropped if same else 0
            self._dropped = earlier + threshold.ties - threshold.ties_taken
        self._threshold = threshold

    def _estimate(
        self,
        sources: Sequence[ScoreSource],
        tensors: Sequence[tuple[str, ScoreSource]],
        sample: Sample,
        *,
        last: bool,
    ) -> Threshold:
        # The threshold is the rank-th largest of the sampled keys. Of those seen so far it can
        # only rise, so that what lies below it now will never be chosen.
        seen = [self._sampled, *(sample.pick(name, source) for name, source in tensors)]
        found = find_threshold([lambda: [torch.cat(seen)]], sample.rank, exchange=self._exchange)
        full = found is not None and found.above + found.ties_taken >= sample.rank
        exact = last and sample.positions is None
        bits = found.bits if found is not None and (full or exact) else _ALL
        self._sampled = _at_least(torch.cat(seen), bits)
        return threshold_at(
            sources,
            bits,
            at_most=self._k if last and full else sample.eligible,
            exchange=self._exchange,
        )


class TensorRankings:
    """Chooses of each tensor the entries with the largest keys of its own.

    Args:
        budgets: Per tensor how many to choose, on all ranks together; a tensor's is read when the
            tensor comes.
        exchange: How ranks tell each other their counts.
        places: As in :class:`Ranking`.
    """

    __slots__ = ("_budgets", "_exchange", "_found", "_places")

    def __init__(
        self,
        budgets: Mapping[str, int],
        *,
        exchange: Exchange = ALONE,
        places: Mapping[str, Place] = MappingProxyType({}),
    ) -> None:
        self._budgets = budgets
        self._places = places
        self._exchange = exchange
        self._found: dict[str, Ranked] = {}

    def add(
        self,
        tensors: Sequence[tuple[str, ScoreSource]],
        *,
        last: bool,
        thinned: Mapping[str, Thinned] = MappingProxyType({}),
        observe: Observer | None = None,
    ) -> None:
        """Rank the next tensors, each by itself; see :meth:`Ranking.add`."""
        del last
        for name, source in tensors:
            ranking = Ranking(self._budgets[name], exchange=self._exchange, places=self._places)
            own = {name: thinned[name]} if thinned else {}
            ranking.add([(name, source)], last=True, thinned=own, observe=observe)
            self._found[name] = ranking.result()

    def counts(self) -> dict[str, int]:
        """Return how many entries of each tensor so far were chosen, on all ranks."""
        return {name: found.count for name, found in self._found.items()}

    def result(self) -> Ranked:
        """Return what is chosen of all tensors so far."""
        found = self._found.values()
        return Ranked(
            {name: each.indices[name] for name, each in self._found.items()},
            count=sum(each.count for each in found),
            threshold=None,
            ties=sum(each.ties for each in found),
            ties_taken=sum(each.ties_taken for each in found),
            thresholds={
                name: each.threshold
                for name, each in self._found.items()
                if each.threshold is not None
            },
        )


def _source(kept: _Kept) -> ScoreSource:
    keys = kept.keys
    assert keys is not None  # noqa: S101  (only the last group's are let go)
    return lambda: [keys]


def _at_least(keys: Tensor, bits: int) -> Tensor:
    return keys[keys.view(torch.int32) >= bits]
