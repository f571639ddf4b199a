"""Dividing things into groups of about equal size, the same way wherever it is asked."""

from __future__ import annotations

from collections.abc import Sequence


def divide(sizes: Sequence[int], groups: int) -> list[int]:
    """The group of each of several things in a row: groups are runs of about equal size.

    A thing belongs where its middle lies, so that one that is larger than a group leaves the
    groups beside it empty, and not overfull.

    Args:
        sizes: Sizes of the things, in their order.
        groups: Number of groups, at least 1.

    Returns:
        Numbers below ``groups``, ascending, one per thing.
    """
    total = sum(sizes)
    found = []
    before = 0
    for size in sizes:
        middle = 2 * before + size
        found.append(min(groups - 1, middle * groups // (2 * total)) if total else 0)
        before += size
    return found
