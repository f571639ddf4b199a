"""The whole path on the real weights of all-MiniLM-L6-v2, in bf16."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from real_packages import minilm
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import sparsedelta
from sparsedelta.operations.steps import Verify

pytestmark = pytest.mark.real

MINUS_ZERO = ("embeddings.word_embeddings.weight", 11_688_722)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The pretrained weights, and the same after two real AdamW steps at lr 1e-6."""
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(minilm(), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    base, target = folder / "base.safetensors", folder / "target.safetensors"
    save_file({name: w.bfloat16() for name, w in weights.items()}, base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    for step in range(2):
        ids = torch.randint(1000, 20000, (4, 16), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    save_file({name: w.bfloat16() for name, w in weights.items()}, target)
    return base, target


def test_there_and_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = pair
    report = sparsedelta.diff(base, target, tmp_path / "d")
    assert report.manifest.nnz > 10_000
    sparsedelta.apply(base, tmp_path / "d", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target.read_bytes()
    sparsedelta.revert(tmp_path / "out", tmp_path / "d", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == base.read_bytes()
    here = Path(shutil.copy(base, tmp_path / "here"))
    verifying: tuple[Verify, ...] = ("full", "touched")
    for verify in verifying:
        assert sparsedelta.apply(here, tmp_path / "d", in_place=True, verify=verify).changed
        assert here.read_bytes() == target.read_bytes()
        assert sparsedelta.revert(here, tmp_path / "d", in_place=True, verify=verify).changed
        assert here.read_bytes() == base.read_bytes()
    checked = sparsedelta.validate(tmp_path / "d", base=base)
    assert checked.ok
    assert checked.base_checked


def test_it_is_a_hundred_times_smaller_than_the_checkpoint(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """All bytes of the file counted; int32 indices and bf16 values would take 48 bits an entry."""
    report = sparsedelta.diff(*pair, tmp_path / "d")
    assert 8 * report.size / report.manifest.nnz < 16
    assert report.size * 100 < report.checkpoint_bytes


def test_a_minus_zero_stays_a_minus_zero(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """``base + (target - base)`` in floating point turns this real -0.0 into +0.0; words do not."""
    base, _ = pair
    name, index = MINUS_ZERO
    weights = load_file(base)
    flat = weights[name].view(-1)
    assert flat[index].view(torch.int16).item() == np.int16(-0x8000)
    float_arithmetic = flat[index].float() + (flat[index].float() - flat[index].float())
    assert not torch.signbit(float_arithmetic), "the trap is gone from the weights"
    flat[index + 1] += 1.0
    target = tmp_path / "target"
    save_file(weights, target)
    sparsedelta.diff(base, target, tmp_path / "d")
    sparsedelta.apply(base, tmp_path / "d", tmp_path / "out")
    assert load_file(tmp_path / "out")[name].view(-1)[index].view(torch.int16).item() == -0x8000
    assert (tmp_path / "out").read_bytes() == target.read_bytes()


def test_a_flip_of_the_sign_of_zero_is_a_change(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """+0.0 and -0.0 compare equal as numbers; as words they are one entry."""
    base, _ = pair
    name, index = MINUS_ZERO
    weights = load_file(base)
    weights[name].view(-1)[index] = 0.0
    save_file(weights, tmp_path / "target")
    manifest = sparsedelta.diff(base, tmp_path / "target", tmp_path / "d").manifest
    assert manifest.nnz == 1
    sparsedelta.apply(base, tmp_path / "d", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "target").read_bytes()


def test_nan_payloads_survive(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """NaN differs from itself as a number; equal payloads are no entry, other payloads are."""
    base, _ = pair
    name, _ = MINUS_ZERO
    weights = load_file(base)
    words = weights[name].view(torch.int16).view(-1)
    words[:3] = torch.tensor([0x7FC1, 0x7FC2, -1], dtype=torch.int16)
    save_file(weights, tmp_path / "a")
    words[1] = 0x7FC3
    save_file(weights, tmp_path / "b")
    assert sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d").manifest.nnz == 1
    sparsedelta.apply(tmp_path / "a", tmp_path / "d", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "b").read_bytes()
