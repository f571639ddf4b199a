"""Bases that cannot be written to: quantised Linear layers, and who can train on top of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gallop.compiled import plain_name
from gallop.errors import ParameterError

__all__ = ["frozen_linears", "require_written"]


def frozen_linears(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Find the layers among ``names`` whose stored weight is no matrix of floating-point numbers.

    Such a layer maps ``in_features`` to ``out_features`` and keeps its weight as integers (4 and 8
    bits of bitsandbytes), as a tensor subclass (torchao), or in other buffers (GPTQ, AWQ). Its
    weight goes by the name ``layer.weight`` and has the shape that it would have dequantised.

    Args:
        model: Any module.
        names: Names of a mask.

    Returns:
        The layer of each such name.
    """
    modules = {plain_name(f"{path}.")[:-1]: module for path, module in model.named_modules()}
    found = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if module is not None and attribute == "weight" and _is_frozen(module):
            found[name] = module
    return found


def require_written(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse a mask over weights that an optimizer cannot write to.

    Args:
        model: Any module.
        names: Names of the mask.

    Raises:
        ParameterError: A weight of the mask is quantised.
    """
    for name, module in frozen_linears(model, names).items():
        weight = getattr(module, "weight", None)
        kind = str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else "no"
        raise ParameterError(
            f"parameter {name}: expected floating-point weights, found {kind} weights in a "
            f"{type(module).__name__}; trained values are written into the weights, and a "
            "quantised weight has no room for them and gets no gradient",
            hint="gallop.SparseValues trains values beside such a layer, or load the model "
            "without quantisation",
        )


def _is_frozen(module: nn.Module) -> bool:
    if not all(
        isinstance(getattr(module, side, None), int) for side in ("in_features", "out_features")
    ):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    if not weight.is_floating_point() or hasattr(weight, "quant_state"):
        return True
    # Quantised tensor subclasses claim a floating dtype; a sharded tensor is plain in this sense.
    data = weight.data
    return type(data) is not torch.Tensor and not hasattr(data, "device_mesh")
