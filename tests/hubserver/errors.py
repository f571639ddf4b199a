"""What the Hub answers when it refuses: a status, a code for the client, and a message."""

from __future__ import annotations


class HubError(Exception):
    """A refusal.

    Args:
        status: The status of the response.
        message: What a person reads: in ``X-Error-Message`` and in the body.
        code: What the client tells apart: ``X-Error-Code``.
        headers: Further headers, such as the commit in which an entry is missing.
        body: The document in the body, where it is more than the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.body = body if body is not None else {"error": message}


def repository_not_found(*, signed_in: bool) -> HubError:
    """Missing, or private without rights: nobody can tell which. Strangers get 401."""
    if signed_in:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def bad_credentials() -> HubError:
    """A token that nobody has; the client knows this very message."""
    return HubError(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> HubError:
    """The repository is seen, but this is not allowed."""
    return HubError(403, message)
