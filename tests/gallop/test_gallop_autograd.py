"""The autograd engine: equal to the hook engine bit for bit, with any optimizer, over any base."""

from __future__ import annotations

import copy
import gc
import io
import json
import weakref
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import (
    Loss,
    assert_same_weights,
    experts,
    llama_batches,
    square_loss,
    train_by_hooks,
    vectors,
)
from reachable import held_bytes
from tiny_llama import tiny_llama
from tiny_models import clone, same_bits, tiny_model, token_batches, token_loss, weights_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gallop import GallopConfig, Mask, SparseAdamW, SparseValues, select
from gallop.errors import ConfigError, OptimizerError, ParameterError
from gallop.gradients import model_loss
from gallop.recipe import recipe_metadata
from gallop.visibility import Moves

BATCHES = token_batches(8)
CLIPS = (None, 0.05)  # the second one binds in every step


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Any]], Loss]] = {
    "tiny": (tiny_model, token_batches, token_loss),
    "llama": (tiny_llama, llama_batches, model_loss),
    "untied-llama": (lambda: tiny_llama(tied=False), llama_batches, model_loss),
    "experts": (experts, vectors, square_loss),
}


@pytest.mark.parametrize(("name", "accumulate", "clip"), list(product(MODELS, (1, 4), CLIPS)))
def test_both_engines_give_the_same_weights(name: str, accumulate: int, clip: float | None) -> None:
    """Law: with AdamW(foreach=False), in float32 on CPU, every weight has the same bits."""
    build, make, loss = MODELS[name]
    model, twin = build(), build()
    batches = make(3 * accumulate)
    mask = select(model, batches[:2], GallopConfig(0.1), loss)
    settings: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}
    train_by_hooks(twin, mask, batches, loss, accumulate=accumulate, max_grad_norm=clip, **settings)
    with SparseValues(model, mask) as values:
        optimizer = torch.optim.AdamW(values.parameters(), foreach=False, **settings)
        for start in range(0, len(batches), accumulate):
            for batch in batches[start : start + accumulate]:
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
                assert all(p.grad is None for p in model.parameters())
            if clip is not None:
                assert torch.nn.utils.clip_grad_norm_(values.parameters(), clip) > clip
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(model, twin)
    assert sum(int((v != w).sum()) for v, w in moved(model, build())) > 0.5 * mask.nnz


def moved(model: nn.Module, base: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(model.parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_both_engines_agree_in_bfloat16(*, autocast: bool) -> None:
    """Law: masters and sums are float32 in both; autocast computes what autograd would."""
    dtype = torch.float32 if autocast else torch.bfloat16

    def loss(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model_loss(model, batch)

    model, twin = (tiny_llama(tied=False, dtype=dtype) for _ in range(2))
    batches = llama_batches(8)
    mask = select(model, batches[:2], GallopConfig(0.1), model_loss)
    train_by_hooks(twin, mask, batches, loss, accumulate=2, lr=3e-3)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, foreach=False)
        for start in range(0, 8, 2):
            for batch in batches[start : start + 2]:
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        assert all(each.dtype == torch.float32 for each in values.parameters())
        seen = values.visibility()
    assert_same_weights(model, twin)
    kind = "float32" if autocast else "bfloat16"
    assert set(seen.dtypes) == {kind}
    assert seen.total.moved == seen.total.visible if autocast else seen.total.moved > 0


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "foreach AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-1, momentum=0.9),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_the_values_and_nothing_else(name: str) -> None:
    model = tiny_llama()
    base = weights_of(model)
    batches = llama_batches(1) * 6
    mask = select(model, batches[:1], GallopConfig(0.1), model_loss)
    with SparseValues(model, mask) as values:
        optimizer = OPTIMIZERS[name](list(values.parameters()))
        losses = []
        for batch in batches:
            loss = model_loss(model, batch)
            losses.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for key, parameter in model.named_parameters():
        flat = parameter.detach().clone().view(-1)
        if key in mask:
            index = torch.from_numpy(np.array(mask[key]))
            flat[index] = base[key].view(-1)[index]
        assert same_bits(flat.view(parameter.shape), base[key]), key


class Muon(torch.optim.SGD):
    """A stand-in for versions that fall back to something else for vectors."""


def test_muon_is_refused_with_the_reason() -> None:
    model = tiny_llama()
    mask = select(model, llama_batches(1), GallopConfig(0.1), model_loss)
    with SparseValues(model, mask) as values:
        for kind in (torch.optim.Muon, Muon):
            with pytest.raises(OptimizerError, match="orthogonalises matrices"):
                values.optimizer(kind, lr=1e-2)
        optimizer = Muon(values.parameters(), lr=1e-2)
        with pytest.raises(OptimizerError, match="orthogonalises matrices"):
            optimizer.step()
        with pytest.raises(ValueError, match="2D"):
            torch.optim.Muon(values.parameters())


def test_groups_and_schedulers_are_ordinary() -> None:
    model = tiny_llama()
    batch = llama_batches(1)[0]
    mask = select(model, [batch], GallopConfig(0.3), model_loss)
    with SparseValues(model, mask) as values:
        groups = [{"params": "*norm*", "lr": 0.0}, {"params": model.lm_head.weight, "lr": 0.5}]
        optimizer = values.optimizer(
            torch.optim.SGD, lr=0.25, param_groups=groups, momentum=0.9, foreach=True
        )
        assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5, 0.25]
        assert optimizer.param_groups[1]["param_names"] == ["model.embed_tokens.weight"]
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        before = weights_of(model)
        model_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.25, 0.125]
        with pytest.raises(ConfigError, match="patterns that match"):
            values.groups([{"params": "nothing"}])
    after = weights_of(model)
    changed = {name for name in after if not same_bits(after[name], before[name])}
    assert "model.embed_tokens.weight" in changed
    assert not any("norm" in name for name in changed)


