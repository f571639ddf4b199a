"""What a selector is: a score per entry, and what it is computed from; users register their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gallop.errors import ConfigError
from gallop.registry import Registry

if TYPE_CHECKING:  # settings are made, and help is printed, without torch
    from torch import Tensor

__all__ = ["SELECTORS", "Chunk", "GradientStatistic", "ScoreFunction", "Selector", "selector"]

GradientStatistic = Literal["mean", "mean_square", "first_batch", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A run of entries of one parameter, as a score function sees it.

    The tensors are copies: they may be changed in place.

    Attributes:
        name: Name of the parameter.
        indices: Their flat indices in the whole parameter, int64.
        weight: Their values, flat, float32.
        gradient: Their gradient statistic, flat, float32: what the selector was registered for.
            Zeros where no loss depends on the parameter, or the selector needs no gradient.
        eps: The configuration's.
        seed: The configuration's.
    """

    name: str
    indices: Tensor
    weight: Tensor
    gradient: Tensor
    eps: float
    seed: int


ScoreFunction: TypeAlias = "Callable[[Chunk], Tensor]"


@dataclass(frozen=True, slots=True)
class Selector:
    """A way of scoring entries.

    Attributes:
        name: What ``GallopConfig(selector=...)`` calls it.
        score: Returns a finite score at least 0 for every entry of a chunk, flat, float32.
        gradient: What of the gradients it needs: their signed ``"mean"`` over the batches, the
            mean of their squares (``"mean_square"``), the gradient of the ``"first_batch"``
            alone, or ``"none"``: then no batch is needed, and no backward pass is run.
        order: Which scores are chosen first. With ``"largest"``, a score of 0 is never chosen;
            with ``"smallest"``, 0 is the first to be.
        scope: Its ``threshold_scope`` where the configuration does not say.
        exclude_zeros: Whether weights that are exactly zero may not be chosen, where the
            configuration does not say.
        allocation: Its budgets per tensor in ``"per_tensor"`` scope, where the configuration does
            not say.
    """

    name: str
    score: ScoreFunction
    gradient: GradientStatistic = "mean"
    order: Literal["largest", "smallest"] = "largest"
    scope: Literal["global", "per_tensor"] = "global"
    exclude_zeros: bool = False
    allocation: str | None = None


SELECTORS: Registry[Selector] = Registry("selector", lambda item: item.score)
"""All selectors by name; ``gallop.formulas`` registers those that come with gallop."""


def selector(
    name: str,
    *,
    gradient: GradientStatistic = "mean",
    order: Literal["largest", "smallest"] = "largest",
    scope: Literal["global", "per_tensor"] = "global",
    exclude_zeros: bool = False,
    allocation: str | None = None,
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register a score function under a name.

    ::

        @gallop.selector("taylor")
        def taylor(chunk):
            return (chunk.gradient * chunk.weight).square()

        mask = gallop.select(model, batches, gallop.GallopConfig(0.01, selector="taylor"))

    The score of an entry must depend on that entry alone: scores are computed again and again in
    chunks, and never held for a whole tensor.

    Args:
        name: The name for ``GallopConfig(selector=...)``; registering a name again replaces a
            function of the same module and name, as in a notebook, and is otherwise refused.
        gradient: As in :class:`Selector`.
        order: As in :class:`Selector`.
        scope: As in :class:`Selector`.
        exclude_zeros: As in :class:`Selector`.
        allocation: As in :class:`Selector`.

    Returns:
        A decorator that gives the function back.

    Raises:
        ConfigError: The name is taken, or a setting is none of its choices.
    """
    for field, value, choices in (
        ("gradient", gradient, ("mean", "mean_square", "first_batch", "none")),
        ("order", order, ("largest", "smallest")),
        ("scope", scope, ("global", "per_tensor")),
    ):
        if value not in choices:
            raise ConfigError(
                f"selector {name}: expected {field} to be one of {', '.join(choices)}, "
                f"found {value!r}"
            )

    def register(score: ScoreFunction) -> ScoreFunction:
        SELECTORS.add(
            name,
            Selector(
                name,
                score,
                gradient=gradient,
                order=order,
                scope=scope,
                exclude_zeros=exclude_zeros,
                allocation=allocation,
            ),
        )
        return score

    return register
