"""Interrupts that wait for the step at hand: the first asks to stop, the second stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_requests"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_requests(announce: str) -> Iterator[Callable[[], bool]]:
    """Take over the signals that ask a process to end, for as long as the context lasts.

    Signals that are ignored stay so. In another thread than the main one, where Python sets no
    handlers, nothing is taken over.

    Args:
        announce: Said on stderr at the first signal.

    Yields:
        Tells whether a signal has come. A second one raises ``KeyboardInterrupt`` at once.
    """
    requested = False
    found: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in found.items():
            signal.signal(number, handler)
        found.clear()

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            before = found.get(signal.Signals(number))
            restore()
            if callable(before):  # it may know how to keep a third signal from doing harm
                before(number, frame)
            raise KeyboardInterrupt
        requested = True
        print(announce, file=sys.stderr, flush=True)  # noqa: T201

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:
                found[number] = handler
                signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        restore()
