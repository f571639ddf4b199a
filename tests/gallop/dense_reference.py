"""GaLLoP written naively and densely: what the sparse implementation must equal bit for bit.

Dense float32 gradients, one concatenated score vector and one stable sort, dense float32 masters
under ``torch.optim.AdamW`` with masked gradients. Nothing here is imported from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]


def dense_mask(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: Loss,
    *,
    k: int,
    weights: Sequence[float] | None = None,
    eps: float = 1e-8,
    exclude_zeros: bool = True,
) -> dict[str, Tensor]:
    """Return a boolean mask per parameter, the k largest scores of the whole model."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    weights = weights or [1.0] * len(batches)
    for batch, weight in zip(batches, weights, strict=True):
        loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
        for n, p in parameters.items():
            if p.grad is not None:
                sums[n] += p.grad.float() * weight
                p.grad = None
    scores = []
    for n, p in parameters.items():
        score = (sums[n] / sum(weights)).abs() / (p.detach().float().abs() + eps)
        if exclude_zeros:
            score[p.detach() == 0] = 0
        scores.append(score.flatten())
    flat = torch.cat(scores)
    # Stable: equal scores stay in (tensor, flat index) order.
    best = torch.sort(flat, descending=True, stable=True).indices[:k]
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[best[flat[best] > 0]] = True
    sizes = [p.numel() for p in parameters.values()]
    parts = torch.split(chosen, sizes)
    return {n: part.view(p.shape) for part, (n, p) in zip(parts, parameters.items(), strict=True)}


def dense_train(
    model: nn.Module,
    mask: dict[str, Tensor],
    batches: Sequence[Any],
    loss_fn: Loss,
    *,
    accumulate: int,
    lr: float,
    weight_decay: float,
    decay_to_base: bool,
    max_grad_norm: float | None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[float]:
    """Train in place with masked dense AdamW; return the gradient norms before clipping."""
    parameters = dict(model.named_parameters())
    base = {n: p.detach().float().clone() for n, p in parameters.items()}
    masters = {n: nn.Parameter(value.clone()) for n, value in base.items()}
    optimizer = torch.optim.AdamW(
        masters.values(), lr=lr, betas=betas, weight_decay=0.0, foreach=False
    )
    norms = []
    for start in range(0, len(batches), accumulate):
        gradients = {n: torch.zeros_like(m) for n, m in masters.items()}
        for batch in batches[start : start + accumulate]:
            loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
            for n, p in parameters.items():
                if p.grad is not None:
                    gradients[n] += p.grad.float()
                    p.grad = None
        # The norm over the gathered values: a sum over zeros in between would round differently.
        norm = torch.stack(
            [g[mask[n]].norm() for n, g in gradients.items() if mask[n].any()]
        ).norm()
        norms.append(float(norm))
        factor = 1.0 if max_grad_norm is None else (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for n, gradient in gradients.items():
            masters[n].grad = gradient * mask[n] * factor
        with torch.no_grad():
            for n, master in masters.items():
                if decay_to_base:
                    decayed = torch.lerp(master, base[n], lr * weight_decay)
                else:
                    decayed = master * (1 - lr * weight_decay)
                master.copy_(torch.where(mask[n], decayed, master))
        optimizer.step()
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(torch.where(mask[n], masters[n].to(p.dtype), p))
    return norms
