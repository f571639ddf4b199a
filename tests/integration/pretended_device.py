"""A device that is none: what runs on it, and what crosses from and to the host, is written down.

Its tensors have their words on the host, but torch knows them only as tensors on another device:
they have no memory that could be looked at, and an operation that takes one of them and one of the
host fails, as it would. So an operation that reads words on the host without a copy cannot pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE: Final = torch.device("meta")
"""The name that torch knows it by: the only one that every build of torch has."""

HOST: Final = torch.device("cpu")


class There(torch.Tensor):
    """A tensor on the device; ``words`` is what it holds."""

    words: torch.Tensor

    @staticmethod
    def __new__(cls, words: torch.Tensor) -> There:
        """A tensor of these words."""
        made: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            words.size(),
            strides=words.stride(),
            storage_offset=words.storage_offset(),
            dtype=words.dtype,
            device=DEVICE,
        )
        made.words = words
        return made

    def data_ptr(self) -> int:
        """There is no address that means something here."""
        raise RuntimeError("a tensor on a device that is none")

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:  # noqa: ANN401 (whatever torch calls)
        raise AssertionError(f"{func} outside of the device")


class Device(TorchDispatchMode):
    """While this is active, what names :data:`DEVICE` runs on it.

    Attributes:
        ran: How often each operation ran, by its name and the dtypes of what it takes.
        to_host: Bytes that were copied to the host, by dtype, and how many copies.
        to_device: Bytes that were copied to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[tuple[str, tuple[torch.dtype, ...]]] = Counter()
        self.to_host: list[tuple[torch.dtype, int]] = []
        self.to_device = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation, and write it down."""
        kwargs = dict(kwargs or {})
        given = list(_tensors((*args, *kwargs.values())))
        there = [isinstance(each, There) for each in given]
        asked = kwargs.get("device")
        name = func.overloadpacket.__name__
        on_device = any(there) if asked is None else torch.device(asked) == DEVICE
        if asked is not None and on_device:
            kwargs["device"] = HOST
        plain_args, plain = _words(args), {key: _words(each) for key, each in kwargs.items()}
        if name == "_to_copy" and any(there) != on_device:
            self._crosses(given[0], to_host=any(there))
        elif name == "copy_" and len(set(there)) > 1:
            self._crosses(given[1], to_host=there[1])
            on_device = there[0]
        elif name == "_local_scalar_dense":
            if on_device:
                self._crosses(given[0], to_host=True)
            return func(*plain_args, **plain)
        elif any(there) and not all(
            each or not t.dim() for each, t in zip(there, given, strict=True)
        ):
            raise AssertionError(f"{name} of tensors on two devices")
        if on_device:
            self.ran[name, tuple(each.dtype for each in given)] += 1
        made = func(*plain_args, **plain)
        if func._schema.is_mutable:  # noqa: SLF001 (there is no other way to tell)
            return args[0]
        if not on_device:
            return made
        if isinstance(made, torch.Tensor):
            return There(made)
        return type(made)(There(each) for each in made)

    def _crosses(self, tensor: torch.Tensor, *, to_host: bool) -> None:
        nbytes = tensor.numel() * tensor.element_size()
        if to_host:
            self.to_host.append((tensor.dtype, nbytes))
        else:
            self.to_device += nbytes


def _tensors(given: Iterable[object]) -> Iterator[torch.Tensor]:
    for each in given:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _words(given: Any) -> Any:  # noqa: ANN401 (whatever torch calls with)
    if isinstance(given, There):
        return given.words
    if isinstance(given, list | tuple):
        return type(given)(_words(each) for each in given)
    return given
