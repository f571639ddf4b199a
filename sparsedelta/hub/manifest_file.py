"""`sparsedelta.json`: what a repository with deltas says of itself in one small file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sparsedelta.errors import CheckpointError
from sparsedelta.hub.references import COMMIT, is_repository
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Url
from sparsedelta.sources import read_file
from sparsedelta.strict_json import parse

MANIFEST_FILE: Final = "sparsedelta.json"
VERSION: Final = 1
_MAX_BYTES: Final = 1 << 24
_MAX_LINKS: Final = 1 << 20

_DIGEST: Final = re.compile("[0-9a-f]{64}")
_PATH: Final = re.compile(r"(chain/)?[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file: its path in the repository, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ListedBase:
    """Where the base of the delta, or of the first link, can be had.

    Attributes:
        repo: ``namespace/name``, or None if it is not known.
        commit: 40 hex digits, or None.
        fingerprint: Fingerprint of the base.
        files: Its weight files at that commit.
    """

    repo: str | None
    commit: str | None
    fingerprint: str
    files: tuple[ListedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedDelta:
    """A delta of the repository.

    Attributes:
        path: Its file, or the root of its set.
        base: Fingerprint of where it starts.
        target: Fingerprint of where it leads to.
        content: Content digest.
        format_version: Version of the format of delta files.
        profile: Their profile.
        nnz: Entries.
        tensors: Tensors that it touches.
        invertible: Whether it can be reverted.
        method: How it was made, if that is known: ``gallop``, ``compose``, ….
        files: Its files: one, or the root of a set and its part files.
    """

    path: str
    base: str
    target: str
    content: str
    format_version: str
    profile: str
    nnz: int
    tensors: int
    invertible: bool
    method: str | None
    files: tuple[ListedFile, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """The content of ``sparsedelta.json``.

    Attributes:
        base: The base of the delta, or of the first link.
        deltas: The delta; or the links of a chain, in their order.
        is_chain: Whether the repository holds a chain.
    """

    base: ListedBase
    deltas: tuple[ListedDelta, ...]
    is_chain: bool = False
    version: int = field(default=VERSION)

    @property
    def target(self) -> str:
        """Fingerprint of where the last delta leads to."""
        return self.deltas[-1].target

    @property
    def files(self) -> tuple[ListedFile, ...]:
        """The files of all deltas."""
        return tuple(file for delta in self.deltas for file in delta.files)

    def to_bytes(self) -> bytes:
        """The text of the file: the same for the same content."""
        document: dict[str, Any] = {
            "format": "sparsedelta repository",
            "version": self.version,
            "kind": "chain" if self.is_chain else "delta",
            "base": asdict(self.base),
            "target": {"fingerprint": self.target},
            "deltas": [asdict(delta) for delta in self.deltas],
        }
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def parse_manifest_file(content: bytes, where: str) -> ManifestFile:
    """The typed content of ``sparsedelta.json``, which may come from anyone.

    Args:
        content: Its text.
        where: What to call it in messages.

    Raises:
        CheckpointError: It is malformed, or of a later version.
    """
    try:
        document = parse(content)
        version = document["version"]
        if not isinstance(version, int) or version > VERSION:
            raise CheckpointError(
                f"{where} is of version {version!r:.20}, this release knows {VERSION}",
                hint="install a newer release: pip install --upgrade sparsedelta",
            )
        base, deltas = document["base"], document["deltas"]
        found = ManifestFile(
            ListedBase(
                _repo(base["repo"]),
                _checked(base["commit"], COMMIT, none=True),
                _checked(base["fingerprint"], _DIGEST) or "",
                tuple(_file(file) for file in base["files"]),
            ),
            tuple(_delta(delta) for delta in deltas),
            is_chain=document["kind"] == "chain",
        )
        if not found.deltas or len(found.deltas) > _MAX_LINKS:
            raise ValueError(f"{len(found.deltas)} deltas")  # noqa: TRY301 (told below, with the rest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is malformed: {type(error).__name__}: {error}",
            hint="its author deletes it on the Hub, and pushes the delta again",
        ) from None
    return found


def _delta(document: Mapping[str, Any]) -> ListedDelta:
    return ListedDelta(
        path=_checked(document["path"], _PATH) or "",
        base=_checked(document["base"], _DIGEST) or "",
        target=_checked(document["target"], _DIGEST) or "",
        content=_checked(document["content"], _DIGEST) or "",
        format_version=_text(document["format_version"]) or "",
        profile=_text(document["profile"]) or "",
        nnz=_number(document["nnz"]),
        tensors=_number(document["tensors"]),
        invertible=bool(document["invertible"]),
        method=_text(document["method"], none=True),
        files=tuple(_file(file, _PATH) for file in document["files"]),
    )


def _file(document: Mapping[str, Any], path: re.Pattern[str] | None = None) -> ListedFile:
    name = document["path"]
    named = _checked(name, path) if path else _text(name)
    return ListedFile(
        named or "", _number(document["size"]), _checked(document["sha256"], _DIGEST) or ""
    )


def _text(value: object, *, none: bool = False) -> str | None:
    if isinstance(value, str) or (none and value is None):
        return value
    raise ValueError(f"{value!r:.80}, expected text")


def _repo(value: object) -> str | None:
    if value is None or (isinstance(value, str) and is_repository(value)):
        return value
    raise ValueError(f"{value!r:.80}, expected NAMESPACE/NAME")


def _checked(value: object, pattern: re.Pattern[str], *, none: bool = False) -> str | None:
    if none and value is None:
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.80}, expected {pattern.pattern}")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.80}, expected a number")
    return value


def read_manifest_file(store: HubStore) -> ManifestFile | None:
    """What a repository says of its deltas; None if it does not.

    Raises:
        CheckpointError: Its ``sparsedelta.json`` is malformed.
        HubError: It cannot be read.
    """
    if MANIFEST_FILE not in store.files:
        return None
    url = manifest_url(store)
    return parse_manifest_file(read_file(url, _MAX_BYTES), str(url))


def manifest_url(store: HubStore) -> Url:
    """Where ``sparsedelta.json`` lies, pinned as the store is."""
    return store.url(MANIFEST_FILE)
