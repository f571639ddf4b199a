"""SparseAdamW as an optimizer: state, resume, closures, schedulers, hooks, refusals."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    TinyLanguageModel,
    clone,
    same_bits,
    tiny_model,
    token_batches,
    token_loss,
    weights_of,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from gallop import GallopConfig, Mask, SparseAdamW, SparseValues, select
from gallop.errors import ConfigError, MaskError, OptimizerError, ParameterError

BATCHES = token_batches(6)


def tiny_mask(model: nn.Module, density: float = 0.03) -> Mask:
    return select(model, BATCHES[:2], GallopConfig(density), token_loss)


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    token_loss(model, batch).backward()  # type: ignore[no-untyped-call]


def train(model: nn.Module, optimizer: SparseAdamW, batches: list[tuple[Tensor, Tensor]]) -> None:
    for batch in batches:
        backward(model, batch)
        optimizer.step()


def line(values: list[float], dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Mask]:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.tensor(values, dtype=dtype)))
    return model, Mask({"weight": [0, 2]}, {"weight": (len(values),)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_equal(dtype: torch.dtype) -> None:
    """Law: saving and loading in the middle changes no bit of what follows."""
    straight = tiny_model(dtype)
    mask = tiny_mask(straight)
    stopped: TinyLanguageModel = clone(straight)
    settings: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1, "weight_decay_mode": "delta"}
    train(straight, SparseAdamW(straight, mask, **settings), BATCHES)

    optimizer = SparseAdamW(stopped, mask, **settings)
    train(stopped, optimizer, BATCHES[:3])
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = tiny_model(dtype, seed=9)
    resumed.load_state_dict(saved["model"])
    optimizer = SparseAdamW(resumed, mask, lr=77.0)
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 3e-3
    train(resumed, optimizer, BATCHES[3:])

    expected = weights_of(straight)
    assert all(same_bits(value, expected[name]) for name, value in weights_of(resumed).items())


def test_state_keeps_its_dtypes() -> None:
    model = tiny_model(torch.bfloat16)
    mask = tiny_mask(model)
    optimizer = SparseAdamW(model, mask)
    train(model, optimizer, BATCHES[:1])
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(before)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert after["param_groups"][0]["param_names"] == list(mask)
    for key, state in after["state"].items():
        kinds = {name: value.dtype for name, value in state.items() if name != "step"}
        assert kinds == {
            "index": torch.int32,
            "base": torch.bfloat16,
            "master": torch.float32,
            "exp_avg": torch.float32,
            "exp_avg_sq": torch.float32,
        }
        assert state["step"] == 1
        assert all(same_bits(state[name], before["state"][key][name]) for name in kinds)


def test_loading_copies_and_writes_the_masters() -> None:
    trained, fresh = tiny_model(), tiny_model()
    mask = tiny_mask(trained)
    optimizer = SparseAdamW(trained, mask)
    train(trained, optimizer, BATCHES[:2])
    other = SparseAdamW(fresh, mask)
    other.load_state_dict(optimizer.state_dict())
    expected = weights_of(trained)
    assert all(same_bits(value, expected[name]) for name, value in weights_of(fresh).items())
    masters = [state["master"].clone() for state in other.state.values()]
    train(trained, optimizer, BATCHES[2:4])
    for state, master in zip(other.state.values(), masters, strict=True):
        assert same_bits(state["master"], master)
    assert all(same_bits(value, expected[name]) for name, value in weights_of(fresh).items())


def edit(path: list[Any], value: object) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        if value is None:
            del state[path[-1]]
        else:
            state[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (edit(["param_groups"], None), "one parameter group"),
        (edit(["param_groups", 0, "param_names"], None), "one parameter group"),
        (edit(["param_groups", 0, "param_names", 0], "other"), "first that differs is"),
        (edit(["param_groups", 0, "lr"], None), r"settings \['lr'\]"),
        (edit(["state", 0], None), "a state for each"),
        (edit(["state", 0, "master"], None), "embedding.weight: expected"),
        (edit(["state", 0, "master"], torch.zeros(3)), "expected master of shape"),
        (edit(["state", 0, "master"], torch.zeros(3).half()), "master of torch.float32"),
        (edit(["state", 0, "index"], torch.zeros(3, dtype=torch.int32)), "entries of another"),
        (edit(["state", 0, "step"], -1), "a step count"),
        (edit(["state", 0, "step"], "x"), "a step count"),
        (edit(["param_groups", 0, "betas"], (0.9, 1.5)), "valid settings"),
        (edit(["param_groups", 0, "weight_decay_mode"], "other"), "valid settings"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], None], says: str
) -> None:
    model = tiny_model()
    optimizer = SparseAdamW(model, tiny_mask(model))
    train(model, optimizer, BATCHES[:1])
    before = copy.deepcopy(optimizer.state_dict())
    spoiled = copy.deepcopy(before)
    spoil(spoiled)
    with pytest.raises(OptimizerError, match=says):
        optimizer.load_state_dict(spoiled)
    after = optimizer.state_dict()
    assert all(
        torch.equal(after["state"][k]["master"], v["master"]) for k, v in before["state"].items()
    )


def test_a_state_of_another_mask_is_refused() -> None:
    model = tiny_model()
    state = SparseAdamW(model, tiny_mask(model, 0.03)).state_dict()
    gc.collect()
    with pytest.raises(OptimizerError, match="mask") as caught:
        SparseAdamW(model, tiny_mask(model, 0.05)).load_state_dict(state)
    assert "load the mask" in str(caught.value.hint)


def test_a_step_without_gradients_does_nothing() -> None:
    model = tiny_model()
    optimizer = SparseAdamW(model, tiny_mask(model), weight_decay=0.5)
    before = weights_of(model)
    assert optimizer.step() is None
    assert optimizer.last_grad_norm is None
    train(model, optimizer, BATCHES[:1])
    moved = weights_of(model)
    optimizer.step()
    assert all(same_bits(value, moved[name]) for name, value in weights_of(model).items())
    assert any(not same_bits(moved[name], before[name]) for name in before)
    assert {state["step"] for state in optimizer.state.values()} == {1}


def test_zero_grad_forgets_what_was_gathered() -> None:
    model, twin = tiny_model(), tiny_model()
    mask = tiny_mask(model)
    optimizer, expected = SparseAdamW(model, mask), SparseAdamW(twin, mask)
    backward(model, BATCHES[0])
    optimizer.zero_grad()
    optimizer.step()
    train(model, optimizer, BATCHES[1:3])
    train(twin, expected, BATCHES[1:3])
    right = weights_of(twin)
    assert all(same_bits(value, right[name]) for name, value in weights_of(model).items())


def test_a_tensor_without_gradient_is_skipped_as_torch_does() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    mask = Mask({"a.weight": [0, 1], "b.weight": [0]}, {"a.weight": (1, 2), "b.weight": (1, 2)})
    dense = clone(model)
    optimizer = SparseAdamW(model, mask, lr=0.1, weight_decay=0.1)
    reference = torch.optim.AdamW(dense.parameters(), lr=0.1, weight_decay=0.1, foreach=False)
    for used in ("ab", "a", "ab"):
        for each in (model, dense):
            loss = sum(each[key](torch.tensor([[1.0, 0.0]])).sum() for key in used)
            assert isinstance(loss, Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reference.step()
        reference.zero_grad()
    assert [state["step"] for state in optimizer.state.values()] == [3, 2]
    found, expected = weights_of(model), weights_of(dense)
    assert same_bits(found["a.weight"], expected["a.weight"])
    assert same_bits(found["b.weight"][:, :1], expected["b.weight"][:, :1])


def test_closures_run_with_gradients_and_return_the_loss() -> None:
    model, twin = tiny_model(), tiny_model()
    mask = tiny_mask(model)
    optimizer = SparseAdamW(model, mask)

    def closure() -> float:
        optimizer.zero_grad()
        loss = token_loss(model, BATCHES[0])
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss == float(token_loss(twin, BATCHES[0]).detach())
    train(twin, SparseAdamW(twin, mask), BATCHES[:1])
    right = weights_of(twin)
    assert all(same_bits(value, right[name]) for name, value in weights_of(model).items())


def test_schedulers_set_the_rate() -> None:
    model, mask = line([1.0, 1.0, 1.0])
    optimizer = SparseAdamW(model, mask, lr=0.5, eps=0.0)
    schedule = LambdaLR(optimizer, lambda step: (1.0, 0.5)[min(step, 1)])
    seen = []
    for _ in range(2):
        model.get_parameter("weight").sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        seen.append(model.get_parameter("weight").tolist())
    # With a constant gradient Adam moves by exactly the rate.
    assert seen == [pytest.approx([0.5, 1.0, 0.5]), pytest.approx([0.25, 1.0, 0.25])]


def test_masters_collect_what_bfloat16_weights_round_away() -> None:
    model, mask = line([1.0, 1.0, 1.0], torch.bfloat16)
    optimizer = SparseAdamW(model, mask, lr=1e-3, eps=0.0)  # a bfloat16 below 1 is 0.0039 away
    for _ in range(5):
        model.get_parameter("weight").sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert model.get_parameter("weight").tolist() == [0.99609375, 1.0, 0.99609375]


def test_decay_modes_pull_to_zero_or_to_the_base() -> None:
    found = {}
    for mode in ("weight", "delta"):
        model, mask = line([4.0, 4.0, 4.0])
        optimizer = SparseAdamW(model, mask, lr=0.5, weight_decay=1.0, weight_decay_mode=mode)
        optimizer.state[model.get_parameter("weight")]["master"].fill_(8.0)
        (model.get_parameter("weight") * 0).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found[mode] = model.get_parameter("weight").tolist()
    assert found == {"weight": [4.0, 4.0, 4.0], "delta": [6.0, 4.0, 6.0]}


def test_clipping_and_the_norm_see_the_mask_only() -> None:
    model, mask = line([0.0, 0.0, 0.0])
    optimizer = SparseAdamW(model, mask, lr=1.0, betas=(0.0, 0.0), max_grad_norm=1.0)
    (model.get_parameter("weight") * torch.tensor([3.0, 100.0, 4.0])).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert optimizer.last_grad_norm == 5.0
    moment = optimizer.state[model.get_parameter("weight")]["exp_avg"]
    assert moment.tolist() == pytest.approx([0.6, 0.8])


def test_frozen_while_open_and_restored_by_close() -> None:
    model = tiny_model()
    model.norm.bias.requires_grad_(False)
    mask = Mask({"up.weight": [0]}, {"up.weight": (48, 24)})
    model.down.weight.grad = torch.ones_like(model.down.weight)
    with SparseAdamW(model, mask) as optimizer:
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["up.weight"]
        assert model.down.weight.grad is None
        train(model, optimizer, BATCHES[:1])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["norm.bias"]
    optimizer.close()
    backward(model, BATCHES[0])
    assert model.up.weight.grad is not None
    with pytest.raises(OptimizerError, match="closed"):
        optimizer.step()


def test_one_optimizer_at_a_time_and_a_forgotten_one_lets_go() -> None:
    model = tiny_model()
    mask = tiny_mask(model, 0.001)
    optimizer = SparseAdamW(model, mask)
    with pytest.raises(ParameterError, match=f"{next(iter(mask))}: expected no other tap"):
        SparseAdamW(model, mask)
    del optimizer
    gc.collect()
    assert all(p.requires_grad for p in model.parameters())
    second = SparseAdamW(model, mask)
    train(model, second, BATCHES[:1])
    assert second.last_grad_norm
    second.close()
    third = SparseAdamW(model, mask)  # a closed one need not be forgotten
    train(model, third, BATCHES[:1])
    assert third.last_grad_norm


def test_a_closed_optimizer_takes_no_state() -> None:
    model, mask = line([1.0, 2.0, 3.0])
    optimizer = SparseAdamW(model, mask)
    state = optimizer.state_dict()
    optimizer.close()
    with pytest.raises(OptimizerError, match="load_state_dict: expected an open optimizer"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("engine", [SparseAdamW, SparseValues])
def test_a_disjoint_mask_does_not_stop_the_optimizer_that_is_open(engine: Any) -> None:  # noqa: ANN401
    model = tiny_model()
    shapes = {"up.weight": (48, 24), "up.bias": (48,)}
    with engine(model, Mask({"up.weight": [0, 5]}, shapes)):
        before = [p.requires_grad for p in model.parameters()]
        for other in (SparseAdamW, SparseValues):
            with pytest.raises(ParameterError, match=r"up\.weight: expected no other tap") as error:
                other(model, Mask({"up.bias": [3]}, shapes))
            assert "one mask" in str(error.value.hint)
        assert [p.requires_grad for p in model.parameters()] == before


def test_gradients_in_another_layout_are_gathered_by_logical_index() -> None:
    model = nn.Linear(3, 2, bias=False)
    mask = Mask({"weight": [1, 5]}, {"weight": (2, 3)})
    optimizer = SparseAdamW(model, mask, betas=(0.0, 0.0))
    gradient = torch.arange(6.0).view(3, 2).T
    model.weight.register_hook(lambda _: gradient)  # type: ignore[no-untyped-call]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state[model.weight]["exp_avg"].tolist() == [2.0, 5.0]


class Checkpointed(nn.Module):
    """Uses one layer inside two checkpoints, whose hooks fire twice if reentrant."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.reentrant = reentrant
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(16.0).view(4, 4) / 16)
            self.layer.bias.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
        if self.reentrant is None:
            out: Tensor = self.layer(self.layer(x))
            return out
        once = checkpoint(self.layer, x, use_reentrant=self.reentrant)
        twice: Tensor = checkpoint(self.layer, once, use_reentrant=self.reentrant)
        return twice


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_gathered_whole(*, reentrant: bool) -> None:
    mask = Mask({"layer.weight": [0, 7, 15]}, {"layer.weight": (4, 4)})
    norms = []
    for mode in (None, reentrant):
        model = Checkpointed(reentrant=mode)
        x = torch.linspace(0, 1, 8).view(2, 4).requires_grad_()
        with SparseAdamW(model, mask) as optimizer:
            model(x).square().sum().backward()
            optimizer.step()
        norms.append(optimizer.last_grad_norm)
    assert norms[0] == norms[1] != 0.0


