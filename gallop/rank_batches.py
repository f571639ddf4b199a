"""How the batches of many processes count in one mean gradient, and that none is left waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gallop.collectives import Peers
from gallop.errors import SelectionError

__all__ = ["RankBatches"]

_END = object()


class RankBatches:
    """Counts batches: of this process alone, or of several that take theirs at the same time.

    Each process draws a batch of its own, as with data parallelism, and a batch counts by its
    weight among those of all of them. A sharded model averages the gradients of the processes;
    otherwise each process sums up its own, and the sums are added up at the end.

    Args:
        peers: The processes; None for one.
        sharded: Whether the model averages over them.

    Attributes:
        share: What the gradients of the present batch are multiplied by.
        total: Sum of the shares by which the sums of all processes are divided.
    """

    __slots__ = ("_first", "_loss", "_loss_weight", "_own", "_peers", "_sharded", "share", "total")

    def __init__(self, peers: Peers | None, *, sharded: bool) -> None:
        self._peers = peers
        self._sharded = sharded
        self._first = self._own = self._loss = self._loss_weight = 0.0
        self.share = 1.0
        self.total = 0.0

    def drawn(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield numbers, from 1, and batches, until all processes have drawn their last.

        Raises:
            SelectionError: One has more batches than another.
            RankError: Another failed to draw one.
        """
        if self._peers is None:
            yield from enumerate(batches, start=1)
            return
        iterator = iter(batches)
        number = 0
        while True:
            number += 1
            with self.alike():
                batch = next(iterator, _END)
            ended = self._peers.gather(batch is _END)
            if all(ended):
                return
            if any(ended):
                lacking = [self._peers.members[rank] for rank, end in enumerate(ended) if end]
                raise SelectionError(
                    f"selection batch {number}: expected as many batches on every rank, found none "
                    f"on {lacking}",
                    hint="cut the data evenly: drop_last=True in a DataLoader, or a "
                    "DistributedSampler",
                )
            yield number, batch

    def alike(self) -> AbstractContextManager[None]:
        """A context whose failure on one process fails on all."""
        return nullcontext() if self._peers is None else self._peers.together()

    def place(self, number: int) -> int:
        """The number of this process's batch among those of all, taken in turn."""
        if self._peers is None:
            return number
        return (number - 1) * self._peers.size + self._peers.rank + 1

    def count(self, weight: float) -> float:
        """Take the weight of the present batch.

        Returns:
            What to multiply its loss by, so that the average over processes weighs by the weights.
        """
        weights = [weight] if self._peers is None else self._peers.gather(float(weight))
        whole = sum(weights)
        # Weights relative to the first batch keep equal batches at exactly 1: the sum is then
        # the plain sum of their gradients, bit for bit.
        self._first = self._first or whole / len(weights)
        self._own = weight / self._first
        if self._sharded and self._peers is not None:
            self.share = whole / len(weights) / self._first
            self.total += self.share
            return weight * len(weights) / whole
        self.share = self._own
        self.total += whole / self._first
        return 1.0

    def add_loss(self, value: float) -> None:
        """Add the loss of the present batch to the mean."""
        self._loss += self._own * value
        self._loss_weight += self._own

    def mean_loss(self) -> float:
        """Return the mean loss over all processes; collective."""
        if self._peers is None:
            return self._loss / self._loss_weight
        return self._peers.sum_in_order(self._loss) / self._peers.sum_in_order(self._loss_weight)

    def sum_of(self, count: int | None) -> int | None:
        """Sum a count over all processes; None if some do not tell."""
        if self._peers is None:
            return count
        counts = self._peers.gather(count)
        known = [each for each in counts if each is not None]
        return sum(known) if len(known) == len(counts) else None
