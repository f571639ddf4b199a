"""Exact top-k against a sort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gallop.topk import ScoreSource, top_k

MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)
# Few distinct values, so that ties are the rule; neighbours in the last bit; the ends of the range.
VALUES = st.sampled_from(
    [
        0.0,
        TINY,
        2 * TINY,
        1e-30,
        0.5,
        1.0,
        float(np.nextafter(np.float32(1), np.float32(2))),
        3e9,
        MAX,
    ]
)
SCORES = st.one_of(VALUES, st.floats(0, MAX, width=32))
TENSORS = st.lists(st.lists(st.lists(SCORES, max_size=8), max_size=4), max_size=5)


def source_of(chunks: Sequence[Sequence[float]]) -> ScoreSource:
    tensors = [torch.tensor(chunk, dtype=torch.float32) for chunk in chunks]
    return lambda: iter(tensors)


@given(TENSORS, st.floats(0, 1))
def test_equals_a_stable_sort(tensors: list[list[list[float]]], share: float) -> None:
    """Law: the choice is the first k positive entries of a stable descending sort."""
    flat = [np.array([v for c in chunks for v in c], dtype=np.float32) for chunks in tensors]
    scores = np.concatenate([*flat, np.empty(0, dtype=np.float32)])
    k = round(share * len(scores))
    order = np.argsort(-scores, kind="stable")
    expected = np.zeros(len(scores), dtype=bool)
    expected[order[: min(k, int((scores > 0).sum()))]] = True

    choice = top_k([source_of(chunks) for chunks in tensors], k)

    ends = np.cumsum([len(each) for each in flat])
    for found, flags in zip(choice.indices, np.split(expected, ends)[:-1], strict=True):
        np.testing.assert_array_equal(found, np.flatnonzero(flags))
    assert choice.count == expected.sum()
    if choice.count:
        assert choice.threshold == scores[expected].min()
        assert choice.ties == (scores == choice.threshold).sum()
        assert choice.ties_taken == (scores[expected] == choice.threshold).sum()
    else:
        assert choice.threshold is None


@given(st.lists(SCORES, min_size=1, max_size=30), st.integers(1, 30), st.integers(1, 30))
def test_chunks_do_not_matter(scores: list[float], size: int, k: int) -> None:
    """Law: cutting a tensor into chunks changes nothing."""
    chunks = [scores[start : start + size] for start in range(0, len(scores), size)]
    whole, cut = top_k([source_of([scores])], k), top_k([source_of(chunks)], k)
    np.testing.assert_array_equal(whole.indices[0], cut.indices[0])
    assert (whole.threshold, whole.ties, whole.ties_taken) == (
        cut.threshold,
        cut.ties,
        cut.ties_taken,
    )


def test_ties_are_taken_in_tensor_order_then_flat_index() -> None:
    choice = top_k([source_of([[2.0, 5.0, 2.0]]), source_of([[2.0, 9.0]])], 4)
    assert [found.tolist() for found in choice.indices] == [[0, 1, 2], [1]]
    assert (choice.threshold, choice.ties, choice.ties_taken) == (2.0, 3, 2)


def test_zero_is_never_chosen_and_subnormals_are() -> None:
    choice = top_k([source_of([[0.0, TINY, 0.0]])], 3)
    assert choice.indices[0].tolist() == [1]
    assert top_k([source_of([[0.0]])], 1).count == 0
