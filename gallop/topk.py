"""Exact top-k over many tensors at once, without one vector of all scores.

The bit pattern of a non-negative float32 grows with its value. A histogram of the high 16 bits
finds the bin of the k-th largest score, a second one of the low 16 bits inside that bin finds the
score itself. Both are sums over chunks, so scores can be recomputed chunk by chunk and thrown
away; a sort or ``torch.topk`` would hold them all, and take about ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Choice", "ScoreSource", "top_k"]

ScoreSource = Callable[[], Iterable[Tensor]]
"""Gives the scores of one tensor as consecutive flat float32 chunks, the same on every call."""

_HIGH_BINS = 1 << 15  # the sign bit is 0
_LOW_BINS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The entries with the largest scores.

    Attributes:
        indices: Per source the sorted flat indices chosen, int64.
        threshold: The smallest chosen score; None if nothing was chosen.
        ties: How many scores equal the threshold.
        ties_taken: How many of those were chosen.
    """

    indices: tuple[NDArray[np.int64], ...]
    threshold: float | None
    ties: int
    ties_taken: int

    @property
    def count(self) -> int:
        """Number of entries chosen."""
        return sum(len(each) for each in self.indices)


@dataclass(frozen=True, slots=True)
class _Threshold:
    bits: int
    ties: int
    ties_taken: int


def top_k(sources: Sequence[ScoreSource], k: int) -> Choice:
    """Choose the ``k`` largest positive scores.

    All scores above the threshold are chosen, then those equal to it in the order of the sources
    and, inside a source, of the flat index. A score of 0 is never chosen, so there may be fewer.

    Args:
        sources: Scores at least 0 and finite, one source per tensor.
        k: How many to choose, at least 0.

    Returns:
        The choice, the same on every run and for every chunk size.
    """
    threshold = _find_threshold(sources, k)
    if threshold is None:
        empty = np.empty(0, dtype=np.int64)
        return Choice(tuple(empty for _ in sources), None, 0, 0)
    left = threshold.ties_taken
    indices = []
    for source in sources:
        found = []
        start = 0
        for chunk in source():
            bits = chunk.view(torch.int32)
            chosen = bits > threshold.bits
            if left:
                equal = torch.nonzero(bits == threshold.bits).view(-1)[:left]
                chosen[equal] = True
                left -= equal.numel()
            found.append(torch.nonzero(chosen).view(-1).cpu().numpy() + start)
            start += chunk.numel()
        indices.append(np.concatenate(found) if found else np.empty(0, dtype=np.int64))
    value = float(np.array(threshold.bits, dtype=np.int32).view(np.float32))
    return Choice(tuple(indices), value, threshold.ties, threshold.ties_taken)


def _find_threshold(sources: Sequence[ScoreSource], k: int) -> _Threshold | None:
    high = np.zeros(_HIGH_BINS, dtype=np.int64)
    zeros = 0
    for bits in _bit_patterns(sources):
        high += torch.bincount(bits >> 16, minlength=_HIGH_BINS).cpu().numpy()
        zeros += bits.numel() - int(torch.count_nonzero(bits))
    high[0] -= zeros  # subnormal scores share bin 0 with zero, and do count
    k = min(k, int(high.sum()))
    if k <= 0:
        return None
    high_bin, above = _descend(high, k)
    low = np.zeros(_LOW_BINS, dtype=np.int64)
    for bits in _bit_patterns(sources):
        inside = bits[(bits >> 16) == high_bin] & 0xFFFF
        low += torch.bincount(inside, minlength=_LOW_BINS).cpu().numpy()
    # In bin 0 the zeros come last: the k-th positive score is found before them.
    low_bin, inside_above = _descend(low, k - above)
    return _Threshold(
        bits=(high_bin << 16) | low_bin,
        ties=int(low[low_bin]),
        ties_taken=k - above - inside_above,
    )


def _descend(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    # The bin that holds the k-th largest, and how many lie in the bins above it.
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


def _bit_patterns(sources: Sequence[ScoreSource]) -> Iterable[Tensor]:
    for source in sources:
        for chunk in source():
            yield chunk.view(torch.int32)
