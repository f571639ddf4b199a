"""Dividing things into groups of about equal size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.partition import divide
from sparsedelta.ranks import ALONE, Ranks, own

sizes = st.lists(st.integers(0, 1 << 40), max_size=50)


@given(sizes, st.integers(1, 20))
def test_groups_are_runs_in_order(items: list[int], groups: int) -> None:
    """Groups are runs: every number is in range, none is smaller than the one before."""
    found = divide(items, groups)
    assert len(found) == len(items)
    assert all(0 <= group < groups for group in found)
    assert all(before <= after for before, after in pairwise(found))


@given(sizes, st.integers(1, 20))
def test_no_group_is_larger_than_its_share_and_one_thing(items: list[int], groups: int) -> None:
    """At most half a thing sticks out at each end of a group."""
    loads = [0] * groups
    for size, group in zip(items, divide(items, groups), strict=True):
        loads[group] += size
    assert max(loads) <= sum(items) / groups + max(items, default=0)


def test_equal_things_are_dealt_out_equally() -> None:
    assert divide([5] * 8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("groups", [1, 3])
def test_things_without_size_have_a_group_too(groups: int) -> None:
    assert divide([0, 0], groups) == [0, 0]
    assert divide([], groups) == []


def test_alone_everything_is_ones_own() -> None:
    ranks: Ranks = ALONE
    assert own(ranks, [3, 1, 2]) == [0, 1, 2]
    assert ranks.gather("x") == ["x"]
    assert ranks.share("x") == "x"
