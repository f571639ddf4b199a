"""What goes wrong with the Hub, in one line of cause and one of remedy; no token is ever told."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeVar

from sparsedelta.errors import HubError, SparseDeltaError
from sparsedelta.hub.references import Reference
from sparsedelta.locations import redacted

_Result = TypeVar("_Result")

_TOKEN: Final = re.compile(r"hf_[A-Za-z0-9_-]{2,}|(?<=[Bb]earer )[^\s'\",]+")
"""What a token looks like, wherever it stands."""

_UPLOAD: Final = "Error while uploading"
"""What the client says of a file that the store behind the Hub, not the Hub itself, refuses."""

_ATTEMPTS: Final = 4
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_LONGEST_REASON: Final = 300

_TRANSIENT: Final = frozenset({"connection", "rate-limit", "server"})

_BY_STATUS: Final = {
    401: "token",
    403: "forbidden",
    404: "entry",
    409: "conflict",
    410: "entry",
    412: "stale",
    429: "rate-limit",
}
_SERVER_STATUS: Final = 500


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about, for messages.

    Attributes:
        what: What was to be done, such as ``read delta.safetensors``.
        reference: The repository, as it was named.
        endpoint: The Hub.
        is_short: Whether it was named without ``hf://``, so that a local path may be meant.
    """

    what: str
    reference: Reference
    endpoint: str
    is_short: bool = False


def without_tokens(text: str) -> str:
    """Text of others without what looks like a token, and without the secrets of URLs in it."""
    return _TOKEN.sub("***", redacted(text))


def reason_of(error: BaseException) -> str:
    """Why a request failed, as a word; see :class:`~sparsedelta.errors.HubError`."""
    if isinstance(error, HubError):
        return error.reason
    chain = list(_causes(error))
    for each in chain:
        found = _by_class(each)
        if found is not None:
            return found
    if any(isinstance(each, RuntimeError) and _UPLOAD in str(each) for each in chain):
        return "server"  # a place to upload to is lent for a while: the next attempt gets another
    for each in chain:
        status = _status(each)
        if status is not None:
            return _BY_STATUS.get(status) or ("server" if status >= _SERVER_STATUS else "request")
    if isinstance(error, ValueError):
        return "request"
    return "connection"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _by_class(error: BaseException) -> str | None:
    # The order matters: a gated repository is one that is not found, for the client.
    errors = import_module("huggingface_hub.errors")
    kinds = {
        "GatedRepoError": "gated",
        "DisabledRepoError": "disabled",
        "RepositoryNotFoundError": "repository",
        "RevisionNotFoundError": "revision",
        "RemoteEntryNotFoundError": "entry",
        "OfflineModeIsEnabled": "offline",
    }
    for name, reason in kinds.items():
        kind = getattr(errors, name, None)
        if kind is not None and isinstance(error, kind):
            return reason
    text = str(error)
    if "xet" in text.lower() and ("404" in text or "token" in text) and _is_network(error):
        return "xet"
    entry = getattr(errors, "EntryNotFoundError", None)
    local = getattr(errors, "LocalEntryNotFoundError", None)
    if entry is not None and isinstance(error, entry) and not isinstance(error, local or ()):
        return "entry"
    return None


