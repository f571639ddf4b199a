"""Leaving out early what a top-k will not choose: one pass over all scores instead of three.

A thinned sample tells about where the threshold is. What lies at or above a pivot a little below
it is kept, a few per cent more than will be chosen, and the exact top-k is taken of that alone. The
sample decides how much is kept, and never what is chosen: if the pivot turns out too high, or far
too low, the top-k is taken of everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gallop.errors import SelectionError
from gallop.topk import Exchange, ScoreSource, find_threshold

__all__ = ["SAMPLED", "Observer", "Sifted", "Thinned", "show", "sift"]

SAMPLED: Final = 1 << 17
"""About how many scores a sample has; with 1 % chosen it tells the threshold's rank to 3 %."""

_WORTH: Final = 1 << 20
"""Fewer entries than that are ranked as fast without."""

Observer = Callable[[Tensor], None]
"""Is shown every chunk of scores once."""


@dataclass(frozen=True, slots=True, eq=False)
class Thinned:
    """A sample of the scores of one tensor.

    Attributes:
        entries: How many entries it has, on all ranks together.
        source: Some of those that this process holds, the same share of them on every rank.
    """

    entries: int
    source: ScoreSource


@dataclass(frozen=True, slots=True, eq=False)
class Sifted:
    """What is left of one source.

    Attributes:
        positions: Sorted positions in the source, int64.
        scores: Their scores, float32, on the host.
    """

    positions: NDArray[np.int64]
    scores: Tensor


def sift(
    sources: Sequence[ScoreSource],
    thinned: Sequence[Thinned],
    k: int,
    *,
    exchange: Exchange,
    already: Iterable[Tensor] = (),
    observe: Observer | None = None,
) -> list[Sifted] | None:
    """Keep the scores among which the ``k`` largest of all are.

    Args:
        sources: As in :func:`gallop.topk.top_k`.
        thinned: A sample of each.
        k: As in :func:`gallop.topk.top_k`.
        exchange: As in :func:`gallop.topk.top_k`.
        already: Scores of other entries that the ``k`` are chosen from, too.
        observe: Is shown every chunk of the sources once, whatever is returned.

    Returns:
        Per source what is left; None, on all ranks, if the top-k has to be taken of everything.
    """
    pivot = _pivot(thinned, k, exchange)
    if pivot is None:
        show(sources, observe)
        return None
    limit = 2 * k + _WORTH
    found, count = [], 0
    for source in sources:
        positions, scores = [np.empty(0, dtype=np.int64)], [torch.empty(0)]
        start = 0
        for chunk in source():
            if observe:
                observe(chunk)
            if count <= limit:
                at = torch.nonzero(chunk.view(torch.int32) >= pivot).view(-1)
                positions.append(at.cpu().numpy() + start)
                scores.append(chunk[at].cpu())
                count += at.numel()
            start += chunk.numel()
        found.append(Sifted(np.concatenate(positions), torch.cat(scores)))
    others = sum(int(torch.count_nonzero(each.view(torch.int32) >= pivot)) for each in already)
    told = exchange.total(np.array([count + others, count > limit], dtype=np.int64))
    return None if told[1] or int(told[0]) < k else found


def show(sources: Iterable[ScoreSource], observe: Observer | None) -> None:
    """Show every chunk once.

    Args:
        sources: Scores.
        observe: Who wants to see them; nothing is computed for None.
    """
    for source in sources if observe else ():
        for chunk in source():
            observe(chunk)  # type: ignore[misc]


def _pivot(thinned: Sequence[Thinned], k: int, exchange: Exchange) -> int | None:
    # The bit pattern of a score that more than k are expected to reach.
    entries = sum(each.entries for each in thinned)
    if entries < _WORTH or not 0 < k < entries // 2:
        return None
    failed = False
    chunks = [torch.empty(0)]
    try:
        chunks += [chunk.cpu() for each in thinned for chunk in each.source()]
    except SelectionError:  # of the wrong index: the pass over everything names the right one
        failed = True
    sampled = torch.cat(chunks)
    told = exchange.total(np.array([sampled.numel(), failed], dtype=np.int64))
    if told[1]:
        return None
    expected = k * int(told[0]) / entries
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 8)
    threshold = find_threshold([lambda: [sampled]], rank, exchange=exchange)
    return None if threshold is None else threshold.bits
