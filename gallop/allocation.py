"""How many entries each tensor gets: named rules that divide one budget, and users' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gallop.errors import ConfigError
from gallop.registry import Registry

__all__ = ["ALLOCATIONS", "Allocation", "TensorStats", "allocate", "allocation", "divide"]


@dataclass(frozen=True, slots=True, eq=False)
class TensorStats:
    """What an allocation may know of a tensor.

    Attributes:
        name: Name of the parameter.
        kind: Its kind; see ``gallop.kinds``.
        shape: Its shape.
        size: Its number of entries.
        available: How many of them may be chosen: zeros are left out where ``exclude_zeros`` is
            set, and weights of ``weight_threshold`` and more.
        histogram: ``histogram(bins)`` counts its values in bins of equal width between the
            smallest and the largest of them, int64.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int
    available: int
    histogram: Callable[[int], NDArray[np.int64]]


Allocation: TypeAlias = Callable[[Sequence[TensorStats]], Sequence[float]]
"""Gives each tensor a weight, finite and at least 0: its share of the budget is proportional."""

ALLOCATIONS: Registry[Allocation] = Registry("allocation", lambda item: item)
"""All allocations by name."""


def allocation(name: str) -> Callable[[Allocation], Allocation]:
    """Register a rule that gives each tensor a weight.

    ::

        @gallop.allocation.allocation("square-root")
        def square_root(tensors):
            return [tensor.size ** 0.5 for tensor in tensors]

    Args:
        name: The name for ``GallopConfig(allocation=...)``.

    Returns:
        A decorator that gives the function back.

    Raises:
        ConfigError: The name is taken.
    """

    def register(rule: Allocation) -> Allocation:
        ALLOCATIONS.add(name, rule)
        return rule

    return register


@allocation("uniform")
def uniform(tensors: Sequence[TensorStats]) -> list[float]:
    """Give every tensor the same number of entries."""
    return [1.0] * len(tensors)


@allocation("proportional")
def proportional(tensors: Sequence[TensorStats]) -> list[float]:
    """Give every tensor the same share of its entries."""
    return [float(tensor.size) for tensor in tensors]


@allocation("entropy")
def entropy(tensors: Sequence[TensorStats]) -> list[float]:
    """Give every tensor entries in proportion to the entropy of its values, times its size.

    GEM (arXiv 2508.16191) tells how many parameters of a layer to tune from the entropy of its
    parameter values. Its number of bins was not to be found: here it is 256, of equal width from
    the smallest to the largest value, and the entropy is that of an entry, so that a tensor's
    weight is the information that all its entries hold. A tensor of one value gets none.
    """
    return [tensor.size * _entropy(tensor.histogram(256)) for tensor in tensors]


def divide(budget: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Divide a budget in proportion to weights, by largest remainders, with caps.

    What a capped tensor cannot take goes to the others, in proportion to their weights again; what
    tensors with a weight cannot take goes to those with weight 0, in proportion to their caps.
    Equal remainders are rounded up in the order of the tensors.

    Args:
        budget: How many entries to give, at least 0.
        weights: Per tensor a finite weight at least 0.
        caps: Per tensor the most that it can take.

    Returns:
        Per tensor a count in ``[0, cap]``. They sum to ``min(budget, sum(caps))``.
    """
    counts = [0] * len(caps)
    left = min(budget, sum(caps))
    exact = [Fraction(weight) for weight in weights]
    while left:
        room = [i for i, cap in enumerate(caps) if counts[i] < cap and exact[i] > 0]
        if not room:
            exact = [Fraction(cap - count) for cap, count in zip(caps, counts, strict=True)]
            continue
        total = sum((exact[i] for i in room), start=Fraction(0))
        shares = {i: exact[i] * left / total for i in room}
        full = [i for i in room if shares[i] >= caps[i] - counts[i]]
        if full:
            for i in full:
                left -= caps[i] - counts[i]
                counts[i] = caps[i]
            continue
        floors = {i: math.floor(shares[i]) for i in room}
        by_remainder = sorted(room, key=lambda i: (floors[i] - shares[i], i))
        for i in by_remainder[: left - sum(floors.values())]:
            floors[i] += 1
        for i in room:
            counts[i] += floors[i]
        left = 0
    return counts


def allocate(name: str, tensors: Sequence[TensorStats], budget: int) -> list[int]:
    """Divide a budget among tensors by a registered rule.

    Args:
        name: Name of the rule.
        tensors: What it may know.
        budget: How many entries to give.

    Returns:
        Per tensor its count, as :func:`divide` makes it of the rule's weights and of how many
        entries may be chosen.

    Raises:
        ConfigError: There is no such rule, or it returned something else than one finite weight
            at least 0 for each tensor.
    """
    weights = list(ALLOCATIONS.find(name)(tensors))
    if len(weights) != len(tensors) or not all(0 <= each < math.inf for each in weights):
        raise ConfigError(
            f"allocation {name}: expected {len(tensors)} finite weights >= 0, found {weights}"
        )
    return divide(budget, weights, [tensor.available for tensor in tensors])


def _entropy(counts: NDArray[np.int64]) -> float:
    # In nats. With integers in a fixed order, the same on every machine and number of ranks.
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0
