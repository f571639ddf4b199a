"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from thorough import load_profile

load_profile()

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command run in this process leaves its handlers; what a later test starts inherits them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    found = [(number, signal.getsignal(number)) for number in numbers]
    yield
    for number, handler in found:
        signal.signal(number, handler)
