"""Selection: weights of batches, scopes, zeros, what it leaves behind, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dense_reference import dense_mask
from tiny_models import (
    TokenBatch,
    same_bits,
    tiny_model,
    token_batches,
    token_loss,
    weights_of,
)
from torch import Tensor, nn

from gallop import GallopConfig, SparseAdamW, select
from gallop.errors import ParameterError, SelectionError
from gallop.report import SelectionReport
from gallop.scores import ScoredTensor
from gallop.weighing import measure_batch

CONFIG = GallopConfig(0.05)


def report_of(model: nn.Module, config: GallopConfig, batches: Any = None) -> SelectionReport:  # noqa: ANN401
    report = select(model, batches or token_batches(2), config, token_loss).report
    assert report is not None
    return report


class Line(nn.Module):
    """Weights whose gradient under :func:`dot` is the batch itself."""

    def __init__(self, weights: list[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=dtype))


def dot(model: nn.Module, batch: Tensor) -> Tensor:
    assert isinstance(model, Line)
    return (model.weight * batch.mean(0)).sum()


def test_score_is_gradient_over_weight() -> None:
    model = Line([1.0, -10.0, 0.1, 100.0])
    mask = select(model, [torch.tensor([[3.0, -40.0, 0.2, 90.0]])], GallopConfig(0.5), dot)
    assert mask["weight"].tolist() == [0, 1]  # scores 3, 4, 2, 0.9
    assert mask.report is not None
    assert mask.report.threshold == pytest.approx(3.0)


def test_gradients_are_averaged_with_their_sign() -> None:
    model = Line([1.0, 1.0])
    batches = [torch.tensor([[9.0, 1.0]]), torch.tensor([[-9.0, 1.0]])]
    assert select(model, batches, GallopConfig(0.5), dot)["weight"].tolist() == [1]


def test_a_batch_counts_by_its_samples_or_as_told() -> None:
    model = Line([1.0, 1.0])
    batches = [torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 4.0]] * 3)]
    mask = select(model, batches, GallopConfig(0.5), dot)
    assert mask["weight"].tolist() == [1]
    assert mask.report is not None
    assert mask.report.threshold == pytest.approx(3.0)  # (0 * 1 + 4 * 3) / 4
    assert mask.report.loss == pytest.approx(4.25)  # (5 * 1 + 4 * 3) / 4
    equal = select(model, batches, GallopConfig(0.5), dot, weigh=lambda _: 1.0)
    assert equal["weight"].tolist() == [0]


def test_token_mean_counts_supervised_tokens() -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return dot(model, batch["gradient"])

    labels = torch.tensor([[1, 2, -100, -100, -100]])  # one label is predicted
    more = torch.tensor([[-100, 2, 3, 4, -100]])  # three
    batches = [
        {"labels": labels, "gradient": torch.tensor([[5.0, 0.0]])},
        {"labels": more, "gradient": torch.tensor([[0.0, 4.0]])},
    ]
    model = Line([1.0, 1.0])
    by_token = select(model, batches, GallopConfig(0.5, gradient_mean="token"), loss)
    by_sample = select(model, batches, GallopConfig(0.5), loss)
    assert (by_token["weight"].tolist(), by_sample["weight"].tolist()) == ([1], [0])
    assert by_token.report is not None
    assert (by_token.report.samples, by_token.report.tokens) == (2, 4)


def test_batch_sizes_are_read_off_tensors() -> None:
    rows = torch.zeros(3, 2)
    for batch in (rows, (rows, 1), [None, rows], {"x": 1, "y": rows}, ((rows,), 0), rows.numpy()):
        assert measure_batch(batch).samples == 3
    assert measure_batch({"x": torch.zeros(5), "input_ids": rows}).samples == 3
    assert measure_batch({"input_ids": torch.zeros(5), "labels": rows.long()}).samples == 3
    assert measure_batch("text").samples is None
    assert measure_batch({"labels": rows}).tokens is None  # not integers
    assert measure_batch({"labels": torch.tensor([1, -100, 2])}).tokens == 2  # one per sample
    with pytest.raises(SelectionError, match="at least one sample"):
        measure_batch(torch.zeros(0, 2))


def test_per_tensor_scope_ranks_each_tensor() -> None:
    """Law: in per_tensor scope each tensor holds its own budget of its own largest scores."""
    config = GallopConfig(0.1, threshold_scope="per_tensor")
    model, batches = tiny_model(), token_batches(2)
    mask = select(model, batches, config, token_loss)
    report = report_of(tiny_model(), config)
    assert report.threshold is None
    for name, parameter in model.named_parameters():
        for other, each in model.named_parameters():
            each.requires_grad_(other == name)
        k = config.budget(parameter.numel())
        alone = dense_mask(model, batches, token_loss, k=k)[name]
        np.testing.assert_array_equal(mask.get(name, []), np.flatnonzero(alone))
        assert report.tensors[name].chosen == int(alone.sum())
        assert report.tensors[name].eligible == parameter.numel()


def test_report_counts_add_up() -> None:
    model = tiny_model(torch.bfloat16)
    report = report_of(model, CONFIG)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert report.eligible == sum(sizes.values())  # the tied head once
    assert report.k == report.requested == CONFIG.budget(report.eligible)
    assert sum(row.chosen for row in report.tensors.values()) == report.k
    assert {name: row.eligible for name, row in report.tensors.items()} == sizes
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert report.zeros == report.zeros_excluded == zeros > 0
    assert 1 <= report.ties_taken <= report.ties
    assert (report.samples, report.tokens, report.batches) == (4, None, 2)
    assert report.seconds is not None
    assert report.seconds > 0


def test_zero_share_is_what_including_them_gives() -> None:
    """Law: the share foretold with zeros excluded is the share found with zeros included."""
    foretold = report_of(tiny_model(), CONFIG)
    mask = select(
        tiny_model(), token_batches(2), GallopConfig(0.05, exclude_zeros=False), token_loss
    )
    assert mask.report is not None
    parameters = dict(tiny_model().named_parameters())
    zeros = sum(
        int((parameters[n].detach().flatten()[torch.tensor(i)] == 0).sum()) for n, i in mask.items()
    )
    assert 0 < foretold.zero_share == mask.report.zero_share == zeros / mask.nnz
    assert mask.report.zeros_excluded == 0


def test_no_zero_weight_is_chosen_by_default() -> None:
    model = Line([0.0, -0.0, 1.0, 2.0])
    mask = select(model, [torch.ones(1, 4)], GallopConfig(1.0), dot)
    assert mask["weight"].tolist() == [2, 3]
    assert mask.report is not None
    assert (mask.report.k, mask.report.requested, mask.report.zeros) == (2, 4, 2)
    assert mask.report.zero_share == 0.5


def test_entries_without_a_pull_are_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    mask = select(Line([1.0, 1.0, 1.0]), [torch.tensor([[0.0, 2.0, 0.0]])], GallopConfig(1.0), dot)
    assert mask["weight"].tolist() == [1]
    assert "3 entries, but only 1" in caplog.text
    with pytest.raises(SelectionError, match="expected positive scores, found none"):
        select(Line([1.0]), [torch.zeros(1, 1)], GallopConfig(1.0), dot)


def test_patterns_and_frozen_parameters_limit_what_is_eligible() -> None:
    model = tiny_model()
    model.mix.weight.requires_grad_(False)
    config = GallopConfig(0.5, include=("*.weight",), exclude=("norm.*", "head.*"))
    report = report_of(model, config)
    # head.weight is another name of the embedding, so that its pattern covers both.
    assert list(report.tensors) == ["up.weight", "down.weight"]
    assert not model.mix.weight.requires_grad
    with pytest.raises(SelectionError, match="no eligible parameter"):
        report_of(model, GallopConfig(0.5, include=("nothing",)))


class Normed(nn.Module):
    """Dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
        out: Tensor = self.out(self.drop(self.norm(x)))
        return out


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_are_left_as_found(*, fails: bool) -> None:
    model = Normed().train()
    model.drop.eval()
    model.drop.train()
    model.norm.eval()
    model.norm.train()
    model.out.bias.requires_grad_(False)
    kept = torch.ones(2, 4)
    model.out.weight.grad = kept
    before = weights_of(model)
    torch.manual_seed(7)
    random.seed(7)
    expected = (torch.rand(3), random.random())  # noqa: S311
    torch.manual_seed(7)
    random.seed(7)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if fails:
            squared(model, batch).backward()  # type: ignore[no-untyped-call]
            raise RuntimeError("boom")
        return squared(model, batch)

    batches = [torch.arange(20.0).view(5, 4)]
    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            select(model, batches, CONFIG, loss)
    else:
        select(model, batches, CONFIG, loss)

    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]  # noqa: S311
    assert all(same_bits(value, before[name]) for name, value in weights_of(model).items())
    assert model.training
    assert model.norm.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert model.out.weight.grad is kept
    assert model.norm.weight.grad is None
    squared(model, batches[0]).backward()  # type: ignore[no-untyped-call]
    assert model.norm.weight.grad is not None  # no hook is left to free it


