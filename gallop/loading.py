"""Loading a causal language model and its tokenizer in the dtype of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gallop.errors import ModelError, NotFoundError

__all__ = ["LoadedModel", "base_path", "load_model"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model ready to train.

    Attributes:
        model: Causal language model, in eval mode.
        tokenizer: Its tokenizer.
        pad_id: Token id to pad with.
    """

    model: nn.Module
    tokenizer: Any
    pad_id: int


def load_model(source: str, dtype: str = "auto") -> LoadedModel:
    """Load with transformers.

    Args:
        source: A local folder, or a repository on the Hub.
        dtype: ``"auto"`` for the dtype of the checkpoint, or a torch dtype's name.

    Returns:
        Model and tokenizer.

    Raises:
        NotFoundError: There is no such folder or repository, or no access to it.
        ModelError: It cannot be loaded, or transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  (an extra)
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"transformers: expected it installed, found {error}",
            hint='pip install "sparsedelta[train]"',
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise NotFoundError(
            f"{source}: expected a folder with a model, found none",
            hint="give a local folder, or a Hub repository as owner/name",
        )
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=wanted)
    except OSError as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        if Path(source).is_dir():
            raise ModelError(
                f"{source}: expected a causal language model, found {first}"
            ) from error
        raise NotFoundError(
            f"{source}: expected a model in that folder or Hub repository, found {first}",
            hint="hf auth login, if the repository is private or gated",
        ) from error
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(f"{source}: expected a causal language model, found {first}") from error
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return LoadedModel(model, tokenizer, next(each for each in pads if each is not None))


def base_path(source: str) -> Path:
    """Find the files of a model that :func:`load_model` has loaded.

    Args:
        source: As it was given there.

    Returns:
        The folder of its checkpoint: of a repository on the Hub, the snapshot in the cache.
    """
    if Path(source).is_dir():
        return Path(source)
    # transformers has just loaded it, so that the snapshot is complete and needs no network.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    return Path(snapshot_download(source, local_files_only=True))
