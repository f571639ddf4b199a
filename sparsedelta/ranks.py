"""Ranks: processes that run one operation together, each on its own tensors.

An operation is written once, for any number of ranks: all of them go through the same calls of
:meth:`Ranks.gather` and :meth:`Ranks.share` in the same order. What travels is small: records,
tables, digests, sizes. One process is rank 0 of 1, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, TypeVar

from sparsedelta.partition import divide
from sparsedelta.progress import Progress

_Value = TypeVar("_Value")


class Ranks(Protocol):
    """The processes of an operation, as one of them sees them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int
    size: int

    def gather(self, value: _Value) -> list[_Value]:
        """Values of all ranks in their order, on rank 0; an empty list on the others.

        Raises:
            RankError: Another rank failed or ended.
        """

    def share(self, value: _Value | None) -> _Value:
        """The value of rank 0, on all ranks; what the others give is not looked at.

        Raises:
            RankError: Another rank failed or ended.
        """

    def check(self) -> None:
        """Raise what has become of another rank, if it failed or ended.

        Raises:
            RankError: Another rank failed or ended.
        """

    def together(self) -> AbstractContextManager[None]:
        """A context whose failure on one rank ends the others, too."""


class Alone:
    """One process, which is rank 0 of 1; implements :class:`Ranks`."""

    rank = 0
    size = 1

    def gather(self, value: _Value) -> list[_Value]:
        """The value, in a list."""
        return [value]

    def share(self, value: _Value | None) -> _Value:
        """The value."""
        return value  # type: ignore[return-value]  # rank 0 always gives one

    def check(self) -> None:
        """There is nobody who could fail."""

    def together(self) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()


ALONE: Final[Ranks] = Alone()


def first(ranks: Ranks, function: Callable[[], _Value]) -> _Value:
    """What ``function`` returns on rank 0, where alone it is called, on all ranks.

    Raises:
        RankError: It raised on rank 0, or another rank failed.
    """
    return ranks.share(function() if ranks.rank == 0 else None)


def own(ranks: Ranks, sizes: list[int]) -> list[int]:
    """Positions of those of several things, of these sizes, that are this rank's to work on."""
    return [n for n, rank in enumerate(divide(sizes, ranks.size)) if rank == ranks.rank]


def watched(ranks: Ranks, progress: Progress) -> Progress:
    """Progress that ends this rank's work soon after another one has failed."""
    if ranks.size == 1:
        return progress

    def report(done: int, total: int) -> None:
        ranks.check()
        progress(done, total)

    return report
