"""The AdamW update of one tensor's chosen entries, in torch's order of operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gallop.pieces import CHUNK
from gallop.state import Entries

__all__ = ["adamw_update"]

_CHUNK = CHUNK
"""Entries updated at a time, so that the denominator is a small transient; elementwise all the
same."""


def adamw_update(entries: Entries, group: Mapping[str, Any]) -> None:
    """Advance masters and moments by one step of AdamW (arXiv 1711.05101, algorithm 2).

    The operations and their order are those of ``torch.optim.AdamW(foreach=False)``, scalars as
    Python floats: another order would be as right, but not equal bit for bit.

    Decay towards zero is ``w <- w * (1 - lr * wd)``, torch's; decay towards the base value is
    ``w <- w + lr * wd * (base - w)``. Both come before the Adam step.

    Args:
        entries: What to update; its ``gradient`` is final. The weights are not touched.
        group: ``lr``, ``betas``, ``eps``, ``weight_decay`` and ``weight_decay_mode``.
    """
    state = entries.state
    state["step"] += 1
    beta1, beta2 = group["betas"]
    lr = float(group["lr"])
    decay = lr * group["weight_decay"]
    bias_correction1 = 1 - beta1 ** state["step"]
    bias_correction2_sqrt = (1 - beta2 ** state["step"]) ** 0.5
    step_size = lr / bias_correction1
    for start in range(0, entries.gradient.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        gradient, master = entries.gradient[part], state["master"][part]
        exp_avg, exp_avg_sq = state["exp_avg"][part], state["exp_avg_sq"][part]
        if decay != 0:
            if group["weight_decay_mode"] == "weight":
                master.mul_(1 - decay)
            else:
                master.lerp_(state["base"][part].float(), decay)
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(group["eps"])
        master.addcdiv_(exp_avg, denominator, value=-step_size)
