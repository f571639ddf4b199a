"""Requests and answers, apart from the connection that they travel on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hubserver.blobs import PIECE
from hubserver.errors import HubError

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(slots=True)
class Request:
    """What was asked. Parts of the path are unquoted one by one: a revision may hold a slash."""

    origin: str
    method: str
    target: str
    headers: Message[str, str]
    body: IO[bytes]
    parts: list[str] = field(init=False)
    query: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        split = urlsplit(self.target)
        self.parts = [unquote(part) for part in split.path.split("/")[1:]]
        self.query = parse_qs(split.query, keep_blank_values=True)

    def flag(self, name: str) -> bool:
        """A yes or no of the query."""
        return self.query.get(name, [""])[-1].lower() in {"1", "true", "yes"}

    def number(self, name: str, default: int) -> int:
        """A number of the query."""
        text = self.query.get(name, [str(default)])[-1]
        return int(text) if text.isdigit() else default

    def content(self) -> bytes:
        """The whole body."""
        self.body.seek(0)
        return self.body.read()

    def pieces(self) -> Iterator[bytes]:
        """The body, a piece at a time."""
        self.body.seek(0)
        while piece := self.body.read(PIECE):
            yield piece

    def document(self) -> dict[str, object]:
        """The body as a JSON object.

        Raises:
            HubError: It is none (400).
        """
        try:
            found = json.loads(self.content() or b"{}")
        except ValueError as error:
            raise HubError(400, f"body is no JSON: {error}") from error
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise HubError(400, "body is no JSON object")
        return found

    def text(self, name: str) -> str:
        """A string of the JSON object in the body.

        Raises:
            HubError: It is missing, or no string (400).
        """
        value = self.document().get(name)
        if not isinstance(value, str) or not value:
            raise HubError(400, f'"{name}" is required and must be a string')
        return value


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file on disk, sent as they are read."""

    path: Path
    start: int
    length: int


@dataclass(slots=True)
class Answer:
    """What is sent back."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FilePart = b""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.length

    def pieces(self) -> Iterator[bytes]:
        """The body, a piece at a time."""
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
            return
        with self.body.path.open("rb") as file:
            file.seek(self.body.start)
            left = self.body.length
            while left:
                piece = file.read(min(left, PIECE))
                if not piece:
                    raise EOFError(f"{self.body.path} is shorter than expected")
                left -= len(piece)
                yield piece


def of_json(
    document: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Answer:
    """A JSON document."""
    fixed = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, fixed | (headers or {}), json.dumps(document).encode())


def of_error(error: HubError) -> Answer:
    """A refusal."""
    headers = {"X-Error-Message": error.message} | error.headers
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return of_json(error.body, status=error.status, headers=headers)


def of_file(path: Path, size: int, headers: dict[str, str], asked: str | None) -> Answer:
    """A file, or the range of it that was asked for (one range; others are answered in full)."""
    headers = headers | {"Accept-Ranges": "bytes"}
    headers.setdefault("Content-Type", "application/octet-stream")
    found = RANGE.fullmatch(asked.replace(" ", "")) if asked else None
    if found is None or found.group() == "bytes=-":
        return Answer(200, headers, FilePart(path, 0, size))
    first, last = found.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= size or stop <= start:
        return Answer(416, headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(206, headers, FilePart(path, start, stop - start))


def page(request: Request, entries: Sequence[object], size: int, url: str) -> Answer:
    """One page of a listing, and in ``Link`` where the next one is."""
    start = request.number("cursor", 0)
    headers = {}
    if start + size < len(entries):
        query = {name: values for name, values in request.query.items() if name != "cursor"}
        following = urlencode(query | {"cursor": [str(start + size)]}, doseq=True)
        headers["Link"] = f'<{url}{urlsplit(request.target).path}?{following}>; rel="next"'
    return of_json(list(entries[start : start + size]), headers=headers)
