"""Tensors of a live torch model as a checkpoint that can be read like any other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sparsedelta.errors import CheckpointError
from sparsedelta.words import Bytes, TensorSpec

if TYPE_CHECKING:
    import torch


@cache
def _dtype_names() -> dict[torch.dtype, str]:
    import torch  # noqa: PLC0415 (the package works without torch)

    names = {
        "bool": "BOOL",
        "uint8": "U8",
        "int8": "I8",
        "float8_e5m2": "F8_E5M2",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "int16": "I16",
        "uint16": "U16",
        "float16": "F16",
        "bfloat16": "BF16",
        "int32": "I32",
        "uint32": "U32",
        "float32": "F32",
        "int64": "I64",
        "uint64": "U64",
        "float64": "F64",
        "complex64": "C64",
    }
    return {getattr(torch, key): name for key, name in names.items() if hasattr(torch, key)}


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype of torch that safetensors calls so, or None."""
    return next((dtype for dtype, known in _dtype_names().items() if known == name), None)


class StateDictReader:
    """A checkpoint in memory; implements :class:`~sparsedelta.checkpoint.CheckpointReader`.

    Args:
        tensors: Tensors by name, on any device, of any strides. They are read when they are asked
            for: do not change them meanwhile.
        location: What to call it in messages.

    Raises:
        CheckpointError: A tensor has a dtype that safetensors does not know, or is not strided.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], *, location: str = "the model in memory"
    ) -> None:
        self.location = location
        self.paths: tuple[Path, ...] = ()
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.specs: Mapping[str, TensorSpec] = {
            name: self._spec(name, tensor) for name, tensor in self._tensors.items()
        }

    def _spec(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        dtype = _dtype_names().get(tensor.dtype)
        if dtype is None or tensor.is_sparse or tensor.is_meta:
            raise CheckpointError(
                f"{self.location}: tensor {name!r} is {tensor.dtype}, {tensor.layout} on "
                f"{tensor.device}: safetensors cannot hold it"
            )
        return TensorSpec(name, dtype, tuple(tensor.shape))

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor: a word is an element here."""
        import torch  # noqa: PLC0415

        run = flat_run(self._tensors[name], start, stop)
        copy = torch.empty(run.shape, dtype=run.dtype).copy_(run)  # of the host, without strides
        if copy.dtype == torch.complex64:
            copy = torch.view_as_real(copy).reshape(-1)
        data: Bytes = copy.view(torch.uint8).numpy()
        return data

    def close(self) -> None:
        """Nothing is open."""


def flat_run(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """A run of a tensor's elements in row-major order, flat; no others are copied."""
    import torch  # noqa: PLC0415

    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    if tensor.dim() == 1:
        return tensor[start:stop].contiguous()
    row = tensor[0].numel()
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        return flat_run(tensor[last], start - last * row, stop - last * row)
    pieces = [tensor[first:last].reshape(-1)]
    if start < first * row:
        pieces.insert(0, flat_run(tensor[first - 1], start - (first - 1) * row, row))
    if last * row < stop:
        pieces.append(flat_run(tensor[last], 0, stop - last * row))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
