"""The base of a delta on the Hub: the commit that the delta names, unless another is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sparsedelta.container import open_file
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import HubError, SparseDeltaError
from sparsedelta.hub.at_hand import delta_locations
from sparsedelta.hub.manifest_file import read_manifest_file
from sparsedelta.hub.references import COMMIT, Reference, is_hub, parse_reference
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Location, LocationLike, Url, as_location
from sparsedelta.ranks import Ranks, first

_Reader = TypeVar("_Reader")


@dataclass(frozen=True, slots=True)
class NamedBase:
    """Where a delta says that its base can be had: a hint, which is never trusted.

    Attributes:
        repo: ``namespace/name``.
        commit: 40 hex digits, or None.
        fingerprint: Fingerprint of the base.
    """

    repo: str | None
    commit: str | None
    fingerprint: str

    @classmethod
    def of(cls, metadata: dict[str, str], fingerprint: str) -> NamedBase:
        """What the header of a delta says."""
        commit = metadata.get("sd.base_revision", "")
        return cls(
            metadata.get("sd.base_repo"), commit if COMMIT.fullmatch(commit) else None, fingerprint
        )


def named_base(delta: LocationLike | DeltaReader) -> NamedBase | None:
    """Where a delta says that its base can be had: by its header, or by ``sparsedelta.json``.

    Of a chain it is the base of the first link. None if it cannot be told.
    """
    try:
        if isinstance(delta, DeltaReader):
            location = delta.path
            found = NamedBase.of(dict(delta.header.metadata), delta.manifest.base)
        else:
            location = as_location(delta)
            first = delta_locations(location)[0] if is_hub(location) else location
            with open_file(first, ahead=False) as file:
                found = NamedBase.of(dict(file.header.metadata), file.manifest.base)
        if found.repo is None and isinstance(location, Url) and is_hub(location):
            told = read_manifest_file(HubStore(location))
            if told is not None and told.base.fingerprint == found.fingerprint:
                return NamedBase(told.base.repo, told.base.commit, found.fingerprint)
    except SparseDeltaError:
        return None  # whatever is wrong is told where the delta is opened
    return found


def at_named_commit(
    base: LocationLike | _Reader, deltas: Iterable[LocationLike | DeltaReader]
) -> LocationLike | _Reader:
    """The base of deltas, at the commit that they name if it is on the Hub and no other was asked.

    If that commit is gone, or offline and not in the cache, the main branch is taken: what it holds
    is verified anyway.

    Args:
        base: The base, as a user names it; a reader stays what it is.
        deltas: Deltas of it; the first that names a commit of that repository is believed.
    """
    location = as_location(base) if isinstance(base, str | Path | Url) else None
    if not isinstance(location, Url) or not is_hub(location):
        return base
    if "commit" in location.known or parse_reference(location).revision is not None:
        return location
    for delta in deltas:
        found = named_base(delta)
        if found is not None and found.repo is not None:
            return at_commit(location, found.repo, found.commit)
    return location


def pin_together(given: LocationLike | _Reader, ranks: Ranks) -> LocationLike | _Reader:
    """A location that all ranks read at one commit, that which rank 0 finds, if it is on the Hub.

    All ranks call this alike.
    """
    if not isinstance(given, str | Path | Url):
        return given
    location = as_location(given)
    if not isinstance(location, Url) or not is_hub(location):
        return given
    if ranks.size > 1:
        store = HubStore(location)
        location.known["commit"] = first(ranks, lambda: store.commit)
    return location


def at_commit(location: Location, repo: str | None, commit: str | None) -> Location:
    """A location at a commit, if it lies in that repository, names no revision, and it exists."""
    if not isinstance(location, Url) or not is_hub(location) or commit is None:
        return location
    reference = parse_reference(location)
    is_meant = reference.repo == repo and reference.revision is None
    if is_meant and "commit" not in location.known and _exists(reference, commit, location):
        location.known["commit"] = commit
    return location


def _exists(reference: Reference, commit: str, location: Url) -> bool:
    named = Reference(reference.repo, commit).url(dict(location.options))
    store = HubStore(named)
    try:
        files = store.files
    except HubError as error:
        if error.reason in ("revision", "entry", "offline"):
            return False
        raise
    location.known["files"] = files
    return True
