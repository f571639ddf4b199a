"""What a report says, against naive counts; its file; its text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from dense_selection import dense_choice, dense_gradients, dense_scores
from tiny_llama import tiny_llama
from tiny_models import tiny_model, token_batches, token_loss
from torch import nn

from gallop import GallopConfig, SelectionReport, select
from gallop.report_text import report_lines


def report_of(config: GallopConfig, model: nn.Module | None = None) -> SelectionReport:
    model = tiny_model() if model is None else model
    report = select(model, token_batches(2, size=1), config, token_loss).report
    assert report is not None
    return report


@pytest.mark.parametrize("memory", ["resident", "grouped"])
@pytest.mark.parametrize("scope", ["global", "per_tensor"])
@pytest.mark.parametrize("selector", ["gallop", "snip", "fisher"])
def test_overlap_is_exact(selector: str, scope: str, memory: str) -> None:
    """Law: the sets that a mask is compared with are those of a stable sort, of its size."""
    model, batches = tiny_model(), token_batches(2, size=1)
    config = GallopConfig(0.05, selector=selector, threshold_scope=scope)  # type: ignore[arg-type]
    mask = select(model, batches, config, token_loss, memory=memory, memory_budget=1)  # type: ignore[arg-type]
    gradients = dense_gradients(model, batches, token_loss)
    strong = dense_scores(model, gradients, "fisher" if selector == "fisher" else "saft")
    weights = {n: p.detach().flatten().abs() for n, p in model.named_parameters()}
    barred = {n: (w == 0) & bool(config.exclude_zeros) for n, w in weights.items()}
    chosen = {n: torch.zeros(len(w), dtype=torch.bool) for n, w in weights.items()}
    for name, indices in mask.items():
        chosen[name][torch.from_numpy(indices.copy())] = True
    # A gradient of 0 is the last of all, and may still be needed to fill the set.
    filled = {n: torch.where(s > 0, s, 1e-45) for n, s in strong.items()}
    groups = [[n] for n in weights] if scope == "per_tensor" else [list(weights)]
    low: dict[str, torch.Tensor] = {}
    high: dict[str, torch.Tensor] = {}
    for group in groups:
        k = sum(int(chosen[n].sum()) for n in group)
        for found, source, smallest in ((low, weights, True), (high, filled, False)):
            sets = dense_choice(
                [source[n] for n in group], k, barred=[barred[n] for n in group], smallest=smallest
            )
            found.update(zip(group, sets, strict=True))

    def shared(*sets: dict[str, torch.Tensor]) -> int:
        return sum(int(torch.stack([each[n] for each in sets]).all(0).sum()) for n in weights)

    assert mask.report is not None
    overlap = mask.report.overlap
    assert overlap is not None
    assert overlap.size == mask.nnz == shared(low) == shared(high)
    assert overlap.low_weight == shared(chosen, low)
    assert overlap.high_gradient == shared(chosen, high)
    assert overlap.both == shared(low, high)
    assert overlap.all_three == shared(chosen, low, high)
    union = 2 * overlap.size - overlap.low_weight
    assert overlap.jaccard(overlap.low_weight) == overlap.low_weight / union


def test_the_histogram_counts_every_score() -> None:
    model, batches = tiny_model(), token_batches(2, size=1)
    for selector in ("gallop", "magnitude-low"):
        config = GallopConfig(0.05, selector=selector)
        report = report_of(config, model)
        scores = torch.cat(
            list(
                dense_scores(model, dense_gradients(model, batches, token_loss), selector).values()
            )
        ).numpy()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
        scores = np.where((weights == 0) & bool(config.exclude_zeros), 0, scores)
        exponents = np.floor(np.log2(scores[scores > 0].astype(np.float64))).astype(int)
        expected = {"zero": int((scores == 0).sum())} | {
            str(e): int(n) for e, n in zip(*np.unique(exponents, return_counts=True), strict=True)
        }
        assert report.histogram == {k: v for k, v in expected.items() if v}
        assert sum(report.histogram.values()) == report.eligible


def test_shares_per_kind_and_layer_add_up() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    report = select(tiny_llama(), [{"input_ids": ids, "labels": ids}], GallopConfig(0.05)).report
    assert report is not None
    for shares in (report.by_kind(), report.by_layer()):
        assert sum(share.chosen for share in shares.values()) == report.k
        assert sum(share.eligible for share in shares.values()) == report.eligible
        assert sum(share.tensors for share in shares.values()) == len(report.tensors)
    layers = report.by_layer()
    assert list(layers)[:2] == ["model.embed_tokens", "model.layers.0"]
    assert layers["model.layers.0"].tensors == 9
    assert layers["model.layers.0"].density == (
        layers["model.layers.0"].chosen / layers["model.layers.0"].eligible
    )


def test_a_sampled_threshold_tells_how_far_off_it_may_be() -> None:
    exact = report_of(GallopConfig(0.05))
    assert exact.sampling is None
    config = GallopConfig(0.05, threshold_scope="sampled_global", sample_size=500)
    report = report_of(config)
    assert report.sampling is not None
    assert (report.sampling.size, report.sampling.rank) == (500, 25)
    low, high = report.sampling.density_low, report.sampling.density_high
    assert 0.02 < low < 0.05 < high < 0.09
    assert low <= report.density <= high
    assert report.k != exact.k
    other = GallopConfig(0.05, threshold_scope="sampled_global", sample_size=500, seed=1)
    assert report_of(other).threshold != report.threshold
    whole = report_of(GallopConfig(0.05, threshold_scope="sampled_global"))
    assert (whole.k, whole.threshold, whole.ties) == (exact.k, exact.threshold, exact.ties)


@pytest.mark.parametrize("scope", ["global", "per_tensor", "sampled_global"])
def test_a_report_survives_json(scope: str) -> None:
    report = report_of(GallopConfig(0.05, threshold_scope=scope, sample_size=900))  # type: ignore[arg-type]
    document = json.loads(json.dumps(report.to_dict()))
    assert SelectionReport.from_dict(document) == report
    assert {"seconds", "memory"}.isdisjoint(document)
    for spoiled in (
        document | {"colour": "red"},
        document | {"overlap": {"size": 3}},
        {key: value for key, value in document.items() if key != "k"},
    ):
        with pytest.raises(TypeError):
            SelectionReport.from_dict(spoiled)


def test_the_text_shows_what_reviewers_ask_for() -> None:
    report = report_of(GallopConfig(0.05, threshold_scope="sampled_global", sample_size=900))
    text = "\n".join(report_lines(report))
    assert f"{report.k:,} of {report.eligible:,}" in text
    assert "lowest |w| and highest |g|" in text
    assert "with 99% confidence" in text
    assert "convolution" in text
    assert "0, or barred" in text
    few = report_lines(report, layers=2)
    assert "layer (3 less dense ones left out)" in "\n".join(few)
    assert all(len(line) <= 100 for line in few)
    data_free = select(tiny_model(), None, GallopConfig(0.05, selector="random")).report
    assert data_free is not None
    assert "highest |g|" not in "\n".join(report_lines(data_free))
