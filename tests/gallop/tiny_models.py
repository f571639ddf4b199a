"""Small real models and batches for the tests of gallop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 61
TokenBatch = tuple[Tensor, Tensor]


class TinyLanguageModel(nn.Module):
    """Embedding, LayerNorm, convolution, MLP and a head tied to the embedding."""

    def __init__(self, *, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.up = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(0.3)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits of shape (batch, length, vocabulary)."""
        hidden = self.norm(self.embedding(ids))
        hidden = hidden + self.mix(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.down(self.dropout(functional.gelu(self.up(hidden))))
        return self.head(hidden)  # type: ignore[no-any-return]


def tiny_model(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> TinyLanguageModel:
    """Build the model with fixed weights, some of them zero, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyLanguageModel()
        with torch.no_grad():
            model.down.weight[torch.rand_like(model.down.weight) < 0.1] = 0.0
    return model.to(dtype).eval()


def token_batches(count: int, *, size: int = 2, seed: int = 1) -> list[TokenBatch]:
    """Return pairs of ids and next ids, int64 of shape (size, 7)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY - 5, (count, size, 8), generator=generator)
    return [(each[:, :-1], each[:, 1:]) for each in ids]


def token_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Mean cross entropy in float32."""
    ids, targets = batch
    return functional.cross_entropy(model(ids).float().flatten(0, 1), targets.flatten())


def backward(loss: Tensor) -> None:
    """Run backward, which torch leaves untyped."""
    loss.backward()  # type: ignore[no-untyped-call]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a model."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Compare bit patterns: -0.0 is not 0.0, and NaN equals itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(
        torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    )


def clone(model: nn.Module) -> Any:  # noqa: ANN401  (the caller knows the class)
    """Copy a model, ties included."""
    return copy.deepcopy(model)


LossFn = Callable[[nn.Module, Any], Tensor]
