"""Ways of summing up gradients: the same mask from all of them, and what each really holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_tensors import HeldTensors
from tiny_llama import tiny_llama
from tiny_models import same_bits, tiny_model, token_batches, token_loss, weights_of
from torch import Tensor, nn

from gallop import GallopConfig, select
from gallop.config import ThresholdScope
from gallop.errors import ConfigError, SelectionError
from gallop.free_memory import host_free
from gallop.memory import MemoryMode, MemoryPlan, plan_memory, plan_targets
from gallop.targets import eligible_targets
from gallop.topk import Exchange

SELECTORS = ("gallop", "saft", "sift", "fisher", "snip", "gem", "magnitude-low", "random")
SCOPES = ("global", "per_tensor", "sampled_global")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("selector", SELECTORS)
def test_every_way_gives_the_same_mask_and_report(
    selector: str, dtype: torch.dtype, scope: ThresholdScope, tmp_path: Path
) -> None:
    """Law: memory modes differ in nothing but memory, down to the bytes of the mask's file."""
    config = GallopConfig(
        0.05,
        selector=selector,
        threshold_scope=scope,
        allocation="entropy" if scope == "per_tensor" else None,
        sample_size=1000,
        seed=3,
    )
    files = []
    # In train mode: dropout has to fall on the same units in every pass. The head is tied.
    for memory, budget in (
        ("resident", None),
        ("offload", None),
        ("grouped", 20_000),
        ("grouped", 1),
    ):
        mask = select(
            tiny_model(dtype).train(),
            iter(token_batches(3)),  # an iterator: it can be read once only
            config,
            token_loss,
            memory=memory,  # type: ignore[arg-type]
            memory_budget=budget,
        )
        assert mask.report is not None
        assert mask.report.memory == memory
        mask.save(tmp_path / "m")
        files.append((tmp_path / "m").read_bytes())
    assert len(set(files)) == 1


