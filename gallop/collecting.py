"""Collecting a mask, and what its report compares it with, from tensors that come in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gallop.config import GallopConfig
from gallop.ranking import Ranked, Ranking, TensorRankings
from gallop.report import Overlap, SamplingReport
from gallop.sampling import CONFIDENCE, Sample, density_bounds, draw_sample
from gallop.scores import ScoredTensor, ZeroScores
from gallop.selectors import Selector
from gallop.sifting import SAMPLED, Thinned
from gallop.survey import Survey
from gallop.targets import Target
from gallop.topk import Exchange, ScoreSource

__all__ = ["Collected", "Collector"]

_Indices = Mapping[str, NDArray[np.int64]]

_INFINITY_BITS = 0x7F800000
_EXPONENTS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """What was found.

    Attributes:
        ranked: The mask, in positions of what this process holds, with the keys of thresholds.
        chosen: Per tensor how many entries were chosen, on all ranks.
        zero_share: As in the report.
        overlap: As in the report.
        histogram: As in the report.
        sampling: As in the report.
    """

    ranked: Ranked
    chosen: Mapping[str, int]
    zero_share: float
    overlap: Overlap | None
    histogram: Mapping[str, int]
    sampling: SamplingReport | None


class Collector:
    """Ranks tensors as their gradients come, a group at a time.

    Beside the mask it ranks the entries by their gradients alone, and, where zero weights are
    excluded, as if they were not.

    Args:
        targets: All that will come, in order.
        config: How to choose.
        selector: The score.
        survey: What is known of the weights.
        exchange: How ranks tell each other their counts.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        config: GallopConfig,
        *,
        selector: Selector,
        survey: Survey,
        exchange: Exchange,
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._config = config
        self._selector = selector
        self._survey = survey
        self._exchange = exchange
        self._places = {each.name: each.shard.flat for each in targets if each.shard is not None}
        self._tensors: list[ScoredTensor] = []
        self._exponents = np.zeros(_EXPONENTS, dtype=np.int64)
        self._sample = self._draw() if config.threshold_scope == "sampled_global" else None
        self._main = self._ranking()
        foretell = bool(config.exclude_zeros) and sum(survey.zeros) > 0
        self._with_zeros = self._ranking() if foretell else None
        self._strongest: Ranking | TensorRankings | None = None
        self._own_counts: dict[str, int] = {}
        if selector.gradient != "none":
            # A sampled threshold may choose more than was asked for.
            room = survey.requested * (1 if self._sample is None else 2)
            self._strongest = self._exact(room, self._own_counts)

    def add(
        self, gradients: Mapping[str, torch.Tensor], group: Sequence[str], *, last: bool
    ) -> None:
        """Rank the next group of tensors.

        Args:
            gradients: By name the flat gradient statistic of what is held here.
            group: The names of the group, in order.
            last: Whether no more will come.

        Raises:
            SelectionError: A score is negative or not finite.
        """
        tensors = [self._scored(self._targets[name], gradients.get(name)) for name in group]
        zeros: ZeroScores = "exclude" if self._config.exclude_zeros else "require_finite"
        thin = self._thin(tensors)
        self._main.add(
            _keys(tensors, zeros),
            last=last,
            thinned=self._samples(_keys(thin, zeros)),
            observe=self._count_exponents,
        )
        if self._with_zeros is not None:
            thinned = self._samples(_keys(thin, "saturate"))
            self._with_zeros.add(_keys(tensors, "saturate"), last=last, thinned=thinned)
        if self._strongest is not None:
            if isinstance(self._main, TensorRankings):
                self._own_counts.update(self._main.counts())
            thinned = self._samples(self._magnitudes(thin, of="gradient"))
            magnitudes = self._magnitudes(tensors, of="gradient")
            self._strongest.add(magnitudes, last=False, thinned=thinned)
        # The gradients are let go; the weights will be asked for once more.
        self._tensors += [self._scored(self._targets[name], None) for name in group]

    def finish(self) -> Collected:
        """Return what was found, after the last group."""
        ranked = self._main.result()
        sampling = None
        if self._sample is not None:
            low, high = density_bounds(self._sample)
            sampling = SamplingReport(
                size=self._sample.size,
                rank=self._sample.rank,
                density_low=low,
                density_high=high,
                confidence=CONFIDENCE,
            )
        held = np.array([len(found) for found in ranked.indices.values()], dtype=np.int64)
        chosen = [int(count) for count in self._exchange.total(held)]
        return Collected(
            ranked=ranked,
            chosen=dict(zip(ranked.indices, chosen, strict=True)),
            zero_share=self._zero_share(ranked),
            overlap=self._overlap(ranked),
            histogram=self._histogram(),
            sampling=sampling,
        )

    def _ranking(self) -> Ranking | TensorRankings:
        if self._config.threshold_scope == "per_tensor":
            return self._exact(0, self._budgets())
        return Ranking(
            self._survey.requested,
            exchange=self._exchange,
            sample=self._sample,
            places=self._places,
        )

    def _exact(self, k: int, budgets: Mapping[str, int]) -> Ranking | TensorRankings:
        if self._config.threshold_scope == "per_tensor":
            return TensorRankings(budgets, exchange=self._exchange, places=self._places)
        return Ranking(k, exchange=self._exchange, places=self._places)

    def _budgets(self) -> dict[str, int]:
        return dict(zip(self._targets, self._survey.budgets, strict=True))

    def _draw(self) -> Sample:
        return draw_sample(
            [(each.name, each.size, each.shard) for each in self._targets.values()],
            size=self._config.sample_size,
            k=self._survey.requested,
            seed=self._config.seed,
        )

    def _scored(self, target: Target, gradient: torch.Tensor | None) -> ScoredTensor:
        return ScoredTensor(
            target.name,
            target.weight,
            gradient,
            self._config.eps,
            selector=self._selector,
            shard=target.shard,
            seed=self._config.seed,
            weight_threshold=self._config.weight_threshold,
        )

    def _thin(self, tensors: Sequence[ScoredTensor]) -> list[ScoredTensor]:
        # An odd stride does not run along with rows of an even length.
        sizes = [self._targets[each.name].size for each in tensors]
        if self._config.threshold_scope != "per_tensor":
            sizes = [sum(sizes)] * len(sizes)
        return [
            tensor.thinned(max(1, size // SAMPLED) | 1)
            for tensor, size in zip(tensors, sizes, strict=True)
        ]

    def _samples(self, thin: Sequence[tuple[str, ScoreSource]]) -> dict[str, Thinned]:
        return {name: Thinned(self._targets[name].size, source) for name, source in thin}

    def _magnitudes(
        self,
        tensors: Sequence[ScoredTensor],
        *,
        of: Any,  # noqa: ANN401  (a literal of two)
    ) -> list[tuple[str, ScoreSource]]:
        excluded = bool(self._config.exclude_zeros)
        return [
            (each.name, partial(each.magnitudes, of, exclude_zeros=excluded)) for each in tensors
        ]

    def _zero_share(self, ranked: Ranked) -> float:
        if not sum(self._survey.zeros):
            return 0.0
        if self._with_zeros is not None:
            ranked = self._with_zeros.result()
        taken = 0
        for tensor in self._tensors:
            found = torch.from_numpy(ranked.indices[tensor.name]).to(tensor.weight.device)
            taken += len(found) - int(torch.count_nonzero(tensor.weight[found]))
        total = int(self._exchange.total(np.array([taken], dtype=np.int64))[0])
        return total / ranked.count if ranked.count else 0.0

    def _overlap(self, ranked: Ranked) -> Overlap | None:
        strongest = self._strongest
        size = ranked.count
        if self._sample is not None and size > 2 * self._survey.requested:
            return None
        lowest = self._exact(size, dict(self._chosen_counts(ranked)))
        lowest.add(
            self._magnitudes(self._tensors, of="weight"),
            last=True,
            thinned=self._samples(self._magnitudes(self._thin(self._tensors), of="weight")),
        )
        mask, low = ranked.indices, lowest.result().indices
        high: _Indices | None = None
        if isinstance(strongest, Ranking):
            high = strongest.cut(size).indices
        elif strongest is not None:
            high = strongest.result().indices
        sets: list[tuple[_Indices, ...]] = [(mask, low)]
        if high is not None:
            sets += [(mask, high), (low, high), (mask, low, high)]
        counts = np.array([_shared(each) for each in sets], dtype=np.int64)
        shared: list[int | None] = [*map(int, self._exchange.total(counts)), None, None, None]
        return Overlap(
            size=size,
            low_weight=shared[0] or 0,
            high_gradient=shared[1],
            both=shared[2],
            all_three=shared[3],
        )

    def _chosen_counts(self, ranked: Ranked) -> dict[str, int]:
        if isinstance(self._main, TensorRankings):
            return self._main.counts()
        return dict.fromkeys(ranked.indices, 0)

    def _count_exponents(self, keys: torch.Tensor) -> None:
        bits = keys.view(torch.int32)
        if self._selector.order == "smallest":
            bits = torch.where(bits > 0, _INFINITY_BITS - bits, 0)
        counts = torch.bincount((bits >> 23) + (bits > 0), minlength=_EXPONENTS)
        self._exponents += counts.cpu().numpy()

    def _histogram(self) -> dict[str, int]:
        counts = self._exchange.total(self._exponents)
        counts[0] += self._survey.eligible - int(counts.sum())  # tensors without a gradient
        return {
            "zero" if position == 0 else str(position - 128): int(count)
            for position, count in enumerate(counts)
            if count
        }


def _keys(tensors: Sequence[ScoredTensor], zeros: ZeroScores) -> list[tuple[str, ScoreSource]]:
    return [(each.name, partial(each.chunks, zeros=zeros)) for each in tensors]


def _shared(sets: Sequence[_Indices]) -> int:
    # How many entries are in all of the sets; each holds sorted, distinct positions.
    intersect = partial(np.intersect1d, assume_unique=True)
    return sum(len(reduce(intersect, (each[name] for each in sets))) for name in sets[0])
