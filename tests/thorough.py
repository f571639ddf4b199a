"""How many examples a law is tried on: some at every change, all of them under `make fuzz`."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

THOROUGH: Final = "SPARSEDELTA_THOROUGH" in os.environ
"""Whether examples count more than time."""

_SHARE: Final = 3
_FEW: Final = 20


def load_profile() -> None:
    """Let hypothesis try as many examples as this run has time for, and no test fail for its time.

    The examples are others in every run.
    """
    settings.register_profile(
        "default",
        deadline=None,
        max_examples=100 if THOROUGH else 50,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
    settings.load_profile("default")


def examples(count: int) -> settings:
    """Settings of a law with slow examples: ``count`` of them, or at least 20 and a third."""
    return settings(max_examples=count if THOROUGH else max(min(count, _FEW), count // _SHARE))
