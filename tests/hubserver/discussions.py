"""Discussions and pull requests: opened, commented, closed, merged."""

from __future__ import annotations

from collections.abc import Iterable

from hubserver.calls import Call, Handler
from hubserver.errors import HubError
from hubserver.messages import Answer, of_json
from hubserver.repos import Commit, Discussion, Repo, identity, now

PAGE = 10


def event(
    discussion: Discussion, kind: str, author: str, data: dict[str, object]
) -> dict[str, object]:
    """Something that happened to a discussion, added to it."""
    made: dict[str, object] = {
        "id": identity(discussion.num, len(discussion.events), kind)[:24],
        "type": kind,
        "createdAt": now(),
        "author": {"name": author},
        "data": data,
    }
    discussion.events.append(made)
    return made


def comment(discussion: Discussion, author: str, text: str) -> dict[str, object]:
    """A comment, added to a discussion."""
    data = {"edited": False, "hidden": False, "latest": {"raw": text, "html": ""}}
    return event(discussion, "comment", author, data)


def opened(repo: Repo, title: str, text: str, author: str, *, pull_request: bool) -> Discussion:
    """A new discussion."""
    num = len(repo.discussions) + 1
    status = "draft" if pull_request else "open"
    discussion = Discussion(num, title, author, pull_request, status, now())
    repo.discussions[num] = discussion
    comment(discussion, author, text)
    return discussion


def open_pull_request(repo: Repo, title: str, text: str, author: str, *, base: str) -> Discussion:
    """A new pull request, open at once: its commit comes with it."""
    pull = opened(repo, title, text, author, pull_request=True)
    pull.status, pull.base = "open", base
    return pull


def told_commit(repo: Repo, ref: str, commit: Commit) -> None:
    """Note a commit in the pull request whose ref it went to."""
    for pull in repo.discussions.values():
        if ref == f"refs/pr/{pull.num}":
            event(pull, "commit", commit.author, {"subject": commit.title, "oid": commit.id})


def summary(repo: Repo, discussion: Discussion) -> dict[str, object]:
    """A discussion, as listings tell of it."""
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.created,
        "status": discussion.status,
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": discussion.is_pull_request,
        "numComments": len(discussion.events),
    }


def chosen(call: Call) -> Discussion:
    """The discussion that the path names.

    Raises:
        HubError: There is none.
    """
    number = call.rest[0]
    discussion = call.repo().discussions.get(int(number)) if number.isdigit() else None
    if discussion is None:
        raise HubError(404, "Discussion not found")
    return discussion


def listing(call: Call) -> Answer:
    """All discussions that pass the filters, or one in full."""
    repo = call.repo()
    if call.rest:
        discussion = chosen(call)
        document = summary(repo, discussion) | {"events": discussion.events}
        if discussion.is_pull_request:
            changes = {"base": discussion.base, "mergeCommitId": discussion.merged}
            document |= {"changes": changes, "filesWithConflicts": conflicts(repo, discussion)}
        return of_json(document)
    query = call.request.query
    found = [discussion for discussion in repo.discussions.values() if passes(discussion, query)]
    found.sort(key=lambda discussion: discussion.num, reverse=True)
    start = call.request.number("p", 0) * PAGE
    shown = [summary(repo, discussion) for discussion in found[start : start + PAGE]]
    return of_json({"count": len(found), "start": start, "discussions": shown})


def passes(discussion: Discussion, query: dict[str, list[str]]) -> bool:
    """Whether a discussion is among those asked for."""
    kind = "pull_request" if discussion.is_pull_request else "discussion"
    if query.get("type", ["all"])[-1] not in ("all", kind):
        return False
    if query.get("author", [discussion.author])[-1] != discussion.author:
        return False
    alive = "open" if discussion.status in ("open", "draft") else "closed"
    return query.get("status", ["all"])[-1] in ("all", alive)


def create(call: Call) -> Answer:
    """A discussion, or a pull request that holds no commit yet."""
    repo, document = call.repo(), call.request.document()
    if not call.caller.signed_in or call.caller.role != "write":
        call.repo_to_write()
    author, wants_pull = str(call.caller.name), bool(document.get("pullRequest"))
    title, text = call.request.text("title"), str(document.get("description") or "")
    discussion = opened(repo, title, text, author, pull_request=wants_pull)
    if wants_pull:
        discussion.base = "refs/heads/main"
        repo.refs[f"refs/pr/{discussion.num}"] = repo.head.id
    return of_json({"num": discussion.num, "pullRequest": wants_pull})


def change(call: Call) -> Answer:
    """A comment, another title or status, or a merge."""
    discussion, document = chosen(call), call.request.document()
    verb = call.rest[1] if len(call.rest) > 1 else ""
    author = str(call.caller.name)
    if not call.caller.signed_in:
        raise HubError(401, "Invalid username or password.")
    if verb == "comment":
        return of_json({"newMessage": comment(discussion, author, call.request.text("comment"))})
    if discussion.author != author or verb == "merge":
        call.repo_to_write()
    if document.get("comment"):
        comment(discussion, author, str(document["comment"]))
    if verb == "title":
        before, discussion.title = discussion.title, call.request.text("title")
        data: dict[str, object] = {"from": before, "to": discussion.title}
        return of_json({"newTitle": event(discussion, "title-change", author, data)})
    if verb == "status":
        discussion.status = call.request.text("status")
        told = event(discussion, "status-change", author, {"status": discussion.status})
        return of_json({"newStatus": told})
    if verb == "merge":
        return merge(call, discussion, author)
    raise HubError(404, f"no such change: {verb!r}")


def base_of(repo: Repo, pull: Discussion) -> Commit:
    """The commit at which a pull request and its base part."""
    ours = {commit.id for commit in repo.history(repo.at(pull.base))}
    theirs: Iterable[Commit] = repo.history(repo.at(f"refs/pr/{pull.num}"))
    return next(commit for commit in theirs if commit.id in ours)


def conflicts(repo: Repo, pull: Discussion) -> list[str]:
    """The files that both sides changed, and not in the same way."""
    if pull.status == "merged":
        return []
    start = base_of(repo, pull).files
    ours, theirs = repo.at(pull.base).files, repo.at(f"refs/pr/{pull.num}").files
    return sorted(
        path
        for path in {*ours, *theirs}
        if len({start.get(path), ours.get(path), theirs.get(path)}) == 3
    )


def merge(call: Call, pull: Discussion, author: str) -> Answer:
    """Bring a pull request's changes to its base, in one commit."""
    repo = call.repo_to_write()
    if not pull.is_pull_request or pull.status not in ("open", "draft"):
        raise HubError(400, f"cannot be merged: {pull.status}")
    if conflicts(repo, pull):
        raise HubError(409, "cannot be merged: there are conflicts")
    start = base_of(repo, pull).files
    ours, theirs = repo.at(pull.base), repo.at(f"refs/pr/{pull.num}")
    files = dict(ours.files)
    for path in {*start, *theirs.files}:
        if theirs.files.get(path) == start.get(path):
            continue
        if path in theirs.files:
            files[path] = theirs.files[path]
        else:
            files.pop(path, None)
    title = f"{pull.title} (#{pull.num})"
    made = repo.record(pull.base, files, title=title, author=author, parents=(ours.id, theirs.id))
    pull.status, pull.merged = "merged", made.id
    event(pull, "status-change", author, {"status": "merged"})
    return of_json({"commitOid": made.id})


OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("GET", "discussions"): listing,
    ("POST", "discussions"): lambda call: change(call) if call.rest else create(call),
}
