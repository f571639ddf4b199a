"""Pushing what was trained to the Hub: looked at before the training, done after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsedelta.errors import HubError, SparseDeltaError, UsageError
from sparsedelta.hub.client import Account, is_offline
from sparsedelta.hub.commits import look
from sparsedelta.hub.errors import asked
from sparsedelta.hub.push import push
from sparsedelta.hub.references import Reference, repository

__all__ = ["check_push", "push_delta"]


def check_push(repo: str) -> None:
    """Find out, before hours of training, what would stand in the way of a push.

    Args:
        repo: ``namespace/name``, or with ``@branch``.

    Raises:
        UsageError: It is no name of a branch of a repository; it holds a chain.
        HubError: The Hub cannot be reached, or knows no such account; it has no right to push.
    """
    target, account = repository(repo), Account()
    if target.is_pinned:
        raise UsageError(f"{target.revision} is a commit, expected a branch to push to")
    if is_offline():
        raise HubError(
            f"cannot push to {repo}: offline mode forbids to ask the Hub",
            reason="offline",
            hint="unset HF_HUB_OFFLINE, or push the delta later: sparsedelta push DELTA NS/NAME",
        )
    subject = account.subject(f"push to {repo}", target)
    _check_rights(target, asked(subject, lambda: account.api().whoami(), token=account.token))
    listed = look(account, target).listed
    if listed is not None and listed.is_chain:
        raise UsageError(
            f"{target.repo} holds a chain of {len(listed.deltas)} deltas: one delta does not "
            "replace it",
            hint="name another repository, or add the delta later: sparsedelta push DELTA "
            f"{target.repo} --chain",
        )


def _check_rights(target: Reference, told: Any) -> None:  # noqa: ANN401 (an answer of the Hub)
    """Refuse what the Hub would: a token that only reads, another's namespace."""
    if not isinstance(told, dict):
        return
    auth = told.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    problem = None
    if isinstance(token, dict) and token.get("role") == "read":
        problem = "the token only reads"
    elif isinstance(told.get("orgs"), list):
        own = [told.get("name"), *(e.get("name") for e in told["orgs"] if isinstance(e, dict))]
        if target.repo.partition("/")[0] not in own:
            problem = "the account does not belong to it"
    if problem is not None:
        raise HubError(
            f"no right to push to {target.repo}: {problem}",
            reason="forbidden",
            hint="use a token with that right: hf auth login, or HF_TOKEN",
        )


def push_delta(delta: Path, repo: str, *, private: bool | None = None) -> str:
    """Push a delta that was written; if that fails, it is said where it lies.

    Args:
        delta: The file.
        repo: ``namespace/name``, or with ``@branch``.
        private: Whether a repository that is made is private; None: as the account has it.

    Returns:
        The address of the repository.

    Raises:
        HubError: The Hub refuses, or cannot be reached.
    """
    try:
        return push(delta, repo, private=private).url
    except SparseDeltaError as error:
        error.add_note(
            f"the delta is written, and was not pushed; again: sparsedelta push {delta} {repo}"
        )
        raise
