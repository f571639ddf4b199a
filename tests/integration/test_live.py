"""Deltas of live, sharded models: those of the checkpoints that nobody saved."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from many_ranks import all_well, run_script
from real_packages import minilm
from safetensors.torch import load_file, save_file

import sparsedelta

PREFIX = "encoder.layer.0."
LAYERS = {
    "0": "intermediate.dense",
    "2": "output.dense",
    "3": "output.LayerNorm",
}


def real_layer(folder: Path) -> Path:
    """The two large matrices of a layer of all-MiniLM-L6-v2, by the names of the test's model."""
    weights = load_file(minilm() / "model.safetensors")
    path = folder / "model.safetensors"
    save_file(
        {
            f"{ours}.{kind}": weights[f"{PREFIX}{name}.{kind}"]
            for ours, name in LAYERS.items()
            for kind in ("weight", "bias")
        },
        path,
    )
    return path


@pytest.mark.real
@pytest.mark.parametrize("size", [2, 4])
def test_what_many_ranks_hold_is_one_model(tmp_path: Path, size: int) -> None:
    """The same bytes as a diff of full checkpoints with the same plan; the same content digest."""
    many, one = tmp_path / "many", tmp_path / "one"
    for folder in (many, one, tmp_path / "words"):
        folder.mkdir()
    base = real_layer(tmp_path)
    all_well(run_script(size, Path(__file__).parent / "live_work.py", tmp_path))

    steps = [tmp_path / f"{step}.safetensors" for step in range(3)]
    sparsedelta.diff(steps[0], steps[1], one / "d01", shards=size, layout="never")
    sparsedelta.diff(steps[0], steps[1], one / "m01", shards=5, layout="never")
    sparsedelta.diff(
        steps[1], steps[2], one / "d12", shards=size, layout="never", one_way=True, lean=True
    )
    sparsedelta.diff(steps[1], steps[2], one / "m12", shards=size, layout="never")
    for path in one.iterdir():
        assert path.read_bytes() == (many / path.name).read_bytes(), path.name
    single = sparsedelta.diff(steps[0], steps[1], one / "single")
    for name in ("d01", "m01", "plain", "group"):
        assert sparsedelta.info(many / name).content == single.manifest.content
    assert not list((tmp_path / "words").iterdir())

    # Whatever else happened to the names: applied, it gives the tensors.
    sparsedelta.apply(steps[0], many / "other", tmp_path / "out")
    found, expected = load_file(tmp_path / "out"), load_file(steps[1])
    expected["renamed"] = expected.pop("large")
    del expected["grid"]
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in expected.items()
        if tensor.dim()
    )
    assert sparsedelta.info(many / "other").kinds.get("renamed") == 1

    # The trained model: two deltas from the weights it began with.
    start = tmp_path / "start.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(base).items()}, start)
    sparsedelta.apply(start, many / "s0", tmp_path / "after0")
    sparsedelta.apply(tmp_path / "after0", many / "s1", tmp_path / "after1")
    assert (
        sparsedelta.fingerprint(tmp_path / "after1").fingerprint
        == sparsedelta.fingerprint(tmp_path / "trained.safetensors").fingerprint
    )
    assert not list(many.glob("never*"))
    assert not list(many.glob(".sparsedelta*"))


def test_a_rank_that_is_killed_ends_those_that_wait_for_its_shards(tmp_path: Path) -> None:
    """The survivors are told, whatever they were waiting for, and end by themselves."""
    runs = run_script(3, Path(__file__).parent / "live_work.py", tmp_path, "killed")
    assert runs[1].code == -signal.SIGKILL
    for run in (runs[0], runs[2]):
        assert "rank 1 ended without a word" in run.out, run.err
        assert "Traceback" not in run.err
    assert list(tmp_path.iterdir()) == []