def test_a_grad_scaler_is_refused() -> None:
    model, mask = line([1.0, 1.0, 1.0])
    optimizer = SparseAdamW(model, mask)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model.get_parameter("weight").sum()).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(OptimizerError, match="GradScaler"):
        scaler.step(optimizer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_no_weight(bad: float) -> None:
    model, mask = line([1.0, 1.0, 1.0])
    optimizer = SparseAdamW(model, mask, max_grad_norm=1.0)
    (model.get_parameter("weight") * bad).sum().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(OptimizerError, match="parameter weight: expected a finite gradient"):
        optimizer.step()
    assert model.get_parameter("weight").tolist() == [1.0, 1.0, 1.0]
    model.get_parameter("weight").sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert optimizer.state[model.get_parameter("weight")]["step"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"eps": -1.0},
        {"weight_decay": -0.1},
        {"weight_decay_mode": "both"},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_hyperparameters_are_named(settings: dict[str, Any]) -> None:
    model, mask = line([1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match=f"^{next(iter(settings))}: expected"):
        SparseAdamW(model, mask, **settings)
    assert model.get_parameter("weight").requires_grad


def test_masks_that_do_not_fit_are_refused() -> None:
    model, mask = line([1.0, 1.0, 1.0])
    with pytest.raises(OptimizerError, match="at least one chosen entry"):
        SparseAdamW(model, Mask({}, {}))
    with pytest.raises(MaskError, match=r"mask of weight: expected shape \(4,\)"):
        SparseAdamW(model, Mask({"weight": [0]}, {"weight": (4,)}))
    optimizer = SparseAdamW(model, mask)
    with pytest.raises(OptimizerError, match="second one"):
        optimizer.add_param_group({"params": []})
    optimizer.close()
    model.requires_grad_(False)
    with pytest.raises(OptimizerError, match="parameter weight: expected requires_grad True"):
        SparseAdamW(model, mask)


def test_the_groups_hold_the_models_own_parameters() -> None:
    model = tiny_model()
    mask = tiny_mask(model)
    optimizer = SparseAdamW(model, mask)
    named = dict(model.named_parameters())
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(named[name]) for name in mask]
    for name, parameter in zip(mask, held, strict=True):
        index = optimizer.state[parameter]["index"]
        np.testing.assert_array_equal(index.numpy(), mask[name])


def test_memory_is_per_chosen_entry() -> None:
    model = tiny_model()
    mask = tiny_mask(model)
    optimizer = SparseAdamW(model, mask)
    train(model, optimizer, BATCHES[:1])
    sizes = [
        v.nbytes
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, Tensor)
    ]
    assert sum(sizes) == 5 * 4 * mask.nnz


