"""The engines inside a trainer: who clips, who forgets gradients, what a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gallop.collectives import Peers
from gallop.errors import OptimizerError
from gallop.groups import GroupSpec
from gallop.mask import Mask
from gallop.optim import SparseAdamW, WeightDecayMode
from gallop.parallelism import average_gradients, require_same_start
from gallop.sampled_product import GradientMode
from gallop.values import SparseValues
from gallop.visibility import Visibility

__all__ = ["AutogradEngine", "Engine", "EngineName", "HookEngine"]

EngineName = Literal["hook", "autograd"]

_VALUES_FILE = "gallop.values.pt"


class Engine(Protocol):
    """What a trainer needs of an engine.

    Attributes:
        optimizer: What the trainer steps.
    """

    optimizer: Optimizer

    def begin(self, max_grad_norm: float | None, resumed: Path | None) -> None:
        """Start training, the optimizer's state loaded, without gradients from before."""

    def gradient_norm(self, max_grad_norm: float | None = None) -> Tensor:
        """Return the 2-norm of the gradient, and see to it that the step is clipped to a limit.

        Called once before every step, by all processes: gradients are averaged here.
        """

    def after_step(self) -> None:
        """Forget the gradients of the step."""

    def save(self, folder: Path) -> None:
        """Write what neither weights nor optimizer state hold into a checkpoint folder."""

    def visibility(self) -> Visibility:
        """Count the entries that moved, and those that show it."""

    def bases(self) -> Mapping[str, Tensor]:
        """Return the values before training, by tensor: references, to write to."""

    def close(self) -> None:
        """Give the model back as it was, but trained."""


class HookEngine:
    """:class:`gallop.SparseAdamW`, with the settings of AdamW in a trainer's arguments.

    Args:
        model: The model.
        mask: What to train.
        args: ``TrainingArguments``.
        groups: Parameter groups with settings of their own.
        weight_decay_mode: As in ``SparseAdamW``.
        peers: The processes that train together; None if there are no others.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        args: Any,  # noqa: ANN401  (transformers comes without types)
        *,
        groups: Sequence[GroupSpec],
        weight_decay_mode: WeightDecayMode,
        peers: Peers | None,
    ) -> None:
        self.optimizer: Optimizer
        self._own = self.optimizer = SparseAdamW(
            model,
            mask,
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay_mode=weight_decay_mode,
            param_groups=groups,
            data_parallel=peers is not None,
        )

    def begin(self, max_grad_norm: float | None, resumed: Path | None) -> None:
        """Clip as the arguments say, not as a checkpoint does."""
        del resumed  # the optimizer's state holds everything
        for group in self._own.param_groups:
            group["max_grad_norm"] = max_grad_norm
        self._own.zero_grad()

    def gradient_norm(self, max_grad_norm: float | None = None) -> Tensor:
        """Return the norm; ``step`` clips."""
        del max_grad_norm
        return self._own.gradient_norm()

    def after_step(self) -> None:
        """Do nothing: ``step`` forgets what it has used."""

    def save(self, folder: Path) -> None:
        """Do nothing: the optimizer's state holds everything."""

    def visibility(self) -> Visibility:
        """Count by masters."""
        return self._own.visibility()

    def bases(self) -> Mapping[str, Tensor]:
        """Return those of the optimizer's state."""
        return {each.name: each.state["base"] for each in self._own.entries}

    def close(self) -> None:
        """Remove the hooks."""
        self._own.close()


class AutogradEngine:
    """:class:`gallop.SparseValues` under an optimizer that the trainer would make by itself.

    Args:
        model: The model.
        mask: What to train.
        made: Class of the optimizer, and its settings.
        groups: Parameter groups with settings of their own.
        gradient: As in ``SparseValues``.
        peers: The processes that train together; None if there are no others.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        made: tuple[type[Optimizer], Mapping[str, Any]],
        *,
        groups: Sequence[GroupSpec],
        gradient: GradientMode,
        peers: Peers | None,
    ) -> None:
        if peers is not None:
            require_same_start(model, mask, peers)
        self._peers = peers
        self._averaged = False
        self._gradient = gradient
        self._values = SparseValues(model, mask, gradient=gradient)
        try:
            self.optimizer = self._values.optimizer(made[0], param_groups=groups, **made[1])
        except BaseException:
            self._values.close()
            raise

    def begin(self, max_grad_norm: float | None, resumed: Path | None) -> None:
        """Take the float32 values over from a checkpoint: its weights may be rounded."""
        del max_grad_norm
        if resumed is not None:
            path = resumed / _VALUES_FILE
            if not path.is_file():
                raise OptimizerError(
                    f"{resumed}: expected {_VALUES_FILE}, found none: this checkpoint was not "
                    "written with engine='autograd'",
                    hint="attach with the engine that the checkpoint was trained with",
                )
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved.get("gradient") != self._gradient:
                raise OptimizerError(
                    f"{path}: expected values trained with gradient={self._gradient!r}, found "
                    f"gradient={saved.get('gradient')!r}: what follows would differ in its last "
                    "bits from a run that was never interrupted",
                    hint="attach with the gradient that the checkpoint was trained with",
                )
            self._values.load_state_dict(saved["values"])
        self.after_step()

    def gradient_norm(self, max_grad_norm: float | None = None) -> Tensor:
        """Average the values' gradients, once a step, and clip as ``clip_grad_norm_`` does."""
        values = list(self._values.parameters())
        if self._peers is not None and not self._averaged:
            average_gradients(values, self._peers)
            self._averaged = True
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        return nn.utils.clip_grad_norm_(values, limit)

    def after_step(self) -> None:
        """Drop the gradients: the trainer clears those of the model's own parameters only."""
        self._averaged = False
        self._values.zero_grad()

    def save(self, folder: Path) -> None:
        """Write the float32 values, and how their gradients came about."""
        state = {"gradient": self._gradient, "values": self._values.state_dict()}
        torch.save(state, folder / _VALUES_FILE)

    def visibility(self) -> Visibility:
        """Count by values."""
        return self._values.visibility()

    def bases(self) -> Mapping[str, Tensor]:
        """Return those of the values."""
        return {name: state["base"] for name, state in self._values.state_dict().items()}

    def close(self) -> None:
        """Give the layers their own forward back."""
        self._values.close()
