"""Copies of deltas out of the client's cache: under names of their own, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from sparsedelta.errors import OutputError
from sparsedelta.hub.at_hand import DELTA_FILE
from sparsedelta.hub.fetched import Files, file_sha256
from sparsedelta.outputs import check_output, staged

_COPY_BYTES: Final = 1 << 20


def write_delta_files(
    found: Files, root: str, path: Path, *, force: bool, inputs: Sequence[Path] = ()
) -> None:
    """Copy a delta out of the cache; its part files first, which are called as the root says.

    Args:
        found: Its files.
        root: Which of them is the root.
        path: The name of the root.
        force: Replace existing files.
        inputs: Files that are never overwritten, besides those in the cache.

    Raises:
        OutputError: The output exists, or cannot be written.
    """
    _check_names(found, root, path, (*inputs, *found.values()), force=force)
    with staged(path, force=force) as work:
        for name, source in found.items():
            _copy(source, work if name == root else work.parent / PurePosixPath(name).name)


def _check_names(
    found: Files, root: str, path: Path, inputs: Sequence[Path], *, force: bool
) -> None:
    check_output(path, force=force, inputs=inputs)
    for name in found:
        part = path.parent / PurePosixPath(name).name
        if name != root and part.name.lower() == path.name.lower():
            raise OutputError(
                f"the output {path} has the name of a part file of the set",
                hint=f"name it otherwise: -o {path.with_name(DELTA_FILE)}",
            )
        if name != root:
            check_output(part, force=force, inputs=inputs)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        digest = hashlib.sha256()
        while data := read.read(_COPY_BYTES):
            digest.update(data)
            written.write(data)
    if digest.hexdigest() != file_sha256(target):
        raise OutputError(f"{target.name} was written, and reads otherwise: is the disk sound?")


def write_folder(
    sets: dict[str, Files], folder: Path, *, force: bool, inputs: Sequence[Path] = ()
) -> Path:
    """Copy deltas out of the cache into a folder, under the paths that the repository has for them.

    Arguments as those of :func:`write_delta_files`.

    Raises:
        OutputError: An output exists, or cannot be written.
    """
    for root in sets:
        (folder / root).parent.mkdir(parents=True, exist_ok=True)
    for root, found in sets.items():  # all of them before any is written
        _check_names(found, root, folder / root, (*inputs, *found.values()), force=force)
    for root, found in sets.items():
        write_delta_files(found, root, folder / root, force=force, inputs=inputs)
    return folder
