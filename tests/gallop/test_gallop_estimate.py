"""Estimates: of what can be counted exactly, the count; no weights are loaded for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gallop_train import CONFIG, some_samples
from tiny_llama import tiny_llama
from tiny_models import same_bits, weights_of
from torch import Tensor, nn

from gallop import SparseAdamW, select
from gallop.cli import main
from gallop.data import make_batch
from gallop.errors import ModelError
from gallop.estimation import (
    delta_bytes,
    entry_bytes,
    micro_batch_cost,
    model_bytes,
    run_probe,
)
from gallop.linear import gathering_linears
from gallop.loading import load_architecture, load_model
from gallop.speeds import gradient_speeds, matmul_speed
from gallop.targets import eligible_targets


@pytest.fixture(autouse=True)
def _measured_for_a_moment() -> Iterator[None]:
    """Speeds are those of a few products: how exact they are is nothing that a test can tell."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (matmul_speed, gradient_speeds):
            short = partial(function, seconds=0.01)
            patch.setattr(f"gallop.estimating.{function.__name__}", short)
        yield


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_entry_are_those_of_the_optimizer(dtype: torch.dtype) -> None:
    model = tiny_llama(dtype=dtype)
    mask = select(model, [make_batch(some_samples(4), 0)], CONFIG)
    with SparseAdamW(model, mask) as optimizer:
        held = sum(
            value.nbytes
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        accumulators = 4 * mask.nnz
        assert held + accumulators == mask.nnz * entry_bytes(dtype)


@pytest.mark.parametrize("sampled", [None, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_is_followed_takes_what_one_takes_that_is_run(
    model_dir: Path, dtype: torch.dtype, sampled: float | None
) -> None:
    model, mode = load_architecture(str(model_dir), dtype)
    targets = eligible_targets(model, CONFIG, loaded=False)
    found = micro_batch_cost(model, targets, mode=mode, batch_size=3, length=20, sampled=sampled)
    real = load_model(str(model_dir), str(dtype).removeprefix("torch.")).model
    own = eligible_targets(real, CONFIG)
    assert [t.name for t in own] == [t.name for t in targets]
    assert model_bytes(model) == model_bytes(real)
    ids = torch.zeros((3, 20), dtype=torch.int64)
    before = weights_of(real)
    run = run_probe(real, own, {"input_ids": ids, "labels": ids}, sampled=sampled)
    assert all(same_bits(value, before[name]) for name, value in weights_of(real).items())
    assert abs(found.nbytes - run.nbytes) <= 0.1 * run.nbytes  # some kernels are others
    assert run.seconds > 0
    assert all(p.grad is None and p.requires_grad for p in real.parameters())
    # Each weight of a linear layer is in three products of a multiply and an add: with x, for dx,
    # for dW. The tied head is one of them.
    linear = sum(m.weight.numel() for m in real.modules() if isinstance(m, nn.Linear))
    alone = sum(each.weight.numel() for each in gathering_linears(model, targets).values())
    assert 0 < alone < linear
    if sampled is None:
        assert (found.flops, found.sampled_flops) == (6 * linear * 3 * 20, 0)
    else:  # a tenth of the last product
        assert found.flops - found.sampled_flops == (6 * linear - 2 * alone) * 3 * 20
        assert found.sampled_flops == pytest.approx(0.1 * 2 * alone * 3 * 20, rel=0.01)


def test_what_is_frozen_costs_less(model_dir: Path) -> None:
    costs = []
    for part in (slice(None), slice(-1, None)):
        model, mode = load_architecture(str(model_dir), torch.float32)
        targets = eligible_targets(model, CONFIG, loaded=False)[part]
        costs.append(micro_batch_cost(model, targets, mode=mode, batch_size=3, length=20))
    assert costs[1].flops < costs[0].flops
    assert costs[1].nbytes < costs[0].nbytes


def test_a_model_that_looks_at_values_cannot_be_followed(model_dir: Path) -> None:
    _, mode = load_architecture(str(model_dir), torch.float32)

    class Peeks(nn.Module):
        def forward(self, input_ids: Tensor, labels: Tensor) -> Any:  # noqa: ANN401
            return bool(input_ids.sum() > labels.sum())

    with pytest.raises(ModelError, match="followed without its weights") as caught:
        micro_batch_cost(Peeks(), (), mode=mode, batch_size=1, length=2)
    assert "--probe" in str(caught.value.hint)


def test_the_delta_is_entropy_and_values() -> None:
    """At 1 % in bfloat16: 8.08 bits for the position, 9 for the value."""
    assert delta_bytes(10_000, 1_000_000, torch.bfloat16) == pytest.approx(17.08 * 1250, rel=1e-3)
    assert delta_bytes(8, 8, torch.bfloat16) == 9
    for rows in (4, 1 << 50):  # as many as an absurd --max-length asks for
        assert matmul_speed(torch.float32, rows=rows, inner=8, outer=8, seconds=0.001) > 0


def test_nothing_is_loaded_unless_probed(
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("estimate", model_dir, data_file, "--density", 0.1, "--batch-size", 3, "--json")
    code, out, err = call(capsys, *arguments, "--probe")
    assert code == 0, err
    probed = json.loads(out)
    assert probed["seconds_from"] == "one micro-batch that was run"
    assert probed["probe_tokens"] == 3 * 6

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("gallop.estimating.load_model", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    document = json.loads(out)
    model = tiny_llama()
    count = sum(p.numel() for p in model.parameters())
    assert (document["parameters"], document["eligible"]) == (count, count)
    assert (document["k"], document["dtype"]) == (count // 10, "float32")
    assert document["weights_bytes"] == model_bytes(model)
    assert document["optimizer_bytes"] == document["k"] * entry_bytes(torch.float32)
    assert (document["steps"], document["samples"]) == (2, 4)
    assert document["tokens_per_micro_batch"] == 18
    assert document["training_bytes"] == sum(
        document[key] for key in ("weights_bytes", "optimizer_bytes", "activations_bytes")
    )
    keys = ("seconds_per_step", "training_seconds", "selection_seconds", "delta_bytes")
    assert all(document[key] > 0 for key in keys)
    code, out, _ = call(capsys, "estimate", model_dir, "--max-length", 32, "--steps", 7)
    assert code == 0
    assert "training seconds" in out
    assert "tokens per micro batch     256" in out

    ways = ("--gradient", "sampled", "--engine", "autograd")
    code, out, err = call(capsys, *arguments, *ways)
    assert code == 0, err
    sampled = json.loads(out)
    assert sampled["gradient"] == "sampled"
    assert all(sampled[key] > 0 for key in (*keys, "dense_gradient_seconds"))
    assert sampled["sampled_gradient_seconds"] > 0
    same = ("selection_bytes", "optimizer_bytes", "k", "delta_bytes")
    assert all(sampled[key] == document[key] for key in same)
    code, _, err = call(capsys, *arguments, *ways[:2])
    assert code == 2
    assert "expected dense with engine hook" in err


def test_the_dtype_is_that_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    for given, expected in (((), "bfloat16"), (("--dtype", "float32"), "float32")):
        code, out, err = call(
            capsys, "estimate", tmp_path / "m", "--max-length", 8, "--json", *given
        )
        assert code == 0, err
        assert json.loads(out)["dtype"] == expected
    code, _, err = call(capsys, "estimate", tmp_path / "none")
    assert code == 4, err
