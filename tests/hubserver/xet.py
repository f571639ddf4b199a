"""Xet: tokens, and a folder that takes the place of its storage.

The client's own library for Xet takes ``local://FOLDER`` as a storage and reads and writes it
itself. The server learns from the shards there (files ``*.mdb``) which content has which Xet hash.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubserver.blobs import pieces
from hubserver.calls import Call, Handler
from hubserver.errors import HubError
from hubserver.hub import Hub
from hubserver.messages import Answer, of_json
from hubserver.repos import Repo

ENTRY = 48
"""Bytes of the header of a shard, and of everything in its list of files."""

END = b"\xff" * 32
"""What the list of files ends with, in place of a hash."""

VERIFIED, WITH_METADATA = 1 << 31, 1 << 30
"""Flags of a file: an entry for each of its segments follows them; then one with the SHA-256."""


def read_route(repo: Repo, revision: str) -> str:
    """Where the client gets a token for reading."""
    return f"/api/{repo.type}s/{repo.id}/xet-read-token/{revision}"


def token(call: Call, *, writes: bool) -> Answer:
    """A token, in the body and in headers; it is as good as the folder is open."""
    if not call.hub.settings.xet:
        raise HubError(404, "Not Found")
    revision = call.revision
    if writes:
        if revision == "None":
            call.request.query["create_pr"] = ["1"]
        call.repo_to_propose(revision)
    else:
        call.hub.open_file(call.repo(), "", call.caller)
    expires = int(time.time()) + 3600
    access = f"xet-{'write' if writes else 'read'}"
    where = f"local://{call.hub.cas}"
    headers = {
        "X-Xet-Cas-Url": where,
        "X-Xet-Access-Token": access,
        "X-Xet-Token-Expiration": str(expires),
    }
    return of_json({"casUrl": where, "exp": expires, "accessToken": access}, headers=headers)


def hexadecimal(raw: bytes) -> str:
    """A hash as Xet writes it: four words, each little-endian."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


@dataclass(frozen=True, slots=True)
class XetFile:
    """A file as a shard tells of it."""

    sha256: str
    hash: str
    size: int


def parse_shard(data: bytes) -> Iterator[XetFile]:
    """Every file of a shard that tells its SHA-256."""
    at = ENTRY
    while at + ENTRY <= len(data) and data[at : at + 32] != END:
        name = hexadecimal(data[at : at + 32])
        flags, count = struct.unpack_from("<II", data, at + 32)
        at += ENTRY
        # A segment: the hash of its xorb, flags, its bytes, and which chunks they are.
        segments = range(at, at + ENTRY * count, ENTRY)
        size = sum(struct.unpack_from("<I", data, segment + 36)[0] for segment in segments)
        at += ENTRY * count
        if flags & VERIFIED:
            at += ENTRY * count
        if flags & WITH_METADATA:
            yield XetFile(hexadecimal(data[at : at + 32]), name, size)
            at += ENTRY


def known(folder: Path, sha256: str) -> XetFile | None:
    """What a storage holds of a content."""
    for path in folder.glob("xet/xorbs/shards/*.mdb"):
        for file in parse_shard(path.read_bytes()):
            if file.sha256 == sha256:
                return file
    return None


def link_or_copy(source: str, target: str) -> None:
    """The same file under another name; a database is copied, as it would be locked."""
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def adopt(hub: Hub, sha256: str) -> str | None:
    """Take over a content that came through Xet, for plain HTTP as well; gives its Xet hash."""
    file = known(hub.cas, sha256)
    if file is None or hub.blobs.has(sha256):
        return file.hash if file is not None else None
    import hf_xet  # noqa: PLC0415 - a Hub without Xet has no need of it

    # A client that is still running has the storage's database locked: read one of our own.
    with tempfile.TemporaryDirectory(dir=hub.folder) as folder:
        view, target = Path(folder) / "view", Path(folder) / "content"
        shutil.copytree(
            hub.cas / "xet" / "xorbs", view / "xet" / "xorbs", copy_function=link_or_copy
        )
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{view}") as group:
            group.start_download_file(hf_xet.XetFileInfo(file.hash, file.size), str(target))
        found, _ = hub.blobs.add(pieces(target))
    if found != sha256:
        raise HubError(400, f"Xet holds {found}, announced was {sha256}")
    return file.hash


OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("GET", "xet-read-token"): lambda call: token(call, writes=False),
    ("GET", "xet-write-token"): lambda call: token(call, writes=True),
}
