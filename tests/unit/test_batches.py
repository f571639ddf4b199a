"""Batches: neighbours together, with the errors of one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.batches import batched, together
from sparsedelta.errors import RemoteError


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_a_batch_ends_with_what_fills_it(sizes: list[int], enough: int) -> None:
    """All items in their order; every batch but the last is full, and not before its last item."""
    found = list(batched(sizes, lambda size: size, enough))
    assert [size for batch in found for size in batch] == sizes
    assert all(batch and sum(batch[:-1]) < enough for batch in found)
    assert all(sum(batch) >= enough for batch in found[:-1])


@given(st.lists(st.integers(0, 9), max_size=8))
def test_the_first_item_that_fails_by_itself_is_told(items: list[int]) -> None:
    """Whatever work on all of them says."""

    def work(some: Sequence[int]) -> list[int]:
        if any(item > 6 for item in some):
            raise ValueError(some[0] if len(some) == 1 else "all of them")
        return [item + 1 for item in some]

    wrong = [item for item in items if item > 6]
    if not wrong:
        assert together(work, items) == [item + 1 for item in items]
        return
    with pytest.raises(ValueError, match=f"^{wrong[0]}$"):
        together(work, items)


def test_what_is_out_of_reach_is_not_asked_for_again() -> None:
    asked = []

    def work(some: Sequence[int]) -> list[int]:
        asked.append(list(some))
        raise RemoteError("no answer")

    with pytest.raises(RemoteError):
        together(work, [1, 2, 3])
    assert asked == [[1, 2, 3]]
