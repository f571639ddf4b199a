"""Models that are sharded in the tests, and losses whose gradients are exact on any rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHAPES: dict[str, tuple[int, ...]] = {
    "rows": (11, 7),  # uneven over 2 and 4 ranks
    "few": (3, 5),  # an empty shard on the last of 4
    "columns": (5, 8),  # cut along its second dimension
    "bias": (9,),
    "cube": (4, 3, 8),
}
COLUMNS = {"columns": 1, "cube": 2}
"""The dimension along which a parameter is cut, if it is not the first."""


class Term(nn.Module):
    """The sum of ``weight * slope``: its gradient is ``slope``, whatever the weight is."""

    slope: Tensor

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        # Few distinct numbers, so that many scores are equal.
        weight = torch.randint(-3, 4, shape, generator=generator).float() / 4
        self.weight = nn.Parameter(weight)
        self.register_buffer("slope", torch.randint(-4, 5, shape, generator=generator).float())

    def forward(self, scale: Tensor) -> Tensor:
        """Return ``scale`` times the sum."""
        return (self.weight.float() * self.slope).sum() * scale


class Linear(nn.Module):
    """A linear functional of all its parameters."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.terms = nn.ModuleDict({n: Term(s, generator) for n, s in SHAPES.items()})

    def forward(self, scale: Tensor) -> Tensor:
        """Return the sum of all terms."""
        total = torch.zeros(())
        for term in self.terms.values():
            total = total + term(scale)
        return total


def scaled_loss(model: nn.Module, scale: Tensor) -> Tensor:
    """A loss whose gradient is exactly ``scale`` times the slopes."""
    return model(scale).mean()  # type: ignore[no-any-return]


def shard(model: nn.Module, **options: Any) -> nn.Module:  # noqa: ANN401
    """Shard every term, and the rest, with FSDP2."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415
    from torch.distributed.tensor import Shard  # noqa: PLC0415

    for name, term in model.terms.items():  # type: ignore[operator, union-attr]
        dimension = COLUMNS.get(name, 0)
        fully_shard(term, shard_placement_fn=lambda _, d=dimension: Shard(d), **options)
    fully_shard(model, **options)
    return model


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model, sharded or not, as plain tensors; collective."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }
