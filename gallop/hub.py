"""Pushing what was trained to the Hub: looked at before the training, done after it."""

from __future__ import annotations

from pathlib import Path

from sparsedelta.errors import HubError, SparseDeltaError
from sparsedelta.hub.client import Account, is_offline
from sparsedelta.hub.commits import look
from sparsedelta.hub.errors import asked
from sparsedelta.hub.push import push
from sparsedelta.hub.references import repository

__all__ = ["check_push", "push_delta"]


def check_push(repo: str) -> None:
    """Find out, before hours of training, what would stand in the way of a push.

    Args:
        repo: ``namespace/name``, or with ``@branch``.

    Raises:
        UsageError: It is no name of a repository; it holds a chain.
        HubError: The Hub cannot be reached, or knows no such account.
    """
    target, account = repository(repo), Account()
    if is_offline():
        raise HubError(
            f"cannot push to {repo}: offline mode forbids to ask the Hub",
            reason="offline",
            hint="unset HF_HUB_OFFLINE, or push the delta later: sparsedelta push DELTA NS/NAME",
        )
    subject = account.subject(f"push to {repo}", target)
    asked(subject, lambda: account.api().whoami(), token=account.token)
    look(account, target)


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
