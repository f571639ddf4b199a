"""Deltas of a repository, brought into the client's cache: the files that it says they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from sparsedelta.container import open_file
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import HubError
from sparsedelta.hub.manifest_file import MANIFEST_FILE, ListedDelta, ListedFile, ManifestFile
from sparsedelta.hub.store import HubStore

Files: TypeAlias = dict[str, Path]
"""Files of a delta in the cache, by their paths in the repository; the root of a set is first."""


def fetch(store: HubStore, listed: ManifestFile | None, roots: Sequence[str]) -> dict[str, Files]:
    """Bring deltas into the client's cache.

    Args:
        store: The repository.
        listed: What it says of its deltas.
        roots: The files of the deltas, of sets the roots.

    Returns:
        The files of each delta, by its root. Their size and SHA-256 are those that the Hub and the
        repository tell, and the ends of the deltas; whether they keep the rules is not known yet.

    Raises:
        HubError: A file cannot be had, or is not what the repository says.
        FormatError: A file is no delta.
    """
    told = {file.path: file for file in listed.files} if listed is not None else {}
    links = {delta.path: delta for delta in listed.deltas} if listed is not None else {}
    sets: dict[str, Files] = {}
    for root in roots:
        found = sets[root] = {root: _fetched(store, root, told.get(root))}
        for name in set_names(store, root):
            if name not in found:
                found[name] = _fetched(store, name, told.get(name))
        if root in links:
            _check_ends(store, found[root], links[root])
    return sets


def set_names(store: HubStore, root: str) -> list[str]:
    """The files of a delta as its root names them; ``sparsedelta.json`` may list anything."""
    with open_file(store.url(root), ahead=False) as file:  # from the cache, if it is there
        place = file.manifest.place
        folder = PurePosixPath(root).parent
        parts = place.parts if place is not None and place.is_root else ()
        return [root, *(str(folder / part.name) for part in parts)]


def _check_ends(store: HubStore, path: Path, link: ListedDelta) -> None:
    with DeltaReader(path, ahead=False) as reader:
        ends = reader.manifest.base, reader.manifest.target
    if ends != (link.base, link.target):
        raise HubError(
            f"{link.path} of {store.reference} leads from {ends[0][:16]}… to {ends[1][:16]}…, "
            f"{MANIFEST_FILE} says from {link.base[:16]}… to {link.target[:16]}…",
            reason="corrupt",
            hint="it was replaced by itself: push the delta again",
        )


def _fetched(store: HubStore, name: str, told: ListedFile | None) -> Path:
    entry = store.files.get(name)
    if entry is None:
        raise HubError(
            f"{store.reference} lacks {name}, which belongs to its delta",
            reason="entry",
            hint="push the delta again, or name another revision",
        )
    path = store.fetch(name, is_doubted=True)
    if told is not None and (told.size, told.sha256) != (
        entry.size,
        entry.sha256 or file_sha256(path),
    ):
        raise HubError(
            f"{name} of {store.reference} is not the file that {MANIFEST_FILE} lists: its SHA-256 "
            f"is {entry.sha256 or file_sha256(path)}, expected {told.sha256}",
            reason="corrupt",
            hint="it was replaced by itself: push the delta again",
        )
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
