"""Random numbers that belong to an entry: the same in any order, chunking and sharding."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings are made, and help is printed, without torch
    from torch import Tensor

__all__ = ["entry_hash", "key_of"]

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with its constants as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key_of(seed: int, name: str) -> int:
    """Return a signed 64-bit key of a seed and a name, by SHA-256."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def entry_hash(indices: Tensor, *, seed: int, name: str) -> Tensor:
    """Hash the entries of a tensor, each by itself.

    Args:
        indices: Flat indices, int64.
        seed: Seed.
        name: Name of the tensor.

    Returns:
        int64 values, uniform in ``[0, 2**63)``, of the shape of ``indices``.
    """
    mixed = (indices + 1) * _GAMMA + key_of(seed, name)  # 64-bit integers wrap around
    mixed = (mixed ^ _shifted(mixed, 30)) * _MIX_1
    mixed = (mixed ^ _shifted(mixed, 27)) * _MIX_2
    return (mixed ^ _shifted(mixed, 31)) & ((1 << 63) - 1)


def _shifted(values: Tensor, bits: int) -> Tensor:
    # A logical shift to the right: torch's keeps the sign.
    return (values >> bits) & ((1 << (64 - bits)) - 1)
