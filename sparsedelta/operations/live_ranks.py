"""Verifying a sharded model together: each rank some tensors, or what it holds, by segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsedelta.local_shards import OLD, LocalShards
from sparsedelta.operations.live_base import MODEL, Candidate, Found
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import Ranks, own
from sparsedelta.sharded_reader import ShardedReader, merge_shards
from sparsedelta.words import TensorSpec

if TYPE_CHECKING:
    from sparsedelta.torch_ranks import TorchRanks


def verified_together(candidate: Candidate, ranks: TorchRanks, pool: OrderedMap) -> Found:
    """Verify a model of which each rank holds a part; returns what the delta changes in this one.

    All ranks call this. No tensor is ever whole on any of them: words come from where they are, a
    few segments at a time.

    Raises:
        WrongBaseError: The model is not on the delta's base; on the other ranks RankError.
        StructureError: Shards are missing.
    """
    # Imported here: it needs torch.
    from sparsedelta.shard_exchange import ShardExchange  # noqa: PLC0415

    every = {**candidate.tensors, **candidate.others}
    specs = {n: TensorSpec(n, live.spec.dtype, live.spec.shape) for n, live in every.items()}
    boxes = {name: live.box for name, live in every.items() if live.box.words}
    shards = LocalShards(specs, boxes, candidate.base)
    # Whoever fails says so before it stops to answer.
    with ShardExchange(ranks) as exchange, ranks.together():
        gathered = ranks.gather((specs, boxes))
        table = ranks.share(merge_shards(MODEL, gathered) if gathered else None)
        names = list(table.specs)
        exchange.open((shards, shards), (names, names))
        reader = ShardedReader(OLD, MODEL, (table, table), rank=ranks.rank, exchange=exchange)
        # Of the joint ones each rank verifies what it needs of them, which is all in all.
        apart = [name for name in names if name not in candidate.joint]
        for number in own(ranks, [table.specs[name].nbytes for name in apart]):
            candidate.verify(reader, apart[number], pool)
            ranks.check()
        found = candidate.here(reader, pool)
        agree(ranks)
    return found


def agree(ranks: Ranks) -> None:
    """Wait until all ranks have come this far.

    Raises:
        RankError: One of them has failed.
    """
    ranks.gather(None)
    ranks.share(None)
