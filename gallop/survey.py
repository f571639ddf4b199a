"""What is known of the weights before any gradient: zeros, what may be chosen, budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gallop.allocation import TensorStats, allocate
from gallop.config import GallopConfig
from gallop.scores import CHUNK
from gallop.targets import Target
from gallop.topk import Exchange

__all__ = ["Survey", "survey_weights"]


@dataclass(frozen=True, slots=True)
class Survey:
    """The weights that a selection may choose from.

    Attributes:
        sizes: Per target its number of entries.
        zeros: Per target how many of them are exactly zero.
        available: Per target how many may be chosen.
        budgets: In ``"per_tensor"`` scope, how many entries to choose of each target; otherwise
            one number for all of them.
    """

    sizes: tuple[int, ...]
    zeros: tuple[int, ...]
    available: tuple[int, ...]
    budgets: tuple[int, ...]

    @property
    def eligible(self) -> int:
        """Number of entries of all targets."""
        return sum(self.sizes)

    @property
    def requested(self) -> int:
        """How many entries the configuration asks for."""
        return sum(self.budgets)


def survey_weights(targets: Sequence[Target], config: GallopConfig, exchange: Exchange) -> Survey:
    """Count what may be chosen, and divide the budget.

    Args:
        targets: What the selection may choose from.
        config: How.
        exchange: How ranks that hold shards of the targets tell each other their counts.

    Returns:
        Counts over all ranks.

    Raises:
        ConfigError: The allocation is unknown, or returned something that it must not.
    """
    sizes = tuple(target.size for target in targets)
    held = np.array([_counts(target.weight, config) for target in targets], dtype=np.int64)
    zeros, kept_out = exchange.total(held.reshape(-1)).reshape(-1, 2).T.tolist()
    available = tuple(size - out for size, out in zip(sizes, kept_out, strict=True))
    return Survey(
        sizes=sizes,
        zeros=tuple(zeros),
        available=available,
        budgets=_budgets(targets, config, sizes=sizes, available=available, exchange=exchange),
    )


def _budgets(
    targets: Sequence[Target],
    config: GallopConfig,
    *,
    sizes: Sequence[int],
    available: Sequence[int],
    exchange: Exchange,
) -> tuple[int, ...]:
    whole = config.budget(sum(sizes))
    if config.threshold_scope != "per_tensor":
        return (whole,)
    if config.allocation is None:
        return tuple(map(config.budget, sizes))
    stats = [
        TensorStats(
            name=target.name,
            kind=target.kind,
            shape=tuple(target.parameter.shape),
            size=target.size,
            available=free,
            histogram=_Histogram(target, exchange),
        )
        for target, free in zip(targets, available, strict=True)
    ]
    return tuple(allocate(config.allocation, stats, whole))


class _Histogram:
    """Counts the values of a tensor in bins of equal width."""

    __slots__ = ("_exchange", "_target")

    def __init__(self, target: Target, exchange: Exchange) -> None:
        self._target = target
        self._exchange = exchange

    def __call__(self, bins: int) -> NDArray[np.int64]:
        ends = np.array([-math.inf, -math.inf])  # minus the smallest value, and the largest
        for values in _chunks(self._target.weight):
            low, high = values.aminmax()
            ends = np.maximum(ends, [-float(low), float(high)])
        smallest, largest = self._exchange.largest(ends) * [-1, 1]
        scale = bins / (largest - smallest) if largest > smallest else 0.0
        counts = np.zeros(bins, dtype=np.int64)
        for values in _chunks(self._target.weight):
            at = ((values.double() - smallest) * scale).long().clamp_(0, bins - 1)
            counts += torch.bincount(at, minlength=bins).cpu().numpy()
        return self._exchange.total(counts)


def _counts(weight: Tensor, config: GallopConfig) -> tuple[int, int]:
    # Zeros, and entries that may not be chosen.
    zeros = kept_out = 0
    for values in _chunks(weight):
        zero = values == 0
        out = zero if config.exclude_zeros else torch.zeros_like(zero)
        if config.weight_threshold is not None:
            out = out | (values.abs() >= config.weight_threshold)
        zeros += int(torch.count_nonzero(zero))
        kept_out += int(torch.count_nonzero(out))
    return zeros, kept_out


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    for start in range(0, weight.numel(), CHUNK):
        yield weight[start : start + CHUNK].float()
