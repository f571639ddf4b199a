"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

# Before torch or numpy is loaded, here or in what is started from here: tests run side by side,
# and threads of one that wait for each other busily take the processor from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from quick_disk import without_waiting
from thorough import load_profile

load_profile()
without_waiting()

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command run in this process leaves its handlers; what a later test starts inherits them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    found = [(number, signal.getsignal(number)) for number in numbers]
    yield
    for number, handler in found:
        signal.signal(number, handler)