def test_dropout_follows_the_seed_alone() -> None:
    model, batches = tiny_model().train(), token_batches(2)
    masks = []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(state)
        masks.append(select(model, batches, GallopConfig(0.05, seed=seed), token_loss))
    assert masks[0] == masks[1] != masks[2]


def test_batches_are_drawn_from_the_callers_generator() -> None:
    def drawn() -> Iterator[Tensor]:
        for _ in range(2):
            yield torch.rand(1, 3)

    seen = []
    for seed in (0, 5):
        torch.manual_seed(3)
        report = report_of_line(drawn(), seed)
        seen.append(report.threshold)
    assert seen[0] == seen[1]


def report_of_line(batches: Iterator[Tensor], seed: int) -> SelectionReport:
    report = select(Line([1.0, 2.0, 3.0]), batches, GallopConfig(0.5, seed=seed), dot).report
    assert report is not None
    return report


def test_works_under_no_grad_and_without_labels() -> None:
    with torch.no_grad():
        assert select(tiny_model(), iter(token_batches(1)), CONFIG, token_loss).nnz


def test_the_default_loss_is_the_models_own() -> None:
    class Output(Line):
        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=dot(self, x))

    model = Output([1.0, 2.0])
    mask = select(model, [{"x": torch.ones(1, 2)}], GallopConfig(0.5))
    assert mask["weight"].tolist() == [0]
    with pytest.raises(SelectionError, match="expected a mapping"):
        select(model, [torch.ones(1, 2)], GallopConfig(0.5))


