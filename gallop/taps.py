"""Taking each gradient out of the backward pass, so that dense gradients never pile up.

A post-accumulate hook hands the gradient of a parameter on and frees it at once. Only one tap can
be open on a model: a second one would silently see nothing, or freeze what the first one trains.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from gallop.errors import ParameterError
from gallop.shards import local_gradient
from gallop.targets import Target, require_supported, require_unwrapped
from sparsedelta.closing import Closing

__all__ = ["GradientTap", "Receiver", "require_untapped"]

Receiver = Callable[[Tensor], None]

# Keyed by identity: tensors compare elementwise. Values are weak, so a forgotten tap lets go.
_TAPS: MutableMapping[Tensor, weakref.ref[GradientTap]] = WeakIdKeyDictionary()


class GradientTap(Closing):
    """Hands gradients to receivers as backward produces them, and freezes everything else.

    While it is open, the tapped parameters require gradients, their ``.grad`` is None after every
    backward pass, and all other parameters of the model have ``requires_grad`` False, so that
    autograd never computes their gradients. :meth:`close` puts back what it found; so does garbage
    collection.

    A receiver may be called more than once per backward pass (a layer inside two reentrant
    checkpoints): it must add, and must not count.

    Args:
        model: The module that is going to run backward.
        receivers: Target to the function that takes its gradient: of a sharded one, what is
            held of it here.
        owned: Further targets that are trained by other means: frozen, and barred to other taps.

    Raises:
        ParameterError: A target is unsupported, a parameter of the model is already tapped, or the
            model is wrapped.
    """

    def __init__(
        self,
        model: nn.Module,
        receivers: Mapping[Target, Receiver],
        *,
        owned: Sequence[Target] = (),
    ) -> None:
        require_unwrapped(model)
        tapped = {id(target.parameter) for target in receivers}
        for target in (*receivers, *owned):
            require_supported(target.name, target.parameter)
        require_untapped(model)
        changed = [
            (p, p.requires_grad) for p in model.parameters() if p.requires_grad != (id(p) in tapped)
        ]
        found = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        handles: list[RemovableHandle] = []
        self._finalizer = weakref.finalize(
            self,
            _release,
            handles,
            changed,
            found,
            [target.parameter for target in (*receivers, *owned)],
        )
        self._finalizer.atexit = False
        for target in owned:
            _TAPS[target.parameter] = weakref.ref(self)
        for parameter, required in changed:
            parameter.requires_grad_(not required)
        for parameter, _ in found:
            parameter.grad = None
        for target, receive in receivers.items():
            _TAPS[target.parameter] = weakref.ref(self)
            hook = _hook(target.name, receive)
            handles.append(
                target.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            )

    def close(self) -> None:
        """Remove the hooks and restore ``requires_grad`` and ``.grad``; a second call is free."""
        self._finalizer()


def require_untapped(model: nn.Module) -> None:
    """Refuse a model of which a parameter's gradients go elsewhere.

    One parameter is enough: the other tap has frozen all that is not its own, and a second one
    would freeze what the other trains.

    Args:
        model: The model about to be tapped.

    Raises:
        ParameterError: A tap is open on one of its parameters.
    """
    for name, parameter in model.named_parameters():
        owner = _TAPS.get(parameter)
        if owner is not None and owner() is not None:
            raise ParameterError(
                f"parameter {name}: expected no other tap on the model, found an open "
                "SparseAdamW or SparseValues, or a running selection on it",
                hint="call close() on the earlier one first, or train one mask that holds both",
            )


def _hook(name: str, receive: Receiver) -> Callable[[Tensor], None]:
    def take(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        parameter.grad = None
        if gradient.layout is not torch.strided:
            raise ParameterError(
                f"parameter {name}: expected a dense gradient, found layout {gradient.layout}",
                hint="build the embedding with sparse=False, or exclude the parameter",
            )
        # Of a sharded parameter: FSDP2 calls this once it has reduced, in the stream where it did
        # so, which the current stream waits for at the end of backward.
        receive(local_gradient(gradient, parameter))

    return take


def _release(
    handles: Iterable[RemovableHandle],
    changed: Iterable[tuple[nn.Parameter, bool]],
    found: Iterable[tuple[nn.Parameter, Tensor]],
    tapped: Iterable[nn.Parameter],
) -> None:
    for handle in handles:
        handle.remove()
    for parameter in tapped:
        parameter.grad = None
        _TAPS.pop(parameter, None)
    for parameter, required in changed:
        parameter.requires_grad_(required)
    for parameter, gradient in found:
        parameter.grad = gradient
