"""Repositories as such: created, deleted, moved, set, told about."""

from __future__ import annotations

from hubserver.calls import Call, Handler
from hubserver.cards import metadata, problems, tags
from hubserver.errors import HubError, forbidden, repository_not_found
from hubserver.messages import Answer, of_json, page
from hubserver.repos import Commit, Repo


def whoami(call: Call) -> Answer:
    """The user of the token."""
    return of_json(call.hub.people.who(call.caller))


def named(call: Call, document: dict[str, object]) -> tuple[str, str]:
    """Type and id of the repository that a document is about.

    Raises:
        HubError: No name, or a namespace that the caller may not write to (403).
    """
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise HubError(400, '"name" is required')
    if not call.caller.signed_in:
        raise HubError(401, "Invalid username or password.")
    namespace = str(document.get("organization") or call.caller.name)
    if not call.hub.people.may_write(call.caller, namespace):
        raise forbidden(
            f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        )
    return str(document.get("type") or "model"), f"{namespace}/{name}"


def create(call: Call) -> Answer:
    """A new repository; an existing one is a conflict that still tells its address."""
    document = call.request.document()
    kind, repo_id = named(call, document)
    address: dict[str, object] = {"url": f"{call.hub.url}/{Repo(kind, repo_id).url_path}"}
    if (kind, repo_id) in call.hub.repos:
        message = "You already created this model repo"
        raise HubError(409, message, body={"error": message} | address)
    private = document.get("visibility") == "private" or document.get("private") is True
    repo = call.hub.create(kind, repo_id, author=str(call.caller.name), private=private)
    return of_json(address | {"name": repo_id, "id": repo.refs["refs/heads/main"][:24]})


def delete(call: Call) -> Answer:
    """A repository and all of it."""
    kind, repo_id = named(call, call.request.document())
    if (kind, repo_id) not in call.hub.repos:
        raise repository_not_found(signed_in=True)
    del call.hub.repos[kind, repo_id]
    return of_json({})


def move(call: Call) -> Answer:
    """Another name for a repository; the old one leads to it."""
    document = call.request.document()
    kind = str(document.get("type") or "model")
    source, target = call.request.text("fromRepo"), call.request.text("toRepo")
    repo = call.hub.to_write(kind, source, call.caller)
    if not call.hub.people.may_write(call.caller, target.partition("/")[0]):
        raise forbidden(f"You don't have the rights to move a repository to {target}")
    if (kind, target) in call.hub.repos:
        raise HubError(409, f"{target} exists already")
    del call.hub.repos[kind, source]
    repo.id = target
    call.hub.repos[kind, target] = repo
    call.hub.moved.pop((kind, target), None)
    call.hub.moved[kind, source] = target
    return of_json({})


def settings(call: Call) -> Answer:
    """Private or public, gated or open."""
    repo, document = call.repo_to_write(), call.request.document()
    visibility = document.get("visibility")
    if visibility is not None or "private" in document:
        repo.private = visibility == "private" or document.get("private") is True
    if "gated" in document:
        gated = document["gated"]
        if gated not in ("auto", "manual", False):
            raise HubError(400, '"gated" must be one of "auto", "manual", false')
        repo.gated = gated if isinstance(gated, str) else False
    return of_json({"private": repo.private, "gated": repo.gated})


def auth_check(call: Call) -> Answer:
    """Whether the caller may read, or write, without doing either."""
    if call.rest == ["write"]:
        call.repo_to_write()
    else:
        call.hub.open_file(call.repo(), "", call.caller)
    return of_json({})


def validate_yaml(call: Call) -> Answer:
    """Whether the metadata of a card is what the Hub takes."""
    errors, warnings = problems(str(call.request.document().get("content") or ""))
    document = {"errors": errors, "warnings": warnings}
    return of_json(document, status=400 if errors else 200)


def described(call: Call, repo: Repo, commit: Commit) -> dict[str, object]:
    """What the API tells of a repository at a commit."""
    card = metadata(call.hub.blobs, commit)
    blobs = call.request.flag("blobs")
    siblings = []
    for path, blob in commit.below(""):
        entry: dict[str, object] = {"rfilename": path}
        if blobs:
            entry |= {"size": blob.size, "blobId": blob.oid}
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
        siblings.append(entry)
    document: dict[str, object] = {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": tags(card, commit),
        "cardData": card,
        "createdAt": repo.created,
        "lastModified": repo.head.date,
        "siblings": siblings,
    }
    for key in ("library_name", "pipeline_tag"):
        if key in card:
            document[key] = card[key]
    expand = call.request.query.get("expand", []) + call.request.query.get("expand[]", [])
    if expand:
        return {key: document[key] for key in ("_id", "id", *expand) if key in document}
    return document


def info(call: Call) -> Answer:
    """A repository at a revision."""
    repo = call.repo()
    return of_json(described(call, repo, repo.at(call.revision)))


def listed(call: Call) -> Answer:
    """The repositories of a kind that the caller may see and that pass all filters."""
    hub, query = call.hub, call.request.query
    wanted = set(query.get("filter", [])) | set(query.get("pipeline_tag", []))
    author = query.get("author", [None])[-1]
    search = query.get("search", [""])[-1].lower()
    found = []
    for (kind, _), repo in hub.repos.items():
        hidden = repo.private and not hub.people.may_see(call.caller, repo.namespace)
        if kind != call.kind or hidden or (author is not None and repo.namespace != author):
            continue
        if search not in repo.id.lower():
            continue
        if "gated" in query and bool(repo.gated) is not call.request.flag("gated"):
            continue
        document = described(call, repo, repo.head)
        card = metadata(hub.blobs, repo.head)
        labels = {*tags(card, repo.head), card.get("pipeline_tag"), card.get("library_name")}
        if wanted <= labels:
            found.append((repo, document))
    key = query.get("sort", ["createdAt"])[-1]
    if key == "lastModified":
        found.sort(key=lambda pair: pair[0].head.date, reverse=True)
    else:
        found.sort(key=lambda pair: pair[0].created, reverse=True)
    documents = [document for _, document in found]
    if not call.request.flag("full") and not query.get("expand"):
        keep_card = call.request.flag("cardData")
        for document in documents:
            document.pop("siblings", None)
            if not keep_card:
                document.pop("cardData", None)
    size = min(call.request.number("limit", hub.settings.page_size), hub.settings.page_size)
    return page(call.request, documents, max(size, 1), hub.url)


FIXED: dict[tuple[str, str], Handler] = {
    ("GET", "whoami-v2"): whoami,
    ("POST", "repos/create"): create,
    ("DELETE", "repos/delete"): delete,
    ("POST", "repos/move"): move,
    ("POST", "validate-yaml"): validate_yaml,
    ("GET", "agent-harnesses"): lambda _: of_json({}),
}

OF_A_REPO: dict[tuple[str, str], Handler] = {
    ("GET", ""): info,
    ("GET", "revision"): info,
    ("PUT", "settings"): settings,
    ("GET", "auth-check"): auth_check,
}
