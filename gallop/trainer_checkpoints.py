"""The mask in the checkpoint folders of a trainer, and whether one can be resumed from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gallop.config import GallopConfig
from gallop.errors import MaskError, OptimizerError
from gallop.mask import Mask
from gallop.trainer_sharding import STATE_FOLDER

__all__ = ["MASK_FILE", "checkpoint_mask", "is_checkpoint_folder", "resumed_folder"]

MASK_FILE = "gallop.mask"
"""A safetensors file, but not by its name: a folder with two of those is no checkpoint of one
model any more, neither for us nor for others."""

_FOLDER = re.compile(r"checkpoint-\d+")
_STATE = ("optimizer.pt", "scheduler.pt")
_SHARDED_STATE = (STATE_FOLDER, "scheduler.pt")


def is_checkpoint_folder(path: str | Path) -> bool:
    """Tell by its name whether a folder is one of the trainer's own checkpoints."""
    return _FOLDER.fullmatch(Path(path).name) is not None


def resumed_folder(asked: Any, output_dir: str | Path) -> Path | None:  # noqa: ANN401
    """Find the folder that ``train(resume_from_checkpoint=...)`` means.

    Args:
        asked: The argument: None, a bool, or a path.
        output_dir: The trainer's, whose latest checkpoint True stands for.

    Returns:
        The folder, or None if training starts anew or there is none, which the trainer reports.
    """
    if asked is None or asked is False:
        return None
    if asked is not True:
        return Path(asked)
    from transformers.trainer_utils import get_last_checkpoint  # noqa: PLC0415 (slow to import)

    latest = get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None
    return None if latest is None else Path(latest)


def checkpoint_mask(
    folder: Path, *, config: GallopConfig | None, digest: str | None, sharded: bool
) -> Mask:
    """Read the mask of a checkpoint, and check that the run can go on from there as it was.

    Args:
        folder: The checkpoint.
        config: How the mask of this run would be chosen, if it is known.
        digest: Digest of the mask of this run, if it is known.
        sharded: Whether the state of the optimizer is expected as shards have it.

    Returns:
        The checkpoint's mask.

    Raises:
        MaskError: The checkpoint has no mask, or one that was chosen in another way, or another
            than that of this run.
        OptimizerError: It has no optimizer state, as with ``save_only_model=True``.
    """
    path = folder / MASK_FILE
    if not path.is_file():
        raise MaskError(
            f"{folder}: expected {MASK_FILE} beside the weights, found none: this checkpoint was "
            "not written by a trainer with gallop attached",
            hint="start a new run without resume_from_checkpoint",
        )
    state = _SHARDED_STATE if sharded else _STATE
    missing = [name for name in state if not (folder / name).exists()]
    if missing:
        raise OptimizerError(
            f"{folder}: expected {' and '.join(state)}, found no {' or '.join(missing)}: the run "
            "could not go on as it was",
            hint="checkpoints to resume from need save_only_model=False; to start a new run from "
            f"these weights, load the model from there and attach(trainer, mask={str(path)!r})",
        )
    saved = Mask.load(path)
    if digest is not None and digest != saved.digest:
        raise MaskError(
            f"{path}: expected the mask {digest[:12]} of this run, found {saved.digest[:12]} with "
            f"{saved.nnz} entries",
            hint="attach with the mask that the checkpoint was trained with",
        )
    if digest is None and config is not None and saved.config != config:
        raise MaskError(
            f"{path}: expected a mask chosen with {config}, found one chosen with {saved.config}",
            hint="attach with the same configuration, or start a new run",
        )
    return saved
