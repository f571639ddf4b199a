"""Commits: how each file is to be sent, and the commit itself, whole or not at all."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Mapping

from hubserver.blobs import Blob
from hubserver.calls import Call, Handler
from hubserver.discussions import open_pull_request, told_commit
from hubserver.errors import HubError
from hubserver.messages import Answer, of_json
from hubserver.repos import COMMIT_ID, Changes, Commit, Repo, checked_path
from hubserver.xet import adopt

REGULAR_LIMIT = 10_000_000
"""Bytes from which on a file has to be in LFS."""

STALE = "A commit has happened since. Please refresh and try again."


def patterns(call: Call, commit: Commit) -> list[str]:
    """The names that ``.gitattributes`` of a commit leaves to LFS."""
    blob = commit.files.get(".gitattributes")
    if blob is None:
        return []
    lines = call.hub.blobs.path(blob.sha256).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line]


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern of git is about a path: by name, by whole path, or by a folder of it."""
    pattern = pattern.strip().removeprefix("/")
    parts = path.split("/")
    if pattern.endswith("/"):
        return any(fnmatch.fnmatch(part, pattern[:-1]) for part in parts[:-1])
    return fnmatch.fnmatch(path, pattern) or any(fnmatch.fnmatch(part, pattern) for part in parts)


def preupload(call: Call) -> Answer:
    """How to send each file, and what is there already under its name."""
    repo = call.repo_to_propose(call.revision)
    commit = repo.at(call.revision)
    document = call.request.document()
    files = document.get("files")
    if not isinstance(files, list) or len(files) > 256:
        raise HubError(400, '"files" must be a list of at most 256 files')
    large = patterns(call, commit)
    ignored = [
        line
        for line in str(document.get("gitIgnore") or "").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = []
    for file in files:
        path = checked_path(file.get("path"))
        binary = b"\0" in base64.b64decode(str(file.get("sample") or ""))
        lfs = file["size"] > REGULAR_LIMIT or binary or any(matches(path, one) for one in large)
        told: dict[str, object] = {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": any(matches(path, one) for one in ignored),
        }
        if path in commit.files:
            told["oid"] = commit.files[path].etag
        found.append(told)
    return of_json({"files": found, "commitOid": commit.id})


def lines(call: Call) -> tuple[Mapping[str, object], list[tuple[str, Mapping[str, object]]]]:
    """The header and the operations of a commit.

    Raises:
        HubError: They are not what they should be (400).
    """
    header: Mapping[str, object] | None = None
    operations = []
    for line in call.request.content().splitlines():
        try:
            document = json.loads(line)
            key, value = document["key"], document["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(400, f"a line of the commit is not as it should be: {error}") from error
        if key == "header":
            header = value
        else:
            operations.append((key, value))
    if header is None or not header.get("summary"):
        raise HubError(400, 'a commit needs a header with a "summary"')
    return header, operations


def added(call: Call, repo: Repo, key: str, value: Mapping[str, object]) -> Blob:
    """The file that an operation adds.

    Raises:
        HubError: Its content is missing, or too much for a regular file (400).
    """
    hub = call.hub
    if key == "file":
        text = str(value.get("content") or "")
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise HubError(400, f"{value.get('path')}: content is no base64") from error
        if len(data) > REGULAR_LIMIT:
            raise HubError(400, f"{value.get('path')}: too large for a regular file, use LFS")
        return hub.blobs.regular(data)
    sha256 = str(value.get("oid"))
    xet = adopt(hub, sha256) if hub.settings.xet else None
    if sha256 not in repo.stored and xet is not None:
        repo.stored[sha256] = hub.blobs.path(sha256).stat().st_size
    if sha256 not in repo.stored:
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
    if value.get("size") not in (None, repo.stored[sha256]):
        raise HubError(400, f"{value.get('path')}: size is not that of the content")
    return hub.blobs.large(sha256, repo.stored[sha256], xet)


def changes_of(
    call: Call, repo: Repo, operations: list[tuple[str, Mapping[str, object]]]
) -> Changes:
    """What all operations of a commit do together."""
    changes = Changes()
    for key, value in operations:
        path = value.get("path")
        if key in ("file", "lfsFile"):
            changes.added[checked_path(path)] = added(call, repo, key, value)
        elif key == "deletedFile":
            changes.deleted_files.append(str(path))
        elif key == "deletedFolder":
            changes.deleted_folders.append(str(path))
        else:
            raise HubError(400, f"unknown operation {key!r}")
    return changes


def commit(call: Call) -> Answer:
    """A commit to a branch, to a pull request, or as a new pull request."""
    repo = call.repo_to_propose(call.revision)
    ref = repo.ref(call.revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(404, f"Invalid rev id: {call.revision}", code="RevisionNotFound")
    head = repo.at(ref)
    header, operations = lines(call)
    parent = header.get("parentCommit")
    if parent is not None and not COMMIT_ID.fullmatch(str(parent)):
        raise HubError(400, "parentCommit must be a commit id of 40 hexadecimal digits")
    if parent is not None and parent != head.id:
        raise HubError(412, STALE)
    files = changes_of(call, repo, operations).onto(head.files)
    title, message = str(header["summary"]), str(header.get("description") or "")
    author, answer = str(call.caller.name), {}
    if call.request.flag("create_pr"):
        pull = open_pull_request(repo, title, message, author, base=ref)
        ref = f"refs/pr/{pull.num}"
        repo.refs[ref] = head.id
        answer["pullRequestUrl"] = f"{call.hub.url}/{repo.url_path}/discussions/{pull.num}"
    made = repo.record(ref, files, title=title, author=author, message=message)
    told_commit(repo, ref, made)
    answer |= {
        "success": "true",
        "commitOid": made.id,
        "commitUrl": f"{call.hub.url}/{repo.url_path}/commit/{made.id}",
    }
    return of_json(answer)


OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("POST", "preupload"): preupload,
    ("POST", "commit"): commit,
}
