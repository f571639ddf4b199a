"""The state of the whole Hub: its repositories, its people, and what may be switched on and off."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hubserver.blobs import BlobStore
from hubserver.errors import HubError, forbidden, repository_not_found
from hubserver.people import Caller, People
from hubserver.repos import Repo

GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("safetensors", "bin", "gguf", "h5", "npz", "onnx", "pt", "pth", "zip", "zst")
)
"""What a new repository starts with."""

OPEN_FILES = {"README.md", ".gitattributes"}
"""Files of a gated repository that everybody may read."""


@dataclass(slots=True)
class Settings:
    """How the server answers where the Hub has more than one way."""

    xet: bool = False
    """Whether large files go through Xet; without it, its routes are not there."""
    cdn: bool = False
    """Whether large files are answered by a redirect to another origin."""
    resolve_cache: bool = False
    """Whether small files are answered by a redirect to another path of the Hub."""
    multipart: int = 0
    """Bytes of a part of an upload to LFS; 0: one piece."""
    page_size: int = 1000
    """Entries in a page of a listing."""


@dataclass(slots=True)
class Hub:
    """Everything that the server knows. `lock` is held while a request is answered."""

    folder: Path
    url: str = ""
    cdn_url: str = ""
    settings: Settings = field(default_factory=Settings)
    people: People = field(default_factory=People)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    moved: dict[tuple[str, str], str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    epoch: int = 0
    blobs: BlobStore = field(init=False)
    uploads: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    """Parts of uploads to LFS that are not complete yet."""

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.folder / "blobs-0")

    @property
    def cas(self) -> Path:
        """The folder that takes the place of Xet's storage; client and server share it."""
        path = self.folder / f"xet-{self.epoch}"
        path.mkdir(exist_ok=True)
        return path

    def reset(self) -> None:
        """Forget everything; contents go to a new folder, as late readers may hold the old one."""
        shutil.rmtree(self.blobs.root, ignore_errors=True)
        shutil.rmtree(self.cas, ignore_errors=True)
        self.epoch += 1
        self.blobs = BlobStore(self.folder / f"blobs-{self.epoch}")
        self.people = People()
        self.repos.clear()
        self.moved.clear()
        self.uploads.clear()

    def create(
        self,
        kind: str,
        repo_id: str,
        *,
        author: str,
        private: bool = False,
        attributes: bool = True,
    ) -> Repo:
        """A new repository with its first commit."""
        repo = Repo(kind, repo_id, private=private)
        files = {".gitattributes": self.blobs.regular(GITATTRIBUTES.encode())} if attributes else {}
        repo.record("refs/heads/main", files, title="initial commit", author=author)
        self.repos[kind, repo_id] = repo
        self.moved.pop((kind, repo_id), None)
        return repo

    def writes(self, repo: Repo, caller: Caller) -> bool:
        """Whether a caller may change a repository."""
        return self.people.may_write(caller, repo.namespace)

    def find(self, kind: str, repo_id: str, caller: Caller) -> Repo:
        """A repository that the caller may see.

        Raises:
            HubError: It is missing, private or disabled, or has moved (307).
        """
        target = self.moved.get((kind, repo_id))
        repo = self.repos.get((kind, target or repo_id))
        hidden = repo is None or (repo.private and not self.people.may_see(caller, repo.namespace))
        if repo is None or hidden:
            raise repository_not_found(signed_in=caller.signed_in)
        if target is not None:
            raise Moved(repo_id, target)
        if repo.disabled:
            raise HubError(403, "Access to this resource is disabled.")
        return repo

    def to_write(self, kind: str, repo_id: str, caller: Caller) -> Repo:
        """A repository that the caller may change.

        Raises:
            HubError: As `find` does, or the caller has no right to (403).
        """
        repo = self.find(kind, repo_id, caller)
        if not caller.signed_in:
            raise repository_not_found(signed_in=False)
        if caller.role != "write":
            raise forbidden("You must use an access token with write permissions")
        if not self.writes(repo, caller):
            raise forbidden("You don't have the rights to change this repository")
        return repo

    def open_file(self, repo: Repo, path: str, caller: Caller) -> None:
        """Let a caller have a file of a gated repository, or not.

        Raises:
            HubError: The caller was not let in (``GatedRepo``).
        """
        if not repo.gated or path in OPEN_FILES or self.people.may_see(caller, repo.namespace):
            return
        if caller.name in repo.accepted:
            return
        message = f"Access to {repo.type} {repo.id} is restricted."
        raise HubError(403 if caller.signed_in else 401, message, code="GatedRepo")


class Moved(HubError):  # noqa: N818 - an answer, no error
    """A repository has another name now.

    Args:
        old: The name that was asked for.
        new: The name that it has.
    """

    def __init__(self, old: str, new: str) -> None:
        super().__init__(307, f"{old} has moved to {new}")
        self.old = old
        self.new = new
