"""What a trainer holds: bytes per chosen entry, counted exactly, and no transient of size k."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reachable import Allocations, held_bytes
from torch import Tensor, nn

from gallop import Mask, SparseAdamW
from gallop.optim import WeightDecayMode
from gallop.pieces import CHUNK

ROWS, COLUMNS = 700, 600
K = 200_000


def random_mask(model: nn.Module, density: float, seed: int = 0) -> Mask:
    generator = np.random.default_rng(seed)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    return Mask(
        {
            name: np.sort(generator.choice(size, round(density * size), replace=False))
            for name, size in sizes.items()
        },
        shapes,
    )


def wide_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, ROWS), nn.GELU(), nn.Linear(ROWS, COLUMNS)).to(dtype)


def hooks_of(model: nn.Module) -> list[dict[int, Callable[[Tensor], None]]]:
    return [p._post_accumulate_grad_hooks for p in model.parameters()]  # noqa: SLF001


def backward(model: nn.Module) -> None:
    weight = next(model.parameters())
    model(torch.ones(2, COLUMNS, dtype=weight.dtype)).square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.02])
def test_the_hook_engine_holds_at_most_25_bytes_per_entry(
    density: float, dtype: torch.dtype
) -> None:
    """Law: what optimizer, tap and hooks reach, weights aside, is six vectors of k and no more."""
    model = wide_model(dtype)
    mask = random_mask(model, density)
    optimizer = SparseAdamW(model, mask, max_grad_norm=1.0, weight_decay=0.1)
    expected = (4 + dtype.itemsize + 4 * 4) * mask.nnz
    assert optimizer.nbytes == expected <= 25 * mask.nnz
    for _ in range(2):
        backward(model)
        assert held_bytes(model, optimizer, hooks_of(model)) == expected
    optimizer.step()
    assert held_bytes(model, optimizer, hooks_of(model)) == expected
    optimizer.load_state_dict(optimizer.state_dict())
    assert held_bytes(model, optimizer, hooks_of(model)) == expected
    for name, parameter in model.named_parameters():
        index = optimizer.state[parameter]["index"].numpy()
        assert np.shares_memory(index, mask.compact(name)), "the mask's memory is held twice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["weight", "delta"])
def test_no_transient_grows_with_the_mask(dtype: torch.dtype, mode: WeightDecayMode) -> None:
    """Law: gathering, clipping, stepping, writing back and loading allocate chunks only."""
    model = nn.Linear(1000, 1000, bias=False).to(dtype)
    mask = random_mask(model, K / 1e6)
    optimizer = SparseAdamW(
        model, mask, max_grad_norm=0.1, weight_decay=0.1, weight_decay_mode=mode
    )
    (hook,) = hooks_of(model)[0].values()
    gradient = torch.ones(1000, 1000, dtype=dtype)
    with torch.no_grad(), Allocations() as allocations:
        for _ in range(2):
            model.weight.grad = gradient
            hook(model.weight)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.last_grad_norm == pytest.approx(2 * K**0.5, rel=1e-5)
    assert mask.nnz == K > CHUNK
    assert max(allocations.sizes) == CHUNK
