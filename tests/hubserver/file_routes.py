"""Files of a commit: listed, looked up, and read."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import parse_qs, quote

from hubserver.blobs import Blob
from hubserver.calls import Call, Handler, strings
from hubserver.errors import HubError
from hubserver.messages import Answer, of_file, of_json, page
from hubserver.repos import Commit, Repo
from hubserver.xet import read_route


def entry(call: Call, path: str, blob: Blob, commit: Commit) -> dict[str, object]:
    """A file, as listings tell of it."""
    found: dict[str, object] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.lfs:
        found["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
        if blob.xet is not None and call.hub.settings.xet:
            found["xetHash"] = blob.xet
    return found | expanded(call, commit)


def folder(call: Call, path: str, commit: Commit) -> dict[str, object]:
    """A folder, as listings tell of it."""
    found = {"type": "directory", "oid": commit.folder_oid(path), "size": 0, "path": path}
    return found | expanded(call, commit)


def expanded(call: Call, commit: Commit) -> dict[str, object]:
    """What listings add if asked to: the commit."""
    if not call.request.flag("expand"):
        return {}
    return {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.date}}


def folders_between(top: str, paths: Iterable[str]) -> set[str]:
    """All folders below one that hold any of the paths."""
    found = set()
    for path in paths:
        for parent in PurePosixPath(path).parents:
            text = str(parent)
            if text in {".", top}:
                break
            found.add(text)
    return found


def tree(call: Call) -> Answer:
    """What is in a folder, or below it."""
    commit = call.commit()
    top = "/".join(call.rest[1:])
    files = dict(commit.below(top))
    if top and not files:
        if top in commit.files:
            return of_json([entry(call, top, commit.files[top], commit)])
        raise HubError(404, f"{top} does not exist on {call.revision}", code="EntryNotFound")
    inside = folders_between(top, files)
    if not call.request.flag("recursive"):
        depth = top.count("/") + 1 if top else 0
        files = {path: blob for path, blob in files.items() if path.count("/") == depth}
        inside = {path for path in inside if path.count("/") == depth}
    found = [folder(call, path, commit) for path in sorted(inside)]
    found += [entry(call, path, blob, commit) for path, blob in files.items()]
    return page(call.request, found, call.hub.settings.page_size, call.hub.url)


def paths_info(call: Call) -> Answer:
    """The paths that are there, of those that were asked for; as a form, or as JSON."""
    commit = call.commit()
    if "json" in call.request.headers.get("Content-Type", ""):
        document = call.request.document()
        paths = strings(document.get("paths", []), "paths")
        if document.get("expand"):
            call.request.query["expand"] = ["true"]
    else:
        form = parse_qs(call.request.content().decode())
        paths = form.get("paths", [])
        call.request.query |= {"expand": form.get("expand", [""])}
    found = []
    for path in dict.fromkeys(path.strip("/") for path in paths):
        if path in commit.files:
            found.append(entry(call, path, commit.files[path], commit))
        elif path and any(commit.below(path)):
            found.append(folder(call, path, commit))
    return of_json(found)


def resolve(call: Call) -> Answer:
    """The content of a file, or a redirect to where it is."""
    repo = call.repo()
    commit = repo.at(call.revision)
    path = "/".join(call.rest[1:])
    about = {"X-Repo-Commit": commit.id}
    call.hub.open_file(repo, path, call.caller)
    if path not in commit.files:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=about)
    return content(call, repo, commit, path)


def content(call: Call, repo: Repo, commit: Commit, path: str) -> Answer:
    """The content of a file that is there."""
    hub, blob = call.hub, commit.files[path]
    name = quote(PurePosixPath(path).name)
    headers = {
        "X-Repo-Commit": commit.id,
        "ETag": f'"{blob.etag}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{name}",
        "Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream",
        "Vary": "Origin, Accept",
    }
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.lfs and blob.xet is not None and hub.settings.xet:
        headers["X-Xet-Hash"] = blob.xet
        headers["Link"] = f'<{hub.url}{read_route(repo, commit.id)}>; rel="xet-auth"'
    if f'"{blob.etag}"' == call.request.headers.get("If-None-Match"):
        return Answer(304, headers)
    if hub.settings.resolve_cache and not blob.lfs and call.request.parts[0] != "api":
        where = f"/api/resolve-cache/{repo.type}s/{repo.id}/{commit.id}/{quote(path)}"
        return Answer(307, headers | {"Location": where})
    if blob.lfs and hub.settings.cdn:
        headers["Location"] = f"{hub.cdn_url}/{hub.epoch}/{blob.sha256}"
        return Answer(302, headers)
    expected = call.request.headers.get("If-Range")
    asked = call.request.headers.get("Range") if expected in (None, headers["ETag"]) else None
    return of_file(hub.blobs.path(blob.sha256), blob.size, headers, asked)


def from_cdn(call: Call) -> Answer:
    """The content of a large file, from the other origin; whoever has the address may read it."""
    epoch, _, sha256 = "/".join(call.request.parts).partition("/")
    if epoch != str(call.hub.epoch) or not sha256.isalnum() or not call.hub.blobs.has(sha256):
        raise HubError(403, "AccessDenied")
    path = call.hub.blobs.path(sha256)
    headers = {"ETag": f'"{sha256}"'}
    return of_file(path, path.stat().st_size, headers, call.request.headers.get("Range"))


OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("GET", "tree"): tree,
    ("POST", "paths-info"): paths_info,
    ("GET", "resolve"): resolve,
    ("HEAD", "resolve"): resolve,
}
