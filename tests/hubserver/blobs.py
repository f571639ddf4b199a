"""Contents on disk, by their SHA-256: written once, never changed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 20


def pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def git_oid(content: bytes) -> str:
    """The object id that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


def pointer(sha256: str, size: int) -> bytes:
    """The pointer that git holds instead of a file in LFS."""
    lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return lines.encode()


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a commit: where its content is, and what the Hub says of it."""

    sha256: str
    size: int
    oid: str
    lfs: bool
    xet: str | None = None

    @property
    def etag(self) -> str:
        """What the client takes for the identity of the content."""
        return self.sha256 if self.lfs else self.oid


class BlobStore:
    """A folder of contents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a content lies, or would lie."""
        return self.root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether a content is here."""
        return self.path(sha256).is_file()

    def add(self, content: Iterable[bytes]) -> tuple[str, int]:
        """Keep a content; gives its SHA-256 and its size."""
        digest, size = hashlib.sha256(), 0
        handle, name = tempfile.mkstemp(dir=self.root, prefix="incoming-")
        with os.fdopen(handle, "wb") as file:
            for piece in content:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
        final = self.path(digest.hexdigest())
        final.parent.mkdir(exist_ok=True)
        Path(name).replace(final)
        return digest.hexdigest(), size

    def regular(self, content: bytes) -> Blob:
        """Keep a file of git itself."""
        sha256, size = self.add([content])
        return Blob(sha256, size, git_oid(content), lfs=False)

    def large(self, sha256: str, size: int, xet: str | None = None) -> Blob:
        """A file in LFS whose content is here."""
        return Blob(sha256, size, git_oid(pointer(sha256, size)), lfs=True, xet=xet)
