"""Git LFS: what is missing, where to put it, and whether it arrived.

Addresses for uploads carry a signature instead of asking for a token, as those of an object store
do.
"""

from __future__ import annotations

import hashlib
from math import ceil

from hubserver.blobs import pieces
from hubserver.calls import Call, strings
from hubserver.errors import HubError, forbidden
from hubserver.hub import Hub
from hubserver.messages import Answer, of_json
from hubserver.repos import Repo


def signature(hub: Hub, *parts: object) -> str:
    """What makes an address for uploads ours."""
    text = "/".join(str(part) for part in (hub.folder, hub.epoch, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def address(hub: Hub, repo: Repo, verb: str, *about: object) -> str:
    """Where to send a file (its SHA-256, its size, 0), or a part of it (the same, its number)."""
    tail = "/".join(str(part) for part in (verb, repo.type, repo.id, *about))
    return f"{hub.url}/_lfs/{tail}/{signature(hub, tail)}"


def batch(call: Call) -> Answer:
    """Where to upload each object; those that are here already need nothing."""
    document = call.request.document()
    if document.get("operation") != "upload":
        raise HubError(400, "only uploads are asked for here")
    repo = writable(call, document)
    objects = document.get("objects")
    if not isinstance(objects, list):
        raise HubError(400, '"objects" must be a list')
    if call.hub.settings.xet and "xet" in strings(document.get("transfers", []), "transfers"):
        # Clients before 1.31 leave the choice to the Hub.
        return of_json({"transfer": "xet", "objects": objects, "hash_algo": "sha256"})
    told: list[dict[str, object]] = []
    for entry in objects:
        sha256, size = entry.get("oid"), entry.get("size")
        wanted = {"oid": sha256, "size": size}
        valid = isinstance(sha256, str) and len(sha256) == 64 and isinstance(size, int)
        if not valid:
            told.append(wanted | {"error": {"code": 422, "message": "invalid object"}})
        elif sha256 in repo.stored:
            told.append(wanted)
        else:
            told.append(wanted | {"actions": actions(call.hub, repo, sha256, size)})
    return of_json({"transfer": "basic", "objects": told, "hash_algo": "sha256"})


def writable(call: Call, document: dict[str, object]) -> Repo:
    """The repository, if the caller may put something into it, if only for a pull request."""
    ref = document.get("ref")
    if ref is None:
        call.request.query["create_pr"] = ["1"]
    name = str(ref.get("name") or "main") if isinstance(ref, dict) else "main"
    return call.repo_to_propose(name)


def actions(hub: Hub, repo: Repo, sha256: str, size: int) -> dict[str, object]:
    """How to upload one object."""
    verify = f"{hub.url}/{repo.url_path}.git/info/lfs/objects/verify"
    step = hub.settings.multipart
    if not step or size <= step:
        upload: dict[str, object] = {"href": address(hub, repo, "put", sha256, size, 0)}
    else:
        parts = {
            f"{number:05d}": address(hub, repo, "part", sha256, size, number)
            for number in range(1, ceil(size / step) + 1)
        }
        href = address(hub, repo, "complete", sha256, size, 0)
        upload = {"href": href, "header": {"chunk_size": str(step)} | parts}
    return {"upload": upload, "verify": {"href": verify}}


def upload(call: Call) -> Answer:
    """Take in a file, or a part of one, or put the parts together."""
    hub = call.hub
    *tail, signed = call.request.parts[1:]
    verb, *middle, sha256, size, part = tail
    if len(middle) < 2 or signed != signature(hub, "/".join(tail)):
        raise forbidden("SignatureDoesNotMatch")
    key = f"{'/'.join(middle)}:{sha256}"
    parts = hub.uploads.setdefault(key, {})
    if verb == "complete":
        expected = call.request.document().get("parts")
        if not isinstance(expected, list) or len(expected) != len(parts):
            raise HubError(400, f"{len(parts)} parts were uploaded, not these")
        found = [hub.blobs.path(parts[number][0]) for number in sorted(parts)]
        parts[0] = hub.blobs.add(piece for path in found for piece in pieces(path))
        return of_json({})
    stored, length = hub.blobs.add(call.request.pieces())
    if verb == "put" and length != int(size):
        raise HubError(400, "IncompleteBody")
    parts[int(part)] = (stored, length)
    return Answer(200, {"ETag": f'"{stored[:32]}"'})


def verify(call: Call) -> Answer:
    """Whether an object arrived as it was announced; only then the repository has it."""
    document = call.request.document()
    sha256, size = str(document.get("oid")), document.get("size")
    repo = call.repo()
    if not call.caller.signed_in:
        call.repo_to_write()
    arrived = call.hub.uploads.pop(f"{repo.type}/{repo.id}:{sha256}", {}).get(0)
    if arrived is None and repo.stored.get(sha256) == size:
        return of_json({})
    if arrived != (sha256, size):
        raise HubError(400, f"object {sha256} did not arrive: found {arrived}")
    repo.stored[sha256] = arrived[1]
    return of_json({})
