"""Compiled models: blocks train in both engines, whole models warn."""

from __future__ import annotations

import logging

import pytest
import torch
from engine_models import square_loss, train_by_hooks, vectors
from tiny_models import same_bits
from torch import nn

from gallop import GallopConfig, Mask, SparseAdamW, SparseValues, select


def blocks() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2)))


def test_compiled_blocks_train_under_the_names_of_the_checkpoint() -> None:
    """Law: compiled one by one, blocks give the weights of the plain model (backend eager)."""
    model, twin = blocks(), blocks()
    batches = vectors(3)
    for index in range(2):  # one way of compiling a block changes names, the other does not
        model[index] = torch.compile(model[index], backend="eager")  # type: ignore[assignment]
    assert "0._orig_mod.0.weight" in dict(model.named_parameters())
    mask = select(model, batches, GallopConfig(0.3), square_loss)
    assert set(mask) <= {name for name, _ in twin.named_parameters()}
    train_by_hooks(twin, mask, batches, square_loss, accumulate=1, lr=3e-3)
    with SparseValues(model, mask) as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, foreach=False)
        for batch in batches:
            square_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert same_bits(parameter.detach(), expected.detach())


def test_models_compiled_whole_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    mask = Mask({"0.0.weight": [1]}, {"0.0.weight": (6, 6)})
    by_block, wrapped, in_place = blocks(), torch.compile(blocks(), backend="eager"), blocks()
    by_block[0].compile(backend="eager")
    in_place.compile(backend="eager")
    with caplog.at_level(logging.WARNING, "gallop"):
        for model in (by_block, wrapped, wrapped, in_place, in_place):
            for engine in (SparseAdamW, SparseValues):
                engine(model, mask).close()  # type: ignore[arg-type]
    said = [record for record in caplog.records if record.name == "gallop"]
    assert [record.levelname for record in said] == ["WARNING", "WARNING"]
    assert "dense gradients of all" in said[0].getMessage()
