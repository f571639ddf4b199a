"""Settings of AdamW over chosen entries, and which values of them make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from gallop.errors import ConfigError, OptimizerError

__all__ = ["WeightDecayMode", "check_hyperparameters", "check_settings"]

WeightDecayMode = Literal["weight", "delta"]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a saved parameter group.

    Args:
        settings: Those of :func:`check_hyperparameters`, and others.

    Raises:
        OptimizerError: One is missing or out of range.
    """
    names = ("lr", "betas", "eps", "weight_decay", "weight_decay_mode", "max_grad_norm")
    try:
        check_hyperparameters(**{name: settings[name] for name in names})
    except (ConfigError, KeyError, TypeError) as error:
        raise OptimizerError(f"optimizer state: expected valid settings, found {error}") from error


def check_hyperparameters(
    lr: float,
    betas: tuple[float, float],
    *,
    eps: float,
    weight_decay: float,
    weight_decay_mode: str,
    max_grad_norm: float | None,
) -> None:
    """Check the settings of ``SparseAdamW``, which see.

    Args:
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decay per unit of learning rate.
        weight_decay_mode: ``"weight"`` or ``"delta"``.
        max_grad_norm: Norm to clip to, or None.

    Raises:
        ConfigError: One is out of range; the message names it.
    """
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: expected a finite number >= 0, found {value!r}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):  # noqa: PLR2004  (two moments)
        raise ConfigError(f"betas: expected two numbers in [0, 1), found {betas!r}")
    if weight_decay_mode not in get_args(WeightDecayMode):
        raise ConfigError(
            f"weight_decay_mode: expected weight or delta, found {weight_decay_mode!r}"
        )
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm: expected a number > 0 or None, found {max_grad_norm!r}")
