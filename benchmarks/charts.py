"""Small line charts as SVG, without any dependency: text stays text, in a light and a dark version.

A chart is a row of panels. Axes are logarithmic or begin at zero; ticks are given, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

PANEL_WIDTH: Final = 430
PANEL_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 34, 46
_LEGEND_ROW: Final = 22
_FONT: Final = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
)


@dataclass(frozen=True)
class Theme:
    """Colours of one version. The background is left to the page."""

    text: str
    faint: str
    lines: tuple[str, ...]


THEMES: Final = {
    "light": Theme("#1f2328", "#d1d9e0", ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781")),
    "dark": Theme("#f0f6fc", "#3d444d", ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#9198a1")),
}
_MARKS: Final = ("circle", "square", "diamond", "triangle", "circle")


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: What it is, with its unit.
        ticks: Value and text of each tick; the first and the last bound the axis.
        log: Whether distances are ratios.
    """

    label: str
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the first tick, 1 at the last."""
        low, high = self.ticks[0][0], self.ticks[-1][0]
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Panel:
    """One pair of axes and its lines.

    Attributes:
        title: What it shows.
        x: The horizontal axis.
        y: The vertical axis.
        lines: Name → points, in any order.
        bound: A horizontal dashed line and its text, such as a limit.
    """

    title: str
    x: Axis
    y: Axis
    lines: Mapping[str, Sequence[tuple[float, float]]]
    bound: tuple[float, str] | None = None


def draw(panels: Sequence[Panel], theme: Theme) -> str:
    """A row of panels with one legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    width, height = PANEL_WIDTH * len(panels), PANEL_HEIGHT + _LEGEND_ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="{_FONT}" font-size="12">',
        f"<title>{escape('; '.join(panel.title for panel in panels))}</title>",
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * PANEL_WIDTH} 0)">')
        parts += _panel(panel, names, theme)
        parts.append("</g>")
    parts += _legend(names, width, height, theme)
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, theme: Theme, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{theme.text}"{extra}>{escape(words)}</text>'


def _panel(panel: Panel, names: list[str], theme: Theme) -> list[str]:
    right, bottom = PANEL_WIDTH - _RIGHT, PANEL_HEIGHT - _BOTTOM
    wide, high = right - _LEFT, bottom - _TOP

    def at_x(value: float) -> float:
        return _LEFT + wide * panel.x.place(value)

    def at_y(value: float) -> float:
        return bottom - high * panel.y.place(value)

    parts = [_text(_LEFT, 18, panel.title, theme, ' font-weight="600" font-size="13"')]
    for value, label in panel.y.ticks:
        y = at_y(value)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{theme.faint}" stroke-width="1"/>'
        )
        parts.append(_text(_LEFT - 7, y + 4, label, theme, ' text-anchor="end"'))
    for value, label in panel.x.ticks:
        x = at_x(value)
        parts.append(
            f'<path d="M{x:.1f} {bottom}v5" stroke="{theme.text}" stroke-width="1" fill="none"/>'
        )
        parts.append(_text(x, bottom + 18, label, theme, ' text-anchor="middle"'))
    middle = _LEFT + wide / 2
    parts.append(_text(middle, bottom + 36, panel.x.label, theme, ' text-anchor="middle"'))
    turned = f' text-anchor="middle" transform="rotate(-90 14 {_TOP + high / 2:.1f})"'
    parts.append(_text(14, _TOP + high / 2, panel.y.label, theme, turned))
    if panel.bound is not None:
        value, label = panel.bound
        y = at_y(value)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{theme.text}" stroke-width="1" '
            f'stroke-dasharray="4 4"/>'
        )
        parts.append(_text(right, y - 5, label, theme, ' text-anchor="end" font-size="11"'))
    for name, points in panel.lines.items():
        number = names.index(name)
        colour = theme.lines[number]
        places = [(at_x(x), at_y(y)) for x, y in sorted(points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_mark(number, x, y, colour) for x, y in places]
    return parts


def _mark(number: int, x: float, y: float, colour: str) -> str:
    """Lines differ in shape too: not everybody sees every colour."""
    kind = _MARKS[number]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    shapes = {
        "square": "m-3.2 -3.2h6.4v6.4h-6.4z",
        "diamond": "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        "triangle": "m0 -4.5l4.2 7.6h-8.4z",
    }
    return f'<path d="M{x:.1f} {y:.1f}{shapes[kind]}" fill="{colour}"/>'


def _legend(names: list[str], width: int, height: int, theme: Theme) -> list[str]:
    lengths = [36 + 7 * len(name) for name in names]
    x = max(8.0, (width - sum(lengths)) / 2)
    y = height - 10
    parts = []
    for number, (name, length) in enumerate(zip(names, lengths, strict=True)):
        colour = theme.lines[number]
        parts.append(f'<path d="M{x:.1f} {y - 4}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(_mark(number, x + 9, y - 4, colour))
        parts.append(_text(x + 23, y, name, theme))
        x += length
    return parts


def write(folder: Path, name: str, panels: Sequence[Panel]) -> None:
    """Write ``NAME-light.svg`` and ``NAME-dark.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for mode, theme in THEMES.items():
        (folder / f"{name}-{mode}.svg").write_text(draw(panels, theme), encoding="utf-8")


def log_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks at 1, 2 and 5 times the powers of ten that hold all values."""
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-4, 7) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low)
    last = min(i for i, step in enumerate(steps) if step >= high)
    last = max(last, first + 1)
    chosen = steps[first : last + 1]
    many = 9
    if len(chosen) > many:  # powers of ten are enough
        tens = [10.0**e for e in range(-4, 7)]
        begin = max(t for t in tens if t <= low)
        end = min(t for t in tens if t >= high)
        chosen = [t for t in tens if begin <= t <= end]
    return [(step, f"{step:g}") for step in chosen]


def linear_ticks(most: float, count: int = 5) -> list[tuple[float, str]]:
    """About so many round ticks from zero to at least ``most``."""
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    return [(n * step, f"{n * step:g}") for n in range(math.ceil(most / step - 1e-9) + 1)]