def test_resume_is_bit_equal() -> None:
    """Law: saving and loading in the middle changes no bit of what follows."""
    straight = tiny_model(torch.bfloat16)
    mask = select(straight, BATCHES[:2], GallopConfig(0.05), token_loss)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
        for batch in batches:
            token_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    stopped = clone(straight)
    values = SparseValues(straight, mask)
    train(straight, values.optimizer(torch.optim.AdamW, lr=3e-3), BATCHES)
    first = SparseValues(stopped, mask)
    optimizer = first.optimizer(torch.optim.AdamW, lr=3e-3)
    train(stopped, optimizer, BATCHES[:4])
    file = io.BytesIO()
    torch.save({"values": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = tiny_model(torch.bfloat16)
    second = SparseValues(resumed, mask)
    second.load_state_dict(saved["values"])
    assert_same_weights(resumed, stopped)
    optimizer = second.optimizer(torch.optim.AdamW, lr=77.0)
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, BATCHES[4:])
    assert_same_weights(resumed, straight)
    assert second.visibility() == values.visibility()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda state: state.pop("up.weight"), "first that differs is up.weight"),
        (lambda state: state["up.weight"].pop("value"), "expected value of torch.float32"),
        (lambda state: state["up.weight"].update(value=torch.zeros(1)), "shape"),
        (lambda state: state["up.weight"]["index"].add_(1), "entries of this mask"),
    ],
)
def test_a_foreign_state_is_refused(spoil: Callable[[Any], object], says: str) -> None:
    model = tiny_model()
    mask = select(model, BATCHES[:2], GallopConfig(0.05), token_loss)
    values = SparseValues(model, mask)
    before = weights_of(model)
    state = copy.deepcopy(values.state_dict())
    for each in state.values():
        each["value"].add_(1)
    spoil(state)
    with pytest.raises(OptimizerError, match=says):
        values.load_state_dict(state)
    after = weights_of(model)
    assert all(same_bits(value, after[name]) for name, value in before.items())


def test_close_gives_the_model_back() -> None:
    model = tiny_model()
    model.norm.bias.requires_grad_(False)
    model.down.weight.grad = torch.ones_like(model.down.weight)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    frozen = [p.requires_grad for p in model.parameters()]
    bits = weights_of(model)
    mask = Mask({"up.weight": [0, 5], "up.bias": [3]}, {"up.weight": (48, 24), "up.bias": (48,)})
    called = []
    model.up.register_forward_hook(lambda *_: called.append(1))
    with SparseValues(model, mask) as values:
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["up.bias"]
        with pytest.raises(ParameterError, match=r"up\.weight: expected no other tap"):
            SparseAdamW(model, mask)
        with torch.no_grad():
            inside = model(BATCHES[0][0])
        token_loss(model, BATCHES[0]).backward()  # type: ignore[no-untyped-call]
        assert [each.grad is not None for each in values.parameters()] == [True, True]
    values.close()
    assert len(called) == 2
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == before
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert all(same_bits(value, bits[name]) for name, value in weights_of(model).items())
    assert model.down.weight.grad is not None
    assert torch.equal(inside, model(BATCHES[0][0]))


