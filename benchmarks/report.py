"""What every benchmark script shares: its options, where its data and results go, its tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import machine
from rich.console import Console
from rich.table import Table

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path(".demo")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that all scripts have: ``--quick`` and ``--work``."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n", maxsplit=1)[0])
    made.add_argument("--quick", action="store_true", help="seconds, on little data; a smoke test")
    made.add_argument("--work", type=Path, default=WORK, help="where data is kept [%(default)s]")
    return made


def write_results(
    name: str, figures: Mapping[str, Any], *, work: Path, quick: bool, folders: Sequence[Path] = ()
) -> Path:
    """Write the figures and the description of the machine as JSON.

    Args:
        name: Name of the benchmark.
        figures: What was measured.
        work: Where quick results go: they never replace the stored ones.
        quick: Whether this was a quick run.
        folders: Where the data lay.

    Returns:
        The file.
    """
    path = work / "quick" / f"{name}.json" if quick else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine.describe(folders or [work]), "quick": quick, **figures}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_results(name: str, *, work: Path = WORK, quick: bool = False) -> dict[str, Any]:
    """The stored figures of a benchmark."""
    path = work / "quick" / f"{name}.json" if quick else RESULTS / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=150).print(table)


def size(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":  # noqa: PLR2004 (the base of binary units)
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
