"""Texts that options take: sizes such as 5GB, and pairs such as KEY=VALUE."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import click

_SIZE: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?) *(?P<unit>|[kKmMgGtT]?i?[bB])", re.ASCII)
_UNITS: Final = {
    **{f"{prefix}IB": 1 << (10 * power) for power, prefix in enumerate("KMGT", start=1)},
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def pairs(option: str, form: str, given: tuple[str, ...]) -> list[tuple[str, str]]:
    """The keys and values of an option that may be repeated.

    Args:
        option: Its name, for an error.
        form: What is expected, such as ``KEY=VALUE``.
        given: What was given.
    """
    found = []
    for pair in given:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"{option} {pair!r}: expected {form}")
        found.append((key, value))
    return found


def size_of(text: str | None) -> int | None:
    """Bytes of a text such as ``500MB``."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.UsageError(f"--max-shard-size {text!r}: expected a size such as 500MB or 5GB")
    return int(Decimal(match["number"]) * _UNITS[match["unit"].upper()])