def embedding_loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.sum()


def shared_memory() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(model.get_parameter("0.weight").data)
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: nn.Linear(2, 2).double(), "weight: expected dtype .* found float64"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "weight: expected dtype .* complex64"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight: expected weights in memory"),
        (lambda: nn.LazyLinear(2), "weight: expected weights in memory"),
        (
            lambda: nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            "weight: expected contiguous memory",
        ),
        (lambda: nn.Embedding(4, 2, sparse=True), "weight: expected a dense gradient"),
        (shared_memory, "0.weight and 1.weight: expected separate memory"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "expected a plain module"),
    ],
)
def test_unsupported_parameters_are_refused_by_name(
    build: Callable[[], nn.Module], says: str
) -> None:
    model = build()
    batch = torch.tensor([[1, 2]])
    with pytest.raises(ParameterError, match=says):
        select(model, [batch], CONFIG, embedding_loss)
    assert all(p.grad is None for p in model.parameters())


def test_a_non_finite_gradient_is_named() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, Line)
        return dot(model, batch) + (model.weight[1] - 1).sqrt()  # 0, with an infinite slope

    with pytest.raises(SelectionError, match=r"parameter weight: .* 1 of 2 entries"):
        select(Line([2.0, 1.0]), [torch.ones(1, 2)], CONFIG, loss)


