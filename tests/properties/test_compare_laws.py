"""Laws of comparing runs and of holding what changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta import changes as changes_module
from sparsedelta import compare
from sparsedelta.changes import Changes, make_run
from sparsedelta.compare import differing_words
from sparsedelta.words import TensorSpec


@given(
    width=st.sampled_from([1, 2, 4, 8]),
    words=st.integers(0, 700),
    share=st.sampled_from([0.0, 0.002, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 99),
    as_difference=st.booleans(),
)
def test_what_differs_is_found_and_nothing_else(
    width: int, words: int, share: float, seed: int, *, as_difference: bool
) -> None:
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 256, words * width, np.uint8).view(f"<u{width}")
    new = old.copy()
    marks = rng.random(words) < share
    new[marks] += rng.integers(0, 3, int(marks.sum())).astype(new.dtype)
    piece = compare._PIECE_LANES  # noqa: SLF001
    try:
        compare._PIECE_LANES = 8  # type: ignore[misc]  # noqa: SLF001 (many pieces of little data)
        offsets, values = differing_words(old, new, as_difference=as_difference)
    finally:
        compare._PIECE_LANES = piece  # type: ignore[misc]  # noqa: SLF001
    expected = np.flatnonzero(old != new)
    assert np.array_equal(offsets, expected)
    assert values.dtype == old.dtype
    wanted = new[expected] - old[expected] if as_difference else new[expected]
    assert np.array_equal(values, wanted)


@given(
    words=st.integers(1, 3000),
    share=st.sampled_from([0.001, 0.02, 0.2, 1.0]),
    segment_log2=st.integers(6, 12),
    block_log2=st.integers(3, 13),
    seed=st.integers(0, 99),
)
def test_blocks_are_the_entries_wherever_runs_end(
    words: int, share: float, segment_log2: int, block_log2: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(words) < share)
    values = rng.integers(1, 1 << 16, indices.size).astype("<u2")
    found = Changes(TensorSpec("w", "BF16", (words,)))
    for start in range(0, words, 1 << segment_log2):
        stop = min(start + (1 << segment_log2), words)
        first, last = np.searchsorted(indices, [start, stop])
        found.append(make_run(start, stop - start, indices[first:last] - start, values[first:last]))
    assert found.nnz == indices.size
    counts = found.counts(block_log2)
    blocks = list(found.blocks(block_log2))
    assert [block[1].size for block in blocks] == counts.tolist()
    assert sum(block[0] for block in blocks) == words
    starts = np.repeat(np.arange(len(blocks)) << block_log2, counts)
    nothing = np.empty(0, np.int64)
    assert np.array_equal(np.concatenate([nothing, *(b[1] for b in blocks)]) + starts, indices)
    assert np.array_equal(np.concatenate([values[:0], *(b[2] for b in blocks)]), values)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1024])
def test_a_run_takes_an_eighth_of_its_words_at_most(count: int) -> None:
    run = make_run(0, 1024, np.arange(count), np.ones(count, "<u2"))
    offsets = 0 if run.offsets is None else run.offsets.nbytes
    assert offsets + run.bits.nbytes <= 1024 // 8
    assert (run.offsets is None) == (count > 1024 // changes_module._OFFSET_BITS)  # noqa: SLF001