def test_a_large_step_is_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tiny_model(), tiny_model()
    mask = tiny_mask(whole, 0.3)
    train(whole, SparseAdamW(whole, mask), BATCHES[:2])
    monkeypatch.setattr("gallop.adamw._CHUNK", 7)
    train(cut, SparseAdamW(cut, mask), BATCHES[:2])
    right = weights_of(whole)
    assert all(same_bits(value, right[name]) for name, value in weights_of(cut).items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_the_optimizer_itself_is_not_copied(duplicate: Callable[[object], object]) -> None:
    """A copy would lack the hooks, and so train nothing: the error names state_dict."""
    model = tiny_model()
    mask = select(model, token_batches(1), GallopConfig(0.05), token_loss)
    with SparseAdamW(model, mask) as optimizer, pytest.raises(OptimizerError) as error:
        duplicate(optimizer)
    assert error.value.hint is not None
    assert "state_dict" in error.value.hint


def two_lines() -> tuple[nn.ModuleDict, Mask]:
    model = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1, bias=False)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    names = {"a.weight": [0, 2], "a.bias": [0], "b.weight": [1]}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return model, Mask(names, shapes)


def test_groups_have_settings_of_their_own_and_schedulers_reach_them() -> None:
    model, mask = two_lines()
    groups: list[dict[str, Any]] = [
        {"params": "*.bias", "lr": 0.5, "weight_decay": 0.0},
        {"params": [model.get_parameter("b.weight")], "lr": 0.25},
    ]
    optimizer = SparseAdamW(model, mask, lr=0.125, eps=0.0, weight_decay=1.0, param_groups=groups)
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["a.bias"],
        ["b.weight"],
        ["a.weight"],
    ]
    schedule = LambdaLR(optimizer, [lambda _: 1.0, lambda _: 0.0, lambda _: 1.0])
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    schedule.step()
    # Adam's first step with a constant gradient is the rate; decay is rate times weight.
    assert {name: p.flatten().tolist() for name, p in model.named_parameters()} == {
        "a.weight": pytest.approx([0.75, 1.0, 0.75]),
        "a.bias": pytest.approx([0.5]),
        "b.weight": [1.0, 1.0, 1.0],
    }
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.0, 0.125]


