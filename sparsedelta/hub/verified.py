"""Validating deltas that were got from the Hub: with their base, where that is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import CheckpointError, OutputError, WrongBaseError
from sparsedelta.hub.checking import NOT_HERE, DeltaCheck, not_checked
from sparsedelta.hub.client import Account
from sparsedelta.hub.fetched import Files
from sparsedelta.hub.named_base import NamedBase, at_commit, named_base
from sparsedelta.hub.references import Reference, is_hub, is_repository
from sparsedelta.hub.store import HubStore, pinned
from sparsedelta.locations import Location, LocationLike, Url, as_location


@dataclass(frozen=True, slots=True)
class BaseAtHand:
    """What a delta of the Hub may be validated with.

    Attributes:
        named: What is said of its base; None if nothing is known.
        location: Where that lies; None if it is not here.
        is_told: Whether the user has named it: otherwise it may be any model.
    """

    named: NamedBase | None
    location: Location | None
    is_told: bool

    @property
    def name(self) -> str:
        """What it is called in a command."""
        if self.named is None or self.named.repo is None:
            return "BASE"
        return str(Reference(self.named.repo, self.named.commit))


@dataclass(frozen=True, slots=True)
class Verified:
    """How far deltas have been validated.

    Attributes:
        unread: Of how many tensors the entries were not read, as only the base decodes them.
        base: What the base of the first of these deltas is called.
        why: Why they were not read.
        links: How many deltas follow each other that have to be read together; 1: each by itself.
    """

    unread: int = 0
    base: str = "BASE"
    why: str = NOT_HERE
    links: int = 1

    def notes(self, store: HubStore, path: Path) -> tuple[str, ...]:
        """What is told of entries that were not read; the delta lies at ``path`` now."""
        if not self.unread:
            return ()
        command = f"sparsedelta validate {path} --base {self.base}"
        if self.links > 1:
            chain = Reference(store.reference.repo, store.commit)
            command = f"sparsedelta squash {chain} --base {self.base} -o OUT --dry-run"
        return (not_checked(self.unread, command, "pull", self.why),)


def placed(given: LocationLike, account: Account) -> Location:
    """A location that a user names beside a repository; on the Hub it is read by that account."""
    location = as_location(given)
    if not isinstance(location, Url) or not is_hub(location):
        return location
    return location.with_options(**{**account.options, **location.options})


def base_at_hand(url: Url, told: Location | None, account: Account) -> BaseAtHand:
    """Where the base of a delta is: where a user says, or in the client's cache.

    Nothing is asked of the Hub: whatever a delta says of its base, it may come from anyone.

    Args:
        url: The delta.
        told: What the user names.
        account: Whose cache it is.
    """
    named = named_base(url)
    if named is not None and not is_repository(named.repo or ""):
        named = None  # it would be looked for, and named in commands
    if told is not None:
        repo, commit = (None, None) if named is None else (named.repo, named.commit)
        return BaseAtHand(named, at_commit(told, repo or "", commit), is_told=True)
    if named is None or named.repo is None or named.commit is None:
        return BaseAtHand(named, None, is_told=False)
    snapshot = pinned(Reference(named.repo, named.commit), account).snapshot
    return BaseAtHand(named, snapshot if snapshot.is_dir() else None, is_told=False)


NOWHERE: Final = BaseAtHand(None, None, is_told=False)
"""The base of a delta that is read with its base later on, or not at all."""


def verify(sets: Mapping[str, Files], base: BaseAtHand, check: DeltaCheck) -> Verified:
    """Insist that deltas in the client's cache are valid.

    Args:
        sets: The files of each, by its root.
        base: The base of the first. Where each leads to the base of the next one, as in a chain,
            it shows what is in them all.
        check: How they are validated.

    Raises:
        FormatError: One breaks a rule.
        WrongBaseError: What the user names is not the base.
    """
    paths = [files[root] for root, files in sets.items()]
    unread, is_right = _validated(paths[0], base, check)
    later = sum(check.refuse_invalid(path, None) for path in paths[1:])
    is_chain = len(paths) > 1 and _follow_each_other(paths)
    if later and is_chain and is_right and base.location is not None:
        try:
            check.refuse_links(paths, base.location)
            later = 0
        except (WrongBaseError, CheckpointError, OutputError):
            if base.is_told:  # otherwise nobody has asked for it
                raise
            is_right = False
    if base.is_told and is_chain and base.location is not None:
        check.prove_chain(paths, base.location)
    found = Verified(unread + later, base.name, links=len(paths) if is_chain else 1)
    if base.location is not None and not is_right:
        return replace(found, base="BASE", why=f"and {base.name}, which it names, is another model")
    return found


def _validated(path: Path, base: BaseAtHand, check: DeltaCheck) -> tuple[int, bool]:
    """Of how many tensors the entries were not read, and whether the base may be the right one."""
    if base.location is None:
        return check.refuse_invalid(path, None), False
    if base.is_told:
        return check.refuse_invalid(path, base.location), True
    with DeltaReader(path, ahead=False) as reader:
        needs_base = reader.needs_base
    if not needs_base:  # all is checked without it
        return check.refuse_invalid(path, None), True
    assert isinstance(base.location, Path)  # noqa: S101 (in the cache)
    return check.refuse_with(path, base.location)


def _follow_each_other(paths: Sequence[Path]) -> bool:
    ends = []
    for path in paths:
        with DeltaReader(path, ahead=False) as reader:
            ends.append((reader.manifest.base, reader.manifest.target))
    return all(before[1] == after[0] for before, after in pairwise(ends))
