"""A sparse matrix added to the output of a layer whose own weight cannot be written to.

``y = layer(x) + x @ D.T``, where ``D`` holds the trained values at the chosen entries and zeros
elsewhere. The layer runs as it is, quantised or not, and gives the gradient of its input. ``D`` is
made dense a few rows at a time, in forward and in backward, and never whole; nor is its gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gallop.linear import without_autocast
from gallop.sampled_product import GradientMode, sampled_product

__all__ = ["install"]

_BLOCK = 1 << 20
"""Entries of ``D`` that are dense at a time."""


def install(
    module: nn.Module,
    values: nn.Parameter,
    index: Tensor,
    shape: tuple[int, int],
    *,
    gradient: GradientMode = "dense",
) -> Callable[[], None]:
    """Let a layer add the sparse matrix to its output.

    Args:
        module: A layer that maps ``(..., in)`` to ``(..., out)``.
        values: k float32 parameters: the entries of ``D``, not those of the weight.
        index: Their flat indices in a matrix of ``shape``, sorted.
        shape: ``(out, in)``.
        gradient: As in :func:`gallop.linear.install`.

    Returns:
        What puts the layer's own forward back.
    """
    before = vars(module).get("forward")
    own = module.forward
    held, mine = weakref.ref(values), weakref.ref(module)
    blocks = tuple(_blocks(index, shape))
    sampled = gradient == "sampled"

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        if mine() is not self and isinstance(own, MethodType):
            # A copy of the module, which brought this forward along: its own adds nothing.
            plain: Tensor = own.__func__(self, x, *args, **kwargs)
            return plain
        out: Tensor = own(x, *args, **kwargs)
        owned = held()
        if owned is None:
            return out
        with without_autocast(x.device.type):
            added: Tensor = _Added.apply(x.to(out.dtype), owned, index, shape, blocks, sampled)  # type: ignore[no-untyped-call]
        return out + added

    vars(module)["forward"] = MethodType(forward, module)

    def remove() -> None:
        if before is None:
            vars(module).pop("forward", None)
        else:
            vars(module)["forward"] = before

    return remove


_Block = tuple[int, int, int, int]  # rows from and to, entries from and to


def _blocks(index: Tensor, shape: tuple[int, int]) -> Iterator[_Block]:
    rows, columns = shape
    height = max(1, _BLOCK // columns)
    for first in range(0, rows, height):
        last = min(first + height, rows)
        ends = torch.tensor([first * columns, last * columns], dtype=index.dtype)
        start, stop = torch.searchsorted(index, ends.to(index.device)).tolist()
        if start < stop:
            yield first, last, start, stop


def _dense(values: Tensor, index: Tensor, columns: int, block: _Block, like: Tensor) -> Tensor:
    first, last, start, stop = block
    dense = torch.zeros((last - first) * columns, dtype=like.dtype, device=like.device)
    dense.scatter_(0, index[start:stop] - first * columns, values[start:stop].to(like.dtype))
    return dense.view(last - first, columns)


class _Added(torch.autograd.Function):
    """``x @ D.T`` with gradients for ``x`` and the entries of ``D``."""

    @staticmethod
    def forward(  # noqa: PLR0917  (torch passes them so)
        ctx: Any,  # noqa: ANN401  (torch types it as FunctionCtx, without what it has)
        x: Tensor,
        values: Tensor,
        index: Tensor,
        shape: tuple[int, int],
        blocks: tuple[_Block, ...],
        sampled: bool,  # noqa: FBT001
    ) -> Tensor:
        ctx.save_for_backward(x, values, index)
        ctx.shape, ctx.blocks, ctx.sampled = shape, blocks, sampled
        rows, columns = shape
        flat = x.reshape(-1, columns)
        out = flat.new_zeros(flat.shape[0], rows)
        for block in blocks:
            out[:, block[0] : block[1]] = flat.mm(_dense(values, index, columns, block, x).t())
        return out.view(*x.shape[:-1], rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, values, index = ctx.saved_tensors
        rows, columns = ctx.shape
        dx = dv = None
        with without_autocast(x.device.type):
            flat, out = x.reshape(-1, columns), gradient.reshape(-1, rows)
            if ctx.needs_input_grad[0]:
                dx = torch.zeros_like(flat)
            if ctx.needs_input_grad[1] and ctx.sampled:
                dv = sampled_product(out, flat, index).to(values.dtype)
            elif ctx.needs_input_grad[1]:
                dv = torch.empty_like(values)
            for block in ctx.blocks:
                first, last, start, stop = block
                if dx is not None:
                    dx.addmm_(out[:, first:last], _dense(values, index, columns, block, x))
                if dv is not None and not ctx.sampled:
                    dense = out[:, first:last].t().mm(flat).view(-1)
                    here = index[start:stop] - first * columns
                    dv[start:stop] = dense.index_select(0, here).to(dv.dtype)
        return None if dx is None else dx.view(x.shape), dv, None, None, None, None
