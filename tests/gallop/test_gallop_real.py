"""The same laws on real pretrained weights: all-MiniLM-L6-v2, 22.7 million parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from real_packages import minilm
from tiny_models import same_bits
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import gallop
from gallop import GallopConfig, SparseAdamW, select
from gallop.scores import score
from sparsedelta import apply
from sparsedelta.checkpoint import FileCheckpoint

pytestmark = pytest.mark.real
PAIRS = [
    ("A man is playing a guitar.", "Someone plays an instrument."),
    ("The market fell sharply today.", "Stocks dropped."),
    ("She baked a chocolate cake.", "A dessert was made."),
]


def pair_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Half a point of cosine too few between the two sentences of a pair, in the mean."""
    hidden = model(**batch).last_hidden_state
    seen = batch["attention_mask"].unsqueeze(-1)
    left, right = ((hidden * seen).sum(1) / seen.sum(1)).chunk(2)
    return 1 - torch.cosine_similarity(left, right).mean()


def test_select_train_export_apply_on_minilm(tmp_path: Path) -> None:
    folder = minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batches = [
        dict(tokenizer([left, right], padding=True, return_tensors="pt")) for left, right in PAIRS
    ]
    base = {name: value.clone() for name, value in model.state_dict().items()}
    mask = select(model, batches, GallopConfig(0.01), pair_loss)
    assert mask.report is not None
    assert mask.nnz == mask.report.requested == sum(p.numel() for p in model.parameters()) // 100

    gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        pair_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] += parameter.grad
                parameter.grad = None
    scores = {n: score(gradients[n] / 3, p.detach(), 1e-8) for n, p in model.named_parameters()}
    flat = torch.cat([s.masked_fill(base[n] == 0, 0).flatten() for n, s in scores.items()])
    assert mask.report.threshold == float(torch.topk(flat, mask.nnz).values[-1])
    for name, found in mask.items():
        inside = scores[name].flatten()[torch.from_numpy(np.array(found))]
        assert bool((inside >= mask.report.threshold).all())

    before = sum(float(pair_loss(model, batch).detach()) for batch in batches)
    with SparseAdamW(model, mask, lr=1e-4, max_grad_norm=1.0) as optimizer:
        for batch in batches:
            pair_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert sum(float(pair_loss(model, batch).detach()) for batch in batches) < before

    report = gallop.export(model, mask, base=folder, out=tmp_path / "d")
    assert 0.9 * mask.nnz < report.moved <= mask.nnz
    apply(folder, tmp_path / "d", tmp_path / "tuned")
    live = model.state_dict()
    with FileCheckpoint(tmp_path / "tuned") as tuned:
        for name, spec in tuned.specs.items():
            if name in live:
                stored = torch.from_numpy(tuned.read(name, 0, spec.words)).view(live[name].dtype)
                assert same_bits(stored.view(live[name].shape), live[name]), name
