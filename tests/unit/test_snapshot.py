"""Snapshots of plain tensors, and deltas of models in memory, in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import sparsedelta
from sparsedelta import CheckpointError, OutputError, Snapshot, StructureError, UsageError
from sparsedelta.state_dict import StateDictReader

Tensors = dict[str, torch.Tensor]


def tensors(step: int) -> Tensors:
    """Weights that move a little with each step; two names of one tensor, and a scalar."""
    torch.manual_seed(0)
    tied = torch.randn(40, 30)
    plain = torch.randn(50, 20).bfloat16()
    plain.view(-1)[step::7] += step
    tied.view(-1)[step::11] += step
    return {
        "embed": tied,
        "head": tied,
        "transposed": plain.t(),
        "step": torch.tensor(step),
        "empty": torch.zeros(0, 4),
        "complex": torch.full((3,), 1 + step * 1j),
    }


def saved(folder: Path, step: int) -> Path:
    """The same in a file, as whoever saves a checkpoint would write it."""
    path = folder / f"{step}.safetensors"
    save_file({name: t.clone().contiguous() for name, t in tensors(step).items()}, path)
    return path


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_loop_of_diff_and_promote(tmp_path: Path, *, on_disk: bool) -> None:
    """Each step's delta is, byte for byte, that of the two saved checkpoints."""
    folder = tmp_path / "words"
    folder.mkdir()
    live = tensors(0)
    with Snapshot(live, directory=folder if on_disk else None) as snapshot:
        for step in (1, 2, 3):
            for name, tensor in tensors(step).items():
                live[name].copy_(tensor)  # in place, as an optimizer does
            out, expected = tmp_path / f"live{step}", tmp_path / f"files{step}"
            sparsedelta.diff_state_dict(snapshot, live, out)
            ends = saved(tmp_path, step - 1), saved(tmp_path, step)
            report = sparsedelta.diff(*ends, expected, layout="never")
            assert report.manifest.nnz
            assert out.read_bytes() == expected.read_bytes()
            snapshot.update(live)
        assert not list(folder.iterdir())  # the file has no name: nothing can be left behind


def test_names_of_one_tensor_share_a_copy_until_they_part(tmp_path: Path) -> None:
    live = tensors(0)
    with Snapshot(live) as snapshot:
        assert snapshot.nbytes == sum(t.nbytes for name, t in live.items() if name != "head")
        parted = live | {"head": live["head"] + 1}
        snapshot.update(parted)
        assert snapshot.nbytes == sum(t.nbytes for t in live.values())
        report = sparsedelta.diff_state_dict(snapshot, parted, tmp_path / "d")
        assert not report.manifest.tensors


def test_a_snapshot_may_be_either_end(tmp_path: Path) -> None:
    with Snapshot(tensors(0)) as old, Snapshot(tensors(1)) as new:
        report = sparsedelta.diff_state_dict(old, new, tmp_path / "d", shards=2, threads=1)
    ends = saved(tmp_path, 0), saved(tmp_path, 1)
    assert sparsedelta.diff(*ends, tmp_path / "one").manifest.content == report.manifest.content
    assert len(sparsedelta.info(tmp_path / "d").parts) == 2


def test_a_model_of_another_form_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    live = tensors(0)
    with Snapshot(live) as snapshot:
        for name, other in (
            ("embed", torch.zeros(40, 31)),
            ("embed", torch.zeros(40, 30, dtype=torch.float64)),
            ("new", torch.zeros(1)),
        ):
            with pytest.raises(StructureError, match=rf"tensor '{name}' was .*, and is"):
                snapshot.update(tensors(1) | {name: other})
        with pytest.raises(StructureError, match=r"'head' was .* and is not there"):
            snapshot.update({name: t for name, t in tensors(1).items() if name != "head"})
        assert not sparsedelta.diff_state_dict(snapshot, live, tmp_path / "d").manifest.tensors


def test_an_update_that_fails_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half old and half new words would make a delta of a model that never was."""
    with Snapshot(tensors(0), directory=tmp_path) as snapshot:
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("sparsedelta.snapshot.write_all", full)
            with pytest.raises(OutputError, match="No space left"):
                snapshot.update(tensors(1))
        with pytest.raises(CheckpointError, match="its last update did not end"):
            sparsedelta.diff_state_dict(snapshot, tensors(1), tmp_path / "d")
        snapshot.update(tensors(1))
        sparsedelta.diff_state_dict(snapshot, tensors(1), tmp_path / "d")
    with pytest.raises(CheckpointError, match="closed"):
        sparsedelta.diff_state_dict(snapshot, tensors(1), tmp_path / "e")


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pinned"):
        Snapshot(tensors(0), directory=tmp_path, pin=True)
    with pytest.raises(OutputError, match="missing"):
        Snapshot(tensors(0), directory=tmp_path / "missing")
    with pytest.raises(CheckpointError, match="'state' is a dict, expected a tensor"):
        Snapshot({"state": {}})  # type: ignore[dict-item]


@given(st.permutations(range(4)), st.data())
def test_runs_of_any_strides_are_read_by_logical_index(
    order: list[int], data: st.DataObject
) -> None:
    """A run of a permuted, strided tensor is that of its contiguous copy."""
    tensor = torch.arange(5 * 4 * 3 * 8, dtype=torch.int16).reshape(5, 4, 3, 8)
    strided = tensor.permute(order)[:, 1:, ::2]
    start = data.draw(st.integers(0, strided.numel()))
    stop = data.draw(st.integers(start, strided.numel()))
    found = StateDictReader({"t": strided}).read("t", start, stop)
    assert np.array_equal(found.view(np.int16), strided.reshape(-1)[start:stop].numpy())
