"""Random numbers that belong to an element: the same for any number of threads, ranks and shards.

They are counter-based: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014) at the element's index, from a key of seed, task and tensor.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sparsedelta.digests import encode_text, hasher
from sparsedelta.merging.aligned import Numbers
from sparsedelta.words import Indices

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT: Final = np.uint64(31)
_SPARE_BITS: Final = np.uint64(11)


def uniform(seed: int, task: str, tensor: str, indices: Indices) -> Numbers:
    """A number from [0, 1) for each element of a tensor.

    Args:
        seed: Any integer.
        task: What tells the task from others.
        tensor: Name of the tensor.
        indices: int64 ``[n]``, flat.
    """
    state = hasher("sparsedelta 1 chance")
    for text in (str(seed), task, tensor):
        state.update(encode_text(text))
    key = np.uint64(int.from_bytes(state.digest()[:8], "little"))
    mixed = key + (indices.astype(np.uint64) + np.uint64(1)) * _STEP
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> _LAST_SHIFT
    return (mixed >> _SPARE_BITS).astype(np.float64) * np.float64(2.0**-53)
