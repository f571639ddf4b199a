"""What one process holds of a model: its tensors, or the shards of them that are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sparsedelta.boxes import Box
from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.errors import CheckpointError
from sparsedelta.state_dict import StateDictReader
from sparsedelta.words import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor

OLD: Final = 0
"""The end of a diff that is the old model, as a position in pairs."""

NEW: Final = 1
BOTH: Final = 2
"""What may be asked for of a pair, besides one end of it."""


@dataclass(frozen=True, slots=True)
class LocalShards:
    """What one process holds of a model.

    Attributes:
        specs: The whole tensors by name.
        boxes: The part of each that is here, of those with a word here.
        reader: Reads these parts, flat, by the same names.
    """

    specs: Mapping[str, TensorSpec]
    boxes: Mapping[str, Box]
    reader: CheckpointReader


def is_sharded(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a tensor is a DTensor."""
    return any(hasattr(tensor, "device_mesh") for tensor in tensors.values())


def local_tensors(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, Box]]:
    """The part of each tensor that is here, and which it is.

    Args:
        tensors: Plain tensors, which are here as a whole, and DTensors.

    Raises:
        CheckpointError: A DTensor is placed in a way that is not known.
    """
    held: dict[str, torch.Tensor] = {}
    boxes: dict[str, Box] = {}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "detach"):
            raise CheckpointError(f"{name!r} is a {type(tensor).__name__}, expected a tensor")
        shape = tuple(tensor.shape)
        if hasattr(tensor, "device_mesh"):
            held[name] = tensor.detach().to_local()  # type: ignore[attr-defined]
            boxes[name] = _box(name, tensor, tuple(held[name].shape))  # type: ignore[arg-type]
        else:
            held[name], boxes[name] = tensor.detach(), Box.whole(shape)
    return held, boxes


def shards_of(tensors: Mapping[str, torch.Tensor], location: str) -> LocalShards:
    """What this process holds of the tensors of a model.

    Args:
        tensors: Plain tensors, which are here as a whole, and DTensors, by name.
        location: What to call the model in messages.

    Raises:
        CheckpointError: A tensor has a dtype that safetensors does not know, or a DTensor is placed
            in a way that is not known.
    """
    held, boxes = local_tensors(tensors)
    reader = StateDictReader(held, location=location)
    specs = {
        name: TensorSpec(name, spec.dtype, boxes[name].shape) for name, spec in reader.specs.items()
    }
    return LocalShards(specs, {name: box for name, box in boxes.items() if box.words}, reader)


def _box(name: str, tensor: DTensor, local: tuple[int, ...]) -> Box:
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 (torch is optional)

    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    offset, size = [0] * len(shape), list(shape)
    here = mesh.get_coordinate()
    if here is None:
        return Box(shape, tuple(offset), (0,) * len(shape))
    for axis, placement in enumerate(tensor.placements):
        if type(placement) is Replicate:
            continue
        if type(placement) is not Shard:
            raise CheckpointError(
                f"tensor {name!r} is placed as {placement!r} on dimension {axis} of its mesh, "
                "expected Shard or Replicate",
                hint="give it another placement first: "
                "tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)",
            )
        # As torch.chunk divides what the dimensions of the mesh before this one have left.
        dim = placement.dim % len(shape)
        step = -(-size[dim] // mesh.size(axis))
        first = min(step * here[axis], size[dim])
        offset[dim] += first
        size[dim] = min(step, size[dim] - first)
    if local != tuple(size):
        raise CheckpointError(
            f"tensor {name!r}: expected a local shard of {size} of {list(shape)} by its placements "
            f"{tensor.placements}, found {list(local)}"
        )
    return Box(shape, tuple(offset), tuple(size))