def test_a_copy_of_the_model_does_not_feed_the_values() -> None:
    model = tiny_model()
    with SparseValues(model, Mask({"up.weight": [0, 5]}, {"up.weight": (48, 24)})) as values:
        twin = copy.deepcopy(model).requires_grad_()
        token_loss(twin, BATCHES[0]).backward()  # type: ignore[no-untyped-call]
        assert all(each.grad is None for each in values.parameters())
        assert twin.up.weight.grad is not None
        assert twin.up.weight.grad.count_nonzero() > 2
        token_loss(model, BATCHES[0]).backward()  # type: ignore[no-untyped-call]
        (each,) = values.parameters()
        assert each.grad is not None
        assert same_bits(each.grad, twin.up.weight.grad.flatten()[[0, 5]])


def test_closed_values_refuse_a_step_and_a_state() -> None:
    model = tiny_model()
    values = SparseValues(model, Mask({"up.weight": [0, 5]}, {"up.weight": (48, 24)}))
    optimizer = values.optimizer(torch.optim.SGD, lr=1.0)
    token_loss(model, BATCHES[0]).backward()  # type: ignore[no-untyped-call]
    state = copy.deepcopy(values.state_dict())
    values.close()
    with pytest.raises(OptimizerError, match="step: expected open SparseValues"):
        optimizer.step()
    with pytest.raises(OptimizerError, match="load_state_dict: expected open SparseValues"):
        values.load_state_dict(state)
    assert same_bits(values.state_dict()["up.weight"]["value"], state["up.weight"]["value"])


def test_an_optimizer_keeps_its_values_in_force_and_both_forgotten_let_go() -> None:
    model = tiny_model()
    mask = Mask({"up.weight": [0, 5]}, {"up.weight": (48, 24)})
    optimizer = SparseValues(model, mask).optimizer(torch.optim.SGD, lr=1.0)
    gc.collect()
    before = model.up.weight.detach().clone()
    token_loss(model, BATCHES[0]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert int((model.up.weight != before).sum()) == 2
    watched = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert watched() is None
    assert all(p.requires_grad for p in model.parameters())
    assert "forward" not in vars(model.up)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_gradient_of_the_hook_engine(*, reentrant: bool) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        for _ in range(2):
            x = checkpoint(model, x, use_reentrant=reentrant)
        return x.square().mean()

    model, twin = experts(), experts()
    batches = vectors(3)
    mask = select(model, batches, GallopConfig(0.3), square_loss)
    train_by_hooks(twin, mask, batches, loss, accumulate=1, lr=3e-3)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, foreach=False)
        for batch in batches:
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(model, twin)


def test_a_grad_scaler_works_on_the_values() -> None:
    """A scale that is a power of two is exact in float32, and changes no bit."""
    model, twin = tiny_llama(), tiny_llama()
    batches = llama_batches(3)
    mask = select(model, batches, GallopConfig(0.1), model_loss)
    train_by_hooks(twin, mask, batches, model_loss, accumulate=1, lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, foreach=False)
        for batch in batches:
            scaler.scale(model_loss(model, batch)).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert_same_weights(model, twin)


def test_memory_is_per_chosen_entry_and_no_weight_gradient_is_left() -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 200)).to(torch.bfloat16)
    generator = np.random.default_rng(0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2}
    mask = Mask(
        {name: np.sort(generator.choice(60000, 900, replace=False)) for name in shapes}, shapes
    )
    values = SparseValues(model, mask)
    optimizer = values.optimizer(torch.optim.AdamW, lr=1e-3, foreach=False)
    for _ in range(2):
        model(torch.ones(2, 200, dtype=torch.bfloat16)).square().sum().backward()
        optimizer.step()
    held = held_bytes(model, values, optimizer)
    # index, base, value, gradient, two moments; and torch's step count per tensor.
    assert held == (4 + 2 + 4 + 4 + 8) * mask.nnz + 4 * len(mask) <= 25 * mask.nnz


