"""Boxes against numpy: what of a run of a tensor is in a block of it, and where."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.boxes import Box


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A block of a tensor of up to four dimensions, sometimes with rows of many words."""
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=4)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(60, 200)))
    offset, size = [], []
    for length in shape:
        first = draw(st.integers(0, length))
        offset.append(first)
        size.append(draw(st.integers(0, length - first)))
    return Box(shape, tuple(offset), tuple(size))


@given(boxes(), st.data())
def test_a_box_of_a_run_is_what_numpy_cuts_out(box: Box, data: st.DataObject) -> None:
    """The run of the box's words that lies in a run of the tensor goes to its places there."""
    words = int(np.prod(box.shape))
    start = data.draw(st.integers(0, words))
    stop = data.draw(st.integers(start, words))
    whole = np.arange(1, words + 1, dtype=np.uint32).reshape(box.shape)
    cut = tuple(slice(o, o + s) for o, s in zip(box.offset, box.size, strict=True))
    local = whole[cut].reshape(-1)
    assert box.words == local.size
    first, last = box.run(start, stop)
    inside = np.flatnonzero((local > start) & (local <= stop))
    assert (first, last) == ((inside[0], inside[-1] + 1) if inside.size else (first, first))
    target = np.zeros(stop - start, np.uint32)
    box.place(local[first:last], first, target, start)
    expected = np.zeros(words, np.uint32)
    expected[local - 1] = local
    assert np.array_equal(target, expected[start:stop])


def test_short_stretches_are_placed_in_batches() -> None:
    """More words than one batch of indices, with both ends cut short."""
    box = Box((90_000, 6), (0, 1), (90_000, 3))
    whole = np.arange(540_000, dtype=np.uint32)
    local = whole.reshape(90_000, 6)[:, 1:4].reshape(-1)
    start, stop = 3, 539_998
    first, last = box.run(start, stop)
    target = np.zeros(stop - start, np.uint32)
    box.place(local[first:last], first, target, start)
    expected = np.where((whole % 6 >= 1) & (whole % 6 <= 3), whole, 0)
    assert np.array_equal(target, expected[start:stop])
