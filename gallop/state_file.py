"""A nested state with tensors in it as one safetensors file, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gallop.errors import RunError
from sparsedelta.outputs import staged

__all__ = ["read_state", "write_state"]

_METADATA_KEY = "gallop.state"  # one key: the order of several would not be fixed in the file
_PIECE = 1 << 24  # bytes


def write_state(path: Path, state: Any) -> None:  # noqa: ANN401  (nested as deep as its owner likes)
    """Write a state, and then give it its name.

    Args:
        path: File to write or replace; its folder exists.
        state: Dictionaries with keys of any JSON scalar, lists and tuples, of tensors, numbers,
            texts, truth values and None. Tensors are brought to the host.

    Raises:
        OutputError: The file cannot be written.
        TypeError: Something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    packed = _packed(state, "state", tensors)
    document = json.dumps({"digest": _digest(packed, tensors), "state": packed})
    with staged(path, force=True) as work:
        save_file(tensors, work, metadata={_METADATA_KEY: document})


def read_state(path: Path) -> Any:  # noqa: ANN401
    """Read what :func:`write_state` wrote: equal bit for bit, on the host.

    Args:
        path: The file.

    Returns:
        The state.

    Raises:
        RunError: There is no such file, it holds no state, or a bit of it has changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected, packed = document["digest"], document["state"]
            state = _unpacked(packed, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: expected a saved state, found {error!r}") from error
    found = _digest(packed, tensors)
    if found != expected:
        raise RunError(
            f"{path}: expected a saved state with digest {str(expected)[:16]}, found "
            f"{found[:16]}: the file is damaged",
            hint="bring the file back from a copy, or begin another run without --resume",
        )
    return state


def _digest(packed: Any, tensors: Mapping[str, Tensor]) -> str:  # noqa: ANN401
    digest = hashlib.sha256(json.dumps(packed).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        for piece in tensor.reshape(-1).view(torch.uint8).split(_PIECE):  # type: ignore[no-untyped-call]
            digest.update(piece.numpy())
    return digest.hexdigest()


def _packed(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    match value:
        case Tensor():
            # A copy where it is a view: safetensors refuses tensors that share memory.
            own = value.detach().cpu().contiguous()
            shares = own.untyped_storage().nbytes() != own.numel() * own.element_size()
            tensors[where] = own.clone() if shares else own
            return {"tensor": where}
        case dict():
            return {"dict": [[k, _packed(v, f"{where}.{k}", tensors)] for k, v in value.items()]}
        case list() | tuple():
            items = [_packed(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
            return {type(value).__name__: items}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{where}: expected a tensor or a plain value, found {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    match value:
        case {"tensor": str(where)}:
            return tensors[where]
        case {"dict": list(items)}:
            return {key: _unpacked(each, tensors) for key, each in items}
        case {"list": list(items)}:
            return [_unpacked(each, tensors) for each in items]
        case {"tuple": list(items)}:
            return tuple(_unpacked(each, tensors) for each in items)
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(f"expected a packed value, found {value!r}")
