"""How a mask is trained: one frozen, validated value, and the learning rate that follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gallop.computing import Compute
from gallop.errors import ConfigError
from gallop.optim import WeightDecayMode, check_hyperparameters
from gallop.sampled_product import GradientMode

__all__ = ["Engine", "TrainConfig", "check_gradient", "lr_factor", "settings"]

Engine = Literal["hook", "autograd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a mask is trained.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate.
        batch_size: Samples per backward pass.
        accumulate: Backward passes per step.
        warmup: Share of the steps over which the learning rate rises; see :func:`lr_factor`.
        betas: As in AdamW.
        eps: As in AdamW.
        weight_decay: As in :class:`gallop.SparseAdamW`.
        weight_decay_mode: As in :class:`gallop.SparseAdamW`.
        max_grad_norm: Clip the gradient of the chosen entries to this norm, or None.
        max_length: Tokens per sample.
        selection_samples: How many samples the selection sees.
        engine: ``"hook"`` for :class:`gallop.SparseAdamW`, ``"autograd"`` for
            :class:`gallop.SparseValues`; in float32 on CPU the result is the same, bit for bit.
        gradient: ``"dense"``, or with engine ``"autograd"`` ``"sampled"``: the chosen entries of a
            Linear's gradient are computed alone; see :class:`gallop.SparseValues`.
        compute: ``"weights"`` computes in the dtype of the weights, ``"float32"`` in float32 with
            the same weights, ``"auto"`` so where the CPU emulates theirs; see
            :mod:`gallop.computing`.
        seed: Seeds the order of the data, which samples the selection sees, and dropout.

    Raises:
        ConfigError: A value is out of range.
    """

    steps: int
    lr: float = 2e-4
    batch_size: int = 8
    accumulate: int = 1
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_mode: WeightDecayMode = "weight"
    max_grad_norm: float | None = 1.0
    max_length: int = 512
    selection_samples: int = 256
    engine: Engine = "hook"
    gradient: GradientMode = "dense"
    compute: Compute = "weights"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "accumulate", "max_length", "selection_samples"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: expected at least 1, found {getattr(self, field)}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed: expected an integer in [0, 2**63), found {self.seed}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup: expected a share in [0, 1], found {self.warmup}")
        if self.engine not in get_args(Engine):
            raise ConfigError(f"engine: expected hook or autograd, found {self.engine!r}")
        check_gradient(self.gradient, self.engine)
        if self.compute not in get_args(Compute):
            raise ConfigError(f"compute: expected weights, float32 or auto, found {self.compute!r}")
        if self.engine == "autograd" and self.weight_decay_mode == "delta":
            raise ConfigError(
                "weight_decay_mode: expected weight with engine autograd, whose optimizer is "
                "torch's AdamW, found delta",
                hint="engine hook decays to the base",
            )
        # Here as well as in the optimizer, which is made only after the selection has run.
        check_hyperparameters(
            self.lr,
            self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            weight_decay_mode=self.weight_decay_mode,
            max_grad_norm=self.max_grad_norm,
        )


def check_gradient(gradient: str, engine: str) -> None:
    """Check that an engine can come by gradients in this way.

    Args:
        gradient: ``"dense"`` or ``"sampled"``.
        engine: ``"hook"`` or ``"autograd"``.

    Raises:
        ConfigError: It cannot.
    """
    if gradient not in get_args(GradientMode):
        raise ConfigError(f"gradient: expected dense or sampled, found {gradient!r}")
    if gradient == "sampled" and engine != "autograd":
        raise ConfigError(
            f"gradient: expected dense with engine {engine}, which takes the gradients that "
            "autograd has made, found sampled",
            hint="engine autograd computes the chosen entries alone",
        )


def lr_factor(step: int, training: TrainConfig) -> float:
    """Return the share of the peak learning rate: linear warm-up, then linear decay.

    With ``w = round(warmup * steps)``, step ``s`` (from 0) has ``(s + 1) / (w + 1)`` while
    ``s < w`` and ``(steps - s) / (steps - w)`` after: no step is wasted at rate 0.

    Args:
        step: Steps taken.
        training: Its ``steps`` and ``warmup``.

    Returns:
        A factor in [0, 1].
    """
    warmup = round(training.warmup * training.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (training.steps - step) / max(1, training.steps - warmup))


def settings(training: TrainConfig) -> dict[str, Any]:
    """Return the training settings as JSON-ready values."""
    return dataclasses.asdict(training) | {"betas": list(training.betas)}
