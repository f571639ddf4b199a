"""Remote files: read by ranges, several at a time, never two versions of one mixed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

from sparsedelta.errors import CheckpointError, RemoteError
from sparsedelta.hub.references import is_hub
from sparsedelta.limits import MAX_HEADER_BYTES
from sparsedelta.locations import Url
from sparsedelta.stores import attempt, changed, connect

_CONCURRENCY: Final = 16
"""Requests of this process that are under way at once."""

_RUN_BYTES: Final = 1 << 21
"""What one request asks for at most: long enough to be fast, short enough to run beside others."""

_HEAD_BYTES: Final = 8 + MAX_HEADER_BYTES
"""What is read at opening: all of most headers, and of most manifests."""

_HUB_HEAD_BYTES: Final = 1 << 14
"""The same where each byte is counted: headers and most manifests of deltas fit as well."""

_VERSION_KEYS: Final = (
    "size",
    "ETag",
    "etag",
    "VersionId",
    "version_id",
    "generation",
    "md5Hash",
    "crc32c",
    "Content-MD5",
    "Digest",
    "content_hash",
    "blob_id",
    "lfs",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "modified",
    "mtime",
    "created",
)
"""What the stores tell of a file that changes with it."""


class RemoteFile:
    """A remote file, open for positioned reads from any thread.

    Opening it asks for its facts and its beginning; each further byte is asked for when it is read.

    Args:
        location: Where it lies.
        store: What :func:`~sparsedelta.stores.connect` gave for it; None to ask now.

    Attributes:
        location: Where it lies.
        size: Its size in bytes.

    Raises:
        NoAccessError: There is no such file, or no access to it.
        RemoteError: It cannot be read, or its store gives no ranges.
    """

    def __init__(self, location: Url, store: tuple[Any, str] | None = None) -> None:
        self.location = location
        self._fs, self._path = store or connect(location)
        self._file: Any = None
        self._head = b""
        info = attempt(location, self._open)
        self._version = _version(info)
        size = info.get("size")
        if info.get("type") == "directory":
            raise CheckpointError(f"{location} is a folder, expected a file")
        if info.get("partial") is False or not isinstance(size, int):
            raise self._gives_no_ranges()
        self.size = size
        self._fetch_range: Callable[[int, int], bytes] = self._reader()
        if size:
            head = _HUB_HEAD_BYTES if is_hub(location) else _HEAD_BYTES
            self._head = self._fetch(0, min(size, head))

    def _open(self) -> Mapping[str, Any]:
        # A listing that fsspec remembers may be older than the file.
        self._fs.invalidate_cache(self._path)
        if self.location.protocol in ("s3", "s3a"):
            # Its files ask for their facts by themselves, and insist on their ETag from then on.
            self._file = self._fs.open(self._path, "rb", cache_type="none")
            return dict(self._file.details)
        return dict(self._fs.info(self._path))

    def _reader(self) -> Callable[[int, int], bytes]:
        """What fetches a range: of an open file without a cache, where the store has such files."""
        if is_hub(self.location):
            return lambda start, stop: bytes(self._fs.cat_file(self._path, start, stop))
        from fsspec.spec import AbstractBufferedFile  # noqa: PLC0415 (see connect)

        if self._file is None and self.size:
            options = self._pinned() if self.location.is_web else {}
            self._file = attempt(
                self.location,
                lambda: self._fs.open(self._path, "rb", cache_type="none", **options),
            )
        if isinstance(self._file, AbstractBufferedFile):
            # The hook of its caches: unlike seek and read it may be called by many threads.
            fetch: Callable[[int, int], bytes] = self._file._fetch_range  # noqa: SLF001
            return fetch
        return lambda start, stop: bytes(self._fs.cat_file(self._path, start, stop))

    def _pinned(self) -> dict[str, Any]:
        """Options of a file in the web: its size is known, and another version is refused."""
        tag = self._version.get("ETag", "")
        if not tag.startswith('"'):  # a weak one never matches
            return {"size": self.size}
        headers = {**self._fs.kwargs.get("headers", {}), "If-Match": tag}
        return {"size": self.size, "headers": headers}

    def _fetch(self, start: int, stop: int) -> bytes:
        def fetch() -> bytes:
            try:
                data = self._fetch_range(start, stop)
            except ValueError:
                if self.location.is_web:  # aiohttp's file says so if all of it begins to come
                    raise self._gives_no_ranges() from None
                raise
            if len(data) < stop - start:
                raise _ShortError(f"{len(data)} bytes came, {stop - start} were asked for")
            if len(data) > stop - start:
                raise self._gives_no_ranges()
            return data

        try:
            return attempt(self.location, fetch)
        except RemoteError:
            self.check_unchanged()  # then this is why
            raise

    def _gives_no_ranges(self) -> RemoteError:
        return RemoteError(
            f"cannot read {self.location}: its server does not give parts of files, or does not "
            "tell their size",
            hint="download it first, and name the local file",
        )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``.

        Raises:
            CheckpointError: The file is shorter.
            RemoteError: It cannot be read, or was changed.
        """
        stop = offset + len(buffer)
        if stop > self.size:
            raise CheckpointError(
                f"{self.location} ends at byte {self.size}, {stop - self.size} bytes early"
            )
        known = self._head[offset:stop]
        buffer[: len(known)] = known
        runs = [
            (start, min(start + _RUN_BYTES, stop))
            for start in range(offset + len(known), stop, _RUN_BYTES)
        ]
        pending = [_workers(os.getpid()).submit(self._fetch, *run) for run in runs]
        try:
            for (start, end), future in zip(runs, pending, strict=True):
                buffer[start - offset : end - offset] = future.result()
        finally:
            for future in pending:  # nothing is left to cancel unless one has failed
                future.cancel()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises as :meth:`read_into`.

        The caller has bounded ``length`` by the file's size or a limit.
        """
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def identity(self) -> list[Any]:
        """What would be other, as far as can be told, if it were another file; as JSON."""
        return [str(self.location), self.size, *sorted(map(list, self._version.items()))]

    def check_unchanged(self) -> None:
        """Insist that the file is still the one that was opened, as far as its store tells.

        Raises:
            RemoteError: It is another.
        """

        def facts() -> Mapping[str, Any]:
            self._fs.invalidate_cache(self._path)
            return dict(self._fs.info(self._path))

        found = _version(attempt(self.location, facts))
        shared = found.keys() & self._version.keys()
        if any(found[key] != self._version[key] for key in shared):
            raise changed(self.location)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _ShortError(OSError):
    """Fewer bytes came than were asked for: a connection was cut."""


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}


@cache
def _workers(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (threads do not survive a fork)
    return ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="sparsedelta-remote")


def open_remote(locations: Iterable[Url]) -> list[RemoteFile]:
    """Open remote files, several at a time; all of them, or none.

    Raises:
        RemoteError: One cannot be read; of the first, in their order.
    """
    # Connected to in this thread: fsspec keeps a file system, and its connections, for each.
    stores = [(location, connect(location)) for location in locations]
    if len(stores) == 1:
        return [RemoteFile(*stores[0])]
    pending = [_workers(os.getpid()).submit(RemoteFile, *each) for each in stores]
    try:
        return [future.result() for future in pending]
    except BaseException:
        for future in pending:
            if not future.cancel() and future.exception() is None:
                future.result().close()
        raise


def is_remote_folder(url: Url) -> bool:
    """Whether a URL leads to a folder of its store.

    Raises:
        RemoteError: Nothing is there, or it cannot be told.
    """
    fs, path = connect(url)

    def facts() -> Mapping[str, Any]:
        fs.invalidate_cache(path)
        return dict(fs.info(path))

    return attempt(url, facts).get("type") == "directory"


def list_remote(url: Url, *, below: bool) -> dict[str, int]:
    """Sizes of the files of a remote folder, by their paths relative to it, ascending.

    Args:
        url: The folder.
        below: Whether the files of folders within it are listed, too.

    Raises:
        RemoteError: The folder cannot be listed.
    """
    fs, path = connect(url)
    prefix = f"{path.rstrip('/')}/" if path else ""

    def entries() -> list[Mapping[str, Any]]:
        fs.invalidate_cache(path)
        if below:
            return list(fs.find(path, detail=True).values())
        return list(fs.ls(path, detail=True))

    files = {
        str(entry["name"]).removeprefix(prefix): int(entry.get("size") or 0)
        for entry in attempt(url, entries)
        if entry.get("type") == "file" and str(entry["name"]).startswith(prefix)
    }
    return {name: files[name] for name in sorted(files) if name}
