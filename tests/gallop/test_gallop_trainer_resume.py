"""Checkpoints of a Trainer that gallop is attached to: interrupted, resumed, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from forked_scripts import Forked
from tiny_models import weights_of
from trainer_cases import CONFIG, WAYS, logged, make_trainer, same_weights, saving, write_base

import gallop.trainer_start
from gallop import GallopConfig, Mask, attach
from gallop.errors import MaskError, OptimizerError
from gallop.trainer_checkpoints import MASK_FILE
from sparsedelta import diff

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "sampled": torch.bfloat16}


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and delta are those of a run that was never killed; nothing is selected again."""
    for name, dtype in DTYPES.items():
        write_base(tmp_path / name / "base", dtype=dtype, dropout=0.2)
    training = Forked(HERE / "killed_training.py", tmp_path)
    _, err = training.communicate()
    assert training.returncode == 0, err
    for name in DTYPES:
        folder = tmp_path / name
        whole = make_trainer(folder / "base", folder / "whole", **saving())
        way: dict[str, Any] = {"selection_samples": 8, **WAYS[name]}
        first = attach(whole, CONFIG, out=folder / "whole.delta", **way)
        whole.train()

        assert [each.name for each in folder.glob("killed/checkpoint-*")] == ["checkpoint-3"]
        resumed = make_trainer(folder / "base", folder / "killed", **saving())
        second = attach(resumed, CONFIG, out=folder / "resumed.delta", **way)
        with monkeypatch.context() as patch:
            patch.delattr(gallop.trainer_start, "select_with_trainer")
            resumed.train(resume_from_checkpoint=True)
        assert second.mask == first.mask
        assert same_weights(weights_of(whole.model), weights_of(resumed.model))
        assert logged(whole, "grad_norm") == logged(resumed, "grad_norm")
        assert (folder / "whole.delta").read_bytes() == (folder / "resumed.delta").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a checkpoint of a run over it."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(write_base(folder / "base"), folder / "out", **saving())
    attach(trainer, CONFIG, selection_samples=8)
    trainer.train()
    return folder


Change = Callable[[Path], None]


def without_mask(checkpoint: Path) -> None:
    """As if written without gallop."""
    (checkpoint / MASK_FILE).unlink()


def without_state(checkpoint: Path) -> None:
    """As with save_only_model."""
    (checkpoint / "optimizer.pt").unlink()


def smaller(mask: Mask) -> Mask:
    """A mask with the last entry of each tensor missing."""
    return Mask({n: i[:-1] for n, i in mask.items()}, mask.shapes, config=CONFIG)


def with_another_mask(checkpoint: Path) -> None:
    """A mask that is not that of the optimizer's state."""
    smaller(Mask.load(checkpoint / MASK_FILE)).save(checkpoint / MASK_FILE)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (without_mask, MaskError, "gallop.mask beside the weights"),
        (without_state, OptimizerError, "no optimizer.pt"),
        (with_another_mask, OptimizerError, "entries of another"),
    ],
)
def test_checkpoints_that_do_not_fit(
    finished: Path, tmp_path: Path, change: Change, error: type[Exception], named: str
) -> None:
    checkpoint = copytree(finished / "out" / "checkpoint-3", tmp_path / "checkpoint-3")
    change(checkpoint)
    trainer = make_trainer(finished / "base", tmp_path / "out", **saving())
    attach(trainer, CONFIG)
    with pytest.raises(error, match=named):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_another_run_is_not_resumed(finished: Path, tmp_path: Path) -> None:
    checkpoint = str(finished / "out" / "checkpoint-3")
    trainer = make_trainer(finished / "base", tmp_path / "out", **saving())
    attach(trainer, GallopConfig(0.1))
    with pytest.raises(MaskError, match="chosen with"):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer = make_trainer(finished / "base", tmp_path / "out", **saving())
    attach(trainer, mask=smaller(Mask.load(Path(checkpoint) / MASK_FILE)))
    with pytest.raises(MaskError, match="of this run"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_mask_given_as_a_file_is_resumed_with(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "out" / "checkpoint-3"
    trainer = make_trainer(finished / "base", tmp_path / "out", **saving())
    attach(trainer, mask=checkpoint / MASK_FILE)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    last = make_trainer(finished / "out" / "checkpoint-8", tmp_path / "out")
    assert same_weights(weights_of(trainer.model), weights_of(last.model))


def test_clipping_follows_the_arguments_of_the_resumed_run(finished: Path, tmp_path: Path) -> None:
    """As without gallop: the state of an optimizer does not bring clipping along."""
    norms = []
    for clip in (0.2, 0.01):
        trainer = make_trainer(
            finished / "base", tmp_path / "out", **saving() | {"max_grad_norm": clip}
        )
        attachment = attach(trainer, CONFIG)
        trainer.train(resume_from_checkpoint=str(finished / "out" / "checkpoint-3"))
        assert attachment.optimizer is not None
        norms.append(attachment.optimizer.param_groups[0]["max_grad_norm"])
    assert norms == [0.2, 0.01]


def test_checkpoints_of_weights_alone(finished: Path, tmp_path: Path) -> None:
    """They hold the mask, and a delta to the base can still be made of them."""
    changes: dict[str, Any] = saving() | {"save_only_model": True, "save_total_limit": 1}
    trainer = make_trainer(finished / "base", tmp_path / "out", **changes)
    attachment = attach(trainer, CONFIG, selection_samples=8)
    trainer.train()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert Mask.load(checkpoint / MASK_FILE) == attachment.mask
    # One safetensors file in the folder: it still is a checkpoint.
    report = diff(finished / "base", checkpoint, tmp_path / "d")
    assert attachment.mask is not None
    assert 0 < report.manifest.nnz <= attachment.mask.nnz
