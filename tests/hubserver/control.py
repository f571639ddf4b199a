"""What tests ask of the server itself, under ``/_test/``: state, log, faults, settings."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from hubserver.blobs import Blob, pieces
from hubserver.calls import strings
from hubserver.errors import HubError
from hubserver.faults import KINDS, Faults, parse, seeded
from hubserver.hub import Hub, Settings
from hubserver.messages import Answer, Request, of_json
from hubserver.repos import Repo
from hubserver.request_log import RequestLog


def answer(hub: Hub, faults: Faults, log: RequestLog, request: Request) -> Answer:
    """Do what a test asks for.

    Raises:
        HubError: There is no such thing to ask for.
    """
    verbs: dict[tuple[str, str], Callable[[], object]] = {
        ("GET", "log"): log.told,
        ("DELETE", "log"): log.clear,
        ("GET", "faults"): faults.told,
        ("POST", "faults"): lambda: set_faults(faults, request.document()),
        ("POST", "settings"): lambda: set_settings(hub, request.document()),
        ("POST", "reset"): lambda: reset(hub, faults, log),
        ("POST", "repo"): lambda: put_repo(hub, request.document()),
        ("GET", "repo"): lambda: told_repo(hub, request.query["id"][-1], request.query["type"][-1]),
    }
    verb = verbs.get((request.method, request.parts[1]))
    if verb is None:
        raise HubError(404, f"tests cannot ask for {request.method} {request.parts[1]}")
    return of_json(verb())


def reset(hub: Hub, faults: Faults, log: RequestLog) -> None:
    """Forget everything."""
    with hub.lock:
        hub.reset()
    faults.set([])
    log.clear()


def set_faults(faults: Faults, document: dict[str, object]) -> list[dict[str, object]]:
    """Replace the faults: a list of them, or one at random from a seed."""
    if "seed" in document:
        kinds = document.get("kinds")
        seed, requests = document["seed"], document["requests"]
        assert isinstance(seed, int)
        assert isinstance(requests, int)
        chosen = tuple(strings(kinds, "kinds")) if kinds is not None else KINDS
        match = str(document.get("match") or "")
        faults.set([seeded(seed, requests=requests, kinds=chosen, match=match)])
    else:
        entries = document.get("faults")
        assert isinstance(entries, list)
        faults.set([parse(entry) for entry in entries])
    return faults.told()


def set_settings(hub: Hub, document: dict[str, object]) -> dict[str, object]:
    """Change settings; those that are not named stay."""
    names = {entry.name for entry in fields(Settings)}
    if unknown := set(document) - names:
        raise HubError(
            400, f"no such settings: {sorted(unknown)}, expected some of {sorted(names)}"
        )
    for name, value in document.items():
        setattr(hub.settings, name, value)
    return asdict(hub.settings)


def put_repo(hub: Hub, document: dict[str, object]) -> dict[str, object]:
    """Create or change a repository past all rules: any owner, any path, files from disk."""
    with hub.lock:
        return put(hub, document)


def put(hub: Hub, document: dict[str, object]) -> dict[str, object]:
    """Do it; the lock is held."""
    kind, repo_id = str(document.get("type") or "model"), str(document["id"])
    repo = hub.repos.get((kind, repo_id)) or hub.create(kind, repo_id, author="system")
    for name in ("private", "gated", "disabled"):
        if name in document:
            setattr(repo, name, document[name])
    repo.accepted |= set(strings(document.get("accepted", []), "accepted"))
    added: dict[str, Blob] = {}
    folder = document.get("folder")
    if folder is not None:
        root = Path(str(folder))
        for path in sorted(root.rglob("*")):
            if path.is_file():
                added[path.relative_to(root).as_posix()] = stored(hub, path)
    files = document.get("files")
    for name, text in (files if isinstance(files, dict) else {}).items():
        added[name] = hub.blobs.regular(base64.b64decode(text))
    for blob in added.values():
        if blob.lfs:
            repo.stored[blob.sha256] = blob.size
    if added:
        title = str(document.get("message") or "put there by a test")
        ref = f"refs/heads/{document.get('branch') or 'main'}"
        start = repo.commits[repo.refs.get(ref, repo.head.id)]
        repo.record(
            ref, {**start.files, **added}, title=title, author="system", parents=(start.id,)
        )
    return told_repo(hub, repo_id, kind)


def stored(hub: Hub, path: Path) -> Blob:
    """A file of the disk: weights in LFS, anything else in git."""
    if path.suffix in (".safetensors", ".bin"):
        return hub.blobs.large(*hub.blobs.add(pieces(path)))
    return hub.blobs.regular(path.read_bytes())


def told_repo(hub: Hub, repo_id: str, kind: str) -> dict[str, object]:
    """All of a repository: refs, and the history and files of each."""
    with hub.lock:
        repo = hub.repos.get((kind, repo_id))
        if repo is None:
            raise HubError(404, f"there is no {kind} {repo_id}")
        return told(repo)


def told(repo: Repo) -> dict[str, object]:
    """All of a repository that is there."""
    return {
        "id": repo.id,
        "type": repo.type,
        "private": repo.private,
        "gated": repo.gated,
        "sha": repo.head.id,
        "refs": repo.refs,
        "commits": {
            commit.id: {
                "parents": commit.parents,
                "title": commit.title,
                "message": commit.message,
                "author": commit.author,
                "files": {path: asdict(blob) for path, blob in commit.files.items()},
            }
            for commit in repo.commits.values()
        },
        "discussions": {
            number: {"title": one.title, "status": one.status, "author": one.author}
            for number, one in repo.discussions.items()
        },
    }
