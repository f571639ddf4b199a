"""Where in a model a delta changes how much, as one SVG: a row per layer, a column per module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Final

from sparsedelta.operations.info import TensorInfo

_LAYER: Final = re.compile(r"(?:^|\.)(\d+)\.")
_CELL_WIDTH: Final = 64
_CELL_HEIGHT: Final = 16
_LEFT: Final = 56
_TOP: Final = 96
_MAX_ROWS: Final = 200
_MAX_COLUMNS: Final = 24
_MAX_LABEL: Final = 24
_LOG_LOW: Final = -6.0
"""Density of 10^-6 and below is the lightest colour, everything the darkest."""

_UNCHANGED: Final = "#eeeeee"
_ABSENT: Final = "none"
_LIGHT, _DARK = (222, 235, 247), (8, 48, 107)


@dataclass(frozen=True, slots=True)
class Cell:
    """Changed and all words of a module in a layer."""

    nnz: int = 0
    words: int = 0

    @property
    def density(self) -> float:
        """Share of the words that change."""
        return self.nnz / self.words if self.words else 0.0


def cells_of(
    touched: Iterable[TensorInfo], untouched: Iterable[str]
) -> dict[tuple[int | None, str], Cell]:
    """Cells by layer, None outside of layers, and module.

    Args:
        touched: The tensors that a delta touches.
        untouched: Names of those that stay.
    """
    found: dict[tuple[int | None, str], Cell] = {}
    for tensor in touched:
        key = place_of(tensor.name)
        old = found.get(key, Cell())
        words = max(tensor.words, tensor.nnz + tensor.carried)
        found[key] = Cell(old.nnz + tensor.nnz + tensor.carried, old.words + words)
    for name in untouched:
        found.setdefault(place_of(name), Cell())
    return found


def place_of(name: str) -> tuple[int | None, str]:
    """Layer and module of a tensor, by the first number in its name."""
    match = _LAYER.search(name)
    if match is None:
        return None, name.removesuffix(".weight")
    return int(match[1]), name[match.end() :].removesuffix(".weight") or name


def heat_map(touched: Iterable[TensorInfo], untouched: Iterable[str]) -> str:
    """The SVG, on one line; the same for the same delta. Names in it are escaped."""
    cells = cells_of(touched, untouched)
    layers = sorted({layer for layer, _ in cells if layer is not None})
    modules = list(dict.fromkeys(module for layer, module in cells if layer is not None))
    left_out = max(0, len(layers) - _MAX_ROWS)
    columns = sorted(modules)[:_MAX_COLUMNS]
    others = sorted(module for layer, module in cells if layer is None)[:_MAX_ROWS]
    rows = layers[:_MAX_ROWS]
    width = _LEFT + _CELL_WIDTH * max(len(columns), 6) + 8
    height = _TOP + _CELL_HEIGHT * (len(rows) + len(others) + 1) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="sans-serif" font-size="10">',
        "<title>Share of words that change, by layer and module</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for column, module in enumerate(columns):
        x, y = _LEFT + _CELL_WIDTH * column + 8, _TOP - 6
        parts.append(
            f'<text x="{x}" y="{y}" transform="rotate(-40 {x} {y})">{_label(module)}</text>'
        )
    for row, layer in enumerate(rows):
        y = _TOP + _CELL_HEIGHT * row
        parts.append(f'<text x="4" y="{y + 12}">layer {layer}</text>')
        for column, module in enumerate(columns):
            cell = cells.get((layer, module))
            x = _LEFT + _CELL_WIDTH * column
            parts.append(_rect(x, y, cell, f"layer {layer}, {module}"))
    for row, module in enumerate(others):
        y = _TOP + _CELL_HEIGHT * (len(rows) + row) + 8
        cell = cells[None, module]
        parts.append(_rect(_LEFT, y, cell, module))
        parts.append(f'<text x="{_LEFT + _CELL_WIDTH + 6}" y="{y + 12}">{_label(module)}</text>')
    parts += _legend(height - 40, left_out)
    return "".join((*parts, "</svg>"))


def _label(name: str) -> str:
    short = name if len(name) <= _MAX_LABEL else f"…{name[-_MAX_LABEL + 1 :]}"
    return _escaped(short)


def _escaped(name: str) -> str:
    # Control characters have no place in XML, escaped or not; braces none in Markdown engines.
    plain = "".join(char if char.isprintable() else "�" for char in name)
    return escape(plain, quote=True).replace("`", "&#96;")


def _rect(x: int, y: int, cell: Cell | None, where: str) -> str:
    size = f'x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}"'
    if cell is None:
        return f'<rect {size} fill="{_ABSENT}"/>'
    told = "unchanged" if not cell.nnz else f"{cell.nnz:,} of {cell.words:,} ({cell.density:.3%})"
    title = f"<title>{_escaped(where)}: {told}</title>"
    return f'<rect {size} fill="{colour(cell.density)}">{title}</rect>'


def colour(density: float) -> str:
    """The colour of a density: grey where nothing changes, else blue on a logarithmic scale."""
    if density <= 0:
        return _UNCHANGED
    share = 1 - max(math.log10(min(density, 1.0)), _LOG_LOW) / _LOG_LOW
    mixed = (round(low + (high - low) * share) for low, high in zip(_LIGHT, _DARK, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _legend(y: int, left_out: int) -> Iterable[str]:
    steps = [("unchanged", 0.0), *((f"{10.0**power:.4%}", 10.0**power) for power in range(-6, 1))]
    for number, (text, density) in enumerate(steps):
        x = _LEFT + number * 54
        yield f'<rect x="{x}" y="{y}" width="52" height="10" fill="{colour(density)}"/>'
        yield f'<text x="{x}" y="{y + 22}" font-size="8">{text.replace(".0000", "")}</text>'
    if left_out:
        yield f'<text x="4" y="{y + 36}" font-size="8">{left_out} more layers are not shown</text>'
