"""Every tensor that an object holds on to, found by following references."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_SKIPPED = (type, types.ModuleType, nn.Module, str, bytes, int, float, types.CodeType)


def reachable_tensors(*roots: object) -> list[Tensor]:
    """Tensors reachable from ``roots``, without passing through modules or globals."""
    seen: dict[int, object] = {}
    waiting = list(roots)
    found = []
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SKIPPED):
            continue
        seen[id(each)] = each
        if isinstance(each, Tensor):
            found.append(each)
            waiting.append(each.grad if each.is_leaf else None)
            waiting.append(vars(each))
        elif isinstance(each, types.FunctionType):
            waiting += [cell.cell_contents for cell in each.__closure__ or ()]
            waiting += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
        else:
            waiting += gc.get_referents(each)
    return found


def held_bytes(model: nn.Module, *roots: object) -> int:
    """Bytes of the memory that ``roots`` hold besides the weights; shared memory counts once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in reachable_tensors(*roots)
    }
    return sum(size for where, size in held.items() if where not in weights)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sizes, in entries, of the tensors that operations allocate while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        given = _storages([*args, *(kwargs or {}).values()])
        for tensor in torch.utils._pytree.tree_leaves(out):  # noqa: SLF001
            if isinstance(tensor, Tensor) and not _storages([tensor]) & given:
                self.sizes.append(tensor.numel())
        return out


def _storages(values: list[object]) -> set[int]:
    leaves = torch.utils._pytree.tree_leaves(values)  # noqa: SLF001
    return {
        each.untyped_storage().data_ptr()
        for each in leaves
        if isinstance(each, Tensor) and each.numel()
    }
