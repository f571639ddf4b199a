"""The engines of the training loop: one way to step, save and go on with either of them."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from gallop.errors import OptimizerError
from gallop.mask import Mask
from gallop.optim import SparseAdamW
from gallop.train_config import TrainConfig
from gallop.values import SparseValues
from gallop.visibility import Visibility
from sparsedelta.closing import Closing

__all__ = ["TrainEngine", "open_engine"]


class TrainEngine(Protocol):
    """AdamW over the entries of a mask, however it comes by their gradients.

    Attributes:
        optimizer: Whose learning rate a scheduler sets.
    """

    optimizer: Optimizer

    def step(self) -> float:
        """Clip, step and forget the gradients.

        Returns:
            2-norm of the gradient before clipping.

        Raises:
            OptimizerError: It is not finite; no weight was changed.
        """

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load` needs: references, not copies."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state, and write its weights into the model.

        Args:
            state: What :meth:`state` returned for the same mask.
        """

    def visibility(self) -> Visibility:
        """Count the entries that moved, and those whose weights show it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_engine(model: nn.Module, mask: Mask, training: TrainConfig) -> TrainEngine:
    """Start training a mask.

    Args:
        model: Holding the weights of the base.
        mask: What to train.
        training: Its ``engine``, and the settings of AdamW.

    Returns:
        The engine: to be closed, as a context.

    Raises:
        GallopError: From :class:`gallop.SparseAdamW` or :class:`gallop.SparseValues`.
    """
    kind = _AutogradEngine if training.engine == "autograd" else _HookEngine
    return kind(model, mask, training)


class _HookEngine(Closing):
    def __init__(self, model: nn.Module, mask: Mask, training: TrainConfig) -> None:
        self._adamw = SparseAdamW(
            model,
            mask,
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            weight_decay_mode=training.weight_decay_mode,
            max_grad_norm=training.max_grad_norm,
        )
        self.optimizer: Optimizer = self._adamw

    def step(self) -> float:
        self._adamw.step()
        return self._adamw.last_grad_norm or 0.0

    def state(self) -> dict[str, Any]:
        return self._adamw.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state)

    def visibility(self) -> Visibility:
        return self._adamw.visibility()

    def close(self) -> None:
        self._adamw.close()


class _AutogradEngine(Closing):
    def __init__(self, model: nn.Module, mask: Mask, training: TrainConfig) -> None:
        self._values = SparseValues(model, mask, gradient=training.gradient)
        self._max_grad_norm = training.max_grad_norm or math.inf
        self.optimizer: Optimizer = self._values.optimizer(
            AdamW,
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            foreach=False,  # the order of operations of the other engine
        )

    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(
            self._values.parameters(), self._max_grad_norm, foreach=False
        )
        if not bool(torch.isfinite(norm)):
            raise OptimizerError(
                f"gradient: expected a finite norm, found {float(norm)}; no weight was changed",
                hint="look at the batch: half precision may overflow, or all labels be ignored",
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def state(self) -> dict[str, Any]:
        return {"values": self._values.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self._values.load_state_dict(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])

    def visibility(self) -> Visibility:
        return self._values.visibility()

    def close(self) -> None:
        self._values.close()