def test_empty_masks_are_refused() -> None:
    with pytest.raises(OptimizerError, match="at least one chosen entry"):
        SparseValues(tiny_model(), Mask({}, {}))


def test_weights_that_were_frozen_before_are_trained_and_frozen_again() -> None:
    """A norm weight gets its gradient through autograd: it is made to require one meanwhile."""
    model, twin = experts(), experts()
    batches = vectors(3)
    mask = select(model, batches, GallopConfig(0.3), square_loss)
    train_by_hooks(twin, mask, batches, square_loss, accumulate=1, lr=3e-3)
    model.requires_grad_(False)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, foreach=False)
        for batch in batches:
            square_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(model, twin)
    assert not any(p.requires_grad for p in model.parameters())


def test_backward_keeps_input_and_weight_and_nothing_is_cloned() -> None:
    """Law: what a Linear saves is its input, its own weight and the index: no copy of a weight."""
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.Linear(40, 30, bias=False))
    mask = Mask({"0.weight": [1, 5], "1.weight": [0]}, {"0.weight": (40, 30), "1.weight": (30, 40)})
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with SparseValues(model, mask):
        x = torch.ones(4, 30)
        with torch.autograd.graph.saved_tensors_hooks(
            keep,
            lambda tensor: tensor,
        ):
            out = model(x).sum()
        out.backward()
    weights = {p.data_ptr() for p in model.parameters()}
    assert sum(tensor.data_ptr() in weights for tensor in saved) == 2
    others = [tensor.numel() for tensor in saved if tensor.data_ptr() not in weights]
    assert sorted(others) == [1, 2, 4 * 30, 4 * 40]


def test_gradients_of_weights_are_dropped_one_by_one() -> None:
    """Law: no dense gradient outlives the layer that made it, in either engine."""
    alive: list[int] = []
    for engine in (SparseAdamW, SparseValues):
        model = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(4)))
        shapes = {name: (50, 50) for name, _ in model.named_parameters()}
        mask = Mask({name: [0, 7] for name in shapes}, shapes)

        def count(*_: object) -> None:
            gc.collect()
            dense = [
                each
                for each in gc.get_objects()
                if type(each) is Tensor and tuple(each.shape) == (50, 50)
            ]
            alive.append(len(dense))

        with engine(model, mask):
            before = len(alive)
            for module in model:
                module.register_full_backward_hook(count)
            model(torch.ones(3, 50, requires_grad=True)).sum().backward()
            assert len(alive) == before + 4
    assert max(alive) <= 1


def test_visibility_tells_masters_from_weights_and_travels_in_the_recipe() -> None:
    """One entry moves in bfloat16, one in its master only, one not at all."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.LayerNorm(1)).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    mask = Mask({"0.weight": [0, 1, 2], "1.bias": [0]}, {"0.weight": (1, 3), "1.bias": (1,)})
    found = []
    for engine in ("hook", "autograd"):
        each = clone(model)
        trainer = SparseAdamW(each, mask) if engine == "hook" else SparseValues(each, mask)
        state: Any = trainer.state_dict()
        saved = copy.deepcopy(state)
        entry = saved["state"][0] if engine == "hook" else saved["0.weight"]
        entry["master" if engine == "hook" else "value"].add_(torch.tensor([0.5, 1e-4, 0.0]))
        trainer.load_state_dict(saved)
        trainer.close()
        found.append(trainer.visibility())
    seen = found[0]
    assert found[1] == seen
    assert seen.total == Moves(entries=4, moved=2, visible=1)
    assert dict(seen.dtypes) == {"bfloat16": seen.total}
    assert dict(seen.kinds) == {"linear": Moves(3, 2, 1), "norm": Moves(1, 0, 0)}
    metadata = recipe_metadata(mask, visibility=seen)
    assert metadata["gallop.visibility.visible"] == "1"
    assert json.loads(metadata["gallop.visibility.kinds"])["linear"]["moved"] == 2
    assert "gallop.visibility.moved" not in recipe_metadata(mask)


def test_eight_bit_optimizers_work_where_they_are_installed() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = tiny_llama()
    mask = select(model, llama_batches(1), GallopConfig(0.5), model_loss)
    before = weights_of(model)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(bitsandbytes.optim.AdamW8bit, lr=1e-2)
        model_loss(model, llama_batches(1)[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert any(not same_bits(value, before[name]) for name, value in weights_of(model).items())
