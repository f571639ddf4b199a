"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Machines are noisy: no test may fail for being slow.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command run in this process leaves its handlers; what a later test starts inherits them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    found = [(number, signal.getsignal(number)) for number in numbers]
    yield
    for number, handler in found:
        signal.signal(number, handler)