def test_an_infinite_score_is_named() -> None:
    model, batch = Line([1.0, 0.0]), torch.tensor([[1.0, 3e31]])
    with pytest.raises(SelectionError, match=r"parameter weight: expected finite scores.*index 1"):
        select(model, [batch], GallopConfig(0.5, exclude_zeros=False), dot)
    mask = select(model, [batch], GallopConfig(0.5), dot)
    assert mask["weight"].tolist() == [0]
    assert mask.report is not None
    assert mask.report.zero_share == 1.0


def test_score_errors_name_the_index_in_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallop.scores.CHUNK", 2)
    gradient = torch.tensor([1.0, 1.0, 1.0, 3e31])
    tensor = ScoredTensor("w", torch.zeros(4), gradient, 1e-8)
    with pytest.raises(SelectionError, match="index 3"):
        list(tensor.chunks(zeros="require_finite"))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda m, _: m.weight.sum() * float("nan"), "batch 2: expected a finite loss"),
        (lambda m, _: m.weight * 2, r"batch 2: expected a scalar loss tensor, found \(2,\)"),
        (lambda _m, _b: 0.5, "batch 2: expected a scalar loss tensor, found float"),
        (lambda _m, _b: torch.tensor(0.5), "batch 2: expected a loss that depends"),
    ],
)
def test_a_bad_loss_names_its_batch(loss: Callable[[Any, Any], Any], says: str) -> None:
    calls = []

    def second_is_bad(model: nn.Module, batch: Tensor) -> Any:  # noqa: ANN401
        calls.append(batch)
        return dot(model, batch) if len(calls) == 1 else loss(model, batch)

    with pytest.raises(SelectionError, match=says):
        select(Line([1.0, 2.0]), [torch.ones(1, 2)] * 2, CONFIG, second_is_bad)


def test_batches_without_a_tensor_count_the_same() -> None:
    """Any iterable of batches works; what cannot be compared is not mixed."""
    model = Line([1.0, 1.0, 1.0, 1.0])
    rows = {"a": torch.tensor([[4.0, 1.0, 2.0, 3.0]]), "b": torch.tensor([[1.0, 0.0, 9.0, 3.0]])}

    def loss(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        return dot(model, rows[batch] if isinstance(batch, str) else batch)

    config = GallopConfig(0.5)
    named, tensors = select(model, "ab", config, loss), select(model, rows.values(), config, loss)
    assert [named[n].tolist() for n in named] == [tensors[n].tolist() for n in tensors]
    with pytest.raises(SelectionError, match=r"batch 2: .*both kinds") as caught:
        select(model, ["a", rows["b"]], config, loss)
    assert "weigh=" in str(caught.value.hint)


def test_a_batch_that_does_not_tell_what_is_needed_is_refused() -> None:
    model = Line([1.0])

    def loss(model: nn.Module, _: object) -> Tensor:
        return dot(model, torch.ones(1, 1))

    with pytest.raises(SelectionError, match=r"batch 1: .*integer labels") as caught:
        select(model, [torch.ones(1, 1)], GallopConfig(0.5, gradient_mean="token"), loss)
    assert "weigh=" in str(caught.value.hint)
    with pytest.raises(SelectionError, match="at least one batch"):
        select(model, [], CONFIG, loss)
    with pytest.raises(SelectionError, match="positive sample count, found 0"):
        select(model, ["text"], CONFIG, loss, weigh=lambda _: 0)
    assert select(model, ["text"], CONFIG, loss, weigh=lambda _: 2).nnz == 1


def test_selection_is_refused_under_an_open_optimizer() -> None:
    model, batches = tiny_model(), token_batches(1)
    mask = select(model, batches, CONFIG, token_loss)
    with SparseAdamW(model, mask), pytest.raises(ParameterError, match="no other tap"):
        select(model, batches, GallopConfig(0.01, include=(next(iter(mask)),)), token_loss)
    assert select(model, batches, CONFIG, token_loss) == mask


def test_progress_is_told_of_each_batch() -> None:
    seen: list[int] = []
    batches: list[TokenBatch] = token_batches(3)
    select(tiny_model(), batches, CONFIG, token_loss, on_batch=lambda n, _: seen.append(n))
    assert seen == [1, 2, 3]
