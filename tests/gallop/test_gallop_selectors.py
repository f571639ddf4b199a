"""Selectors against their formulas, written densely; registered ones; random; SaRA's next step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dense_selection import SMALLEST_FIRST, dense_choice, dense_gradients, dense_scores
from tiny_models import TinyLanguageModel, tiny_model, token_batches, token_loss
from torch import Tensor, nn

import gallop
from gallop import GallopConfig, Mask, select
from gallop.counter_hash import entry_hash, key_of
from gallop.errors import ConfigError, SelectionError
from gallop.reselection import reselect
from gallop.selectors import SELECTORS, Chunk

DENSE = (
    "gallop",
    "saft",
    "sift",
    "fisher",
    "magnitude-low",
    "magnitude-high",
    "gem",
    "sara",
    "snip",
)
NEEDS_NONE = {"magnitude-low", "magnitude-high", "sara", "random"}


def bools_of(mask: Mask, model: nn.Module) -> dict[str, Tensor]:
    found = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in model.named_parameters()}
    for name, indices in mask.items():
        found[name][torch.from_numpy(indices.copy())] = True
    return found


def same(mask: Mask, model: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(each, expected[n]) for n, each in bools_of(mask, model).items())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("selector", DENSE)
def test_global_choice_is_that_of_a_sort(selector: str, dtype: torch.dtype, *, zeros: bool) -> None:
    """Law: the mask is the first k entries of a stable sort of all scores."""
    if selector == "gem" and zeros:
        pytest.skip("a zero weight has no finite score")
    model, batches = tiny_model(dtype), token_batches(3, size=1)
    config = GallopConfig(
        0.05, selector=selector, threshold_scope="global", exclude_zeros=not zeros
    )
    mask = select(model, batches, config, token_loss)
    scores = dense_scores(model, dense_gradients(model, batches, token_loss), selector)
    weights = [p.detach().flatten() for p in model.parameters()]
    barred = [(w == 0) & (not zeros) for w in weights]
    k = config.budget(sum(map(len, weights)))
    chosen = dense_choice(
        list(scores.values()), k, barred=barred, smallest=selector in SMALLEST_FIRST
    )
    assert same(mask, model, dict(zip(scores, chosen, strict=True)))
    assert mask.nnz == k
    assert mask.report is not None
    assert mask.report.threshold is not None
    values = torch.cat([s[c] for s, c in zip(scores.values(), chosen, strict=True)])
    last = values.max() if selector in SMALLEST_FIRST else values.min()
    assert mask.report.threshold == float(last)
    assert mask.report.ties == int(
        sum(((s == last) & ~b).sum() for s, b in zip(scores.values(), barred, strict=True))
    )


@pytest.mark.parametrize("selector", DENSE)
def test_per_tensor_choice_is_that_of_a_sort(selector: str) -> None:
    """Law: in per_tensor scope each tensor gives the first of its own stable sort."""
    model, batches = tiny_model(), token_batches(2, size=1)
    config = GallopConfig(
        0.1, selector=selector, threshold_scope="per_tensor", allocation="uniform"
    )
    mask = select(model, batches, config, token_loss)
    assert mask.report is not None
    assert mask.report.requested == config.budget(mask.report.eligible)
    scores = dense_scores(model, dense_gradients(model, batches, token_loss), selector)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().flatten()
        barred = (weight == 0) & bool(config.exclude_zeros)
        budget = mask.report.tensors[name].chosen
        (expected,) = dense_choice(
            [scores[name]], budget, barred=[barred], smallest=selector in SMALLEST_FIRST
        )
        assert int(expected.sum()) == budget
        assert torch.equal(bools_of(mask, model)[name], expected)


@pytest.mark.parametrize("selector", sorted(NEEDS_NONE))
def test_some_need_no_gradient(selector: str) -> None:
    def loss(model: nn.Module, batch: object) -> Tensor:
        raise AssertionError("no forward pass is needed")

    def batches() -> Iterator[int]:
        yield from ()
        raise AssertionError("no batch is needed")

    for given in (None, batches()):
        mask = select(tiny_model(), given, GallopConfig(0.05, selector=selector), loss)
        assert mask.nnz
        assert mask.report is not None
        assert (mask.report.loss, mask.report.batches) == (None, 0)
        assert mask.report.overlap is not None
        assert mask.report.overlap.high_gradient is None


def test_each_has_the_scope_and_zeros_of_its_source() -> None:
    found = {name: GallopConfig(0.01, selector=name) for name in SELECTORS}
    per_tensor = {"sift", "gem", "magnitude-high"}
    assert {n for n in DENSE if found[n].threshold_scope == "per_tensor"} == per_tensor
    zeros_out = {"gallop", "gem", "snip", "magnitude-high"}
    assert {n for n in DENSE if found[n].exclude_zeros} == zeros_out
    assert found["gem"].allocation == "entropy"
    assert GallopConfig(0.01, selector="gem", threshold_scope="global").allocation is None
    assert GallopConfig(0.01).threshold_scope == "global"
    assert GallopConfig(0.01).exclude_zeros is True


def test_sift_looks_at_one_batch() -> None:
    drawn = []

    def batches() -> Iterator[Any]:
        for number, batch in enumerate(token_batches(3)):
            drawn.append(number)
            yield batch

    for memory, budget in (("resident", None), ("grouped", 1)):
        drawn.clear()
        select(
            tiny_model(),
            batches(),
            GallopConfig(0.1, selector="sift"),
            token_loss,
            memory=memory,  # type: ignore[arg-type]
            memory_budget=budget,
        )
        assert drawn == [0]


def test_fisher_says_what_its_squares_are_of(caplog: pytest.LogCaptureFixture) -> None:
    config = GallopConfig(0.1, selector="fisher")
    select(tiny_model(), token_batches(2, size=1), config, token_loss)
    assert "squares" not in caplog.text
    select(tiny_model(), token_batches(2, size=2), config, token_loss)
    assert "2 batches that hold 4 samples" in caplog.text


def test_magnitudes_that_differ_in_the_last_bit_are_told_apart() -> None:
    """Law: smallest first is an exact reversal, which 1 / |w| would not be."""
    weights = np.float32(1.9) + np.arange(64, dtype=np.float32) * np.finfo(np.float32).eps
    model = nn.Linear(64, 1, bias=False)
    model.weight = nn.Parameter(torch.from_numpy(weights[::-1].copy())[None])
    mask = select(model, None, GallopConfig(1 / 64, selector="magnitude-low"))
    assert mask["weight"].tolist() == [63]
    assert len(np.unique(1 / weights)) < 64
    assert mask.report is not None
    assert mask.report.threshold == float(weights[0])


def test_zero_is_the_smallest_weight_unless_excluded() -> None:
    model = nn.Linear(4, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([[-2.0, 0.0, 1.0, -0.0]]))
    with_zeros = select(model, None, GallopConfig(0.75, selector="magnitude-low"))
    assert with_zeros["weight"].tolist() == [1, 2, 3]
    assert with_zeros.report is not None
    assert with_zeros.report.zero_share == pytest.approx(2 / 3)
    without = select(model, None, GallopConfig(0.75, selector="magnitude-low", exclude_zeros=True))
    assert without["weight"].tolist() == [0, 2]
    high = select(model, None, GallopConfig(1.0, selector="magnitude-high"))
    assert high["weight"].tolist() == [0, 2]  # a score of 0 is never among the largest


def splitmix(state: int) -> int:
    word = (1 << 64) - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & word
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & word
    return state ^ (state >> 31)


def test_random_numbers_are_those_of_splitmix() -> None:
    indices = torch.tensor([0, 1, 7, 2**40])
    found = entry_hash(indices, seed=3, name="a.weight").tolist()
    key = key_of(3, "a.weight")
    expected = [
        splitmix(((i + 1) * 0x9E3779B97F4A7C15 + key) % 2**64) & (2**63 - 1)
        for i in indices.tolist()
    ]
    assert found == expected


class Swapped(nn.Module):
    """The layers of the tiny model in another order."""

    def __init__(self, model: TinyLanguageModel) -> None:
        super().__init__()
        self.down, self.up, self.mix = model.down, model.up, model.mix
        self.norm, self.embedding = model.norm, model.embedding


def test_random_is_seeded_and_independent_of_the_order_of_tensors() -> None:
    config = GallopConfig(0.1, selector="random")
    first, second = (select(tiny_model(), None, config) for _ in range(2))
    assert first == second
    assert first.nnz == config.budget(first.report.eligible) if first.report else False
    assert select(Swapped(tiny_model()), None, config) == first
    assert select(tiny_model(), None, GallopConfig(0.1, selector="random", seed=1)) != first
    big = nn.Linear(1000, 200, bias=False)
    chosen = select(big, None, config)["weight"]
    halves = np.bincount(chosen // 50_000, minlength=4)
    assert abs(halves - 5000).max() < 300  # 4.4 standard deviations


def test_sara_takes_what_is_below_a_threshold_and_goes_on_with_what_stays_there() -> None:
    model = tiny_model()
    sizes = torch.cat([p.detach().flatten().abs() for p in model.parameters()])
    config = GallopConfig(1.0, selector="sara", weight_threshold=0.02)
    mask = select(model, None, config)
    assert mask.nnz == int((sizes < 0.02).sum())
    assert mask.report is not None
    assert mask.report.density == mask.nnz / len(sizes)
    moved = dict(model.named_parameters())["up.weight"]
    first, second = (int(i) for i in mask["up.weight"][:2])
    with torch.no_grad():
        moved.view(-1)[first] = 0.02  # the threshold itself is not below it
        moved.view(-1)[second] = -0.0199
    rest = reselect(model, mask)
    assert set(mask["up.weight"]) - set(rest["up.weight"]) == {first}
    assert all(np.array_equal(rest[n], mask[n]) for n in mask if n != "up.weight")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    with pytest.raises(SelectionError, match="found none among"):
        reselect(model, mask)


def test_saras_threshold_follows_from_a_density() -> None:
    model = tiny_model()
    mask = select(model, None, GallopConfig(0.1, selector="sara"))
    assert reselect(model, mask) == mask  # nothing has moved
    gradients = select(model, token_batches(1), GallopConfig(0.1), token_loss)
    with pytest.raises(ConfigError, match="weight_threshold"):
        reselect(model, gradients)
    assert reselect(model, gradients, weight_threshold=1e9) == gradients


def test_a_weight_threshold_bars_entries_from_any_selector() -> None:
    model = tiny_model()
    config = GallopConfig(1.0, weight_threshold=0.05)
    mask = select(model, token_batches(2), config, token_loss)
    for name, indices in mask.items():
        values = dict(model.named_parameters())[name].detach().view(-1)
        assert float(values[torch.from_numpy(indices.copy())].abs().max()) < 0.05


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(SELECTORS)
    yield
    for name in set(SELECTORS) - set(before):
        del SELECTORS._items[name]  # noqa: SLF001


@pytest.mark.usefixtures("registered")
def test_a_registered_selector_is_used(tmp_path: Any) -> None:  # noqa: ANN401
    @gallop.selector("taylor", scope="per_tensor")
    def taylor(chunk: Chunk) -> Tensor:
        return chunk.gradient.mul_(chunk.weight).square_()  # in place: the chunk is a copy

    model, batches = tiny_model(), token_batches(2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    mask = select(model, batches, GallopConfig(0.1, selector="taylor"), token_loss)
    snip = GallopConfig(0.1, selector="snip", threshold_scope="per_tensor")
    assert mask == select(model, batches, snip, token_loss)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    mask.save(tmp_path / "m")
    del SELECTORS._items["taylor"]  # noqa: SLF001
    loaded = Mask.load(tmp_path / "m")  # where nobody has registered it
    assert loaded.config == mask.config
    with pytest.raises(ConfigError, match="selector: expected one of"):
        select(model, batches, loaded.config, token_loss)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registered")
def test_registration_refuses_what_would_mislead() -> None:
    def score(chunk: Chunk) -> Tensor:
        return chunk.weight

    with pytest.raises(ConfigError, match="selector: expected a new name, found 'gallop'"):
        gallop.selector("gallop")(score)
    with pytest.raises(ConfigError, match="expected gradient to be one of"):
        gallop.selector("new", gradient="median")  # type: ignore[arg-type]
    gallop.selector("new")(score)
    gallop.selector("new")(score)  # the cell runs again
    model = tiny_model()
    with pytest.raises(SelectionError, match="finite scores, at least 0, found -"):
        select(model, token_batches(1), GallopConfig(0.1, selector="new"), token_loss)

    @gallop.selector("wrong", gradient="none")
    def wrong(chunk: Chunk) -> Tensor:
        return chunk.weight.sum()

    with pytest.raises(SelectionError, match="selector wrong: expected float32 scores of shape"):
        select(model, None, GallopConfig(0.1, selector="wrong"))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="selector: expected one of gallop, saft") as caught:
        GallopConfig(0.1, selector="magnitud-low")
    assert "'magnitude-low'" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="allocation: expected one of") as caught:
        GallopConfig(0.1, threshold_scope="per_tensor", allocation="entropi")
    assert "'entropy'" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="include: expected one of @embeddings") as caught:
        GallopConfig(0.1, include=("@linears",))
    assert "'@linear'" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="allocation: expected none in global scope"):
        GallopConfig(0.1, allocation="entropy")
