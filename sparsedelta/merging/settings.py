"""How a merge is set: what each task has of its own, and what holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, TypeAlias

from sparsedelta.rounding import FLOATS

DensityOf: TypeAlias = Literal["elements", "entries"]


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What a task has of its own; the names are those of mergekit.

    Attributes:
        weight: What its differences are multiplied with.
        density: Which share of them is kept.
        gamma: Which share is dropped as outliers, the largest first (``breadcrumbs``).
        epsilon: By how much the chance of being kept varies with magnitude (``della``).
    """

    weight: float = 1.0
    density: float = 1.0
    gamma: float = 0.01
    epsilon: float = 0.15


@dataclass(frozen=True, slots=True)
class Settings:
    """How tasks are put together in one tensor.

    Attributes:
        tasks: Settings of each task.
        identities: What random numbers of each task are drawn from, beside the seed.
        normalize: Divide by the sum of the weights.
        rescale: After entries were dropped, give the others the sum of magnitudes of all.
        lambda_: What the whole change is multiplied with.
        t: Where between two ends: 0 is the first, 1 the second; None: by the weights.
        select_topk: Which share of the elements is selected (``sce``).
        filter_wise: One angle per row instead of one per tensor (``model_stock``).
        nuslerp_flatten: One angle per tensor (``nuslerp``); else one per row or column.
        nuslerp_row_wise: With one angle per column: along the first dimension.
        base_weight: Weight of the base itself (``linear``).
        density_of: Whether shares are of all elements of a tensor or of its entries alone.
        seed: What random numbers are drawn from.
        computed: Dtypes that ``sum`` computes with.
        note: What an error says of a tensor that is not computed with.
    """

    tasks: tuple[TaskSettings, ...]
    identities: tuple[str, ...] = ()
    normalize: bool = False
    rescale: bool = False
    lambda_: float = 1.0
    t: float | None = None
    select_topk: float = 1.0
    filter_wise: bool = False
    nuslerp_flatten: bool = True
    nuslerp_row_wise: bool = False
    base_weight: float = 0.0
    density_of: DensityOf = "elements"
    seed: int = 0
    computed: tuple[str, ...] = FLOATS
    note: str = ""

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each task."""
        return tuple(task.weight for task in self.tasks)

    def chosen(self, order: Sequence[int], identities: Sequence[str]) -> Settings:
        """The settings of some of the tasks, in another order."""
        return replace(
            self, tasks=tuple(self.tasks[n] for n in order), identities=tuple(identities)
        )


def finite_number(value: object) -> float | None:
    """A number as float64; None if it is none, not finite, or too large."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
