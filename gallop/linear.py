"""Linear layers whose weight gradient is gathered and dropped inside backward, or never made.

The forward pass is the layer's own, on the real weight: nothing is cloned, and what is kept for the
backward pass is the input and the weight, as autograd would. The weight itself is frozen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gallop.pieces import take_entries
from gallop.sampled_product import GradientMode, sampled_product
from gallop.targets import Target

__all__ = ["gathering_linears", "gathers_in_backward", "install", "without_autocast"]


def gathers_in_backward(module: nn.Module) -> bool:
    """Tell whether a layer computes ``nn.Linear``'s forward, so that it can be replaced.

    Args:
        module: Any module.

    Returns:
        False for subclasses with a forward of their own, and layers that something else has
        already given another one (accelerate's hooks do).
    """
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in vars(module)
    )


def gathering_linears(model: nn.Module, targets: Sequence[Target]) -> dict[str, nn.Linear]:
    """Find the layers whose backward pass can give the gradient of chosen entries.

    Args:
        model: The model.
        targets: What is trained.

    Returns:
        By name of the weight: layers that hold it alone. A weight that several modules hold gets
        its gradient from all of them, and only autograd knows the order of that sum.
    """
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():  # noqa: SLF001  (tied ones each time)
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    found = {}
    for target in targets:
        first, *others = holders[id(target.parameter)]
        if not others and gathers_in_backward(first) and first.weight is target.parameter:
            assert isinstance(first, nn.Linear)  # noqa: S101  (what gathers_in_backward has said)
            found[target.name] = first
    return found


def install(
    module: nn.Linear, values: nn.Parameter, index: Tensor, *, gradient: GradientMode = "dense"
) -> Callable[[], None]:
    """Let the layer's backward pass give ``values`` their gradient.

    Hooks of the module, and its class, stay. The layer does not keep ``values`` alive: once they
    are gone it runs as ever.

    Args:
        module: A layer of which :func:`gathers_in_backward` is true; its weight is frozen.
        values: k float32 parameters, whose gradient is that of the chosen entries.
        index: k flat indices into the weight, sorted.
        gradient: ``"dense"`` gathers the entries of the whole gradient, whose bits are those of
            autograd; ``"sampled"`` computes the chosen entries alone.

    Returns:
        What puts the layer's own forward back.
    """
    held, own = weakref.ref(values), weakref.ref(module)
    sampled = gradient == "sampled"

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        # A copy of the module brings this forward along: it has the layer's own, as ever.
        owned = held() if own() is self else None
        if owned is None or not torch.is_grad_enabled():
            return functional.linear(x, self.weight, self.bias)
        bias: Tensor | None = self.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x = x.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with without_autocast(kind):
            out: Tensor = _Gathered.apply(x, self.weight, bias, owned, index, sampled)  # type: ignore[no-untyped-call]
        return out

    vars(module)["forward"] = MethodType(forward, module)
    return lambda: vars(module).pop("forward", None)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Run what follows in the dtypes that it is given, whatever surrounds it."""
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class _Gathered(torch.autograd.Function):
    """``functional.linear`` with a gradient for chosen entries of the weight only."""

    @staticmethod
    def forward(  # noqa: PLR0917  (torch passes them so)
        ctx: Any,  # noqa: ANN401  (torch types it as FunctionCtx, without what it has)
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        index: Tensor,
        sampled: bool,  # noqa: FBT001
    ) -> Tensor:
        ctx.save_for_backward(x, weight, index)
        ctx.values_dtype, ctx.sampled = values.dtype, sampled
        return functional.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, index = ctx.saved_tensors
        with without_autocast(x.device.type):
            out, inputs = weight.shape
            # The same products of the same matrices as autograd's, so that the bits are its own.
            rows = gradient.reshape(-1, out)
            dx = rows.mm(weight.to(x.dtype)).view(x.shape) if ctx.needs_input_grad[0] else None
            db = rows.sum(0) if ctx.needs_input_grad[2] else None
            dv = None
            if ctx.needs_input_grad[3] and ctx.sampled:
                dv = sampled_product(rows, x.reshape(-1, inputs), index).to(ctx.values_dtype)
            elif ctx.needs_input_grad[3]:
                dv = torch.empty(index.numel(), dtype=ctx.values_dtype, device=weight.device)
                take_entries(rows.t().mm(x.reshape(-1, inputs)), index, out=dv)
        return dx, None, db, dv, None, None
