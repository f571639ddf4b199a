"""Training by many processes: sharded with FSDP2, and data parallel."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from many_ranks import all_well, run_script

from gallop.shards import Shard
from sparsedelta.boxes import Box

HERE = Path(__file__).parent


def test_sharded_training_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, weights, states and deltas, for every way to cut a tensor (sharded_work.py).

    Two ranks also go on with what four have saved.
    """
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    work = HERE / "sharded_work.py"
    all_well(run_script(4, work, tmp_path, "selection", "optimizer", "export"))
    assert list(tmp_path.glob("4-*"))
    others = "optimizer", "accumulation", "real_gradients", "refusals"
    all_well(run_script(2, work, tmp_path, *others))
    assert not list(tmp_path.glob(".sparsedelta*"))


def test_data_parallel_training_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain loop of accelerate, in the environment of its launcher; one rank is killed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    one, other = run_script(2, HERE / "parallel_work.py", tmp_path)
    assert one.out.split() == ["well", "told"], one.err
    assert other.out.split() == ["well"], other.err
    assert other.code == -signal.SIGKILL


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A block of a small tensor, empty ones included."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    offset = tuple(draw(st.integers(0, side)) for side in shape)
    size = tuple(
        draw(st.integers(0, side - first)) for side, first in zip(shape, offset, strict=True)
    )
    return Box(shape, offset, size)


@given(boxes(), st.integers(0, 2**32 - 1))
def test_positions_and_flat_indices_are_inverse(box: Box, seed: int) -> None:
    """What is found in a shard is what an index into a block of the whole tensor gives."""
    shard = Shard(box)
    whole = torch.arange(int(np.prod(box.shape))).reshape(box.shape)
    block = whole[tuple(slice(o, o + s) for o, s in zip(box.offset, box.size, strict=True))]
    assert shard.size == block.numel()
    positions = np.arange(shard.size, dtype=np.int32)
    assert shard.flat(positions).tolist() == block.reshape(-1).tolist()
    chosen = np.flatnonzero(np.random.default_rng(seed).random(whole.numel()) < 0.5)
    for dtype in (np.int32, np.int64):
        which, found = shard.find(chosen.astype(dtype))
        held = np.intersect1d(chosen, block.reshape(-1).numpy())
        assert chosen[which].tolist() == held.tolist()
        assert shard.flat(found).tolist() == held.tolist()
        assert found.dtype == dtype
