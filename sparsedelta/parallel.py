"""One way of using threads: map in order, with a bounded number of items in flight.

Results come in the order of the items, so that what is written does not depend on the number of
threads; a bounded window keeps memory independent of the length of the input. zstd, BLAKE3, large
numpy operations and file I/O all release the interpreter lock.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import Final, TypeVar

import numpy as np

from sparsedelta.closing import Closing
from sparsedelta.errors import UsageError
from sparsedelta.words import Bytes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


_DEFAULT_THREADS: Final = 16


def usable_cores() -> int:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return usable or os.cpu_count() or 1


class Scratch(threading.local):
    """Memory of each thread for runs of words that it works on, used again and again.

    Memory that is given back to the system has to be cleared by it before it is had again, which
    takes as long as reading the run.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Bytes] = {}

    def take(self, purpose: str, nbytes: int) -> Bytes:
        """``nbytes`` bytes of any content, which are this thread's until it asks again.

        Args:
            purpose: What for: different purposes do not share memory.
            nbytes: How many.
        """
        kept = self._kept.get(purpose)
        if kept is None or kept.size < nbytes:
            kept = self._kept[purpose] = np.empty(nbytes, np.uint8)
        return kept[:nbytes]


class OrderedMap(Closing):
    """A pool of threads for pure functions; a context manager.

    Only the thread that made it may call :meth:`mapped`, and functions must not call it themselves.

    Args:
        threads: Number of workers, at least 1; None for the cores this process may use, at most 16:
            each holds a few segments in memory. With 1, all work is done in the calling thread.

    Raises:
        UsageError: Fewer than one thread.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is None:
            threads = min(usable_cores(), _DEFAULT_THREADS)
        if threads < 1:
            raise UsageError(f"{threads} threads, expected at least 1")
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None

    @contextmanager
    def mapped(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[Iterator[_Result]]:
        """Results of ``function`` for each item, in order; the first exception ends it.

        No function is running any more when the context is left, however it is left.
        """
        with closing(self._map(function, items)) as results:
            yield results

    def _map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Generator[_Result, None, None]:
        if self._executor is None:
            yield from map(function, items)
            return
        window: deque[Future[_Result]] = deque()
        try:
            for item in items:
                window.append(self._executor.submit(function, item))
                if len(window) > 2 * self.threads:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            # Whoever ends this early is about to close what the workers read and write.
            for future in window:
                future.cancel()
            wait(window)

    def close(self) -> None:
        """Drop what has not begun and wait for what has."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
