"""Selectors written naively and densely: what the package must equal, entry for entry.

Every score of the model in one vector, and one stable sort. Nothing here is imported from the
package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]

SMALLEST_FIRST = {"magnitude-low", "sara"}


def dense_gradients(
    model: nn.Module, batches: Sequence[Any], loss_fn: Loss
) -> list[dict[str, Tensor]]:
    """Return the float32 gradients of each batch, zeros where there is none."""
    found = []
    for batch in batches:
        loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
        found.append(
            {
                n: torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
                for n, p in model.named_parameters()
            }
        )
        model.zero_grad()
    return found


def dense_scores(
    model: nn.Module, gradients: Sequence[dict[str, Tensor]], selector: str, eps: float = 1e-8
) -> dict[str, Tensor]:
    """Return the flat scores of every parameter, from gradients of batches of equal size."""
    return {
        name: _formula(
            selector, p.detach().float().flatten(), [g[name].flatten() for g in gradients], eps
        )
        for name, p in model.named_parameters()
    }


def _formula(selector: str, w: Tensor, gradients: Sequence[Tensor], eps: float) -> Tensor:
    mean, squares = torch.zeros_like(w), torch.zeros_like(w)
    for g in gradients:
        mean += g
        squares.addcmul_(g, g)  # one rounding or two, as torch does it
    mean /= len(gradients)
    squares /= len(gradients)
    ratio = mean.abs() / w.abs()
    formulas = {
        "gallop": mean.abs() / (w.abs() + eps),
        "saft": mean.abs(),
        "snip": (mean * w).abs(),
        "gem": torch.where(w == 0, 0.0, ratio),
        "sift": gradients[0].abs(),
        "fisher": squares,
    }
    return formulas.get(selector, w.abs())


def dense_choice(
    scores: Sequence[Tensor], k: int, *, barred: Sequence[Tensor], smallest: bool = False
) -> list[Tensor]:
    """Return one boolean vector per tensor: the k best of all, ties in order."""
    flat = torch.cat(list(scores)).double()
    out = torch.cat(list(barred))
    if smallest:
        flat = -flat
        allowed = ~out
    else:
        allowed = ~out & (flat > 0)
    flat = torch.where(allowed, flat, -torch.inf)
    best = torch.sort(flat, descending=True, stable=True).indices[:k]
    chosen = torch.zeros_like(allowed)
    chosen[best] = True
    return list(torch.split(chosen & allowed, [len(each) for each in scores]))
