"""What a command gives back: figures, and text for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is printed on stdout.

    Attributes:
        values: Figures by name, JSON-ready; one with fields of its own is for programs only.
        lines: Text that follows them where people read.
    """

    values: dict[str, Any]
    lines: Sequence[str] = ()
