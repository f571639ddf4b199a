"""How fast this machine computes what a training consists of, on matrices of its shapes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from gallop.mask import CompactArray
from gallop.pieces import take_entries
from gallop.sampled_product import sampled_product

__all__ = ["even_indices", "gradient_speeds", "matmul_speed"]


def matmul_speed(
    dtype: torch.dtype, *, rows: int, inner: int, outer: int, seconds: float = 0.5
) -> float:
    """Measure the speed of matrix products of the kind that a model is made of.

    Args:
        dtype: Of the factors.
        rows: Tokens of a micro-batch; more than 4096 are measured as so many, which is as fast.
        inner: Width of the model.
        outer: Width of its widest layer.
        seconds: How long to measure; at least two products are made.

    Returns:
        Floating-point operations per second, the median of single products.
    """
    rows = min(rows, 1 << 12)
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)
    with torch.inference_mode():
        taken = _median_seconds(lambda: left @ right, seconds)
    return 2 * rows * inner * outer / taken


def gradient_speeds(
    dtype: torch.dtype,
    *,
    rows: int,
    inner: int,
    outer: int,
    share: float,
    seconds: float = 0.25,
) -> tuple[float, float]:
    """Measure how fast the chosen entries of a Linear's gradient come about, in both ways.

    Args:
        dtype: Of the weights.
        rows: As in :func:`matmul_speed`.
        inner: As in :func:`matmul_speed`.
        outer: As in :func:`matmul_speed`.
        share: Of the entries that are chosen.
        seconds: How long to measure each way.

    Returns:
        Entries of the *whole* gradient, times tokens, per second: of dense gradients and of sampled
        ones. The greater is the faster.
    """
    rows = min(rows, 1 << 12)
    left, right = torch.ones(rows, outer, dtype=dtype), torch.ones(rows, inner, dtype=dtype)
    count = max(1, round(share * outer * inner))
    index = torch.from_numpy(even_indices(outer * inner, count))
    out = torch.empty(count)

    def dense() -> None:
        take_entries(left.t().mm(right), index, out=out)

    ways: tuple[Callable[[], object], ...] = (dense, lambda: sampled_product(left, right, index))
    with torch.inference_mode():
        slow, fast = (_median_seconds(way, seconds) for way in ways)
    return rows * inner * outer / slow, rows * inner * outer / fast


def even_indices(size: int, count: int) -> CompactArray:
    """Spread indices evenly over a tensor.

    Args:
        size: Entries of the tensor.
        count: How many of them, at most ``size``.

    Returns:
        Sorted flat indices without repetition.
    """
    return np.arange(count, dtype=np.int64) * size // count


def _median_seconds(work: Callable[[], object], seconds: float) -> float:
    work()
    times: list[float] = []
    while sum(times) < seconds or not times:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
