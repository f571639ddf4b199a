"""A model in the memory of several processes as a checkpoint that can be read like any other."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsedelta.boxes import Box
from sparsedelta.errors import StructureError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.local_shards import BOTH, NEW, OLD
from sparsedelta.words import Bytes, TensorSpec, as_words

if TYPE_CHECKING:
    from sparsedelta.shard_exchange import ShardExchange

Holders = tuple[tuple[Box, tuple[int, ...]], ...]
"""The distinct boxes of a tensor, and the ranks that hold each."""


@dataclass(frozen=True, slots=True)
class ShardTable:
    """Where the words of a model are.

    Attributes:
        specs: Every tensor by name, ascending.
        holders: Who holds what of each.
    """

    specs: Mapping[str, TensorSpec]
    holders: Mapping[str, Holders]


def merge_shards(
    location: str, gathered: Sequence[tuple[Mapping[str, TensorSpec], Mapping[str, Box]]]
) -> ShardTable:
    """Where the words of a model are, by what each rank says of itself.

    Args:
        location: What to call the model in messages.
        gathered: Of each rank, the tensors that it knows and the boxes that it holds.

    Raises:
        StructureError: They contradict each other, or words of a tensor are nowhere.
    """
    specs: dict[str, TensorSpec] = {}
    boxes: dict[str, dict[Box, list[int]]] = {}
    for rank, (known, held) in enumerate(gathered):
        for name, spec in known.items():
            if specs.setdefault(name, spec) != spec:
                raise StructureError(
                    f"{location}: tensor {name!r} is {spec} on rank {rank}, {specs[name]} on others"
                )
            boxes.setdefault(name, {})
        for name, box in held.items():
            boxes[name].setdefault(box, []).append(rank)
    for name, found in boxes.items():
        words = sum(box.words for box in found)
        if words != specs[name].words:
            raise StructureError(
                f"{location}: the shards of tensor {name!r} have {words} words in all, expected "
                f"{specs[name].words}",
                hint="all ranks that hold a shard of the model have to take part: see group",
            )
    return ShardTable(
        {name: specs[name] for name in sorted(specs)},
        {
            name: tuple((box, tuple(ranks)) for box, ranks in found.items())
            for name, found in boxes.items()
        },
    )


class ShardedReader:
    """One end of a diff of sharded models, as a checkpoint in memory.

    Implements :class:`~sparsedelta.checkpoint.CheckpointReader`. Words are put together from what
    the ranks hold of them, no more at a time than are asked for.

    Args:
        end: ``OLD`` or ``NEW``.
        location: What to call it in messages.
        tables: Where the words of both ends are.
        rank: This rank.
        exchange: Asks the others.
    """

    def __init__(
        self,
        end: int,
        location: str,
        tables: tuple[ShardTable, ShardTable],
        *,
        rank: int,
        exchange: ShardExchange,
    ) -> None:
        self.location = location
        self.paths: tuple[Path, ...] = ()
        self.specs = tables[end].specs
        self.partner: ShardedReader | None = None
        self._end = end
        self._tables = tables
        self._rank = rank
        self._exchange = exchange
        self._at_hand = threading.local()

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor."""
        kept: tuple[object, Bytes] | None = getattr(self._at_hand, "kept", None)
        self._at_hand.kept = None
        if kept is not None and kept[0] == (name, start, stop):
            return kept[1]
        if self.partner is None or not self._is_alike(name):
            return self._gather(self._end, name, start, stop)[self._end]
        # Whoever reads old words is about to read the new ones, in the same thread.
        old, new = self._gather(BOTH, name, start, stop)
        self.partner.keep((name, start, stop), new)
        return old

    def keep(self, run: object, data: Bytes) -> None:
        """Keep words that came along, until this thread asks for them or for others."""
        self._at_hand.kept = run, data

    def close(self) -> None:
        """Nothing is open."""

    def _is_alike(self, name: str) -> bool:
        old, new = self._tables
        return old.specs.get(name) == new.specs.get(name) and old.holders.get(
            name
        ) == new.holders.get(name)

    def _gather(self, what: int, name: str, start: int, stop: int) -> tuple[Bytes, Bytes]:
        table = self._tables[self._end]
        width = table.specs[name].word_bytes
        ends = [
            np.empty((stop - start) * width if what in (end, BOTH) else 0, np.uint8)
            for end in (OLD, NEW)
        ]
        for box, ranks in table.holders[name]:
            run = box.run(start, stop)
            if run[0] == run[1]:
                continue
            # Of replicas that here, or another one for each segment.
            holder = self._rank
            if holder not in ranks:
                holder = ranks[start // SEGMENT_WORDS % len(ranks)]
            answer = self._exchange.ask(holder, what, name, run)
            for data, whole in zip(answer, ends, strict=True):
                if data.size:
                    box.place(as_words(data, width), run[0], as_words(whole, width), start)
        return ends[OLD], ends[NEW]
