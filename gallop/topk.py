"""Exact top-k over many tensors at once, without one vector of all scores.

The bit pattern of a non-negative float32 grows with its value. A histogram of the high 16 bits
finds the bin of the k-th largest score, a second one of the low 16 bits inside that bin finds the
score itself. Both are sums over chunks, so scores can be recomputed chunk by chunk and thrown
away; a sort or ``torch.topk`` would hold them all, and take about ten times as long. They are sums
over ranks, too: an :class:`Exchange` is all that it takes to rank entries that many processes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "ALONE",
    "Choice",
    "Counts",
    "Exchange",
    "Place",
    "ScoreSource",
    "Threshold",
    "find_threshold",
    "take",
    "threshold_at",
    "top_k",
]

ScoreSource = Callable[[], Iterable[Tensor]]
"""Gives the scores of one tensor as consecutive flat float32 chunks, the same on every call."""

Place = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Turns sorted positions in a source into flat indices of the whole tensor, in the same order."""

Counts: TypeAlias = NDArray[np.int64]

_HIGH_BINS = 1 << 15  # the sign bit is 0
_LOW_BINS = 1 << 16


def _same(values: Counts) -> Counts:
    return values


@dataclass(frozen=True, slots=True)
class Exchange:
    """What ranks that hold shards of the same tensors tell each other; by default there is one.

    Every rank calls these functions in the same order, with arrays of the same length.

    Attributes:
        total: Sums int64 counts over the ranks, elementwise.
        largest: The elementwise maximum of float64 values over the ranks.
    """

    total: Callable[[Counts], Counts] = _same
    largest: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda values: values


