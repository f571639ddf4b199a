"""The inverse of a delta, and what a chain does to the words of a tensor (`algebra.md`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from delta import Decoded
from terms import Part, Record, content_digest

OPPOSITE = {"new": "drop", "drop": "new", "resize": "resize", "difference": "difference"}


def inverse(delta: Decoded) -> tuple[str, tuple[Record, ...]]:
    """Content digest and records of the inverse of an invertible delta (section 2)."""
    records = tuple(sorted(map(_inverse, delta.records), key=lambda record: record.name))
    return content_digest(delta.target, delta.base, records), records


def _inverse(record: Record) -> Record:
    goes = [part.op for part in record.parts].index("drop") + 1 if _drops(record) else 0
    away, made = record.parts[:goes], record.parts[goes:]
    if away or (made[:1] and made[0].op == "new"):
        # What was made goes, its changes first; what went is made, its changes last.
        parts = (*made[1:], *made[:1], *away[-1:], *away[:-1])
    else:
        parts = made
    name = record.name if record.target is None or record.base is None else record.base_name
    source = record.name if name != record.name else None
    undone = tuple(map(_undone, parts))
    return Record(name, source, record.target, record.base, undone)


def _drops(record: Record) -> bool:
    return any(part.op == "drop" for part in record.parts)


def _undone(part: Part) -> Part:
    if part.op == "difference" and part.words is not None:
        return replace(part, words=np.negative(part.words))
    return replace(part, op=OPPOSITE[part.op])


def squash(chain: Iterable[Iterable[Part]]) -> dict[int, tuple[str, int]]:
    """What a chain of `difference` and `replace` parts does to each word (section 3).

    Args:
        chain: The parts of one tensor, delta by delta.

    Returns:
        Op and value of each entry, by its index.
    """
    found: dict[int, tuple[str, int]] = {}
    for parts in chain:
        for part in parts:
            if part.words is None:
                continue
            width = 1 << (8 * part.words.itemsize)
            for index, value in zip(part.indices.tolist(), part.words.tolist(), strict=True):
                op, before = found.get(index, ("difference", 0))
                if part.op == "difference":
                    found[index] = op, (before + value) % width
                else:
                    found[index] = "replace", value
    return {index: entry for index, entry in found.items() if entry != ("difference", 0)}
