"""Runs of words that are worked on together: which of them, and where they are read to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

from sparsedelta.batches import BATCH_BYTES, batched
from sparsedelta.operations.arrows import Arrow
from sparsedelta.parallel import Scratch
from sparsedelta.words import Bytes

SourceRun: TypeAlias = tuple[Arrow, int, int]
"""A run of words to be taken through: its arrow, first word, word behind the last."""

_ALIGNED: Final = 64


def batches(arrows: Iterable[Arrow]) -> Iterator[list[SourceRun]]:
    """All runs in their order, small ones together: each by itself takes longer than its work."""
    runs = ((arrow, start, stop) for arrow in arrows for start, stop in arrow.spans())
    return batched(runs, lambda run: (run[2] - run[1]) * run[0].word_bytes, BATCH_BYTES)


def rooms(scratch: Scratch, purpose: str, sizes: Sequence[int]) -> list[Bytes]:
    """Memory for the runs of a batch, side by side, as :meth:`Scratch.take` gives it.

    Args:
        scratch: Memory of each thread.
        purpose: What for.
        sizes: Bytes of each run.
    """
    starts = list(accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0))
    room = scratch.take(purpose, starts[-1])
    return [room[start : start + size] for start, size in zip(starts, sizes, strict=False)]
