"""Which files of a repository a reference means, and bringing them into the client's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Final

from sparsedelta.errors import CheckpointError
from sparsedelta.file_names import CHECKPOINT_SUFFIX, is_weights_file
from sparsedelta.hub.references import is_hub
from sparsedelta.hub.store import HubStore
from sparsedelta.limits import MAX_COMPANION_BYTES
from sparsedelta.locations import Location, Url

DELTA_FILE: Final = f"delta{CHECKPOINT_SUFFIX}"
"""What the delta of a repository, or the root of its set, is called."""

CHAIN_FOLDER: Final = "chain"
LINK: Final = re.compile(r"chain/(?P<number>[0-9]{6})\.safetensors")
"""What a link of a chain is called; the first one is number 1."""

_DOWNLOADS: Final = 4
_NAMED: Final = 6


def link_name(number: int) -> str:
    """The file of a link of a chain, counted from 1."""
    return f"{CHAIN_FOLDER}/{number:06}{CHECKPOINT_SUFFIX}"


def delta_locations(location: Location) -> tuple[Location, ...]:
    """The delta files that a location means: one, or of a repository with a chain all its links.

    Raises:
        CheckpointError: A repository holds no delta, or several of which none is named.
        HubError: It cannot be asked.
    """
    if not isinstance(location, Url) or not is_hub(location):
        return (location,)
    store = HubStore(location)
    if store.path and store.info(store.path)["type"] == "file":
        return (location,)
    names = [
        PurePosixPath(entry["name"]).name
        for entry in store.ls(store.path)
        if entry["name"].endswith(CHECKPOINT_SUFFIX)
    ]
    if DELTA_FILE in names:
        return (location / DELTA_FILE,)
    if len(names) == 1:
        return (location / names[0],)
    links = sorted(name for name in store.files if LINK.fullmatch(name)) if not store.path else []
    if not names and links:
        return tuple(location / name for name in links)
    if not names:
        raise CheckpointError(
            f"{location} holds no delta: no {CHECKPOINT_SUFFIX} file, and no {CHAIN_FOLDER}/",
            hint=f"see its files at {store.account.hub}/{store.reference.repo}/tree/main",
        )
    raise CheckpointError(
        f"{location} holds several {CHECKPOINT_SUFFIX} files, and none is {DELTA_FILE}: "
        f"{', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}",
        hint=f"name the one you mean: {location / names[0]}",
    )


def delta_location(location: Location) -> Location:
    """The one delta file that a location means.

    Raises:
        CheckpointError: As :func:`delta_locations`; or it is a chain of several.
        HubError: As there.
    """
    found = delta_locations(location)
    if len(found) > 1:
        raise CheckpointError(
            f"{location} holds a chain of {len(found)} deltas, expected one",
            hint=f"sparsedelta history {location} lists them; name one, such as {found[-1]}",
        )
    return found[0]


def bring(locations: Iterable[Location]) -> None:
    """See that files of the Hub are in the client's cache; others, and those to stream, stay.

    Raises:
        HubError: One cannot be had.
    """
    stores = [
        HubStore(each)
        for each in locations
        if isinstance(each, Url) and is_hub(each) and not each.options.get("stream")
    ]
    wanted = [store for store in stores if store.cached() is None]
    if len(wanted) <= 1:
        for store in wanted:
            store.fetch(store.path)
        return
    with ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="sparsedelta-hub") as pool:
        pending = [pool.submit(store.fetch, store.path) for store in wanted]
        try:
            for future in pending:
                future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _is_no_path(parts: Sequence[str]) -> bool:
    """Whether names of folders and a file lead anywhere but below where they stand."""
    return any(not part or part == ".." or "\\" in part or "\0" in part for part in parts)


def checkpoint_companions(folder: Location, own: Sequence[Location]) -> list[Location]:
    """What lies beside the weights of a checkpoint on the Hub and would be copied with it.

    Args:
        folder: Its folder.
        own: Its files.
    """
    if not isinstance(folder, Url) or not is_hub(folder):
        return []
    store = HubStore(folder)
    prefix = f"{store.path}/" if store.path else ""
    found: list[Location] = []
    for name, file in store.files.items():
        relative = name.removeprefix(prefix)
        parts = relative.split("/")
        is_hidden = any(part.startswith(".") for part in parts)
        if not name.startswith(prefix) or is_hidden or _is_no_path(parts):
            continue
        location = folder / relative
        if location not in own and not is_weights_file(PurePosixPath(relative)):
            found += [location] if file.size <= MAX_COMPANION_BYTES else []
    return found