def test_groups_come_back_from_a_saved_state() -> None:
    model, mask = two_lines()
    groups: list[dict[str, Any]] = [
        {"params": "*.bias", "lr": 0.5},
        {"params": "*", "betas": (0.5, 0.5)},
    ]
    optimizer = SparseAdamW(model, mask, param_groups=groups)
    train_on_sum(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.75
    saved = copy.deepcopy(optimizer.state_dict())
    expected = weights_of(model)
    optimizer.close()
    other = SparseAdamW(model, mask, param_groups=[{"params": "*.bias"}, {"params": "*"}])
    train_on_sum(model, other)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.75
    assert other.param_groups[1]["betas"] == (0.5, 0.5)
    assert all(same_bits(value, expected[name]) for name, value in weights_of(model).items())
    other.close()
    with pytest.raises(OptimizerError, match="expected 1 parameter groups of"):
        SparseAdamW(model, mask).load_state_dict(saved)


def train_on_sum(model: nn.Module, optimizer: SparseAdamW) -> None:
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({"params": "nothing.*"}, "patterns that match a parameter"),
        ({"params": []}, "found none"),
        ({"params": [3]}, "found int"),
        ({"lr": 1.0}, "a mapping with params"),
        ({"params": "*", "momentum": 0.9}, r"found \['momentum'\]"),
        ({"params": "*", "max_grad_norm": 0.9}, r"found \['max_grad_norm'\]"),
        ({"params": "*", "lr": -1.0}, "lr: expected"),
    ],
)
def test_bad_groups_are_named(group: dict[str, Any], says: str) -> None:
    model, mask = two_lines()
    with pytest.raises(ConfigError, match=says):
        SparseAdamW(model, mask, param_groups=[group])


def test_a_group_without_chosen_entries_is_kept_for_its_scheduler() -> None:
    model, _ = two_lines()
    mask = Mask({"a.weight": [0]}, {"a.weight": (1, 3)})
    optimizer = SparseAdamW(model, mask, param_groups=[{"params": "*.bias", "lr": 0.5}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 1]
    LambdaLR(optimizer, [lambda _: 1.0, lambda _: 2.0])
    train_on_sum(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
