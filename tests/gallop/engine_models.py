"""Models, batches and a training loop by hooks, to hold the other engine against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_models import same_bits, weights_of
from torch import Tensor, nn
from torch.nn import functional

from gallop import Mask, SparseAdamW

Loss = Callable[[nn.Module, Any], Tensor]


def llama_batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 24, (2, 6), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "labels": each} for each in ids]


class Experts(nn.Module):
    """Expert tensors in 3-D, a Linear used twice, a subclass, two that are tied, conv and norm."""

    class Scaled(nn.Linear):
        """A Linear with a forward of its own."""

        def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
            return 2 * super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.scaled = self.Scaled(6, 6)
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.right.weight = self.left.weight
        self.experts = nn.Parameter(torch.linspace(-1, 1, 2 * 6 * 6).view(2, 6, 6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
        x = self.norm(x + self.inner(self.scaled(self.inner(x))))
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = self.right(functional.gelu(self.left(x)))
        return torch.einsum("btd,edh->bth", x, self.experts)


def experts() -> Experts:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Experts()


def square_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().square().mean()  # type: ignore[no-any-return]


def vectors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, 5, 6, generator=generator) for _ in range(count)]


def train_by_hooks(
    model: nn.Module,
    mask: Mask,
    batches: list[Any],
    loss: Loss,
    *,
    accumulate: int,
    **settings: Any,  # noqa: ANN401
) -> None:
    with SparseAdamW(model, mask, **settings) as optimizer:
        for start in range(0, len(batches), accumulate):
            for batch in batches[start : start + accumulate]:
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    right = weights_of(expected)
    for name, value in weights_of(model).items():
        assert same_bits(value, right[name]), name
