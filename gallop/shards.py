"""Which entries of a parameter a process holds: flat indices of the whole, and positions here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gallop.errors import ParameterError
from sparsedelta.boxes import Box
from sparsedelta.errors import CheckpointError
from sparsedelta.local_shards import local_tensors

__all__ = ["Shard", "is_sharded", "local_gradient", "local_part", "shard_of"]

_Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shard:
    """The block of a parameter's entries that this process holds, in row-major order.

    The order of positions here is that of flat indices in the whole, whatever dimension is cut.

    Attributes:
        box: Where the block lies.
        counted: Whether this process counts these entries; of replicas, one does.
    """

    box: Box
    counted: bool = True

    @classmethod
    def whole(cls, shape: tuple[int, ...], *, counted: bool = True) -> Shard:
        """All entries of a parameter, as a shard."""
        return cls(Box.whole(shape), counted)

    @property
    def size(self) -> int:
        """Number of entries held; may be 0."""
        return self.box.words

    @property
    def start(self) -> int:
        """Flat index, in the whole parameter, of the first entry held."""
        start = 0
        for offset, length in zip(self.box.offset, self.box.shape, strict=True):
            start = start * length + offset
        return start

    def flat(self, positions: NDArray[Any]) -> _Indices:
        """Return the flat indices, in the whole parameter, of positions held here.

        Args:
            positions: Integers in ``[0, size)``.
        """
        if self.box.size == self.box.shape or not positions.size:
            return positions.astype(np.int64)
        start = self._run_start()
        if start is not None:
            return positions.astype(np.int64) + start
        inside = np.unravel_index(positions, self.box.size)
        moved = tuple(at + first for at, first in zip(inside, self.box.offset, strict=True))
        found: _Indices = np.ravel_multi_index(moved, self.box.shape).astype(np.int64)
        return found

    def find(self, indices: NDArray[Any]) -> tuple[slice | _Indices, NDArray[Any]]:
        """Find which entries of the whole parameter are held here, and where.

        Args:
            indices: Sorted flat indices in the whole parameter.

        Returns:
            Which of ``indices`` are held here, as a slice or as sorted positions among them, and
            their positions here, of the dtype of ``indices``.
        """
        if self.box.size == self.box.shape:
            return slice(None), indices
        if not self.size:
            return slice(0, 0), indices[:0]
        start = self._run_start()
        if start is not None:
            first, end = np.searchsorted(indices, [start, start + self.size])
            return slice(int(first), int(end)), indices[first:end] - indices.dtype.type(start)
        at = np.unravel_index(indices, self.box.shape)
        held = np.ones(indices.shape, dtype=bool)
        for axis, first, length in zip(at, self.box.offset, self.box.size, strict=True):
            held &= (axis >= first) & (axis < first + length)
        inside = tuple(axis[held] - first for axis, first in zip(at, self.box.offset, strict=True))
        positions = np.ravel_multi_index(inside, self.box.size)
        return np.flatnonzero(held), positions.astype(indices.dtype)

    def _run_start(self) -> int | None:
        # The flat index of the first entry, if all of them follow one another in the whole.
        cut = [
            axis
            for axis, (size, length) in enumerate(zip(self.box.size, self.box.shape, strict=True))
            if size != length
        ]
        if cut and any(self.box.size[axis] != 1 for axis in range(cut[-1])):
            return None
        return self.start


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, as ``fully_shard`` makes them."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, detached: a plain tensor, not a copy."""
    part: Tensor = tensor.detach()
    return part.to_local() if is_sharded(part) else part  # type: ignore[attr-defined]


def local_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return what this process holds of a gradient, placed as its parameter is.

    Args:
        gradient: The gradient of a parameter, plain or sharded; partial sums are added up.
        parameter: The parameter.

    Returns:
        A detached plain tensor.
    """
    if is_sharded(gradient):
        placements = parameter.placements  # type: ignore[attr-defined]
        if gradient.placements != placements:  # type: ignore[attr-defined]
            gradient = gradient.redistribute(placements=placements)  # type: ignore[attr-defined]
    return local_part(gradient)


def shard_of(name: str, parameter: Tensor) -> Shard | None:
    """Find out which block of a parameter this process holds.

    Args:
        name: Name for the message.
        parameter: A parameter, plain or sharded.

    Returns:
        The block; None of a plain parameter, which is here as a whole.

    Raises:
        ParameterError: It is placed in another way than ``Shard`` and ``Replicate``.
    """
    if not is_sharded(parameter):
        return None
    try:
        _, boxes = local_tensors({name: parameter})
    except CheckpointError as error:
        raise ParameterError(f"parameter {name}: {error.message}", hint=error.hint) from error
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    here = mesh.get_coordinate()
    counted = here is not None and not any(
        at for at, placement in zip(here, placements, strict=True) if placement.is_replicate()
    )
    return Shard(boxes[name], counted)
