"""Deltas put on at load time: the tensors, and the model, of what apply would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsedelta
from sparsedelta import (
    CheckpointError,
    HubError,
    NotFiniteError,
    StructureError,
    UsageError,
    VerificationError,
    WrongBaseError,
)
from sparsedelta.operations.made_tensors import MadeTensors

Tensors = dict[str, torch.Tensor]


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all words are equal."""
    return one.keys() == other.keys() and all(
        each.shape == other[name].shape
        and each.dtype == other[name].dtype
        and torch.equal(
            each.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)
        )
        for name, each in one.items()
    )


def stored(place: Path) -> Tensors:
    """All tensors of a file or a folder."""
    paths = place.glob("*.safetensors") if place.is_dir() else [place]
    return {name: each for path in paths for name, each in load_file(path).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base - d1 - t1 - d3 - t3 - d4 - t4, and base - d2 - t2: all dtypes; things come and go."""
    place = tmp_path_factory.mktemp("load")
    torch.manual_seed(0)
    base: Tensors = {
        "a": torch.randn(40, 7).bfloat16(),
        "b": torch.randn(9, 3),
        "c": torch.randn(6).half(),
        "d": torch.randn(5, 2).double(),
        "bytes": torch.randint(0, 200, (8, 4), dtype=torch.uint8),
        "eight": torch.randn(10).to(torch.float8_e4m3fn),
        "complex": torch.randn(4, dtype=torch.complex64),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "still": torch.randn(30, 30),
    }

    def moved(tensors: Tensors, seed: int) -> Tensors:
        chance = torch.Generator().manual_seed(seed)
        found = {}
        for name, each in tensors.items():
            mask = torch.rand(each.shape, generator=chance) < 0.3
            is_number = each.dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64)
            found[name] = torch.where(mask, each * 2 + 1, each) if is_number else each
        return {**found, "still": tensors["still"]}

    one = moved(base, 1)
    one["bytes"] = base["bytes"] + 1
    one["complex"] = base["complex"] * 2
    two = moved(base, 2)
    three = moved(one, 3)
    three["renamed"] = three.pop("b")
    three["new"] = torch.ones(3)
    three["a"] = torch.cat([three["a"], torch.ones(2, 7).bfloat16()])
    four = moved(three, 4)
    del four["new"]
    del four["c"]
    for name, state in {"base": base, "t1": one, "t2": two, "t3": three, "t4": four}.items():
        save_file(state, place / name)
    for name, ends in {
        "d1": ("base", "t1"),
        "d2": ("base", "t2"),
        "d3": ("t1", "t3"),
        "d4": ("t3", "t4"),
    }.items():
        sparsedelta.diff(place / ends[0], place / ends[1], place / name)
    return place


def test_a_chain_from_any_of_its_links(folder: Path) -> None:
    """In any order of arguments; where it ends already, nothing is left to do."""
    chain = [folder / name for name in ("d4", "d1", "d3")]
    expected = stored(folder / "t4")
    for start in ("base", "t1", "t3", "t4"):
        assert same(sparsedelta.load_state_dict(folder / start, chain), expected), start
    assert same(sparsedelta.load_state_dict(folder / "base", chain[1:2]), stored(folder / "t1"))
    for verify in ("full", "touched"):
        found = sparsedelta.load_state_dict(folder / "base", chain, verify=verify, threads=3)
        assert same(found, expected)
    with pytest.raises(WrongBaseError, match="is not the base of"):
        sparsedelta.load_state_dict(folder / "t2", chain)


def test_several_of_one_base(folder: Path) -> None:
    """The words of apply_stack, whatever the method; only if weights are named."""
    deltas = [folder / "d1", folder / "d2"]
    for weights, method in (([1, 0.5], "sum"), ([1, 1], "ties"), ([0, 1], "sum")):
        out = folder / "out"
        if method == "sum" and weights[0]:  # words of bytes: a weight of 1 only
            weights = [1, 0.5]  # noqa: PLW2901
        sparsedelta.apply_stack(
            folder / "base", deltas, out, weights=weights, method=method, force=True
        )
        found = sparsedelta.load_state_dict(folder / "base", deltas, weights=weights, method=method)
        assert same(found, stored(out))
    with pytest.raises(UsageError, match="no chain") as caught:
        sparsedelta.load_state_dict(folder / "base", deltas)
    assert caught.value.hint is not None
    assert "weights=[1, 1]" in caught.value.hint
    with pytest.raises(WrongBaseError, match="is not the base of"):
        sparsedelta.load_state_dict(folder / "t1", deltas, weights=[1, 1])
    with pytest.raises(StructureError, match=r"'(bytes|complex)'"):
        sparsedelta.load_state_dict(folder / "base", deltas, weights=[0.5, 1])


def test_what_makes_no_sense(folder: Path, tmp_path: Path) -> None:
    """Is told at once."""
    base, delta = folder / "base", folder / "d1"
    with pytest.raises(UsageError, match="expected a list of deltas"):
        sparsedelta.load_state_dict(base, delta)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no deltas were named"):
        sparsedelta.load_state_dict(base, [])
    with pytest.raises(UsageError, match="verify is 'some'"):
        sparsedelta.load_state_dict(base, [delta], verify="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a chain is not put together by any"):
        sparsedelta.load_state_dict(base, [delta], method="ties")
    with pytest.raises(sparsedelta.DeltaGivenError) as caught:
        sparsedelta.load_state_dict(delta, [base])
    assert caught.value.hint == "the base comes first: load_state_dict(base, [delta, …])"
    with pytest.raises(UsageError, match="weight is nan"):
        sparsedelta.load_state_dict(base, [delta], weights=[float("nan")])
    target = stored(base)
    target["b"][0, 0] = torch.inf
    save_file(target, tmp_path / "inf")
    sparsedelta.diff(base, tmp_path / "inf", tmp_path / "d")
    with pytest.raises(NotFiniteError, match="'b', index 0"):
        sparsedelta.load_state_dict(base, [tmp_path / "d"], weights=[0.5])


def test_what_is_not_touched_is_verified_if_asked_for(folder: Path, tmp_path: Path) -> None:
    """Of a delta that lists it, and by the fingerprint of one that does not."""
    target, other = stored(folder / "base"), stored(folder / "base")
    target["b"] = target["b"] + 1
    other["still"][3] += 1
    save_file(target, tmp_path / "target")
    save_file(other, tmp_path / "other")
    for lean in (False, True):
        delta = tmp_path / f"delta{lean}"
        sparsedelta.diff(folder / "base", tmp_path / "target", delta, lean=lean)
        for weights in (None, [1.0]):
            with pytest.raises(WrongBaseError, match="fingerprint" if lean else "'still' differs"):
                sparsedelta.load_state_dict(tmp_path / "other", [delta], weights=weights)
            found = sparsedelta.load_state_dict(
                tmp_path / "other", [delta], weights=weights, verify="touched"
            )
            assert same(found, {**other, "b": target["b"]})


def test_a_delta_that_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is verified before a tensor of it is given."""
    from sparsedelta.delta_reader import DeltaReader  # noqa: PLC0415

    read = DeltaReader.read_blocks

    def lying(reader: DeltaReader, *arguments: object, **options: object) -> list[Any]:
        found = read(reader, *arguments, **options)  # type: ignore[arg-type]
        return [(indices, words + 1) for indices, words in found]

    monkeypatch.setattr(DeltaReader, "read_blocks", lying)
    with pytest.raises(VerificationError, match="SD502"):
        sparsedelta.load_state_dict(folder / "base", [folder / "d1"])


def test_one_tensor_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is on its device before the next is made, and nothing is written."""
    alive: list[int] = []
    whole = MadeTensors.whole

    def watched(made: MadeTensors, name: str) -> np.ndarray[Any, Any]:
        alive.append(sum(1 for _ in living()))
        return whole(made, name)

    monkeypatch.setattr(MadeTensors, "whole", watched)
    before = sorted(folder.iterdir())
    sparsedelta.load_state_dict(folder / "base", [folder / "d1"], device="meta")
    assert len(alive) == len(stored(folder / "t1"))
    assert max(alive) == alive[0]
    assert sorted(folder.iterdir()) == before


def living() -> Iterator[torch.Tensor]:
    """Tensors of this kind of test that are in host memory."""
    import gc  # noqa: PLC0415

    for item in gc.get_objects():
        if type(item) is torch.Tensor and item.shape == (30, 30) and not item.is_meta:
            yield item


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a tied model in shards: base, t1, t2 and t3 after t1; their deltas."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.7
    model.save_pretrained(place / "base", max_shard_size="20KB")
    for number, (name, start) in enumerate({"t1": "base", "t2": "base", "t3": "t1"}.items()):
        tuned = transformers.LlamaForCausalLM.from_pretrained(place / start)
        chance = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in tuned.parameters():
                mask = torch.rand(parameter.shape, generator=chance) < 0.05
                parameter[mask] = parameter[mask] * 1.25 + 0.01
        if name == "t3":
            tuned.config.rope_parameters["rope_theta"] = 5000.0
            tuned.generation_config.temperature = 0.25
        tuned.save_pretrained(place / name, max_shard_size="20KB")
        sparsedelta.diff(place / start, place / name, place / f"d{name[1]}", with_files=True)
    return place


def check_equal(one: Any, other: Any) -> None:  # noqa: ANN401 (of transformers)
    """Words, configuration and generation settings."""
    settings = [
        {k: v for k, v in json.loads(m.generation_config.to_json_string()).items() if k[0] != "_"}
        for m in (one, other)
    ]
    inputs = torch.arange(12).view(2, 6)
    assert same(one.state_dict(), other.state_dict())
    assert one.config.to_diff_dict() == other.config.to_diff_dict()
    assert settings[0] == settings[1]
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert torch.equal(one(inputs).logits, other(inputs).logits)
    assert not one.training


def test_a_model_of_transformers(llama: Path) -> None:
    """Sharded, tied, in any dtype, with its generation settings and what deltas carry."""
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoModelForCausalLM
    chain, stacked = [llama / "d3", llama / "d1"], [llama / "d1", llama / "d2"]
    for dtype, device_map in (("auto", None), (torch.float32, {"": "cpu"}), ("float16", "cpu")):
        made = sparsedelta.from_pretrained(
            auto, llama / "base", chain, dtype=dtype, device_map=device_map
        )
        expected = auto.from_pretrained(llama / "t3", dtype=dtype, device_map=device_map)
        check_equal(made, expected)
        assert made.name_or_path == str(llama / "base")
    assert made.config.rope_parameters["rope_theta"] == 5000
    sparsedelta.apply_stack(llama / "base", stacked, llama / "both", weights=[1, 0.5])
    made, told = sparsedelta.from_pretrained(
        transformers.LlamaForCausalLM,
        llama / "base",
        stacked,
        weights=[1, 0.5],
        attn_implementation="eager",
        output_loading_info=True,
    )
    expected = auto.from_pretrained(llama / "both", attn_implementation="eager")
    check_equal(made, expected)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    # One without a head: what it does not ask for is verified all the same.
    body = sparsedelta.from_pretrained(transformers.AutoModel, llama / "base", chain[1:])
    assert same(
        body.state_dict(), transformers.AutoModel.from_pretrained(llama / "t1").state_dict()
    )


def test_a_compact_delta_is_read_with_the_base_it_is_loaded_on(llama: Path, tmp_path: Path) -> None:
    """The same model as by a portable one; on another base no model at all."""
    transformers = pytest.importorskip("transformers")
    auto, delta = transformers.AutoModelForCausalLM, tmp_path / "compact"
    sparsedelta.diff(llama / "base", llama / "t1", delta, profile="compact", codec="ranked")
    assert sparsedelta.info(delta).needs_base
    made = sparsedelta.from_pretrained(auto, llama / "base", [delta])
    assert same(made.state_dict(), auto.from_pretrained(llama / "t1").state_dict())
    for verify in ("full", "touched"):
        with pytest.raises(WrongBaseError, match="differs"):
            sparsedelta.from_pretrained(auto, llama / "t2", [delta], verify=verify)


def test_a_model_that_cannot_be_had(llama: Path, tmp_path: Path) -> None:
    """Our own errors, not those that transformers makes of them."""
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoModelForCausalLM
    with pytest.raises(WrongBaseError, match="differs"):
        sparsedelta.from_pretrained(auto, llama / "t2", [llama / "d1"])
    with pytest.raises(CheckpointError, match=r"no folder with a config\.json"):
        sparsedelta.from_pretrained(auto, tmp_path, [llama / "d1"])
    with pytest.raises(HubError, match="owner/name: it is not in the cache") as caught:
        sparsedelta.from_pretrained(auto, "owner/name", [llama / "d1"])
    assert caught.value.reason == "offline"
    with pytest.raises(UsageError, match="revision cannot be given"):
        sparsedelta.from_pretrained(auto, llama / "base", [llama / "d1"], revision="main")
    with pytest.raises(UsageError, match="no class for LlamaConfig"):
        sparsedelta.from_pretrained(
            transformers.AutoModelForImageClassification, llama / "base", [llama / "d1"]
        )
    with pytest.raises(UsageError, match="expected a class of transformers"):
        sparsedelta.from_pretrained("llama", llama / "base", [llama / "d1"])
    assert not list(tmp_path.iterdir())
