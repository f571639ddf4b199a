"""The recipe of a sparse fine-tune, as the strings that a delta carries in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gallop.mask import Mask
from gallop.visibility import Visibility

__all__ = ["recipe_metadata"]

_LIBRARIES = {"gallop": "sparsedelta", "torch": "torch", "transformers": "transformers"}


def recipe_metadata(
    mask: Mask,
    training: Mapping[str, Any] | None = None,
    *,
    visibility: Visibility | None = None,
) -> dict[str, str]:
    """Describe how a delta came about. There is no time in it: same inputs, same bytes.

    Args:
        mask: What was trained; its configuration and report are described if it has them.
        training: Settings of the training by name, JSON-ready.
        visibility: How many entries moved, as ``visibility()`` of the optimizer tells.

    Returns:
        Strings by key. ``gallop.mask.*`` says which entries, ``gallop.selection.*`` how they were
        chosen and over what, ``gallop.training.*`` how they were trained, ``gallop.visibility.*``
        how many moved, ``gallop.version.*`` with which libraries. Strings stand for themselves,
        other values are JSON.
    """
    values: dict[str, Any] = {"mask.digest": mask.digest, "mask.nnz": mask.nnz}
    if mask.config is not None:
        values |= {f"selection.{key}": each for key, each in mask.config.to_dict().items()}
    if mask.report is not None:
        report = mask.report.to_dict()
        del report["tensors"], report["histogram"]  # long: the mask file has them
        values |= {f"selection.{key}": each for key, each in report.items()}
    values |= {f"training.{key}": each for key, each in (training or {}).items()}
    if visibility is not None:
        values |= {f"visibility.{key}": each for key, each in visibility.to_dict().items()}
    values |= {f"version.{name}": _version(package) for name, package in _LIBRARIES.items()}
    return {
        f"gallop.{key}": each if isinstance(each, str) else json.dumps(each)
        for key, each in sorted(values.items())
        if each is not None
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
