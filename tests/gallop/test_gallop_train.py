"""The training loop on a tiny Llama: equal to a loop by hand, deterministic, and polite."""

from __future__ import annotations

import dataclasses
import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from dense_reference import dense_mask, dense_train
from tiny_llama import tiny_llama
from tiny_models import same_bits, weights_of
from torch import Tensor, nn
from torch.nn import functional

from gallop import GallopConfig, SparseAdamW, select
from gallop.data import Sample, make_batch, sample_order
from gallop.errors import ConfigError, SelectionError
from gallop.progress import NoProgress
from gallop.train import TrainConfig, choose_mask, finetune, lr_factor

CONFIG = GallopConfig(0.05)


def some_samples(count: int = 12) -> list[Sample]:
    rng = random.Random(0)  # noqa: S311
    samples = []
    for _ in range(count):
        ids = tuple(rng.randrange(3, 20) for _ in range(rng.randrange(4, 9)))
        samples.append(Sample(ids, (-100, -100, *ids[2:])))
    return samples


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformers_model_trains_bit_equal_to_the_dense_reference(
    dtype: torch.dtype, *, tied: bool
) -> None:
    """Law: selection with the model's own loss, and training, equal the dense reference."""
    model, dense = tiny_llama(tied=tied, dtype=dtype), tiny_llama(tied=tied, dtype=dtype)
    samples = some_samples()
    batches = [make_batch(samples[i : i + 2], 0) for i in range(0, 12, 2)]
    mask = select(model, batches, CONFIG)
    flags = dense_mask(dense, batches, own_loss, k=mask.nnz)
    for name, flag in flags.items():
        np.testing.assert_array_equal(mask.get(name, []), np.flatnonzero(flag))
    assert mask.report is not None
    assert mask.report.samples == 12
    assert mask.report.tokens == sum(sample.supervised for sample in samples)
    dense_train(
        dense, flags, batches, own_loss,
        accumulate=2, lr=1e-2, weight_decay=0.0, decay_to_base=False, max_grad_norm=0.1,
    )  # fmt: skip
    with SparseAdamW(model, mask, lr=1e-2, max_grad_norm=0.1) as optimizer:
        for number, batch in enumerate(batches, start=1):
            own_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            if number % 2 == 0:
                optimizer.step()
    expected = weights_of(dense)
    assert all(same_bits(value, expected[name]) for name, value in weights_of(model).items())


def test_finetune_equals_the_loop_written_by_hand() -> None:
    """Law: finetune is select, then micro-batches weighed by tokens, then step and schedule."""
    training = TrainConfig(
        steps=6, lr=1e-2, batch_size=3, accumulate=2, selection_samples=8, seed=5
    )
    samples = some_samples(7)
    model, twin = tiny_llama(), tiny_llama()
    result = finetune(model, samples, selection=CONFIG, training=training)

    seen = list(islice(sample_order(7, 5), 7))
    parts = [make_batch([samples[i] for i in seen[s : s + 3]], 0) for s in (0, 3, 6)]
    mask = select(twin, parts, CONFIG)
    assert result.mask == mask
    optimizer = SparseAdamW(twin, mask, lr=1e-2, max_grad_norm=1.0)
    order = sample_order(7, 5)
    losses = []
    for step in range(6):
        pair = [[samples[i] for i in islice(order, 3)] for _ in range(2)]
        total = sum(sample.supervised for part in pair for sample in part)
        losses.append(0.0)
        for part in pair:
            batch = make_batch(part, 0)
            logits = twin(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            summed = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
            losses[-1] += float(summed.detach()) / total
            (summed / total).backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = 1e-2 * lr_factor(step, training)
        optimizer.step()
    assert result.losses == pytest.approx(losses, rel=1e-5)
    for name, value in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-4, atol=1e-5)
    assert result.losses[-1] < result.losses[0]
    assert result.samples == 36
    assert result.tokens_per_second > 0
    assert result.peak_memory > 2**20
    assert all(norm > 0 for norm in result.grad_norms)


def test_the_seed_fixes_every_bit_and_nothing_else_does() -> None:
    training = TrainConfig(steps=3, batch_size=2, lr=1e-2)
    weights = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(state)
        model = tiny_llama()
        model.config.attention_dropout = 0.2
        expected = torch.random.get_rng_state()
        finetune(
            model,
            some_samples(),
            selection=CONFIG,
            training=dataclasses.replace(training, seed=seed),
        )
        assert torch.equal(torch.random.get_rng_state(), expected)
        weights.append(weights_of(model))
    first, second, third = weights
    assert all(same_bits(first[name], second[name]) for name in first)
    assert not all(same_bits(first[name], third[name]) for name in first)


def test_the_model_gets_back_its_mode_and_gradients() -> None:
    model = tiny_llama().train()
    model.model.norm.eval()
    finetune(model, some_samples(), selection=CONFIG, training=TrainConfig(steps=1))
    assert model.training
    assert not model.model.norm.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="selection settings or a mask"):
        finetune(tiny_llama(), some_samples(), training=TrainConfig(steps=1))
    with pytest.raises(SelectionError, match="at least one sample"):
        choose_mask(tiny_llama(), [], selection=CONFIG, training=TrainConfig(steps=1))


def test_progress_hears_of_both_stages() -> None:
    heard: list[Any] = []

    class Listener(NoProgress):
        def advance(self, stage: str, done: int, *, total: int, detail: str) -> None:
            heard.append((stage, done, total, detail.split(maxsplit=1)[0]))

    training = TrainConfig(steps=2, batch_size=2, selection_samples=3)
    finetune(tiny_llama(), some_samples(), selection=CONFIG, training=training, progress=Listener())
    stages = [("select", 1, 2), ("select", 2, 2), ("train", 1, 2), ("train", 2, 2)]
    assert heard == [(*each, "loss") for each in stages]


@pytest.mark.parametrize("tied", [True, False])
def test_both_engines_train_the_same_bits(*, tied: bool) -> None:
    """Law: in float32 on CPU the loop gives the same weights, losses and norms with either."""
    found = []
    for engine in ("hook", "autograd"):
        model = tiny_llama(tied=tied)
        training = TrainConfig(
            steps=5, lr=1e-2, batch_size=3, accumulate=2, max_grad_norm=0.1, engine=engine
        )
        result = finetune(model, some_samples(), selection=CONFIG, training=training)
        found.append((result.losses, result.grad_norms, weights_of(model)))
        assert result.visibility.total.entries == result.mask.nnz
        assert 0 < result.visibility.total.visible <= result.visibility.total.moved
    assert found[0][:2] == found[1][:2]
    assert all(same_bits(value, found[1][2][name]) for name, value in found[0][2].items())


def test_engines_are_checked() -> None:
    with pytest.raises(ConfigError, match="engine: expected hook or autograd"):
        TrainConfig(steps=1, engine="other")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weight_decay_mode: expected weight"):
        TrainConfig(steps=1, engine="autograd", weight_decay_mode="delta")
