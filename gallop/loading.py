"""Loading a causal language model and its tokenizer in the dtype of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gallop.errors import ModelError, NotFoundError
from sparsedelta.errors import HubError
from sparsedelta.hub.references import is_hub
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import as_location

__all__ = [
    "HubModel",
    "LoadedModel",
    "base_path",
    "hub_model",
    "load_architecture",
    "load_model",
    "load_tokenizer",
]


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub at the commit that its revision meant when it was first named.

    Attributes:
        repo: ``namespace/name``.
        commit: 40 hex digits.
    """

    repo: str
    commit: str


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
        source: A local folder, or a repository on the Hub: ``ns/name`` or ``ns/name@revision``.
        dtype: ``"auto"`` for the dtype of the checkpoint, or a torch dtype's name.

    Returns:
        Model and tokenizer.

    Raises:
        NotFoundError: There is no such folder or repository, or no access to it.
        ModelError: It cannot be loaded, or transformers is not installed.
    """
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    with _loading(source) as library:
        name, pinned = _named(source)
        tokenizer = library.AutoTokenizer.from_pretrained(name, **pinned)
        model = library.AutoModelForCausalLM.from_pretrained(name, dtype=wanted, **pinned)
    return LoadedModel(model, tokenizer, _pad_id(tokenizer))


def load_architecture(source: str, dtype: torch.dtype | None) -> tuple[nn.Module, FakeTensorMode]:
    """Build a model without its weights: its tensors know shape, dtype and device only.

    They are torch's fake tensors, under whose mode the model has to be run: unlike those of the
    meta device they take the kernels of the CPU, whose attention saves no scores.

    Args:
        source: As of :func:`load_model`; only its configuration is read.
        dtype: Of its parameters; None for the one that the configuration names.

    Returns:
        The model, tied as the loaded one is, and the mode to run it under.

    Raises:
        NotFoundError: As :func:`load_model`.
        ModelError: As :func:`load_model`.
    """
    with _loading(source) as library:
        name, pinned = _named(source)
        config = library.AutoConfig.from_pretrained(name, **pinned)
        with FakeTensorMode() as mode:
            model: nn.Module = library.AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype or torch.float32
            )
    return model, mode


def load_tokenizer(source: str) -> Any:  # noqa: ANN401  (transformers has no common typed base)
    """Load the tokenizer alone.

    Args:
        source: As of :func:`load_model`.

    Returns:
        The tokenizer.

    Raises:
        NotFoundError: As :func:`load_model`.
        ModelError: As :func:`load_model`.
    """
    with _loading(source) as library:
        name, pinned = _named(source)
        return library.AutoTokenizer.from_pretrained(name, **pinned)


@contextmanager
def _loading(source: str) -> Iterator[Any]:
    # Gives transformers, quiet, and turns its errors into ours.
    try:
        import transformers  # noqa: PLC0415  (an extra)
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"transformers: expected it installed, found {error}",
            hint='pip install "sparsedelta[train]"',
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    is_path = source.startswith((".", "/", "~")) or source.partition("@")[0].count("/") > 1
    if not Path(source).is_dir() and is_path and "://" not in source:
        raise NotFoundError(
            f"{source}: expected a folder with a model, found none",
            hint="give a local folder, or a Hub repository as owner/name",
        )
    try:
        yield transformers
    except HubError as error:
        raise NotFoundError(
            f"{source}: expected a model in that folder or Hub repository: {error.message}",
            hint=error.hint,
        ) from error
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


def hub_model(source: str) -> HubModel | None:
    """The model on the Hub that a source names, or None; its revision is looked up once.

    Raises:
        HubError: There is no such model, no access, or no way to find out.
    """
    location = _location(source)
    if not is_hub(location):
        return None
    store = HubStore(location)
    return None if store.path else HubModel(store.reference.repo, store.commit)


@cache
def _location(source: str) -> Any:  # noqa: ANN401  (a location: what is found out is kept with it)
    return as_location(source)


def _named(source: str) -> tuple[str, dict[str, str]]:
    # What transformers calls a source, and the revision to give it.
    if Path(source).is_dir():
        return source, {}
    found = hub_model(source)
    return (source, {}) if found is None else (found.repo, {"revision": found.commit})


def _pad_id(tokenizer: Any) -> int:  # noqa: ANN401
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(each for each in pads if each is not None)


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

    name, pinned = _named(source)
    return Path(snapshot_download(name, local_files_only=True, revision=pinned.get("revision")))
