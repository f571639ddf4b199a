"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ["BarProgress", "LineProgress", "NoProgress", "TrainingProgress", "open_progress"]

_LINE_SECONDS = 5.0


class TrainingProgress(Protocol):
    """Hears about every selection batch and training step."""

    def advance(self, stage: str, done: int, *, total: int, detail: str) -> None:
        """Tell how far a stage has come.

        Args:
            stage: ``"select"`` or ``"train"``.
            done: Batches or steps done.
            total: Batches or steps in all.
            detail: Loss and speed.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NoProgress:
    """Says nothing."""

    def advance(self, stage: str, done: int, *, total: int, detail: str) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was opened."""


class LineProgress(NoProgress):
    """Prints a line every few seconds, and at the end of each stage."""

    def __init__(self, *, seconds: float = _LINE_SECONDS) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def advance(self, stage: str, done: int, *, total: int, detail: str) -> None:
        """Print if the last line is old enough, or the stage is done."""
        now = time.monotonic()
        if done < total and now - self._last < self._seconds:
            return
        self._last = now
        print(f"{stage} {done}/{total} {detail}", file=sys.stderr, flush=True)  # noqa: T201


class BarProgress(NoProgress):
    """Draws one bar per stage with rich."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def advance(self, stage: str, done: int, *, total: int, detail: str) -> None:
        """Move the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        self._bars.update(self._tasks[stage], completed=done, detail=detail)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()


def open_progress(*, quiet: bool) -> TrainingProgress:
    """Choose how to show progress on the present stderr.

    Args:
        quiet: Show nothing.

    Returns:
        A bar on a terminal, lines elsewhere, or nothing.
    """
    if quiet:
        return NoProgress()
    console = Console(stderr=True)
    return BarProgress(console) if console.is_terminal else LineProgress()