def test_a_grouped_selection_leaves_everything_as_it_was() -> None:
    model = tiny_model().train()
    model.mix.weight.requires_grad_(False)
    model.up.bias.grad = kept = torch.ones(48)
    before, state = weights_of(model), torch.random.get_rng_state()
    plans: list[MemoryPlan] = []
    seen: list[int] = []
    select(
        model,
        token_batches(2),
        GallopConfig(0.1),
        token_loss,
        memory="grouped",
        memory_budget=1,
        on_plan=plans.append,
        on_batch=lambda number, _: seen.append(number),
    )
    assert all(same_bits(value, before[name]) for name, value in weights_of(model).items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.up.bias.grad is kept
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["mix.weight"]
    (plan,) = plans
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert plan.groups == tuple((name,) for name in names)
    assert seen == list(range(1, 2 * plan.passes + 1))


class Unused(nn.Module):
    """A parameter that no loss depends on, before and behind one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(2))
        self.used = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.last = nn.Parameter(torch.ones(2))


def used_loss(model: nn.Module, batch: Tensor) -> Tensor:
    assert isinstance(model, Unused)
    return (model.used * batch).sum()


def test_a_group_that_the_loss_does_not_depend_on_is_no_error() -> None:
    batches = [torch.ones(1, 2)]
    config = GallopConfig(0.3)
    options: dict[str, Any] = {"memory": "grouped", "memory_budget": 1}
    mask = select(Unused(), batches, config, used_loss, **options)
    assert mask == select(Unused(), batches, config, used_loss)
    with pytest.raises(SelectionError, match="expected positive scores, found none"):
        select(Unused(), batches, config, lambda _m, _b: torch.tensor(1.0), **options)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_mask_in_groups(*, reentrant: bool) -> None:
    """Reentrant checkpoints whose inputs need no gradient would silently give none."""
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 4, 2]])
    batch = {"input_ids": ids, "labels": ids}
    config = GallopConfig(0.05)
    expected = select(tiny_llama(), [batch], config)
    modes: tuple[MemoryMode, ...] = ("resident", "grouped")
    for memory in modes:
        model = tiny_llama().train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        found = select(model, [batch], config, memory=memory, memory_budget=40_000)
        assert found == expected
        without = GallopConfig(0.05, exclude=("@embeddings",))
        assert select(model, [batch], without, memory=memory, memory_budget=40_000) == select(
            tiny_llama(), [batch], without
        )


LAYER = 512 * 512 * 4


class Stack(nn.Module):
    """Eight square layers, each of a mebibyte."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    ("memory", "budget", "together"),
    [("resident", None, 8), ("grouped", 4 * LAYER + 64 * 20_972, 3), ("grouped", 1, 1)],
)
def test_what_is_held_is_what_was_planned(
    memory: MemoryMode, budget: int | None, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a selection holds the sums of its largest group and one gradient, to the byte."""
    monkeypatch.setattr("gallop.scores.CHUNK", 1 << 16)
    monkeypatch.setattr("gallop.survey.CHUNK", 1 << 16)
    plans: list[MemoryPlan] = []
    model, batch = Stack(), torch.ones(1, 512)
    # What is smaller than a layer, such as chunks of scores and their histograms, is not counted.
    with HeldTensors(least=LAYER) as held:
        mask = select(
            model,
            [batch, batch],
            GallopConfig(0.01),
            lambda m, b: m(b).square().sum(),
            memory=memory,
            memory_budget=budget,
            on_plan=plans.append,
        )
    assert held.peak == (together + 1) * LAYER
    assert held.held == 0
    (plan,) = plans
    assert plan.mode == memory
    assert plan.passes == -(-8 // together)
    (estimate,) = (each for each in plan.estimates if each.mode == memory)
    assert estimate.passes == plan.passes
    assert estimate.host_bytes - held.peak == (40 if plan.passes == 1 else 64) * mask.nnz
    assert estimate.device_bytes == 0


def test_a_plan_tells_needs_free_memory_and_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = Stack(), GallopConfig(0.01)
    found = plan_memory(model, config)
    assert (found.mode, found.requested, found.device) == ("resident", "auto", "cpu")
    assert found.host_free == found.device_free
    assert found.host_free is not None
    assert [each.mode for each in found.estimates] == ["resident", "offload", "grouped"]
    assert found.lines()[0].startswith("selection memory: resident, auto was asked for; ")
    assert len(found.lines()) == 4
    # Half of what is free has to be enough.
    needed = found.estimates[0].host_bytes
    for free, mode in ((2 * needed, "resident"), (2 * needed - 2, "grouped"), (None, "resident")):
        monkeypatch.setattr("gallop.memory.host_free", lambda free=free: (free, "told"))
        plan = plan_memory(model, config)
        assert (plan.mode, plan.host_free, plan.host_source) == (mode, free, "told")
    assert plan_memory(model, config, memory_budget=needed).mode == "resident"
    tight = plan_memory(model, config, memory_budget=needed - 1)
    assert (tight.mode, tight.passes) == ("grouped", 2)
    assert not tight.estimates[0].fits
    assert "too large" in tight.lines()[1]
    data_free = plan_memory(model, GallopConfig(0.01, selector="magnitude-low"))
    assert (data_free.passes, len(data_free.lines())) == (0, 1)
    with pytest.raises(ConfigError, match="memory: expected one of") as caught:
        plan_memory(model, config, memory="ofload")  # type: ignore[arg-type]
    assert "'offload'" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="memory_budget: expected a number of bytes"):
        plan_memory(model, config, memory_budget=0)


def test_ranks_plan_alike() -> None:
    """Law: the plan is that of the rank that needs the most and has the least."""
    targets = eligible_targets(Stack(), GallopConfig(0.01))
    told: list[Any] = []

    def largest(values: Any) -> Any:  # noqa: ANN401
        told.append(values)
        return np.maximum(values, -1_000_000.0) if (values < 0).all() else values * 2

    plan = plan_targets(targets, GallopConfig(0.01), exchange=Exchange(largest=largest))
    assert plan.host_free == 1_000_000
    assert plan.eligible == 2 * 8 * 512 * 512
    assert plan.mode == "grouped"


MEMINFO = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:     2000 kB\n"


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


VERSION_2 = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/memory.max": "max\n",
    "sys/fs/cgroup/user/memory.current": "5\n",
    "sys/fs/cgroup/user/job/memory.max": "1000000\n",
    "sys/fs/cgroup/user/job/memory.current": "700000\n",
    "sys/fs/cgroup/user/job/memory.stat": "anon 1\ninactive_file 200000\n",
}
VERSION_1 = {
    "proc/self/cgroup": "3:cpuset:/\n4:cpu,memory:/job\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "900000\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 9\ntotal_inactive_file 150000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (2_048_000, "MemAvailable")),
        (VERSION_2, (500_000, "control group")),
        (VERSION_1, (50_000, "control group")),
        ({"proc/self/cgroup": "0::/../elsewhere\nnonsense\n"}, (2_048_000, "MemAvailable")),
        ({"proc/meminfo": "MemTotal: 9 kB\n"}, (None, "unknown")),
    ],
)
def test_free_memory_is_the_least_of_all_limits(
    files: dict[str, str], expected: tuple[int | None, str], tmp_path: Path
) -> None:
    assert host_free(system(tmp_path, files)) == expected


def test_free_memory_of_this_machine() -> None:
    free, source = host_free()
    assert (free is None) == (source == "unknown")
    assert free is None or free > 0
