"""Export: the delta gives the trained weights back, and tells the truth about the mask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama
from tiny_models import (
    TinyLanguageModel,
    same_bits,
    tiny_model,
    token_batches,
    token_loss,
)
from transformers import LlamaForCausalLM

import gallop
from gallop import GallopConfig, Mask, SparseAdamW, select
from gallop.errors import ExportError, MaskError, OutsideMaskError
from gallop.exporting import check_base
from sparsedelta import DeltaReader, apply
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.errors import CheckpointError, OutputError

BATCHES = token_batches(3)


def trained(
    base: Path, dtype: torch.dtype = torch.float32, *, drop: tuple[str, ...] = ("head.weight",)
) -> tuple[TinyLanguageModel, Mask]:
    """Save a base without the names in ``drop``, then train on it."""
    model = tiny_model(dtype)
    state = {name: value.clone() for name, value in model.state_dict().items() if name not in drop}
    save_file(state, base)
    mask = select(model, BATCHES, GallopConfig(0.03), token_loss)
    with SparseAdamW(model, mask, lr=1e-2) as optimizer:
        for batch in BATCHES:
            token_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop", [("head.weight",), ("embedding.weight",), ()])
@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_base_and_delta_give_the_trained_weights(
    tmp_path: Path, dtype: torch.dtype, drop: tuple[str, ...], profile: str
) -> None:
    """Law: apply(base, export(model)) equals the model bit for bit, under any stored alias."""
    base, delta, out = (
        tmp_path / n for n in ("base.safetensors", "d.sparsedelta", "o.safetensors")
    )
    model, mask = trained(base, dtype, drop=drop)
    assert "embedding.weight" in mask
    report = gallop.export(model, mask, base=base, out=delta, profile=profile)
    assert report.diff.manifest.profile == profile
    apply(base, delta, out)
    live, base_weights, result = model.state_dict(), load_file(base), load_file(out)
    assert set(result) == set(base_weights) == set(live) - set(drop)
    assert all(same_bits(value, live[name]) for name, value in result.items())
    moved = sum(int((result[name] != base_weights[name]).sum()) for name in result)
    assert 0 < moved == report.moved
    assert report.nnz == mask.nnz
    assert report.not_held == ()
    assert report.path == delta


def test_a_saved_transformers_model_round_trips(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.arange(8).view(2, 4)}
    mask = select(model, [batch], GallopConfig(0.1))
    with SparseAdamW(model, mask, lr=1e-2) as optimizer:
        model(**batch).loss.backward()
        optimizer.step()
    gallop.export(model, mask, base=str(tmp_path / "base"), out=str(tmp_path / "d"))
    apply(tmp_path / "base", tmp_path / "d", tmp_path / "tuned")
    tuned = LlamaForCausalLM.from_pretrained(tmp_path / "tuned")
    live = model.state_dict()
    assert all(same_bits(value, live[name]) for name, value in tuned.state_dict().items())


def test_the_metadata_is_the_recipe_and_the_same_every_time(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    for name in ("one", "two"):
        gallop.export(model, mask, base=base, out=tmp_path / name, metadata={"task": "toy"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with DeltaReader(tmp_path / "one") as delta:
        found = dict(delta.manifest.metadata)
    assert found["task"] == "toy"
    assert found["gallop.selection.density"] == "0.03"
    assert found["gallop.selection.gradient_mean"] == "sample"
    assert json.loads(found["gallop.selection.exclude_zeros"]) is True
    assert json.loads(found["gallop.selection.samples"]) == 6
    assert json.loads(found["gallop.mask.nnz"]) == mask.nnz
    assert found["gallop.mask.digest"] == mask.digest
    assert (
        found["gallop.version.torch"] == torch.__version__.split("+")[0]
        or "+" in found["gallop.version.torch"]
    )
    assert not any("second" in key for key in found)


def test_an_open_reader_is_left_open(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    with FileCheckpoint(base) as reader:
        gallop.export(model, mask, base=reader, out=tmp_path / "d")
        assert len(reader.read("up.bias", 0, 4)) == 16


def test_a_change_outside_the_mask_is_found(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    untouched = next(i for i in range(1000) if i not in mask["up.weight"])
    with torch.no_grad():
        model.up.weight.view(-1)[untouched] += 1
    with pytest.raises(OutsideMaskError, match=f"up.weight: .*flat index {untouched}\n") as caught:
        gallop.export(model, mask, base=base, out=tmp_path / "d")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "d").exists()
    with torch.no_grad():
        model.up.weight.view(-1)[untouched] -= 1
        model.norm.bias[0] = -0.0  # the sign of zero is a bit too
    smaller = Mask({n: mask[n] for n in mask if n != "norm.bias"}, mask.shapes)
    with pytest.raises(OutsideMaskError, match=r"norm.bias: .*0 entries of the mask"):
        gallop.export(model, smaller, base=base, out=tmp_path / "d")


def test_only_the_live_weights_count(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    model.load_state_dict(tiny_model().state_dict())
    assert gallop.export(model, mask, base=base, out=tmp_path / "d").moved == 0


def test_model_and_base_must_be_of_a_kind(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    with pytest.raises(ExportError, match="F32, found BF16") as caught:
        gallop.export(model.bfloat16(), mask, base=base, out=tmp_path / "d")
    assert "dtype" in str(caught.value.hint)
    state = load_file(base)
    state["up.bias"] = state["up.bias"].view(2, -1).clone()
    save_file(state, base)
    with pytest.raises(ExportError, match=r"up.bias: .*shape \(2, 24\), found \(48,\)"):
        check_base(model.float(), mask, base=base)
    del state["up.bias"], state["up.weight"]
    save_file(state, base)
    with pytest.raises(ExportError, match=r"expected tensor up.weight, which the mask trains"):
        check_base(model, Mask({"up.weight": [0]}, {"up.weight": (48, 24)}), base=base)
    with pytest.raises(MaskError, match="mask of other"):
        check_base(model, Mask({"other": [0]}, {"other": (1,)}), base=base)
    with pytest.raises(CheckpointError):
        check_base(model, mask, base=tmp_path / "nowhere")


def test_tensors_that_the_model_does_not_hold_stay(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    old = torch.arange(5, dtype=torch.int64)
    save_file(load_file(base) | {"old.buffer": old}, base)
    report = gallop.export(model, mask, base=base, out=tmp_path / "d")
    assert report.not_held == ("old.buffer",)
    apply(base, tmp_path / "d", tmp_path / "o.safetensors")
    assert torch.equal(load_file(tmp_path / "o.safetensors")["old.buffer"], old)


def test_outputs_are_not_replaced_unless_told(tmp_path: Path) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "d"
    model, mask = trained(base)
    out.write_text("kept")
    with pytest.raises(OutputError, match="exists"):
        gallop.export(model, mask, base=base, out=out)
    assert out.read_text() == "kept"
    gallop.export(model, mask, base=base, out=out, force=True)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(base, copy)
    with pytest.raises(OutputError, match="overwrite the input"):
        gallop.export(model, mask, base=copy, out=copy, force=True)


def test_parameters_that_the_base_does_not_store_are_reported(tmp_path: Path) -> None:
    """They are no part of the delta: whoever exports is told."""
    base = tmp_path / "base.safetensors"
    model, mask = trained(base)
    model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
    report = gallop.export(model, mask, base=base, out=tmp_path / "d")
    assert report.not_stored == ("extra",)
