"""`search` and `history`: deltas made for a model, and the chain that a repository holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UsageError
from sparsedelta.hub.at_hand import LINK, delta_locations
from sparsedelta.hub.client import Account
from sparsedelta.hub.errors import asked
from sparsedelta.hub.manifest_file import (
    ListedBase,
    ListedDelta,
    ListedFile,
    ManifestFile,
    read_manifest_file,
)
from sparsedelta.hub.named_base import named_base
from sparsedelta.hub.references import Reference, parse_reference, repository
from sparsedelta.hub.store import HubStore, pinned
from sparsedelta.locations import Url

_TAG = "sparsedelta"


@dataclass(frozen=True, slots=True)
class FoundDelta:
    """A repository with deltas of a model.

    Attributes:
        repo: ``namespace/name``.
        commit: Its last commit, if the Hub tells.
        private: Whether it is private.
        downloads: How often it was downloaded lately.
        likes: How many like it.
        tags: Its tags.
        modified: When it was changed, ISO 8601, if the Hub tells.
    """

    repo: str
    commit: str | None
    private: bool
    downloads: int
    likes: int
    tags: tuple[str, ...]
    modified: str | None


def search(
    base: str,
    *,
    author: str | None = None,
    limit: int | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> list[FoundDelta]:
    """The repositories on the Hub with deltas made for a model.

    Args:
        base: The model, ``namespace/name``.
        author: Only those of this user or organization.
        limit: At most so many.
        token: A token; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        endpoint: The Hub; None for ``HF_ENDPOINT``.

    Raises:
        HubError: The Hub refuses, or cannot be reached.
    """
    reference = repository(base, what="base")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit}, expected at least 1")
    account = Account(token, endpoint)
    subject = account.subject(f"list the deltas of {reference.repo}", reference)

    def ask() -> list[FoundDelta]:
        tags = [_TAG, f"base_model:{reference.repo}"]
        found = account.api().list_models(filter=tags, author=author, limit=limit, full=True)
        return [_found(each) for each in found]

    return asked(subject, ask, attempts=2, token=token)


def _found(model: object) -> FoundDelta:
    modified = getattr(model, "last_modified", None)
    return FoundDelta(
        repo=str(getattr(model, "id", "")),
        commit=getattr(model, "sha", None),
        private=bool(getattr(model, "private", False)),
        downloads=int(getattr(model, "downloads", 0) or 0),
        likes=int(getattr(model, "likes", 0) or 0),
        tags=tuple(getattr(model, "tags", None) or ()),
        modified=None if modified is None else modified.isoformat(),
    )


@dataclass(frozen=True, slots=True)
class RepositoryHistory:
    """The chain of deltas that a repository holds.

    Attributes:
        repo: ``namespace/name``.
        commit: The commit that was looked at.
        base: Where the base of the first link can be had.
        deltas: The delta, or the links in their order.
        is_chain: Whether it is a chain.
    """

    repo: str
    commit: str
    base: ListedBase
    deltas: tuple[ListedDelta, ...]
    is_chain: bool


def history(
    repo: str | Reference,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> RepositoryHistory:
    """The chain of deltas that a repository holds; one delta is a chain of one link.

    It reads ``sparsedelta.json``; without one, header and manifest of each delta.

    Args:
        repo: ``namespace/name``, or with ``@revision``.
        revision: Branch, tag or commit.
        token: A token; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        endpoint: The Hub; None for ``HF_ENDPOINT``.

    Raises:
        HubError: It is not there, there is no access, or the Hub cannot be reached.
        CheckpointError: It holds no delta.
    """
    reference = repository(repo)
    if revision is not None and reference.revision not in (None, revision):
        raise UsageError(
            f"{reference} names a revision, and so does --revision {revision}", hint="name it once"
        )
    reference = Reference(reference.repo, revision or reference.revision)
    store = pinned(reference, Account(token, endpoint))
    listed = read_manifest_file(store) or _looked_up(store)
    return RepositoryHistory(
        reference.repo, store.commit, listed.base, listed.deltas, listed.is_chain
    )


def _looked_up(store: HubStore) -> ManifestFile:
    deltas = tuple(_deltas(store))
    first = store.url(deltas[0].path)
    named = named_base(first)
    base = ListedBase(
        None if named is None else named.repo,
        None if named is None else named.commit,
        deltas[0].base,
    )
    return ManifestFile(base, deltas, is_chain=bool(LINK.fullmatch(deltas[0].path)))


def _deltas(store: HubStore) -> Iterator[ListedDelta]:
    for url in delta_locations(store.url()):
        with DeltaReader(url, ahead=False) as reader:
            manifest = reader.manifest
            paths = [
                parse_reference(file.path).path
                for file in ((reader.root, *reader.files) if reader.is_set else (reader.root,))
                if isinstance(file.path, Url)
            ]
            yield ListedDelta(
                path=paths[0],
                base=manifest.base,
                target=manifest.target,
                content=manifest.content,
                format_version=manifest.version,
                profile=manifest.profile,
                nnz=manifest.nnz,
                tensors=len(manifest.tensors),
                invertible=manifest.invertible,
                method=None,
                files=tuple(
                    ListedFile(path, store.files[path].size, store.files[path].sha256 or "")
                    for path in paths
                ),
            )
