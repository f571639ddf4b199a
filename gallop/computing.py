"""Computing in float32 with weights of bfloat16: for CPUs that would emulate bfloat16, slowly.

The weights stay as they are, bit for bit, and so do masters, deltas and what is exported. What
differs is rounding on the way: activations, and the gradients between layers, are float32; the
gradient of a weight is rounded to the weight's dtype at the end, as ever. So masks and trained
weights are others than with bfloat16 throughout, and nearer to those of exact arithmetic.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Compute", "computing", "emulates_bfloat16", "is_emulated", "resolve_compute"]

Compute = Literal["weights", "float32", "auto"]
"""What is computed in: the dtype of the weights, float32, or whatever is not emulated."""

_NARROW: Final = (torch.bfloat16, torch.float16)


def emulates_bfloat16() -> bool:
    """Whether torch multiplies matrices of bfloat16 on this CPU by emulation.

    It has kernels from AVX-512 on; on x86 without, they are about ten times as slow as those of
    float32. Other architectures are taken at their word.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    return "AVX512" not in torch.backends.cpu.get_cpu_capability()


def resolve_compute(asked: Compute, model: nn.Module) -> Compute:
    """Decide what to compute in.

    Args:
        asked: As the user gave it.
        model: The model.

    Returns:
        ``"weights"`` or ``"float32"``; for ``"auto"`` the latter where weights of bfloat16 lie on a
        CPU that emulates it.
    """
    if asked != "auto":
        return asked
    return "float32" if is_emulated(model) else "weights"


def is_emulated(model: nn.Module) -> bool:
    """Whether a model has weights whose dtype its CPU emulates."""
    narrow = any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters())
    return narrow and emulates_bfloat16()


@contextmanager
def computing(asked: Compute, model: nn.Module) -> Iterator[None]:
    """Compute in float32, forward and backward, as long as the context lasts; or change nothing.

    Args:
        asked: What to compute in.
        model: What computes.
    """
    if resolve_compute(asked, model) == "weights":
        yield
        return
    with _Widening():
        yield


class _Linear(torch.autograd.Function):
    # Autograd would keep a float32 copy of every weight until the backward pass.
    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        """Return ``given @ weight.T + bias`` in float32."""
        ctx.save_for_backward(given, weight)
        ctx.bias = None if bias is None else bias.dtype
        return functional.linear(given.float(), weight.float(), _float(bias))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients, each in the dtype of what it is a gradient of."""
        given, weight = ctx.saved_tensors
        (gradient,) = gradients
        flat = gradient.reshape(-1, gradient.shape[-1])
        to_given = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_given = (gradient @ weight.float()).to(given.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = (flat.t() @ given.reshape(-1, given.shape[-1]).float()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = flat.sum(0).to(ctx.bias)
        return to_given, to_weight, to_bias


def _linear(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = _Linear.apply(given, weight, bias)  # type: ignore[no-untyped-call]
    return found


_WIDENED: Final[set[Callable[..., Any]]] = {
    functional.embedding,
    functional.conv1d,
    functional.conv2d,
    functional.layer_norm,
    functional.rms_norm,
    functional.group_norm,
    functional.batch_norm,
    functional.scaled_dot_product_attention,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.einsum,
    torch.matmul,
    torch.mm,
    Tensor.bmm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.__matmul__,
}
"""What mixes weights with activations; everything else follows from the dtype of these."""


class _Widening(TorchFunctionMode):
    """Turns what is narrower than float32 into float32 where weights meet activations."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func in _WIDENED:
            args = tuple(map(_float, args))
            kwargs = {name: _float(each) for name, each in kwargs.items()}
        return func(*args, **kwargs)


def _float(value: Any) -> Any:  # noqa: ANN401
    return value.float() if isinstance(value, Tensor) and value.dtype in _NARROW else value
