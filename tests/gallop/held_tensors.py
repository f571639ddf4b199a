"""Exact accounting of the tensors that a piece of code holds, to the byte and at every moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations made and that are still alive.

    Attributes:
        peak: The most bytes that were alive at once.
        largest: As ``peak``, of storages of at least ``least`` bytes alone.
    """

    def __init__(self, *, least: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._least = least
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count what it made."""
        before = {leaf.untyped_storage()._cdata for leaf in _tensors((args, kwargs))}  # noqa: SLF001
        made = func(*args, **(kwargs or {}))
        for leaf in _tensors(made):
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()  # noqa: SLF001
            if key in before or key in self._alive or size < self._least:
                continue
            self._alive[key] = size
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, key)
        return made

    def _free(self, key: int) -> None:
        self.held -= self._alive.pop(key)


def _tensors(tree: Any) -> list[torch.Tensor]:  # noqa: ANN401
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
