"""A seeded sample of entries that estimates a threshold, and how far off it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gallop.counter_hash import key_of
from gallop.shards import Shard
from gallop.topk import ScoreSource

__all__ = ["CONFIDENCE", "Sample", "density_bounds", "draw_sample"]

CONFIDENCE = 0.99
"""The probability, over samples, that the bounds on the density hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Which entries are looked at.

    Attributes:
        size: How many entries are looked at; an entry that is drawn twice counts twice.
        rank: The threshold is the ``rank``-th largest key of the sample.
        eligible: How many entries there are.
        positions: Per tensor the sorted positions drawn, of the entries held here; None to look
            at every entry once.
    """

    size: int
    rank: int
    eligible: int
    positions: dict[str, NDArray[np.int64]] | None

    def pick(self, name: str, source: ScoreSource) -> Tensor:
        """Return the keys of a tensor's sampled entries.

        Args:
            name: Name of the tensor.
            source: Its keys.

        Returns:
            float32 keys on the host; none if the source has none.
        """
        if self.positions is None:
            return torch.cat([torch.empty(0), *(chunk.cpu() for chunk in source())])
        wanted = self.positions[name]
        found = [torch.empty(0)]
        start = 0
        for chunk in source():
            first, end = np.searchsorted(wanted, [start, start + chunk.numel()])
            if end > first:
                inside = torch.from_numpy(wanted[first:end] - start)
                found.append(chunk[inside.to(chunk.device)].cpu())
            start += chunk.numel()
        return torch.cat(found)


def draw_sample(
    tensors: Sequence[tuple[str, int, Shard | None]], *, size: int, k: int, seed: int
) -> Sample:
    """Draw entries of all tensors, each as likely, with replacement.

    The same seed draws the same entries for every way of sharding the tensors.

    Args:
        tensors: Per tensor its name, its number of entries, and which of them are held here;
            None for all.
        size: How many to draw; if there are no more entries than that, each is taken once.
        k: How many entries the threshold should choose of all.
        seed: Seed.

    Returns:
        The sample.
    """
    eligible = sum(entries for _, entries, _ in tensors)
    if size >= eligible:
        return Sample(eligible, k, eligible, None)
    rank = max(1, round(Fraction(k, eligible) * size))
    generator = torch.Generator().manual_seed(key_of(seed, "sample") % 2**63)
    drawn = torch.randint(eligible, (size,), generator=generator).sort().values.numpy()
    positions = {}
    start = 0
    for name, entries, shard in tensors:
        low, high = np.searchsorted(drawn, [start, start + entries])
        inside = drawn[low:high] - start
        positions[name] = inside if shard is None else shard.find(inside)[1]
        start += entries
    return Sample(size, rank, eligible, positions)


def density_bounds(sample: Sample) -> tuple[float, float]:
    """Bound the share of all entries that lie above the threshold of a sample.

    If a share ``p`` of all entries lies above the ``r``-th largest of ``n`` independent draws, at
    most ``r - 1`` draws came from that share; by the Chernoff bound of the binomial distribution
    that has a probability of at most ``exp(-n KL((r - 1) / n, p))`` (Boucheron, Lugosi and
    Massart, Concentration Inequalities, section 2.2), and likewise below. The bound is the largest
    and the smallest ``p`` for which this is not less than half of ``1 - CONFIDENCE``. It needs no
    distribution, and far fewer samples than that of Dvoretzky, Kiefer and Wolfowitz, which is the
    same at every density. It holds for the entries strictly above the threshold from above, and
    for those at or above it from below.

    Args:
        sample: The sample.

    Returns:
        Lower and upper bound; both the wanted share if every entry was looked at.
    """
    if sample.positions is None:
        return sample.rank / sample.size, sample.rank / sample.size
    limit = math.log(2 / (1 - CONFIDENCE)) / sample.size
    low = _bisect(sample.rank / sample.size, 0.0, limit)
    high = _bisect((sample.rank - 1) / sample.size, 1.0, limit)
    return low, high


def _bisect(share: float, end: float, limit: float) -> float:
    # The share between the observed one and an end at which the divergence reaches the limit.
    inside, outside = share, end
    for _ in range(60):
        middle = (inside + outside) / 2
        if _divergence(share, middle) <= limit:
            inside = middle
        else:
            outside = middle
    return outside


def _divergence(observed: float, true: float) -> float:
    # Kullback-Leibler divergence of two Bernoulli distributions, in nats.
    found = 0.0
    for left, right in ((observed, true), (1 - observed, 1 - true)):
        if left > 0:
            found += left * math.log(left / right) if right > 0 else math.inf
    return found
