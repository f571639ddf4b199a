"""Refs and history: branches, tags, commits."""

from __future__ import annotations

from hubserver.calls import Call, Handler
from hubserver.errors import HubError, forbidden
from hubserver.messages import Answer, of_json, page


def refs(call: Call) -> Answer:
    """All refs, those of pull requests if asked to."""
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
    if call.request.flag("include_prs"):
        kinds["pullRequests"] = "refs/pr/"
    return of_json(
        {
            key: [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
                for ref, commit in sorted(call.repo().refs.items())
                if ref.startswith(prefix)
            ]
            for key, prefix in kinds.items()
        }
    )


def create_branch(call: Call) -> Answer:
    """A branch at a revision, or at ``main``."""
    repo, ref = call.repo_to_write(), f"refs/heads/{call.revision}"
    start = str(call.request.document().get("startingPoint") or "main")
    if ref in repo.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.at(start).id
    return of_json({})


def delete_branch(call: Call) -> Answer:
    """A branch, but not ``main``."""
    repo, ref = call.repo_to_write(), f"refs/heads/{call.revision}"
    if call.revision == "main":
        raise forbidden("Cannot delete the main branch")
    if ref not in repo.refs:
        raise HubError(404, f"Invalid rev id: {call.revision}", code="RevisionNotFound")
    del repo.refs[ref]
    return of_json({})


def create_tag(call: Call) -> Answer:
    """A tag of a revision."""
    repo, name = call.repo_to_write(), call.request.text("tag")
    if f"refs/tags/{name}" in repo.refs:
        raise HubError(409, f"Tag reference exists already: {name}")
    repo.refs[f"refs/tags/{name}"] = repo.at(call.revision).id
    return of_json({})


def delete_tag(call: Call) -> Answer:
    """A tag; its commit stays."""
    repo, ref = call.repo_to_write(), f"refs/tags/{call.revision}"
    if ref not in repo.refs:
        raise HubError(404, f"Invalid rev id: {call.revision}", code="RevisionNotFound")
    del repo.refs[ref]
    return of_json({})


def commits(call: Call) -> Answer:
    """The history of a revision, the newest commit first."""
    repo = call.repo()
    found = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author, "avatar": ""}],
        }
        for commit in repo.history(repo.at(call.revision))
    ]
    size = min(call.hub.settings.page_size, call.request.number("limit", 50))
    return page(call.request, found, max(size, 1), call.hub.url)


def super_squash(call: Call) -> Answer:
    """One commit instead of all of a branch's."""
    repo = call.repo_to_write()
    ref = f"refs/heads/{call.revision}"
    commit = repo.at(ref)
    title = str(call.request.document().get("message") or "Super-squash")
    author = str(call.caller.name)
    squashed = repo.record(ref, commit.files, title=title, author=author, parents=())
    return of_json({"commitOid": squashed.id})


OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("GET", "refs"): refs,
    ("POST", "branch"): create_branch,
    ("DELETE", "branch"): delete_branch,
    ("POST", "tag"): create_tag,
    ("DELETE", "tag"): delete_tag,
    ("GET", "commits"): commits,
    ("POST", "super-squash"): super_squash,
}
