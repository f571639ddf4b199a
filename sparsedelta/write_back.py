"""Writing files back to the disk while more of them is being written.

At the end all of an output has to be on the disk before it takes its name. Where that begins at the
end only, disk and cores wait for each other.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

_STEP_BYTES: Final = 1 << 27
"""So much is written before the next round begins; smaller outputs are not worth a thread."""


class WriteBack:
    """Syncs files in a thread of its own, one round at a time; for any threads that write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = 0
        self._executor: ThreadPoolExecutor | None = None
        self._round: Future[None] | None = None

    def begin(self, descriptor: int, nbytes: int) -> None:
        """Take note of what was written, and begin a round if it is much and none is under way.

        Args:
            descriptor: The file; it stays open until :meth:`end`.
            nbytes: Bytes that were written.

        Raises:
            OSError: An earlier round failed.
        """
        with self._lock:
            self._pending += nbytes
            if self._pending < _STEP_BYTES or not (self._round is None or self._round.done()):
                return
            if self._round is not None:
                self._round.result()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1)
            self._pending = 0
            self._round = self._executor.submit(os.fdatasync, descriptor)

    def end(self) -> None:
        """Wait for the last round; further calls do nothing.

        The system tells of a fault once: who syncs the file after us would not hear of it.

        Raises:
            OSError: It failed.
        """
        last, self._round = self._round, None
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        if last is not None:
            last.result()
