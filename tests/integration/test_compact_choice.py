"""Of each tensor the profile ``compact`` takes the smaller encoding, however small that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import sparsedelta
from sparsedelta.delta_reader import DeltaReader

SIZES = (1, 2, 3, 5, 8, 13, 21, 40, 80, 150, 400, 1000, 3000)
TENSORS = 200


def words_of(rng: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Words of a small tensor before and after: weights or any words, small steps or large ones."""
    size = int(rng.choice(SIZES))
    before = rng.integers(0, 1 << 16, size).astype(np.uint16)
    if rng.random() < 0.5:
        before = (rng.normal(size=size).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    count = max(1, int(size * rng.choice([1, 0.5, 0.2, 0.05])))
    at = rng.choice(size, count, replace=False)
    most = int(rng.choice([1, 2, 4, 20, 300, 30_000]))
    after = before.copy()
    steps = rng.integers(1, most + 1, count) * rng.choice([1, -1], count)
    after[at] += steps.astype(np.uint16)
    return before, after


def sizes_of(delta: Path) -> dict[str, tuple[int, bool]]:
    """Of each tensor the bytes that it takes, rows of the tables included, and is it ranked?"""
    found: dict[str, tuple[int, bool]] = {}
    with DeltaReader(delta) as reader:
        for record in reader.manifest.tensors:
            ((number, part),) = record.coded
            rows = part.block_count(record.domain(number))
            size = part.nbytes + rows * part.row_bytes(record.word_bytes(number))
            found[record.name] = size, part.encoding.needs_base
    return found


def test_no_small_tensor_takes_more_than_in_the_portable_profile(tmp_path: Path) -> None:
    """Of few entries, rows of the tables are longer than what they tell of."""
    rng = np.random.default_rng(0)
    ends: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for number in range(TENSORS):
        for end, words in zip(ends, words_of(rng), strict=True):
            end[f"{number:03}"] = torch.from_numpy(words.view(np.int16)).view(torch.bfloat16)
    for name, end in zip(("base", "target"), ends, strict=True):
        save_file(end, tmp_path / name)
    sizes = {}
    for profile in ("portable", "compact"):
        out = tmp_path / profile
        sparsedelta.diff(tmp_path / "base", tmp_path / "target", out, profile=profile)
        sizes[profile] = sizes_of(out)
    assert sizes["compact"].keys() == sizes["portable"].keys()
    for name, (size, is_ranked) in sizes["compact"].items():
        least, _ = sizes["portable"][name]
        assert size < least if is_ranked else size == least, name
    kinds = [is_ranked for _, is_ranked in sizes["compact"].values()]
    assert TENSORS // 10 < sum(kinds) < TENSORS - TENSORS // 10
    again = tmp_path / "again"
    sparsedelta.recode(tmp_path / "portable", tmp_path / "base", again, profile="compact")
    assert again.read_bytes() == (tmp_path / "compact").read_bytes()
