"""References to models on the Hub: ``hf://ns/name[@revision][/path]``, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from sparsedelta.errors import UsageError
from sparsedelta.locations import LocationLike, Url, as_location

COMMIT: Final = re.compile("[0-9a-f]{40}")
"""What a commit is called, and nothing else may be."""

_OTHER_KINDS: Final = frozenset({"datasets", "spaces", "buckets", "kernels"})
"""What stands in the place of the namespace in URLs of other things than models."""

_PLAIN: Final = "models/"
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_MAX_REPO_CHARACTERS: Final = 96

_SPECIAL: Final = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
"""Revisions that hold a slash, and need not be quoted."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a model on the Hub, or a file or folder in it.

    Attributes:
        repo: ``namespace/name``.
        revision: Branch, tag, ``refs/pr/N`` or commit; None: the main branch.
        path: The file or folder in it; empty: all of it.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which always means the same."""
        return self.revision is not None and bool(COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    def url(self, options: dict[str, object] | None = None) -> Url:
        """The reference as a location."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        path = f"/{self.path}" if self.path else ""
        return Url(f"hf://{self.repo}{revision}{path}", options or {})


def is_hub(url: object) -> bool:
    """Whether a location lies in a repository of a model on the Hub."""
    if not isinstance(url, Url) or url.protocol != "hf":
        return False
    return url.text.partition("://")[2].partition("/")[0] not in _OTHER_KINDS


def parse_reference(url: Url) -> Reference:
    """The reference that a URL of the Hub is.

    Raises:
        UsageError: It names no repository.
    """
    rest = url.text.partition("://")[2].removeprefix(_PLAIN)
    namespace, _, rest = rest.partition("/")
    head = rest.partition("/")[0]
    name, at, after = rest.partition("@") if "@" in head else (head, "", "")
    revision: str | None = None
    path = rest.removeprefix(head).strip("/")
    if at:
        special = _SPECIAL.match(after)
        raw = special[0] if special else after.partition("/")[0]
        revision = unquote(raw)
        path = after.removeprefix(raw).strip("/")
    repo = f"{namespace}/{name}"
    if not _is_repo(namespace, name) or not (revision is None or _is_revision(revision)):
        raise UsageError(
            f"{url} names no repository of a model on the Hub",
            hint="write NAMESPACE/NAME, NAMESPACE/NAME@REVISION or "
            "hf://NAMESPACE/NAME[@REVISION]/FILE",
        )
    return Reference(repo, revision, path)


def _is_revision(text: str) -> bool:
    # What git allows, as far as it matters: a revision is a path in the client's cache.
    return text.isprintable() and not any(
        (not part or part in (".", "..") or "\\" in part) for part in text.split("/")
    )


def _is_repo(namespace: str, name: str) -> bool:
    if len(namespace) + 1 + len(name) > _MAX_REPO_CHARACTERS or name.endswith(".git"):
        return False
    return all(
        _NAME.fullmatch(each) and "--" not in each and ".." not in each
        for each in (namespace, name)
    )


def is_repository(text: str) -> bool:
    """Whether a text, which may come from anyone, is ``namespace/name``."""
    namespace, _, name = text.partition("/")
    return _is_repo(namespace, name)


def repository(given: LocationLike | Reference, *, what: str = "repository") -> Reference:
    """The repository that a user names where nothing but one makes sense.

    Args:
        given: ``ns/name``, ``ns/name@revision``, or either behind ``hf://``.
        what: What it is for, in messages.

    Raises:
        UsageError: It is another kind of name.
    """
    if isinstance(given, Reference):
        return given
    # A local folder of that name is not meant, whether it is there or not.
    text = str(given) if not isinstance(given, Url) else given.text
    url = Url(text if "://" in text else f"hf://{_quoted(text)}")
    if not is_hub(url):
        raise UsageError(
            f"the {what} is {as_location(given)}, expected a repository of a model on the Hub",
            hint="write NAMESPACE/NAME or NAMESPACE/NAME@REVISION",
        )
    found = parse_reference(url)
    if found.path:
        raise UsageError(
            f"the {what} is {url}, a file or folder; expected a repository",
            hint=f"write {Reference(found.repo, found.revision)}",
        )
    return found


def _quoted(text: str) -> str:
    repo, at, revision = text.partition("@")
    return f"{repo}{at}{quote(revision, safe='')}"
