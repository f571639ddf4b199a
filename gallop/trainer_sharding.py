"""Checkpoints of a trainer whose model is sharded: what the optimizer holds, as each rank has it.

The trainer would gather the optimizer's state through torch, which takes the slices of a rank for
copies of one whole. It is saved by name and flat index instead (``gallop.sharded_state``), for any
number of processes to go on with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from gallop.optim import SparseAdamW
from gallop.sharded_state import load_state, save_state

__all__ = ["STATE_FOLDER", "load_checkpoint", "placeholder", "replace_optimizer", "save_checkpoint"]

STATE_FOLDER = "gallop.state"

_SCHEDULER = "scheduler.pt"


def placeholder(model: nn.Module) -> Optimizer:
    """Make an optimizer that never steps.

    Accelerate wants to shard a model and its optimizer together, but what is to be trained can be
    chosen and tapped only when there are shards.

    Args:
        model: The model, not sharded yet.
    """
    return SGD(list(model.parameters()), lr=0.0)


def replace_optimizer(trainer: Any, optimizer: Optimizer) -> None:  # noqa: ANN401  (comes without types)
    """Put the optimizer of a sharded model in the place of its placeholder.

    Args:
        trainer: A ``transformers.Trainer`` whose model has been prepared.
        optimizer: The optimizer.
    """
    prepared = trainer.accelerator._optimizers  # noqa: SLF001  (there is no public way)
    prepared[:] = [each for each in prepared if each is not trainer.optimizer]
    trainer.optimizer = trainer.accelerator.prepare_optimizer(optimizer)


def save_checkpoint(trainer: Any, optimizer: SparseAdamW, folder: Path) -> None:  # noqa: ANN401
    """Save weights as the trainer does, and the state of optimizer and scheduler; collective.

    Args:
        trainer: The trainer.
        optimizer: Its optimizer.
        folder: The checkpoint.
    """
    from accelerate.utils import save_fsdp_model  # noqa: PLC0415  (slow to import)

    plugin = trainer.accelerator.state.fsdp_plugin
    save_fsdp_model(plugin, trainer.accelerator, trainer.model, str(folder))
    save_state(optimizer, folder / STATE_FOLDER, force=True)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), folder / _SCHEDULER)


def load_checkpoint(trainer: Any, optimizer: SparseAdamW, folder: Path) -> None:  # noqa: ANN401
    """Take over the state that :func:`save_checkpoint` wrote; collective.

    Args:
        trainer: The trainer, whose weights are those of the checkpoint already.
        optimizer: Its optimizer.
        folder: The checkpoint.
    """
    load_state(optimizer, folder / STATE_FOLDER)
    state = torch.load(folder / _SCHEDULER, weights_only=True)
    trainer.lr_scheduler.load_state_dict(state)
