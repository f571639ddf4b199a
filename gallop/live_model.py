"""The tensors of a live model as the end of a diff, whether one process holds them or many do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gallop.collectives import Peers
from sparsedelta.local_shards import NEW, LocalShards
from sparsedelta.ranks import ALONE, Ranks
from sparsedelta.shard_exchange import ShardExchange
from sparsedelta.sharded_reader import ShardedReader, merge_shards
from sparsedelta.torch_ranks import TorchRanks

__all__ = ["LiveModel", "live_model"]

_LOCATION = "the live model"


@dataclass(frozen=True, slots=True)
class LiveModel:
    """The processes that hold a model, while they write something of it together.

    Attributes:
        ranks: The processes.
        exchange: How they ask each other for words; None of one process.
    """

    ranks: Ranks
    exchange: ShardExchange | None = None

    def reader(self, shards: LocalShards) -> ShardedReader:
        """Read whole tensors, a segment at a time, from the shards of all processes; collective.

        Args:
            shards: What this process holds.

        Raises:
            StructureError: The processes contradict each other, or words are nowhere.
        """
        assert self.exchange is not None  # noqa: S101  (one process has all it needs)
        found = self.ranks.gather((shards.specs, shards.boxes))
        table = self.ranks.share(merge_shards(_LOCATION, found) if found else None)
        names = list(table.specs)
        self.exchange.open((shards, shards), (names, names))
        return ShardedReader(
            NEW, _LOCATION, (table, table), rank=self.ranks.rank, exchange=self.exchange
        )

    def total(self, count: int) -> int:
        """Sum a number over the processes; collective."""
        found = self.ranks.gather(count)
        return self.ranks.share(sum(found) if found else None)


@contextmanager
def live_model(peers: Peers | None) -> Iterator[LiveModel]:
    """The processes that hold a model; a failure in the block ends it on all of them.

    Args:
        peers: The processes; None for one.

    Raises:
        RankError: Another process failed or ended.
    """
    if peers is None:
        yield LiveModel(ALONE)
        return
    with (
        TorchRanks(peers.channel) as ranks,
        ShardExchange(ranks) as exchange,
        ranks.together(),
    ):
        yield LiveModel(ranks, exchange)
