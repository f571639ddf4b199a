"""How operations tell what they have done: a function of bytes done and bytes in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the thread that called the operation."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""
