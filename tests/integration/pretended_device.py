"""A device that is none: what runs on it, and what crosses from and to the host, is written down.

Its tensors have their words on the host, but torch knows them only as tensors on another device:
they have no memory that could be looked at, and an operation that takes one of them and one of the
host fails, as it would. So an operation that reads words on the host without a copy cannot pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE: Final = torch.device("meta")
"""The name that torch knows it by: the only one that every build of torch has."""

HOST: Final = torch.device("cpu")


class There(torch.Tensor):
    """A tensor on the device; ``words`` is what it holds."""

    words: torch.Tensor

    def __new__(cls, words: torch.Tensor) -> Self:
        """A tensor of these words."""
        made: Self = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 (torch's name for it)
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


class Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this is active, what names :data:`DEVICE` runs on it.

    Attributes:
        ran: How often each operation ran, by its name and the dtypes of what it takes.
        to_host: Bytes that were copied to the host, by dtype, and how many copies.
        to_device: Bytes that were copied to the device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: Counter[tuple[str, tuple[torch.dtype, ...]]] = Counter()
        self.to_host: list[tuple[torch.dtype, int]] = []
        self.to_device = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and what would see to that takes seconds to be imported."""
        return False

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
        if name == "_local_scalar_dense" and on_device:
            self._crosses(given[0], to_host=True)
            return func(*plain_args, **plain)
        if name == "copy_":
            on_device = there[0]
        self._watch(name, given, on_device=on_device)
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

    def _watch(self, name: str, given: list[torch.Tensor], *, on_device: bool) -> None:
        """Only copies take a tensor of the host and make one of the device, or the reverse."""
        there = [isinstance(each, There) for each in given]
        if name == "copy_" and there[0] != there[1]:
            self._crosses(given[1], to_host=there[1])
        elif name == "_to_copy" and there[0] != on_device:
            self._crosses(given[0], to_host=there[0])
        elif name not in ("copy_", "_to_copy") and any(there):
            assert all(on or not each.dim() for on, each in zip(there, given, strict=True)), name

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
