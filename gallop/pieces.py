"""Pieces of vectors of chosen entries, so that no transient grows with their number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["CHUNK", "add_entries", "assign_entries", "pieces", "take_entries"]

CHUNK = 1 << 16
"""Entries that are gathered, scattered, updated or copied at a time."""


def pieces(count: int, most: int = CHUNK) -> Iterator[slice]:
    """Cut ``count`` entries into runs of at most ``most``."""
    return (slice(start, start + most) for start in range(0, count, most))


def take_entries(tensor: Tensor, index: Tensor, *, out: Tensor) -> None:
    """Copy chosen entries of a tensor, in any layout of memory, to a vector.

    Args:
        tensor: What to gather from, of any floating dtype.
        index: k flat indices, int32 or int64.
        out: k entries of any floating dtype.
    """
    flat = tensor.reshape(-1)
    for part in pieces(index.numel()):
        if out.dtype == flat.dtype:
            torch.index_select(flat, 0, index[part], out=out[part])
        else:
            out[part].copy_(flat.index_select(0, index[part]))


def add_entries(tensor: Tensor, index: Tensor, *, out: Tensor) -> None:
    """Add chosen entries of a tensor to a vector, in the dtype of the vector.

    Args:
        tensor: As in :func:`take_entries`.
        index: As in :func:`take_entries`.
        out: As in :func:`take_entries`.
    """
    flat = tensor.reshape(-1)
    for part in pieces(index.numel()):
        out[part].add_(flat.index_select(0, index[part]))


def assign_entries(weight: Tensor, index: Tensor, values: Tensor) -> None:
    """Assign values, rounded to the dtype of the weight, to chosen entries.

    Args:
        weight: All entries, flat.
        index: k flat indices.
        values: k values, float32.
    """
    for part in pieces(index.numel()):
        weight.scatter_(0, index[part], values[part].to(weight.dtype))
