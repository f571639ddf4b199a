"""One commit to a repository: what it holds now, what is different, and all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from sparsedelta.errors import HubError
from sparsedelta.hub.card import CARD
from sparsedelta.hub.client import Account
from sparsedelta.hub.errors import asked
from sparsedelta.hub.manifest_file import ManifestFile, read_manifest_file
from sparsedelta.hub.references import Reference
from sparsedelta.hub.store import HubFile, HubStore, pinned
from sparsedelta.sources import read_file

_MAX_CARD_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """A repository as it was when it was looked at.

    Attributes:
        reference: The repository and its branch.
        commit: The last commit; None if there is no such repository.
        has_branch: Whether there is such a branch.
        files: Its files.
        listed: What ``sparsedelta.json`` says, or None.
        card: Its model card, or None.
    """

    reference: Reference
    commit: str | None
    has_branch: bool
    files: Mapping[str, HubFile]
    listed: ManifestFile | None
    card: str | None

    def different(self, changes: Mapping[str, Any]) -> Iterator[str]:
        """The files that a commit of these changes would write."""
        for path, operation in changes.items():
            if operation is not None and not _is_same(self.files.get(path), operation):
                yield path

    def is_unchanged(self, changes: Mapping[str, Any]) -> bool:
        """Whether the repository is already what these changes would make of it."""
        gone = any(path in self.files for path, operation in changes.items() if operation is None)
        return self.commit is not None and not gone and not any(self.different(changes))


def _is_same(found: HubFile | None, operation: Any) -> bool:  # noqa: ANN401 (of the client)
    if found is None or found.size != operation.upload_info.size:
        return False
    if found.sha256 is not None:
        return bool(found.sha256 == operation.upload_info.sha256.hex())
    with operation.as_file() as file:
        content = file.read()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == found.blob


def look(account: Account, reference: Reference) -> RepositoryState:
    """What a repository holds; one that is not there holds nothing.

    Raises:
        HubError: There is no access, or the Hub cannot be reached.
    """
    store = pinned(reference, account)
    has_branch = True
    try:
        commit = store.commit
    except HubError as error:
        if error.reason == "repository":
            return RepositoryState(reference, None, False, {}, None, None)
        if error.reason != "revision":
            raise
        has_branch = False  # it will begin where the main branch is
        store = pinned(Reference(reference.repo), account)
        commit = store.commit
    return RepositoryState(
        reference, commit, has_branch, store.files, read_manifest_file(store), _card(store)
    )


def _card(store: HubStore) -> str | None:
    if CARD not in store.files:
        return None
    return read_file(store.url(CARD), _MAX_CARD_BYTES).decode("utf-8", errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that was made: what it is called, and its pull request if it is one."""

    commit: str
    pull_request: str | None


def commit_changes(
    account: Account,
    state: RepositoryState,
    changes: Mapping[str, Any],
    *,
    message: str,
    private: bool | None,
    create_pr: bool,
) -> Committed:
    """Make one commit on top of what a repository was when it was looked at.

    Args:
        account: Who commits.
        state: What the repository was; if it is another by now, nothing is committed.
        changes: For each path what adds it, or None where it goes.
        message: First line of the message.
        private: Whether a repository that is made is private; None: as the account has it.
        create_pr: Whether it is a pull request.

    Raises:
        HubError: Nothing was committed; or the connection was lost, and it is not known.
    """
    hub = import_module("huggingface_hub")
    repo, branch = state.reference.repo, state.reference.revision
    api = account.api()
    parent = state.commit
    if parent is None:
        subject = account.subject(f"make the repository {repo}", state.reference)
        asked(
            subject,
            lambda: api.create_repo(repo, private=private, exist_ok=True),
            token=account.token,
        )
    if not state.has_branch and branch is not None:
        subject = account.subject(f"make the branch {branch}", state.reference)
        asked(
            subject,
            lambda: api.create_branch(repo, branch=branch, revision=parent, exist_ok=True),
            token=account.token,
        )
    operations = [
        operation if operation is not None else hub.CommitOperationDelete(path_in_repo=path)
        for path, operation in changes.items()
        if operation is None or path in set(state.different(changes))
    ]
    subject = account.subject(f"push to {repo}", state.reference)
    made = asked(
        subject,
        lambda: api.create_commit(
            repo,
            operations,
            commit_message=message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=parent,
        ),
        attempts=1,  # it is not harmless when made twice: the caller looks first
        token=account.token,
    )
    return Committed(str(made.oid), made.pr_url)