ALONE = Exchange()
"""One process that holds everything."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score, as its bit pattern, and what is taken at it and above.

    Attributes:
        bits: The bit pattern of the float32 threshold.
        above: How many scores are larger, on all ranks.
        ties: How many scores equal it, on all ranks.
        ties_taken: How many of those are chosen.
    """

    bits: int
    above: int
    ties: int
    ties_taken: int

    @property
    def value(self) -> float:
        """The threshold itself."""
        return float(np.array(self.bits, dtype=np.int32).view(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The entries with the largest scores, of those that this process holds.

    Attributes:
        indices: Per source the sorted positions chosen, int64.
        threshold: The smallest chosen score; None if nothing was chosen.
        ties: How many scores equal the threshold, on all ranks.
        ties_taken: How many of those were chosen.
        scores: Per source the scores of the entries chosen, float32 on the host, if asked for.
    """

    indices: tuple[NDArray[np.int64], ...]
    threshold: float | None
    ties: int
    ties_taken: int
    scores: tuple[Tensor, ...] | None = None

    @property
    def count(self) -> int:
        """Number of entries chosen here."""
        return sum(len(each) for each in self.indices)


def top_k(
    sources: Sequence[ScoreSource],
    k: int,
    *,
    exchange: Exchange = ALONE,
    with_scores: bool = False,
) -> Choice:
    """Choose the ``k`` largest positive scores.

    All scores above the threshold are chosen, then those equal to it in the order of the sources
    and, inside a source, of the flat index. A score of 0 is never chosen, so there may be fewer.

    Args:
        sources: Scores at least 0 and not NaN, one source per tensor.
        k: How many to choose, at least 0, on all ranks together.
        exchange: How ranks that hold shards of the tensors tell each other their counts.
        with_scores: Whether to return the chosen scores, too.

    Returns:
        The choice, the same on every run, for every chunk size and for every number of ranks.
    """
    threshold = find_threshold(sources, k, exchange=exchange)
    return take(sources, threshold, exchange=exchange, with_scores=with_scores)


def find_threshold(
    sources: Sequence[ScoreSource], k: int, *, exchange: Exchange = ALONE
) -> Threshold | None:
    """Find the ``k``-th largest score, or the smallest positive one if there are fewer.

    Args:
        sources: As in :func:`top_k`.
        k: As in :func:`top_k`.
        exchange: As in :func:`top_k`.

    Returns:
        The threshold; None if ``k`` is 0 or no score is positive.
    """
    high = np.zeros(_HIGH_BINS, dtype=np.int64)
    zeros = 0
    for bits in _bit_patterns(sources):
        high += torch.bincount(bits >> 16, minlength=_HIGH_BINS).cpu().numpy()
        zeros += bits.numel() - int(torch.count_nonzero(bits))
    high[0] -= zeros  # subnormal scores share bin 0 with zero, and do count
    high = exchange.total(high)
    k = min(k, int(high.sum()))
    if k <= 0:
        return None
    high_bin, above = _descend(high, k)
    low = np.zeros(_LOW_BINS, dtype=np.int64)
    for bits in _bit_patterns(sources):
        inside = bits[(bits >> 16) == high_bin] & 0xFFFF
        low += torch.bincount(inside, minlength=_LOW_BINS).cpu().numpy()
    low = exchange.total(low)
    # In bin 0 the zeros come last: the k-th positive score is found before them.
    low_bin, inside_above = _descend(low, k - above)
    return Threshold(
        bits=(high_bin << 16) | low_bin,
        above=above + inside_above,
        ties=int(low[low_bin]),
        ties_taken=k - above - inside_above,
    )


def threshold_at(
    sources: Sequence[ScoreSource], bits: int, *, at_most: int, exchange: Exchange = ALONE
) -> Threshold:
    """Count what a threshold found elsewhere, such as in a sample, takes of these scores.

    Args:
        sources: As in :func:`top_k`.
        bits: The bit pattern of a positive threshold.
        at_most: Ties are taken only up to this number of entries in all.
        exchange: As in :func:`top_k`.

    Returns:
        The threshold with its counts; ``above`` may exceed ``at_most``.
    """
    counts = np.zeros(2, dtype=np.int64)
    for each in _bit_patterns(sources):
        counts[0] += int(torch.count_nonzero(each > bits))
        counts[1] += int(torch.count_nonzero(each == bits))
    above, ties = (int(count) for count in exchange.total(counts))
    return Threshold(bits, above, ties, ties_taken=min(ties, max(0, at_most - above)))


def take(
    sources: Sequence[ScoreSource],
    threshold: Threshold | None,
    *,
    exchange: Exchange = ALONE,
    with_scores: bool = False,
    places: Sequence[Place] | None = None,
) -> Choice:
    """Choose all scores above a threshold, and as many of those equal to it as it says.

    Args:
        sources: As in :func:`top_k`.
        threshold: From :func:`find_threshold` or :func:`threshold_at`; None for no entry.
        exchange: As in :func:`top_k`.
        with_scores: Whether to return the chosen scores, too.
        places: Per source where its entries lie in the whole tensor; None if it is the whole.

    Returns:
        The choice.
    """
    if threshold is None:
        empty = np.empty(0, dtype=np.int64)
        scores = tuple(torch.empty(0) for _ in sources) if with_scores else None
        return Choice(tuple(empty for _ in sources), None, 0, 0, scores)
    quotas = _tie_quotas(sources, threshold, exchange, places)
    indices = []
    kept = []
    for source, quota in zip(sources, quotas, strict=True):
        positions, values = [np.empty(0, dtype=np.int64)], [torch.empty(0)]
        left = quota
        start = 0
        for chunk in source():
            bits = chunk.view(torch.int32)
            chosen = bits > threshold.bits
            if left:
                equal = torch.nonzero(bits == threshold.bits).view(-1)[:left]
                chosen[equal] = True
                left -= equal.numel()
            found = torch.nonzero(chosen).view(-1)
            positions.append(found.cpu().numpy() + start)
            if with_scores:
                values.append(chunk[found].cpu())
            start += chunk.numel()
        indices.append(np.concatenate(positions))
        kept.append(torch.cat(values))
    return Choice(
        tuple(indices),
        threshold.value,
        threshold.ties,
        threshold.ties_taken,
        tuple(kept) if with_scores else None,
    )


def _tie_quotas(
    sources: Sequence[ScoreSource],
    threshold: Threshold,
    exchange: Exchange,
    places: Sequence[Place] | None,
) -> list[int]:
    # How many ties to take of each source. Where all or none are taken, nobody has to count.
    if threshold.ties_taken in (0, threshold.ties):
        return [threshold.ties_taken] * len(sources)
    held = np.array(
        [
            sum(int(torch.count_nonzero(bits == threshold.bits)) for bits in _bit_patterns([each]))
            for each in sources
        ],
        dtype=np.int64,
    )
    totals = exchange.total(held)
    before = np.cumsum(totals) - totals
    quotas: list[int] = np.where(before < threshold.ties_taken, held, 0).tolist()
    # Of one tensor some are taken, and some are not: the first ones in the order of flat indices.
    cut = int(np.searchsorted(before + totals, threshold.ties_taken))
    wanted = int(threshold.ties_taken - before[cut])
    if 0 < wanted < totals[cut]:
        flat = _tie_positions(sources[cut], threshold.bits)
        quotas[cut] = _smallest(flat if places is None else places[cut](flat), wanted, exchange)
    return quotas


def _tie_positions(source: ScoreSource, bits: int) -> NDArray[np.int64]:
    found = [np.empty(0, dtype=np.int64)]
    start = 0
    for each in _bit_patterns([source]):
        found.append(torch.nonzero(each == bits).view(-1).cpu().numpy() + start)
        start += each.numel()
    return np.concatenate(found)


def _smallest(flat: NDArray[np.int64], count: int, exchange: Exchange) -> int:
    # How many of this rank's sorted indices are among the `count` smallest of all ranks: the
    # smallest bound that so many lie below is found by halving.
    low, high = 0, int(exchange.largest(np.array([flat[-1] + 1.0 if flat.size else 0.0]))[0])
    while low < high:
        middle = (low + high) // 2
        below = np.array([np.searchsorted(flat, middle)], dtype=np.int64)
        if int(exchange.total(below)[0]) < count:
            low = middle + 1
        else:
            high = middle
    return int(np.searchsorted(flat, low))


def _descend(counts: Counts, k: int) -> tuple[int, int]:
    # The bin that holds the k-th largest, and how many lie in the bins above it.
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


def _bit_patterns(sources: Sequence[ScoreSource]) -> Iterator[Tensor]:
    for source in sources:
        for chunk in source():
            yield chunk.view(torch.int32)
