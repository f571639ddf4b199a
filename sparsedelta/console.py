"""What a person sees while an operation runs: progress on stderr, tables and sizes in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from sparsedelta.progress import Progress, silent

_SECONDS_BETWEEN_LINES: Final = 5.0
_SECONDS_BEFORE_FIRST: Final = 0.5
_STEP: Final = 1000.0


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units: ``12.3 MB``."""
    if count < _STEP:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= _STEP
        if count < _STEP:
            return f"{count:.1f} {unit}"
    return f"{count / _STEP:.1f} TB"


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Progress]:
    """Progress of one operation on stderr: a bar on a terminal, else a line every few seconds.

    Operations that end within half a second show nothing.

    Args:
        label: What is being done.
        quiet: Show nothing.

    Yields:
        The function to give to an operation.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bar(label) as report:
            yield report
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    # Imported here: a command that ends at once does not pay for rich.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def _lines(label: str) -> Progress:
    begun = time.monotonic()
    last = begun + _SECONDS_BEFORE_FIRST - _SECONDS_BETWEEN_LINES

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES or done >= total:
            return
        last = now
        rate = done / max(now - begun, 1e-9)
        left = (total - done) / max(rate, 1.0)
        click.echo(
            f"{label}: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(rate)}/s, "
            f"{left:.0f} s left",
            err=True,
        )

    return report
