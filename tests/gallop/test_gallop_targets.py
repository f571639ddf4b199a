"""Kinds of parameters, patterns that stand for them, mixtures of experts, budgets per tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import tiny_llama
from tiny_models import tiny_model, token_batches, token_loss
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from gallop import GallopConfig, select
from gallop.allocation import ALLOCATIONS, TensorStats, allocation, divide
from gallop.errors import ConfigError
from gallop.kinds import KINDS, parameter_kinds
from gallop.targets import eligible_targets


def tiny_mixtral(*, tied: bool = False) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=3,
            tie_word_embeddings=tied,
        )
    ).eval()


def kinds_of(model: nn.Module) -> dict[str, str]:
    found = parameter_kinds(model)
    return {name: found[id(p)] for name, p in model.named_parameters()}


def test_kinds_are_told_by_modules() -> None:
    assert kinds_of(tiny_model()) == {
        "embedding.weight": "embedding",  # the tied head is the same parameter
        "norm.weight": "norm",
        "norm.bias": "norm",
        "mix.weight": "convolution",  # three-dimensional, and no expert
        "mix.bias": "bias",
        "up.weight": "linear",
        "up.bias": "bias",
        "down.weight": "linear",
    }
    llama = kinds_of(tiny_llama())
    assert llama["model.embed_tokens.weight"] == "embedding"
    assert llama["model.norm.weight"] == "norm"
    assert Counter(llama.values())["linear"] == 7 * sum("q_proj" in name for name in llama)
    gpt2 = kinds_of(
        GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    )
    assert gpt2["transformer.wpe.weight"] == "embedding"
    assert gpt2["transformer.h.0.attn.c_attn.weight"] == "linear"
    assert gpt2["transformer.h.0.attn.c_attn.bias"] == "bias"
    assert gpt2["transformer.ln_f.bias"] == "norm"


def test_a_head_is_found_by_what_the_model_says_and_by_its_name() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predictions = nn.Linear(4, 9)
            self.lm_head = nn.Linear(4, 9)

        def get_output_embeddings(self) -> nn.Module:
            return self.predictions

    assert set(kinds_of(Headed()).values()) == {"head"}
    assert kinds_of(tiny_mixtral())["lm_head.weight"] == "head"
    tied = tiny_mixtral(tied=True)
    assert "head" not in kinds_of(tied).values()
    assert kinds_of(tied)["model.embed_tokens.weight"] == "embedding"


def test_experts_are_found_in_tensors_and_in_lists() -> None:
    mixtral = kinds_of(tiny_mixtral())
    experts = {name for name, kind in mixtral.items() if kind == "expert"}
    assert experts == {
        f"model.layers.{n}.mlp.experts.{each}"
        for n in (0, 1)
        for each in ("gate_up_proj", "down_proj")
    }
    assert mixtral["model.layers.0.mlp.gate.weight"] == "other"  # the router
    listed = nn.ModuleDict(
        {
            "experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
            "shared_expert": nn.Linear(2, 2),
        }
    )
    assert Counter(kinds_of(listed).values()) == {"expert": 4, "linear": 1, "bias": 1}


def names(model: nn.Module, **patterns: tuple[str, ...]) -> set[str]:
    config = GallopConfig(0.1, **patterns)  # type: ignore[arg-type]
    return {target.name for target in eligible_targets(model, config)}


def test_tokens_stand_for_kinds() -> None:
    model = tiny_model()
    assert names(model) == {name for name, _ in model.named_parameters()}  # the default
    assert names(model, include=("@linear",)) == {"up.weight", "down.weight"}
    assert names(model, include=("@linear", "mix.*"), exclude=("@biases", "down*")) == {
        "up.weight",
        "mix.weight",
    }
    # Of a tied pair there is one parameter, of one kind; a name covers it by either of its names.
    assert "embedding.weight" in names(model, exclude=("@head",))
    assert "embedding.weight" not in names(model, exclude=("head.*",))
    assert "embedding.weight" not in names(model, exclude=("@embeddings",))
    every = tuple(
        f"@{kind}" for kind in ("embeddings", "head", "experts", "norms", "linear", "convolutions")
    )
    assert names(model, include=(*every, "@biases", "@other")) == names(model)
    assert len(every) + 2 == len(KINDS)


def test_experts_are_chosen_from_like_anything_else() -> None:
    """Three-dimensional tensors: flat indices of the whole, in every memory mode."""
    model = tiny_mixtral()
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 4, 2]])
    batch = {"input_ids": ids, "labels": ids}
    config = GallopConfig(0.02, include=("@experts", "@other"))
    mask = select(model, [batch], config)
    assert mask == select(model, [batch], config, memory="grouped", memory_budget=1)
    assert mask.report is not None
    by_kind = mask.report.by_kind()
    assert set(by_kind) == {"expert", "other"}
    assert by_kind["expert"].chosen + by_kind["other"].chosen == mask.nnz
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert mask.shapes[name] == (3, 48, 16)
    model(**batch).loss.backward()
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    assert bool((gradient.flatten()[torch.from_numpy(mask[name].copy())] != 0).all())


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 40)), min_size=1, max_size=6),
)
def test_a_division_sums_to_the_budget_within_the_caps(
    budget: int, tensors: list[tuple[float, int]]
) -> None:
    """Law: counts are within caps, and sum to the budget or to what there is."""
    weights, caps = [w for w, _ in tensors], [c for _, c in tensors]
    counts = divide(budget, weights, caps)
    assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))
    assert sum(counts) == min(budget, sum(caps))
    if sum(weights) and all(budget * w / sum(weights) <= c - 1 for w, c in tensors):
        shares = [budget * weight / sum(weights) for weight in weights]
        assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))


def test_largest_remainders_come_first_and_caps_pass_on_what_they_cannot_take() -> None:
    assert divide(10, [1, 1, 1], [99, 99, 99]) == [4, 3, 3]
    assert divide(10, [5, 3, 2.6], [99, 99, 99]) == [5, 3, 2]  # of 4.72, 2.83, 2.45
    assert divide(10, [1, 1, 2], [1, 99, 99]) == [1, 3, 6]
    assert divide(10, [0, 1, 0], [5, 4, 15]) == [2, 4, 4]
    assert divide(3, [0, 0], [1, 1]) == [1, 1]


@pytest.fixture
def registered() -> Iterator[None]:
    before = set(ALLOCATIONS)
    yield
    for name in set(ALLOCATIONS) - before:
        del ALLOCATIONS._items[name]  # noqa: SLF001


@pytest.mark.usefixtures("registered")
def test_allocations_divide_one_budget() -> None:
    seen: list[TensorStats] = []

    @allocation("last-only")
    def last_only(tensors: Sequence[TensorStats]) -> list[float]:
        seen.extend(tensors)
        return [0.0] * (len(tensors) - 1) + [1.0]

    @allocation("broken")
    def broken(tensors: Sequence[TensorStats]) -> list[float]:
        return [float("nan")] * len(tensors)

    model, batches = tiny_model(), token_batches(2)
    for rule in ("uniform", "proportional", "entropy", "last-only"):
        config = GallopConfig(
            0.05, selector="magnitude-high", threshold_scope="per_tensor", allocation=rule
        )
        report = select(model, None, config).report
        assert report is not None
        chosen = {name: row.chosen for name, row in report.tensors.items()}
        assert report.k == report.requested == config.budget(report.eligible)
        if rule == "uniform":
            large = [chosen[n] for n in ("embedding.weight", "mix.weight", "up.weight")]
            assert max(large) - min(large) <= 1
            assert chosen["norm.weight"] == 24  # all that it has
            assert chosen["norm.bias"] == 0  # all zeros
        if rule == "proportional":
            assert all(
                abs(chosen[n] - 0.05 * row.eligible) < (2 if row.zeros < row.eligible else 3)
                for n, row in report.tensors.items()
            )
        if rule == "last-only":
            assert chosen["down.weight"] == report.k
    assert [each.name for each in seen] == [n for n, _ in model.named_parameters()]
    zeros = int((model.down.weight == 0).sum())
    assert (seen[-1].size, seen[-1].available) == (48 * 24, 48 * 24 - zeros)
    assert (seen[3].kind, seen[3].shape) == ("convolution", (24, 24, 3))
    config = GallopConfig(0.05, threshold_scope="per_tensor", allocation="broken")
    with pytest.raises(ConfigError, match="allocation broken: expected 8 finite weights"):
        select(model, batches, config, token_loss)


def test_entropy_is_that_of_a_histogram_of_the_values() -> None:
    flat, peaked = nn.Linear(40, 40), nn.Linear(40, 40)
    with torch.no_grad():
        flat.weight.copy_(torch.linspace(-1, 1, 1600).view(40, 40))
        peaked.weight.copy_((torch.linspace(-1, 1, 1600) ** 15).view(40, 40))
        flat.bias.zero_()  # one value: no information
        peaked.bias.fill_(3)
    model = nn.ModuleDict({"flat": flat, "peaked": peaked})
    config = GallopConfig(
        0.1, selector="random", threshold_scope="per_tensor", allocation="entropy"
    )
    report = select(model, None, config).report
    assert report is not None
    entropies = []
    for layer in (flat, peaked):
        values = layer.weight.detach().double().numpy().ravel()
        shares = np.histogram(values, bins=256)[0] / values.size
        shares = shares[shares > 0]
        entropies.append(-(shares * np.log(shares)).sum())
    budget = config.budget(report.eligible)
    chosen = {name: row.chosen for name, row in report.tensors.items()}
    assert chosen["flat.bias"] == chosen["peaked.bias"] == 0
    assert abs(chosen["flat.weight"] - budget * entropies[0] / sum(entropies)) < 1.5
    assert chosen["flat.weight"] > chosen["peaked.weight"]
