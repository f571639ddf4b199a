"""Compiled models: names without the wrapper's, and what compiling a whole model costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

__all__ = ["named_parameters", "plain_name", "warn_if_compiled_whole"]

_log = logging.getLogger("gallop")
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """Return a name as the checkpoint has it: ``torch.compile(module)`` puts a part into it.

    So does the wrapper by which FSDP checkpoints activations.

    Args:
        name: Name of a parameter in the live model.

    Returns:
        The name without it, wherever in the model the compiled module is.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_parameters(model: nn.Module, *, tied: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """List the parameters of a model by their plain names, in the model's order.

    Args:
        model: Any module, compiled or not.
        tied: Whether a tied parameter comes under each of its names.
    """
    for name, parameter in model.named_parameters(remove_duplicate=not tied):
        yield plain_name(name), parameter


def warn_if_compiled_whole(model: nn.Module) -> None:
    """Warn, once per model, that a whole model compiled at once keeps all its gradients together.

    Gradients are freed one by one as backward makes them. The backward pass of a compiled model is
    one operation, which hands over the dense gradients of all its parameters when it has ended.

    Args:
        model: The model about to be trained.
    """
    whole = hasattr(model, "_orig_mod") or vars(model).get("_compiled_call_impl") is not None
    if whole and not vars(model).get("_gallop_warned"):
        vars(model)["_gallop_warned"] = True
        _log.warning(
            "%s is compiled as a whole: its backward pass keeps the dense gradients of all "
            "parameters until it ends, as much memory as the weights; compile its blocks instead: "
            "for block in model.model.layers: block.compile()",
            type(getattr(model, "_orig_mod", model)).__name__,
        )
