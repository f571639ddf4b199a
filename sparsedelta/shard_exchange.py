"""Words of shards that other ranks hold: asked for and answered, a piece of a segment at a time.

Each rank has a thread that answers. A piece that is asked for of both ends travels as its new words
and, where old ones differ, these alone.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import numpy as np
import torch
import torch.distributed as dist

from sparsedelta.closing import Closing
from sparsedelta.errors import CheckpointError
from sparsedelta.local_shards import BOTH, NEW, OLD, LocalShards
from sparsedelta.torch_ranks import TorchRanks
from sparsedelta.words import Bytes, as_words

_STOP: Final = 3

_QUESTIONS: Final = 1
_FIRST_TAG: Final = 2
_TAGS: Final = 1 << 20

_FAILED: Final = -1
_PLAIN: Final = 0
_SPARSE: Final = 1

_GLANCE_SECONDS: Final = 0.5

_PATIENCE: Final = timedelta(days=1)
"""A question may be long in coming; that a rank is lost, its listener notices."""


class ShardExchange(Closing):
    """Asks other ranks for words of their shards, and answers them; a context manager.

    Making one is collective, and so is closing it: a rank answers until all others are done.

    Args:
        ranks: The ranks.

    Attributes:
        received: Bytes of words that came from other ranks.
        largest: The most bytes that came at once.
    """

    def __init__(self, ranks: TorchRanks) -> None:
        self._ranks = ranks
        self._group = ranks.channel("shards", _PATIENCE)
        self._ends: Sequence[LocalShards] = ()
        self._names: Sequence[Sequence[str]] = ()
        self._numbers: Sequence[Mapping[str, int]] = ()
        self._tags = itertools.count()
        self._lock = threading.Lock()
        self.received = 0
        self.largest = 0
        # It listens from the start: a farewell may come before a question.
        self._is_open = threading.Event()
        self._server = threading.Thread(target=self._answer, daemon=True)
        self._server.start()

    def open(self, ends: Sequence[LocalShards], names: Sequence[Sequence[str]]) -> None:
        """Begin to answer.

        Args:
            ends: What is here of the old and of the new model.
            names: The names of each that questions number, on all ranks alike.
        """
        self._ends, self._names = ends, names
        self._numbers = [{name: n for n, name in enumerate(each)} for each in names]
        self._is_open.set()

    def ask(self, rank: int, what: int, name: str, run: tuple[int, int]) -> tuple[Bytes, Bytes]:
        """Words of the shard of a rank; callable from any thread.

        Args:
            rank: Who holds it.
            what: ``OLD``, ``NEW`` or ``BOTH``.
            name: The tensor.
            run: First and end word in the flat shard.

        Returns:
            Bytes of the old and of the new words; empty where they were not asked for.

        Raises:
            CheckpointError: The other rank cannot read them.
            RankError: The other rank is gone.
        """
        if rank == self._ranks.rank:
            return self._read(what, name, run)
        number = self._numbers[NEW if what == BOTH else what][name]
        tag = _FIRST_TAG + next(self._tags) % _TAGS
        question = torch.tensor([what, number, *run, tag])
        try:
            header = torch.zeros(2, dtype=torch.int64)
            coming = dist.irecv(header, group=self._group, group_src=rank, tag=tag)
            dist.send(question, group=self._group, group_dst=rank, tag=_QUESTIONS)
            assert coming is not None  # noqa: S101 (this rank is in the group)
            coming.wait()
            kind, size = header.tolist()
            if kind == _FAILED:
                raise CheckpointError(f"tensor {name!r}: rank {rank} cannot read its shard")
            data = torch.empty(size, dtype=torch.uint8)
            dist.recv(data, group=self._group, group_src=rank, tag=tag)
        except RuntimeError as error:  # of torch: the connection is gone
            raise self._ranks.explain(error) from None
        with self._lock:
            self.received += size
            self.largest = max(self.largest, size)
        answer: Bytes = data.numpy()
        none = answer[:0]
        if what != BOTH:
            return (answer, none) if what == OLD else (none, answer)
        width = self._ends[NEW].specs[name].word_bytes
        return _unpacked(kind, answer, (run[1] - run[0]) * width, width)

    def _read(self, what: int, name: str, run: tuple[int, int]) -> tuple[Bytes, Bytes]:
        none: Bytes = np.empty(0, np.uint8)
        old, new = (
            self._ends[end].reader.read(name, *run) if what in (end, BOTH) else none
            for end in (OLD, NEW)
        )
        return old, new

    def _answer(self) -> None:
        stops = 0
        while stops < self._ranks.size - 1:
            question = torch.zeros(5, dtype=torch.int64)
            try:
                source = dist.recv(question, group=self._group, tag=_QUESTIONS)
                what, number, start, stop, tag = question.tolist()
                if what == _STOP:
                    stops += 1
                    continue
                self._is_open.wait()
                kind, data = self._packed(what, number, (start, stop))
                header = torch.tensor([kind, data.size])
                dist.send(header, dst=source, group=self._group, tag=tag)
                if kind != _FAILED:
                    dist.send(torch.from_numpy(data), dst=source, group=self._group, tag=tag)
            except RuntimeError:  # of torch: somebody is gone, which the listeners notice
                if self._ranks.explain(RuntimeError()) is self._ranks.failure:
                    return

    def _packed(self, what: int, number: int, run: tuple[int, int]) -> tuple[int, Bytes]:
        try:
            name = self._names[NEW if what == BOTH else what][number]
            old, new = self._read(what, name, run)
        except Exception:  # noqa: BLE001 (whatever it was: the other rank must not wait)
            return _FAILED, np.empty(0, np.uint8)
        if what != BOTH:
            return _PLAIN, old if what == OLD else new
        return _packed(old, new, self._ends[NEW].specs[name].word_bytes)

    def close(self) -> None:
        """Answer until all others are done, too."""
        self._is_open.set()
        stop = torch.tensor([_STOP, 0, 0, 0, 0])
        for rank in range(self._ranks.size):
            if rank != self._ranks.rank:
                with contextlib.suppress(RuntimeError):  # gone
                    dist.send(stop, group=self._group, group_dst=rank, tag=_QUESTIONS)
        while self._ranks.failure is None and self._server.is_alive():
            self._server.join(_GLANCE_SECONDS)
        if self._server.is_alive():
            self._ranks.part([self._server])


def _packed(old: Bytes, new: Bytes, width: int) -> tuple[int, Bytes]:
    before, after = as_words(old, width), as_words(new, width)
    marks = before != after
    values = before[marks]
    if -(-marks.size // 8) + values.nbytes >= old.size:
        return _PLAIN, np.concatenate([new, old])
    if not values.size:
        return _SPARSE, new
    bits = np.packbits(marks, bitorder="little")
    return _SPARSE, np.concatenate([new, bits, values.view(np.uint8)])


def _unpacked(kind: int, data: Bytes, size: int, width: int) -> tuple[Bytes, Bytes]:
    new, rest = data[:size], data[size:]
    if kind == _PLAIN:
        return rest, new
    old = new.copy()
    if rest.size:
        count = size // width
        bits, values = rest[: -(-count // 8)], rest[-(-count // 8) :]
        marks = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        as_words(old, width)[marks] = np.frombuffer(values.tobytes(), as_words(old, width).dtype)
    return old, new
