"""Repositories: commits that are whole snapshots, and refs that name them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hubserver.blobs import Blob
from hubserver.errors import HubError

COMMIT_ID = re.compile(r"[0-9a-f]{40}")

FORBIDDEN = {"", ".", "..", ".git"}
"""Parts that no path in a repository may have."""


def now() -> str:
    """The time, as the Hub writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def identity(*parts: object) -> str:
    """A 40-hex id of anything that is plain data."""
    return hashlib.sha1(json.dumps(parts).encode()).hexdigest()  # noqa: S324


@dataclass(frozen=True, slots=True)
class Commit:
    """One snapshot of all files, and where it comes from."""

    id: str
    parents: tuple[str, ...]
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str
    date: str

    def below(self, folder: str) -> Iterator[tuple[str, Blob]]:
        """The files in a folder and below it, in the order of their paths."""
        prefix = f"{folder}/" if folder else ""
        for path in sorted(self.files):
            if path.startswith(prefix):
                yield path, self.files[path]

    def folder_oid(self, folder: str) -> str:
        """The id of a folder: that of what is in it."""
        return identity([(path, blob.oid) for path, blob in self.below(folder)])


@dataclass(slots=True)
class Changes:
    """What a commit does to the files of its parent."""

    added: dict[str, Blob] = field(default_factory=dict)
    deleted_files: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)

    def onto(self, files: Mapping[str, Blob]) -> dict[str, Blob]:
        """The files afterwards; deletions come first.

        Raises:
            HubError: What is to be deleted is not there, or a path is file and folder at once.
        """
        result = dict(files)
        for path in self.deleted_files:
            if path not in result:
                raise HubError(404, "A file with this name doesn't exist", code="EntryNotFound")
            del result[path]
        for folder in self.deleted_folders:
            inside = [path for path in result if path.startswith(folder.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, "A folder with this name doesn't exist", code="EntryNotFound")
            for path in inside:
                del result[path]
        result.update(self.added)
        for path in self.added:
            parents = path.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                if "/".join(parents[:depth]) in result:
                    raise HubError(400, f"{path}: a folder has the name of a file")
        return result


@dataclass(slots=True)
class Discussion:
    """A discussion, or a pull request with a ref of its own."""

    num: int
    title: str
    author: str
    is_pull_request: bool
    status: str
    created: str
    events: list[dict[str, object]] = field(default_factory=list)
    base: str = ""
    merged: str | None = None


@dataclass(slots=True)
class Repo:
    """One repository, with all that was ever committed to it."""

    type: str
    id: str
    private: bool = False
    gated: str | bool = False
    disabled: bool = False
    created: str = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    stored: dict[str, int] = field(default_factory=dict)
    """What LFS holds for this repository: SHA-256 to size."""

    @property
    def namespace(self) -> str:
        """The user or organization that it belongs to."""
        return self.id.partition("/")[0]

    @property
    def url_path(self) -> str:
        """Its path on the site, without a leading slash."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    @property
    def head(self) -> Commit:
        """The newest commit of ``main``."""
        return self.commits[self.refs["refs/heads/main"]]

    def ref(self, revision: str) -> str | None:
        """The full name of the ref that a revision names, if it names one."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return name
        return None

    def at(self, revision: str) -> Commit:
        """The commit that a revision names.

        Raises:
            HubError: There is none (``RevisionNotFound``).
        """
        name = self.ref(revision)
        if name is not None:
            return self.commits[self.refs[name]]
        if COMMIT_ID.fullmatch(revision) and revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and all that led to it, the newest first (first parents)."""
        result = [commit]
        while result[-1].parents:
            result.append(self.commits[result[-1].parents[0]])
        return result

    def record(
        self,
        ref: str,
        files: Mapping[str, Blob],
        *,
        title: str,
        author: str,
        message: str = "",
        parents: tuple[str, ...] | None = None,
    ) -> Commit:
        """Make a snapshot the newest commit of a ref, in one step."""
        if parents is None:
            parents = (self.refs[ref],) if ref in self.refs else ()
        tree = sorted((path, blob.oid) for path, blob in files.items())
        date = now()
        name = identity(parents, tree, title, message, author, date, len(self.commits))
        commit = Commit(name, parents, dict(files), title, message, author, date)
        self.commits[name] = commit
        self.refs[ref] = name
        return commit


def checked_path(path: object) -> str:
    """A path that a commit may write to.

    Raises:
        HubError: It leads out of the repository, or into ``.git``.
    """
    if not isinstance(path, str) or FORBIDDEN & set(path.split("/")) or "\\" in path:
        raise HubError(400, f"Invalid path in repository: {path!r}")
    return path
