"""``attach(..., engine="autograd")``: the trainer's own optimizer on the chosen values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import weights_of
from trainer_cases import CONFIG, logged, make_trainer, same_weights, saving, write_base

from gallop import attach
from gallop.errors import ConfigError, OptimizerError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.2])
def test_it_equals_the_hook_engine_bit_for_bit(
    base: Path, tmp_path: Path, max_grad_norm: float
) -> None:
    """Weights and logged norms, with decay, accumulation and clipping or without."""
    found = []
    for engine in ("hook", "autograd"):
        trainer = make_trainer(
            base,
            tmp_path,
            max_grad_norm=max_grad_norm,
            gradient_accumulation_steps=2,
            weight_decay=0.1,
            optim="adamw_torch",
        )
        attach(trainer, CONFIG, engine=engine, selection_samples=8)
        trainer.train()
        found.append((weights_of(trainer.model), logged(trainer, "grad_norm")))
    assert same_weights(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_its_checkpoints_hold_the_values(tmp_path: Path) -> None:
    """bfloat16 weights are rounded: going on from them alone would be another run."""
    base = write_base(tmp_path / "base", dtype=torch.bfloat16, dropout=0.2)
    changes: dict[str, Any] = saving() | {"optim": "adamw_torch"}
    whole = make_trainer(base, tmp_path / "out", **changes)
    attach(whole, CONFIG, engine="autograd", selection_samples=8, out=tmp_path / "whole")
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    resumed = make_trainer(base, tmp_path / "other", **changes)
    attach(resumed, CONFIG, engine="autograd", out=tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same_weights(weights_of(whole.model), weights_of(resumed.model))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()

    hook = make_trainer(base, tmp_path / "other", **changes)
    attach(hook, CONFIG)
    with pytest.raises((OptimizerError, ValueError)):
        hook.train(resume_from_checkpoint=str(checkpoint))
    other = make_trainer(base, tmp_path / "other", **changes)
    attach(other, CONFIG, engine="autograd", gradient="sampled")
    with pytest.raises(OptimizerError, match="expected values trained with gradient='sampled'"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "gallop.values.pt").unlink()
    other = make_trainer(base, tmp_path / "other", **changes)
    attach(other, CONFIG, engine="autograd")
    with pytest.raises(OptimizerError, match="engine"):
        other.train(resume_from_checkpoint=str(checkpoint))


def test_any_optimizer_that_works_entry_by_entry(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, optim="sgd")
    attachment = attach(trainer, CONFIG, engine="autograd", selection_samples=8)
    before = weights_of(trainer.model)
    trainer.train()
    assert type(attachment.optimizer) is torch.optim.SGD
    assert not same_weights(before, weights_of(trainer.model))
    assert all(p.requires_grad for p in trainer.model.parameters())
    for name in ("galore_adamw", "lomo", "schedule_free_adamw"):
        trainer = make_trainer(base, tmp_path, optim=name)
        with pytest.raises(ConfigError, match=name):
            attach(trainer, CONFIG, engine="autograd")


def test_what_it_cannot_do(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    with pytest.raises(ConfigError, match="weight_decay_mode"):
        attach(trainer, CONFIG, engine="autograd", weight_decay_mode="delta")
    with pytest.raises(ConfigError, match="engine"):
        attach(trainer, CONFIG, engine="magic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected dense with engine hook"):
        attach(trainer, CONFIG, gradient="sampled")


def test_sampled_gradients_train_in_it(base: Path, tmp_path: Path) -> None:
    """Norms are those of dense gradients up to rounding, and the delta says how it was made."""
    found, exported = {}, {}
    for gradient in ("dense", "sampled"):
        trainer = make_trainer(base, tmp_path, optim="adamw_torch", gradient_accumulation_steps=2)
        out = tmp_path / f"{gradient}.delta"
        way: dict[str, Any] = {"engine": "autograd", "gradient": gradient}
        attachment = attach(trainer, CONFIG, selection_samples=8, out=out, **way)
        trainer.train()
        found[gradient] = logged(trainer, "grad_norm")
        assert attachment.exported is not None
        exported[gradient] = attachment.exported.diff.manifest.metadata["gallop.training.gradient"]
    assert exported == {"dense": "dense", "sampled": "sampled"}
    assert found["sampled"] == pytest.approx(found["dense"], rel=1e-4)
