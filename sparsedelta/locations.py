"""Where files lie: a local path, or a URL whose secrets are never shown.

``ns/name`` and ``ns/name@revision`` are short for a repository on the Hugging Face Hub, unless
there is a local file or folder of that name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from sparsedelta.errors import OutputError, UsageError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WITHIN_TEXT: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s'\"<>]*")
_LOCAL: Final = frozenset({"file", "local"})
_WEB: Final = frozenset({"http", "https"})
_REPOSITORY: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*)"
    r"(@(?P<revision>[^\s:@\\]+))?"
)
_FILE_SUFFIXES: Final = (".safetensors", ".sparsedelta", ".json", ".yml", ".yaml")
"""What a repository is hardly called: a name that ends so means a file, be it there or not."""

_WITH_REVISIONS: Final = frozenset({"hf"})
"""Protocols in which what stands before an ``@`` is a repository, not a user."""


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """Where a remote file or folder lies, in any store that fsspec knows.

    As text it shows no user, password or query: these may be secrets.

    Args:
        text: The URL, such as ``s3://bucket/folder``.
        options: Storage options of fsspec, such as ``{"anon": True}``; what it takes from the
            environment or its configuration need not be given. Never shown. Of the Hub:
            ``token``, ``endpoint``, ``cache_dir``, and ``stream`` to read by ranges what is not in
            the cache yet.
        known: What its store has found out about it, such as the commit of a revision. It is kept
            with the location, and shared with what lies below it: a revision is looked up once.
    """

    text: str = field()
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    known: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def protocol(self) -> str:
        """What stands before ``://``, in lower case."""
        return self.text.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        """Whether it is served by a web server: these know files, no folders."""
        return self.protocol in _WEB

    @property
    def name(self) -> str:
        """Last component of the path."""
        name = self._split()[1].rpartition("/")[2]
        if not self.is_web:
            return name
        from urllib.parse import unquote  # noqa: PLC0415 (local files do not pay for it)

        return unquote(name)

    @property
    def parent(self) -> Url:
        """The folder that it lies in; a query stays, as it may give access."""
        scheme, path, query = self._split()
        return Url(f"{scheme}{path.rpartition('/')[0]}{query}", self.options, self.known)

    def __truediv__(self, relative: str | Path) -> Url:
        scheme, path, query = self._split()
        below = str(relative)
        if self.is_web:
            from urllib.parse import quote  # noqa: PLC0415 (as above)

            below = quote(below)
        return Url(f"{scheme}{path}/{below}{query}", self.options, self.known)

    def with_options(self, **options: Any) -> Url:  # noqa: ANN401 (of the store)
        """The same location with further storage options."""
        return Url(self.text, {**self.options, **options}, self.known)

    def redact(self, text: str) -> str:
        """Text of others about this URL, such as a message of a library, without its secrets."""
        rest = self.text.partition("://")[2]
        host, _, query = rest.partition("?")
        user = "" if self.protocol in _WITH_REVISIONS else host.partition("/")[0].rpartition("@")[0]
        for secret in (self.text, user, user.partition(":")[2], query):
            if secret:
                text = text.replace(secret, str(self) if secret == self.text else "***")
        return redacted(text)

    def _split(self) -> tuple[str, str, str]:
        # A key of a store may hold a question mark; in the web it ends the path.
        scheme, mark, rest = self.text.partition("://")
        path, question, query = rest.partition("?") if self.is_web else (rest, "", "")
        return scheme + mark, path.rstrip("/"), question + query

    def __str__(self) -> str:
        return _shown(self.text)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"


Location: TypeAlias = Path | Url
"""Where a file or a folder lies."""

LocationLike: TypeAlias = str | Path | Url
"""What a user names a location with: a path, or a URL as text or with storage options."""


class FsspecFile(Protocol):
    """A file that fsspec has opened, or is going to: an ``OpenFile`` or what it gives."""

    @property
    def fs(self) -> Any:  # noqa: ANN401 (an AbstractFileSystem)
        """Its file system."""

    @property
    def path(self) -> str:
        """Where it lies there."""


def as_location(given: LocationLike | FsspecFile) -> Location:
    """The location that a user names, of something to read.

    Of a file that fsspec has opened it is where that lies, with the options of its file system.
    ``file://`` is a local path like any other. ``ns/name`` and ``ns/name@revision`` are
    repositories on the Hub where there is no local file or folder of that name.

    Raises:
        UsageError: A chain of URLs.
    """
    if not isinstance(given, str | Path | Url):
        options = {key: each for key, each in given.fs.storage_options.items() if each is not None}
        given = Url(given.fs.unstrip_protocol(given.path), options)
    location = _as_named(given)
    if isinstance(given, str) and isinstance(location, Path):
        return _repository(given) or location
    return location


def output_path(given: LocationLike) -> Path:
    """The local path of an output.

    Raises:
        OutputError: It is a URL.
    """
    location = _as_named(given)
    if isinstance(location, Url):
        raise OutputError(
            f"the output {location} is a URL: outputs are local files",
            hint="write it to a local path, and copy it there with the store's own tool; a delta "
            "goes to the Hub with: sparsedelta push",
        )
    return location


def streamed(given: LocationLike) -> Location:
    """The location that a user names, of which only some parts are going to be read."""
    location = as_location(given)
    if isinstance(location, Url) and location.protocol in _WITH_REVISIONS:
        return location.with_options(stream=True)
    return location


def _as_named(given: LocationLike) -> Location:
    if isinstance(given, Path):
        return given
    text = given.text if isinstance(given, Url) else given
    if "::" in text and "://" in text:
        raise UsageError(
            f"{redacted(text)} is a chain of URLs, expected one",
            hint="unpack the archive, or name the file in the store itself",
        )
    match = _SCHEME.match(text)
    if match is None:
        return Path(text)
    if match[1].lower() in _LOCAL:
        return Path(text[match.end() :])
    return given if isinstance(given, Url) else Url(text)


def _repository(text: str) -> Url | None:
    """The repository on the Hub that a text stands for, if it does."""
    match = _REPOSITORY.fullmatch(text)
    if match is None or text.lower().endswith(_FILE_SUFFIXES) or os.path.lexists(text):
        return None
    revision = match["revision"]
    if revision is None:
        return Url(f"hf://{match['repo']}", known={"short": text})
    from urllib.parse import quote  # noqa: PLC0415 (local files do not pay for it)

    return Url(f"hf://{match['repo']}@{quote(revision, safe='')}", known={"short": text})


def redacted(text: str) -> str:
    """Text of others, such as a message of a library, without the secrets of URLs in it."""
    return _WITHIN_TEXT.sub(lambda match: _shown(match[0]), text)


def _shown(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    path, question, _ = rest.partition("?")
    host, slash, below = path.partition("/")
    if scheme.lower() not in _WITH_REVISIONS and "@" in host:
        host = f"***@{host.rpartition('@')[2]}"
    return f"{scheme}{mark}{host}{slash}{below}{question}{'***' if question else ''}"
