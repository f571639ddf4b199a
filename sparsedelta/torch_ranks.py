"""Ranks of torch.distributed: messages over gloo, and what happens when one of them ends.

Rank 0 is in the middle: the others send to it and hear from it. Each end of a connection has a
thread that listens all the time, so that a rank that fails, is killed or falls silent is noticed at
once, whatever its peers are doing: a closed connection is an error in gloo, and a beat every few
seconds tells a rank that works from one that is lost.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist

from sparsedelta.errors import RankError, SparseDeltaError, UsageError

_Value = TypeVar("_Value")

_channels: WeakKeyDictionary[dist.ProcessGroup, dict[str, dist.ProcessGroup]] = WeakKeyDictionary()
"""Groups of our own, by the group that they are made of."""

_BEAT_SECONDS: Final = 10.0
SILENCE: Final = timedelta(seconds=120)
"""After which a rank that says nothing is taken for lost."""

_FAREWELL_SECONDS: Final = 5.0
"""How long a rank that has failed waits for the others to say goodbye."""

_ON_ITS_WAY_SECONDS: Final = 1.0
"""How long a value is waited for once it is known that a rank has failed."""

_VALUE: Final = "value"
_ERROR: Final = "error"
_BEAT: Final = "beat"
_BYE: Final = "bye"


class TorchRanks:
    """The ranks of a process group; implements :class:`~sparsedelta.ranks.Ranks`.

    Making one is collective: every rank of the group does. So is closing it.

    Args:
        group: The processes; None for all. Its backend does not matter: messages travel over a gloo
            group of our own.

    Attributes:
        rank: Number of this process in the group.
        size: Number of processes.
        failure: What has become of another rank, or None.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        parent = dist.group.WORLD if group is None else group
        if parent is None:
            raise UsageError(
                "there is no process group",
                hint="call torch.distributed.init_process_group() first, or start with torchrun",
            )
        self._parent: dist.ProcessGroup = parent
        self._members: list[int] = dist.get_process_group_ranks(group)
        self.size = len(self._members)
        self.failure: RankError | None = None
        self._origin: int | None = None
        self._group = self.channel("ranks", SILENCE)
        self.rank = dist.get_rank(self._group)
        self._peers = [0] if self.rank else list(range(1, self.size))
        self._changed = threading.Condition()
        self._received: dict[int, deque[Any]] = {peer: deque() for peer in self._peers}
        self._sending = {peer: threading.Lock() for peer in self._peers}
        self._ended = threading.Event()
        self._listeners = [
            threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in self._peers
        ]
        self._heart = threading.Thread(target=self._beat, daemon=True)
        for thread in (*self._listeners, self._heart):
            thread.start()

    def channel(self, purpose: str, timeout: timedelta) -> dist.ProcessGroup:
        """A gloo group of the same processes, for this purpose alone; collective.

        It stays open for whoever asks next: connecting takes longer than a small diff.
        """
        channels = _channels.setdefault(self._parent, {})
        if purpose not in channels:
            channels[purpose] = dist.new_group(
                self._members, timeout=timeout, backend="gloo", use_local_synchronization=True
            )
        return channels[purpose]

    def gather(self, value: _Value) -> list[_Value]:
        """Values of all ranks, on rank 0."""
        self.check()
        if self.rank:
            self._say(0, (_VALUE, value))
            return []
        return [value, *(self._take(peer) for peer in self._peers)]

    def share(self, value: _Value | None) -> _Value:
        """The value of rank 0, on all ranks."""
        if self.rank:
            taken: _Value = self._take(0)
            return taken
        self.check()
        for peer in self._peers:
            self._say(peer, (_VALUE, value))
        return value  # type: ignore[return-value]  # rank 0 always gives one

    def check(self) -> None:
        """Raise what has become of another rank."""
        if self.failure is not None:
            raise self.failure

    def explain(self, error: Exception) -> Exception:
        """What to raise for an error that the end of a peer may have caused."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, _FAREWELL_SECONDS)
        return self.failure or error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context whose failure on one rank ends the others, too."""
        try:
            yield
        except BaseException as error:
            failure = self.failure
            if failure is None:
                self._fail(_own_failure(self.rank, error), origin=self.rank)
            elif isinstance(error, Exception) and not self._is_of(failure, error):
                # Whatever went wrong here did so because another rank was gone.
                raise failure from None
            raise

    def _is_of(self, failure: RankError, error: Exception) -> bool:
        """Whether a failure is of this rank, or of all of them: each then raises its own error."""
        common = isinstance(error, SparseDeltaError) and failure.message.endswith(error.message)
        return common or self._origin == self.rank

    def _say(self, peer: int, message: tuple[Any, ...]) -> None:
        try:
            self._send(peer, message)
        except RuntimeError:
            self._fail(_lost(peer), origin=peer)
            self.check()

    def _send(self, peer: int, message: tuple[Any, ...]) -> None:
        data = torch.from_numpy(np.frombuffer(bytearray(pickle.dumps(message)), np.uint8))
        with self._sending[peer]:
            dist.send(torch.tensor([data.numel()]), group=self._group, group_dst=peer)
            dist.send(data, group=self._group, group_dst=peer)

    def _take(self, peer: int) -> Any:  # noqa: ANN401 (whatever was sent)
        waiting = self._received[peer]
        with self._changed:
            self._changed.wait_for(lambda: waiting or self.failure is not None)
            # Another rank may have failed of what this value says, and have had it sooner: then it
            # is on its way here, too, and every rank comes to its own error.
            if not self._changed.wait_for(lambda: waiting, _ON_ITS_WAY_SECONDS):
                self.check()
            return waiting.popleft()

    def _listen(self, peer: int) -> None:
        while True:
            try:
                length = torch.zeros(1, dtype=torch.int64)
                dist.recv(length, group=self._group, group_src=peer)
                data = torch.empty(int(length), dtype=torch.uint8)
                dist.recv(data, group=self._group, group_src=peer)
            except RuntimeError:
                self._fail(_lost(peer), origin=peer)
                return
            # From a process of this very job, over the group that it trains with.
            kind, *content = pickle.loads(data.numpy().data)  # noqa: S301
            if kind == _BYE:
                return
            if kind == _ERROR:
                self._fail(*content)
            elif kind == _VALUE:
                with self._changed:
                    self._received[peer].append(content[0])
                    self._changed.notify_all()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            self._tell((_BEAT,), self._peers)

    def _fail(self, failure: RankError, origin: int) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure, self._origin = failure, origin
            self._changed.notify_all()
        self._tell((_ERROR, failure, origin), [peer for peer in self._peers if peer != origin])

    def _tell(self, message: tuple[Any, ...], peers: list[int]) -> None:
        for peer in peers:
            with contextlib.suppress(RuntimeError):  # gone: its listener says so
                self._send(peer, message)

    def close(self) -> None:
        """Part from the other ranks; collective, but for ranks that are gone."""
        self._ended.set()
        self._heart.join()
        self._tell((_BYE,), self._peers)
        patience = SILENCE.total_seconds() if self.failure is None else _FAREWELL_SECONDS
        self.part([*self._listeners], patience)
        if self.failure is not None:
            _channels.pop(self._parent, None)  # something may still be on its way there

    def part(self, threads: list[threading.Thread], patience: float | None = None) -> None:
        """Wait for threads that wait for peers.

        One that waits for a dead peer inside gloo cannot be woken, and would abort the process at
        its end: it is then left without ceremony.
        """
        for thread in threads:
            thread.join(_FAREWELL_SECONDS if patience is None else patience)
        if any(thread.is_alive() for thread in threads):
            code = 1 if self.failure is None else self.failure.exit_code
            atexit.register(_leave, threads, code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is not None and self.failure is None:
            self._fail(_own_failure(self.rank, value), origin=self.rank)
        self.close()


def _leave(threads: list[threading.Thread], code: int) -> None:
    if not any(thread.is_alive() for thread in threads):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _own_failure(rank: int, error: BaseException) -> RankError:
    if isinstance(error, SparseDeltaError):
        return RankError(
            f"rank {rank} failed: {error.message}", hint=error.hint, exit_code=error.exit_code
        )
    if isinstance(error, KeyboardInterrupt):
        return RankError(f"rank {rank} was interrupted")
    return RankError(f"rank {rank} failed: {type(error).__name__}: {error}")


def _lost(rank: int) -> RankError:
    return RankError(
        f"rank {rank} ended without a word: it was killed, or its machine is lost",
        hint="nothing was left behind: look at the output of that rank and at the memory of its "
        "machine, and run the command again",
    )
