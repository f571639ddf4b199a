"""Files that are read, wherever they lie: one way to open them all."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from sparsedelta.errors import CheckpointError
from sparsedelta.files import InputFile
from sparsedelta.hub.references import is_hub
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Location, Url


class Source(Protocol):
    """A file that is open for positioned reads from any thread."""

    @property
    def location(self) -> Location:
        """Where it lies."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``.

        Raises:
            CheckpointError: It cannot be read, or is shorter.
        """

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises as :meth:`read_into`."""

    def identity(self) -> list[Any]:
        """What would be other, as far as can be told, if it were another file; as JSON."""

    def check_unchanged(self) -> None:
        """Insist that the file is the one that was opened.

        Raises:
            CheckpointError: It was changed, as far as can be told.
        """

    def close(self) -> None:
        """Close the file; further calls do nothing."""


def open_sources(locations: Iterable[Location], *, ahead: bool = False) -> list[Source]:
    """Open files of one place; all of them, or none.

    Args:
        locations: Where they lie: all of them local, or none.
        ahead: Whether they will be read in short pieces that follow one another.

    Raises:
        CheckpointError: One of them cannot be read; of the first, in their order.
    """
    locations = list(locations)
    urls = [location for location in locations if isinstance(location, Url)]
    if urls:
        return _open_urls(urls, ahead=ahead)
    opened: list[Source] = []
    try:
        for location in locations:
            assert isinstance(location, Path)  # noqa: S101 (all local, or none)
            opened.append(InputFile(location))
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


def _open_urls(urls: list[Url], *, ahead: bool) -> list[Source]:
    from sparsedelta.read_ahead import ReadAhead  # noqa: PLC0415 (local files need none of it)
    from sparsedelta.remote import open_remote  # noqa: PLC0415

    copies = {url: copy for url in urls if (copy := _cached(url)) is not None}
    files = iter(open_remote([url for url in urls if url not in copies]))
    opened: list[Source] = []
    try:
        for url in urls:
            if url in copies:
                opened.append(InputFile(copies[url], url))
            else:
                file = next(files)
                opened.append(ReadAhead(file) if ahead else file)
    except BaseException:
        for source in (*opened, *files):
            source.close()
        raise
    return opened


def _cached(url: Url) -> Path | None:
    """Where the client of the Hub has a copy of a file, if it has one."""
    if not is_hub(url):
        return None
    return HubStore(url).cached()


def open_source(location: Location, *, ahead: bool = False) -> Source:
    """Open a file; see :func:`open_sources`."""
    return open_sources([location], ahead=ahead)[0]


def read_file(location: Location, limit: int) -> bytes:
    """All of a small file.

    Raises:
        CheckpointError: It cannot be read, or is larger than ``limit`` bytes.
    """
    with closing(open_source(location)) as source:
        if source.size > limit:
            raise CheckpointError(f"{location}: {source.size} bytes, {limit} are allowed")
        return source.read(0, source.size)