def _is_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | RuntimeError) or _status(error) is not None


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def explained(error: BaseException, subject: Subject, *, token: object = None) -> HubError:
    """The error to raise in the place of one of the client, which is its cause.

    An error that tells the token is kept nowhere: raise this one outside of its handler.
    """
    if isinstance(error, HubError):
        return error
    reason = reason_of(error)
    told, endpoint = _told(error), subject.endpoint
    repo, revision = subject.reference.repo, subject.reference.revision or "main"
    log_in = "log in with: hf auth login, or set HF_TOKEN"
    cause, hint = {
        "repository": (
            f"there is no model {repo} on {endpoint}, or no access to it",
            f"check the name; if it is private, {log_in}",
        ),
        "gated": (
            f"the model {repo} is gated, and this account has not been given access",
            f"ask for access at {endpoint}/{repo}, then {log_in}",
        ),
        "disabled": (f"access to {repo} was disabled on {endpoint}", f"see {endpoint}/{repo}"),
        "forbidden": (
            f"no right to {subject.what} on {endpoint}: {told}",
            "use a token with that right: hf auth login, or HF_TOKEN",
        ),
        "token": (f"{endpoint} does not accept the token", f"get a valid one, then {log_in}"),
        "revision": (
            f"the model {repo} has no revision {revision!r}",
            f"see its branches and tags at {endpoint}/{repo}/tree/main",
        ),
        "entry": (
            f"cannot {subject.what}: {repo} does not have it at revision {revision!r}",
            f"see its files at {endpoint}/{repo}/tree/{revision}",
        ),
        "offline": (
            f"cannot {subject.what}: it is not in the cache, and offline mode forbids to ask the "
            "Hub",
            "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or get it once while online: "
            f"hf download {subject.reference.repo}",
        ),
        "rate-limit": (
            f"{endpoint} allows no more requests for now (429)",
            "wait a few minutes and run it again; an account has a higher limit: hf auth login",
        ),
        "server": (
            f"cannot {subject.what}: {endpoint} fails: {told}",
            "run it again later: what is done already is kept",
        ),
        "xet": (
            f"{endpoint} does not offer Xet, the protocol that the client chose",
            "set HF_HUB_DISABLE_XET=1 in the environment, and run it again",
        ),
        "stale": (
            f"{repo} has changed meanwhile: another commit came first (412)",
            "look at it, and run it again",
        ),
        "conflict": (f"cannot {subject.what}: {told}", f"see {endpoint}/{repo}"),
        "request": (f"cannot {subject.what}: {told}", "check names and values of the request"),
        "connection": (
            f"cannot {subject.what}: the connection to {endpoint} failed: {told}",
            "is the network up, and HF_ENDPOINT right? Run it again: what came already is kept",
        ),
    }[reason]
    if reason == "repository" and subject.is_short:
        cause = f"there is no local file or folder {subject.reference}, and {cause[9:]}"
    made = HubError(cause, reason=reason, hint=hint)
    made.__cause__ = None if _tells(error, token) else error
    return made


def _told(error: BaseException) -> str:
    """What an error says, in a line."""
    said = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in without_tokens(said).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:_LONGEST_REASON]


def asked(
    subject: Subject,
    action: Callable[[], _Result],
    *,
    attempts: int = _ATTEMPTS,
    token: Any = None,  # noqa: ANN401
) -> _Result:
    """The result of requests to the Hub, made again while their failure may pass.

    Args:
        subject: What they are about.
        action: The requests; must be harmless when made twice.
        attempts: How often they are made; 1 where the client tries again by itself.
        token: The token in use: an error that tells it is not kept as the cause.

    Raises:
        HubError: They failed; the client's error is its cause.
    """
    attempt = 0
    while True:
        try:
            return action()
        except SparseDeltaError:
            raise
        except Exception as error:  # noqa: BLE001 (the client raises what its libraries do)
            failure = error
        attempt += 1
        if reason_of(failure) not in _TRANSIENT or attempt >= attempts:
            break
        time.sleep(_pause(failure, attempt - 1))
    raise explained(failure, subject, token=token)


def _tells(error: BaseException, token: object) -> bool:
    texts = [str(each) for each in _causes(error)]
    return any(
        _TOKEN.search(text) or (isinstance(token, str) and bool(token) and token in text)
        for text in texts
    )


def _pause(error: BaseException, attempt: int) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        wanted = float(headers.get("Retry-After", 0))
    except ValueError:
        wanted = 0.0
    return float(min(max(wanted, _FIRST_PAUSE * 2**attempt), _LONGEST_PAUSE))
