"""Block tables are read together: each is what it would be by itself."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.tables import words_of_blocks


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 12)), min_size=1, max_size=8))
def test_blocks_of_several_tensors_are_those_of_each(tensors: list[tuple[int, int]]) -> None:
    """All are full but the last of each; a tensor of no word has none."""
    expected = [
        min(1 << log2, words - start)
        for words, log2 in tensors
        for start in range(0, words, 1 << log2)
    ]
    words, log2s = zip(*tensors, strict=True)
    found = words_of_blocks(words, log2s)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_the_largest_tensor_has_the_blocks_that_it_should() -> None:
    found = words_of_blocks([(1 << 48) - 1, 1], [44, 44])
    assert found.tolist() == [1 << 44] * 15 + [(1 << 44) - 1, 1]
