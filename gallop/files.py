"""Reading and atomically replacing the small safetensors files that this package owns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gallop.errors import MaskError
from sparsedelta.errors import OutputError
from sparsedelta.outputs import staged

__all__ = ["read_tensors", "replace_file"]


def read_tensors(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Args:
        path: The file.

    Returns:
        Arrays by name, and the metadata (empty if there is none).

    Raises:
        MaskError: There is no such file, or it is not a safetensors file.
    """
    if not Path(path).is_file():
        raise MaskError(
            f"{path}: expected a mask file, found none",
            hint="gallop select MODEL DATA -o MASK writes one",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, TypeError) as error:
        raise MaskError(f"{path}: expected a safetensors file, found {error}") from error


def replace_file(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file next to ``path``, then rename it over ``path``.

    Args:
        path: File to write or replace; on failure or interruption it stays as it was.
        tensors: Arrays by name.
        metadata: Strings for ``__metadata__``.

    Raises:
        OutputError: The folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(
            f"the folder of the output {path} does not exist", hint=f"mkdir -p {path.parent}"
        )
    with staged(path, force=True) as work:
        try:
            save_file(dict(tensors), work, metadata=dict(metadata))
        except SafetensorError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
