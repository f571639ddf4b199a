"""Outputs of tests need not outlive a power cut: nobody waits for the disk."""

from __future__ import annotations

import os
import stat
from typing import Final

SYNC: Final = os.fsync
"""What waits: for tests of what a system makes of it."""


def _looks_only(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode  # of one that is closed, the error that it is
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        SYNC(descriptor)


def without_waiting() -> None:
    """Let ``os.fsync`` of this process do no more with files and folders than see them open.

    That the package calls it, and what becomes of its errors, is tested with functions that stand
    in its place. Commands that are started anew, not forked, still wait for the disk.
    """
    setattr(os, "fsync", _looks_only)  # noqa: B010 (other parameters than the type stubs have)
