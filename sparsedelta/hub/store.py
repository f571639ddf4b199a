"""A repository on the Hub as a store of files: at one commit, from the cache or by ranges.

It has the methods of fsspec that :mod:`sparsedelta.remote` asks for. Nothing is asked for twice:
the commit and the list of its files are kept with the location that a user has named.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sparsedelta.errors import HubError
from sparsedelta.hub.client import Account, cache_folder, is_offline, pin
from sparsedelta.hub.errors import asked
from sparsedelta.hub.references import Reference, parse_reference
from sparsedelta.locations import Url

_TIMEOUT: Final = 30
_REDIRECTS_KEPT: Final = 256
_DOWNLOADS: Final = 2
_PIECE_BYTES: Final = 1 << 20


_lock = threading.RLock()
"""One thread at a time finds something out; locations, which hold it, can be copied and sent."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, as its list of files has it.

    Attributes:
        size: Its size in bytes.
        sha256: SHA-256 of its content, hex; None for a file that git itself holds.
        blob: What git calls it: the SHA-1 of a file that it holds itself.
    """

    size: int
    sha256: str | None = None
    blob: str | None = None

    def is_in(self, file: BufferedReader | BytesIO) -> bool:
        """Whether a file of the right size, open at its start, has this content."""
        if self.sha256 is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        while data := file.read(_PIECE_BYTES):
            digest.update(data)
        return self.blob is None or digest.hexdigest() == self.blob


class HubStore:
    """A repository at the commit that its revision meant when it was first asked for.

    Args:
        url: Where in it something lies; all that is found out is kept with it.

    Attributes:
        account: Which Hub is asked, and as whom.
        reference: The repository, and the revision as it was named.
    """

    def __init__(self, url: Url) -> None:
        self.account = Account.of(url.options)
        self.reference = parse_reference(url)
        self.path = self.reference.path
        self._options = url.options
        self._known = url.known
        self._is_short = "short" in url.known

    def url(self, path: str = "") -> Url:
        """Where a file of the repository lies, pinned as this store is."""
        root = Reference(self.reference.repo, self.reference.revision)
        plain = root.url()
        text = f"{plain.text}/{path}" if path else plain.text
        return Url(text, self._options, self._known)

    @property
    def commit(self) -> str:
        """The commit, 40 hex digits; looked up once.

        Raises:
            HubError: There is no such repository or revision, or no access to it.
        """
        with _lock:
            if "commit" not in self._known:
                self._known["commit"] = pin(self.account, self.reference, is_short=self._is_short)
            return str(self._known["commit"])

    @property
    def files(self) -> Mapping[str, HubFile]:
        """Every file of the commit by its path; listed once.

        Raises:
            HubError: They cannot be listed.
        """
        with _lock:
            if "files" not in self._known:
                self._known["files"] = self._list()
            found: Mapping[str, HubFile] = self._known["files"]
            return found

    def _list(self) -> dict[str, HubFile]:
        if is_offline():
            found = self._cached_files()
            if not found:
                raise self._absent(self.path or "anything")
            return found
        subject = self.account.subject(f"list the files of {self.reference}", self.reference)
        try:
            return asked(subject, self._ask_for_list, attempts=2, token=self.account.token)
        except HubError as error:
            found = self._cached_files() if error.reason in ("connection", "server") else {}
            if not found:
                raise
            return found

    def _ask_for_list(self) -> dict[str, HubFile]:
        entries = [
            entry
            for entry in self.account.api().list_repo_tree(
                self.reference.repo, recursive=True, revision=self.commit
            )
            if hasattr(entry, "size")
        ]
        for entry in entries:
            if not isinstance(entry.size, int) or entry.size < 0 or not isinstance(entry.path, str):
                raise ValueError(f"{entry.path!r:.80} is listed with {entry.size!r:.20} bytes")
        return {
            entry.path: HubFile(
                entry.size, None if entry.lfs is None else entry.lfs.sha256, entry.blob_id
            )
            for entry in entries
        }

    @property
    def snapshot(self) -> Path:
        """The folder of the commit in the client's cache; it may not be there."""
        return cache_folder(self.account, self.reference) / "snapshots" / self.commit

    def _cached_files(self) -> dict[str, HubFile]:
        # A file is a link to a blob that is called by its SHA-256, or by what git calls it.
        root, found = self.snapshot, {}
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            if path.is_file():
                blob = path.resolve().name
                name = path.relative_to(root).as_posix()
                sha256 = blob if len(blob) == 64 else None  # noqa: PLR2004 (hex of 32 bytes)
                found[name] = HubFile(path.stat().st_size, sha256, None if sha256 else blob)
        return found

    def cached(self, path: str | None = None) -> Path | None:
        """Where a file lies in the client's cache, or None."""
        found = import_module("huggingface_hub").try_to_load_from_cache(
            self.reference.repo,
            path or self.path,
            cache_dir=self.account.cache_dir,
            revision=self.commit,
        )
        return Path(found) if isinstance(found, str) else None

    def fetch(self, path: str, *, is_doubted: bool = False) -> Path:
        """Bring a file into the client's cache, as the client does it, and verify it.

        The client compares sizes only: what comes otherwise than it was pushed is got once more.

        Args:
            path: The file.
            is_doubted: Whether a file that is there already is verified, too.

        Returns:
            Where it lies there.

        Raises:
            HubError: It cannot be had, or comes damaged every time.
        """
        found = self.cached(path)
        if found is not None and (not is_doubted or self._is_sound(path, found)):
            return found
        if found is not None:
            _remove(found)
        for attempt in range(_DOWNLOADS):
            found = self._download(path, again=attempt > 0)
            if self._is_sound(path, found):
                return found
            _remove(found)  # the client would take it for the file from now on
        raise self._damaged(path)

    def _damaged(self, path: str) -> HubError:
        entry = self.files[path]
        expected = f"SHA-256 {entry.sha256}" if entry.sha256 else f"git blob {entry.blob}"
        return HubError(
            f"{path} of {self.reference} came damaged, {_DOWNLOADS} times: expected {entry.size} "
            f"bytes of {expected}, found other ones",
            reason="corrupt",
            hint="the network or a proxy changes what it carries: use another one, or try later",
        )

    def _is_sound(self, path: str, found: Path) -> bool:
        entry = self.files.get(path)
        if entry is None:
            return True  # the list is that of the cache
        if found.stat().st_size != entry.size:
            return False
        with found.open("rb") as file:
            return entry.is_in(file)

    def _download(self, path: str, *, again: bool) -> Path:
        hub = self.account.api()
        subject = self.account.subject(f"read {path}", self.reference, is_short=self._is_short)
        return Path(
            asked(
                subject,
                lambda: str(
                    hub.hf_hub_download(
                        self.reference.repo,
                        path,
                        revision=self.commit,
                        cache_dir=self.account.cache_dir,
                        force_download=again,
                    )
                ),
                token=self.account.token,
            )
        )

    # What fsspec's file systems have.

    def invalidate_cache(self, path: str | None = None) -> None:
        """Do nothing: a commit does not change."""

    def info(self, path: str) -> dict[str, Any]:
        """Facts of a file or folder.

        Raises:
            HubError: There is none.
        """
        found = self.files.get(path)
        if found is not None:
            return {
                "name": path,
                "type": "file",
                "size": found.size,
                "ETag": found.sha256 or found.blob,
            }
        prefix = f"{path}/" if path else ""
        if not path or any(name.startswith(prefix) for name in self.files):
            return {"name": path, "type": "directory", "size": 0}
        raise self._absent(path)

    def ls(self, path: str, *, detail: bool = True) -> list[dict[str, Any]]:
        """Facts of the files of a folder; folders within it are left out."""
        del detail
        prefix = f"{path}/" if path else ""
        return [entry for name, entry in self.find(path).items() if "/" not in name[len(prefix) :]]

    def find(self, path: str, *, detail: bool = True) -> dict[str, dict[str, Any]]:
        """Facts of all files below a folder, by path."""
        del detail
        prefix = f"{path}/" if path else ""
        return {name: self.info(name) for name in self.files if name.startswith(prefix)}

    def cat_file(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of a file, by one request.

        A file that is read as a whole is verified, and read once more if it came damaged.

        Raises:
            HubError: It comes damaged every time.
            Exception: The client's; :func:`~sparsedelta.stores.attempt` looks into it.
        """
        entry = self.files.get(path)
        for _ in range(_DOWNLOADS):
            data = self._range(path, start, stop)
            if entry is None or (start, stop) != (0, entry.size) or entry.is_in(BytesIO(data)):
                return data
        raise self._damaged(path)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        hub = import_module("huggingface_hub")
        utils = import_module("huggingface_hub.utils")
        url = hub.hf_hub_url(
            self.reference.repo, path, revision=self.commit, endpoint=self.account.endpoint
        )
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        redirects: dict[str, str] = self._known.setdefault("redirects", {})
        elsewhere = redirects.get(path)
        if elsewhere is not None:
            try:
                # Signed for this file, and of another origin: it is not told who asks.
                return bytes(_get(utils, elsewhere, wanted))
            except Exception:  # noqa: BLE001 (it expires; then the Hub is asked for another)
                redirects.pop(path, None)
        response = utils.http_backoff(
            "GET",
            url,
            headers={**self.account.headers(), **wanted},
            timeout=_TIMEOUT,
            max_retries=0,
            retry_on_status_codes=(),
        )
        utils.hf_raise_for_status(response)
        final = str(response.url)
        if urlsplit(final).netloc != urlsplit(url).netloc and len(redirects) < _REDIRECTS_KEPT:
            redirects[path] = final
        return bytes(response.content)

    def _absent(self, path: str) -> HubError:
        at = self.reference.revision or self.commit
        if is_offline():
            return HubError(
                f"cannot read {path} of {self.reference}: it is not in the cache, and offline mode "
                "forbids to ask the Hub",
                reason="offline",
                hint="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or get it once while "
                f"online: hf download {self.reference.repo}",
            )
        return HubError(
            f"there is no file or folder {path} in {self.reference.repo} at revision {at!r}",
            reason="entry",
            hint=f"see its files at {self.account.hub}/{self.reference.repo}/tree/{at}",
        )


def _get(utils: Any, url: str, headers: dict[str, str]) -> bytes:  # noqa: ANN401 (a module)
    response = utils.http_backoff(
        "GET", url, headers=headers, timeout=_TIMEOUT, max_retries=0, retry_on_status_codes=()
    )
    utils.hf_raise_for_status(response)
    return bytes(response.content)


def _remove(found: Path) -> None:
    found.resolve().unlink(missing_ok=True)
    found.unlink(missing_ok=True)


def pinned(reference: Reference, account: Account) -> HubStore:
    """A repository, ready to be asked."""
    return HubStore(reference.url(account.options))
