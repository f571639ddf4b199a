"""A call of the API: who asks, for which repository, and what the rest of the path says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hubserver.errors import HubError
from hubserver.hub import Hub
from hubserver.messages import Answer, Request
from hubserver.people import STRANGER, Caller
from hubserver.repos import Commit, Repo


@dataclass(slots=True)
class Call:
    """What a handler is given."""

    hub: Hub
    request: Request
    caller: Caller = STRANGER
    kind: str = "model"
    repo_id: str = ""
    rest: list[str] = field(default_factory=list)

    def repo(self) -> Repo:
        """The repository, if the caller may see it."""
        return self.hub.find(self.kind, self.repo_id, self.caller)

    def repo_to_write(self) -> Repo:
        """The repository, if the caller may change it."""
        return self.hub.to_write(self.kind, self.repo_id, self.caller)

    def repo_to_propose(self, revision: str) -> Repo:
        """The repository, if the caller may commit to a revision.

        Whoever opened a pull request may commit to its ref without any right to the repository.
        """
        repo = self.repo()
        if not self.caller.signed_in or self.caller.role != "write":
            return self.repo_to_write()
        if self.request.flag("create_pr"):
            return repo
        for discussion in repo.discussions.values():
            mine = discussion.is_pull_request and discussion.author == self.caller.name
            if mine and revision == f"refs/pr/{discussion.num}":
                return repo
        return self.repo_to_write()

    @property
    def revision(self) -> str:
        """The revision in the path, ``main`` without one."""
        return self.rest[0] if self.rest else "main"

    def commit(self) -> Commit:
        """The commit that the path names, in a repository that the caller may see."""
        return self.repo().at(self.revision)


Handler = Callable[[Call], Answer]
"""What answers a call."""


def strings(value: object, what: str) -> list[str]:
    """A list of strings of a document.

    Raises:
        HubError: It is something else (400).
    """
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise HubError(400, f'"{what}" must be a list of strings')
    return value
