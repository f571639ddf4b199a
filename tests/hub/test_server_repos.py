"""The Hub for tests: who may do what, and the errors that the real client makes of its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hubserver.client import Client, ClientError
from hubserver.people import BAD_TOKEN, TOKENS
from hubserver.process import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_url,
    snapshot_download,
)


def create(repo: str, token: str, **options: Any) -> str:  # noqa: ANN401
    """Create a repository; gives its id."""
    return str(HfApi(token=token).create_repo(repo, **options).repo_id)


def call(name: str, token: str | bool = False, **arguments: Any) -> None:  # noqa: ANN401, FBT001, FBT002
    """Call a method of the client's API for what it raises, without a token unless one is given."""
    getattr(HfApi(token=token), name)(**arguments)


def who(token: str) -> dict[str, Any]:
    """The user and the role of a token."""
    found = HfApi().whoami(token=token)
    organizations = [entry["name"] for entry in found["orgs"]]
    return {
        "name": found["name"],
        "orgs": organizations,
        "role": found["auth"]["accessToken"]["role"],
    }


def about(repo: str, token: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """What the client tells of a repository."""
    found = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
    return {
        "sha": found.sha,
        "private": found.private,
        "gated": found.gated,
        "tags": found.tags,
        "sizes": {entry.rfilename: entry.size for entry in found.siblings or []},
    }


def commit(repo: str, token: str, files: dict[str, str], **options: Any) -> str:  # noqa: ANN401
    """Commit texts; gives the id of the commit."""
    operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    made = HfApi(token=token).create_commit(repo, operations, commit_message="files", **options)
    return str(made.oid)


def commit_and_delete(repo: str, token: str, missing: str) -> None:
    """A commit that adds one file and deletes one that is not there."""
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete(missing),
    ]
    HfApi(token=token).create_commit(repo, operations, commit_message="both")


def download(repo: str, cache: str, token: str | None, revision: str | None = None) -> list[str]:
    """The files of a snapshot."""
    root = Path(snapshot_download(repo, cache_dir=cache, token=token, revision=revision))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def look(repo: str, token: str | bool) -> None:  # noqa: FBT001
    """Ask for the headers of a file, without any cache."""
    api = HfApi(token=token)
    api.get_hf_file_metadata(url=hf_hub_url(repo, "a"))


def refs(repo: str, token: str) -> dict[str, list[str]]:
    """The names of branches and tags, and the ids of a history."""
    api = HfApi(token=token)
    found = api.list_repo_refs(repo)
    return {
        "branches": [entry.name for entry in found.branches],
        "tags": [entry.name for entry in found.tags],
        "titles": [entry.title for entry in api.list_repo_commits(repo)],
    }


def branch_and_tag(repo: str, token: str) -> None:
    """A branch with a slash in its name, a commit to it, and a tag of ``main``."""
    api = HfApi(token=token)
    api.create_tag(repo, tag="v1.0", tag_message="the first")
    api.create_branch(repo, branch="try/this")
    commit(repo, token, {"only-here.txt": "x"}, revision="try/this")


def models(token: str | None = None, **filters: Any) -> list[str]:  # noqa: ANN401
    """The ids of the models that a search finds."""
    return sorted(found.id for found in HfApi(token=token).list_models(**filters))


def test_people(client: Client) -> None:
    assert client(who, token=TOKENS["alice"]) == {
        "name": "alice",
        "orgs": ["acme"],
        "role": "write",
    }
    assert client(who, token=TOKENS["alice-read"])["role"] == "read"
    with pytest.raises(ClientError, match="Invalid") as caught:
        client(call, name="whoami", token=BAD_TOKEN)
    assert caught.value.status == 401


def test_repositories_come_once_and_where_one_may(hub: HubServer, client: Client) -> None:
    alice = TOKENS["alice"]
    assert client(create, repo="alice/m", token=alice) == "alice/m"
    assert client(create, repo="alice/m", token=alice, exist_ok=True) == "alice/m"
    assert client(create, repo="acme/m", token=alice, private=True) == "acme/m"
    for repo, token, status in [
        ("alice/m", alice, 409),
        ("bob/m", alice, 403),
        ("acme/n", TOKENS["bob"], 403),
        ("alice/n", TOKENS["alice-read"], 403),
        ("alice/n", BAD_TOKEN, 401),
    ]:
        with pytest.raises(ClientError) as caught:
            client(create, repo=repo, token=token)
        assert caught.value.status == status
    client(call, name="move_repo", token=alice, from_id="alice/m", to_id="alice/moved")
    assert client(about, repo="alice/m")["sha"] == hub.repo("alice/moved")["sha"]
    client(call, name="delete_repo", token=alice, repo_id="alice/moved")
    with pytest.raises(ClientError) as caught:
        client(about, repo="alice/moved", token=alice)
    assert caught.value.type == "RepositoryNotFoundError"


REFUSED = [
    ("nobody/nothing", "bob", "RepositoryNotFoundError", 404),
    ("nobody/nothing", None, "RepositoryNotFoundError", 401),
    ("acme/secret", "carol", "RepositoryNotFoundError", 404),
    ("acme/secret", None, "RepositoryNotFoundError", 401),
    ("acme/gated", "carol", "GatedRepoError", 403),
    ("acme/gated", None, "GatedRepoError", 401),
    ("acme/disabled", "bob", "DisabledRepoError", 403),
    ("acme/open", "nobody", "HfHubHTTPError", 401),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_refusals_have_their_classes(
    hub: HubServer, client: Client, refused: tuple[str, str | None, str, int]
) -> None:
    repo, user, error, status = refused
    hub.put_repo("acme/secret", files={"a": b"a"}, private=True)
    hub.put_repo("acme/gated", files={"a": b"a"}, gated="manual", accepted=["bob"])
    hub.put_repo("acme/disabled", files={"a": b"a"}, disabled=True)
    hub.put_repo("acme/open", files={"a": b"a"})
    token = (TOKENS | {"nobody": BAD_TOKEN})[user] if user is not None else False
    with pytest.raises(ClientError) as caught:
        client(look, repo=repo, token=token)
    assert (caught.value.type, caught.value.status) == (error, status)


def test_who_may_read_reads(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.put_repo("acme/secret", files={"a": b"a"}, private=True)
    hub.put_repo("carol/gated", files={"a": b"a"}, gated="auto", accepted=["alice"])
    expected = [".gitattributes", "a"]
    for repo, user in [("acme/secret", "bob"), ("carol/gated", "alice"), ("carol/gated", "carol")]:
        cache = str(tmp_path / user)
        assert client(download, repo=repo, cache=cache, token=TOKENS[user]) == expected
        client(call, name="auth_check", token=TOKENS[user], repo_id=repo)
    with pytest.raises(ClientError) as caught:
        client(call, name="auth_check", token=TOKENS["bob"], repo_id="carol/gated")
    assert caught.value.type == "GatedRepoError"
    with pytest.raises(ClientError) as caught:
        client(commit, repo="acme/secret", token=TOKENS["bob"], files={"b": "b"})
    assert caught.value.status == 403
    told = client(about, repo="carol/gated")
    assert told["gated"] == "auto"
    client(
        call,
        name="update_repo_settings",
        token=TOKENS["carol"],
        repo_id="carol/gated",
        gated=False,
        private=True,
    )
    assert client(about, repo="carol/gated", token=TOKENS["carol"])["private"] is True


def test_a_stale_parent_changes_nothing(hub: HubServer, client: Client) -> None:
    token = TOKENS["alice"]
    client(create, repo="alice/m", token=token)
    first = client(commit, repo="alice/m", token=token, files={"a": "1"})
    second = client(commit, repo="alice/m", token=token, files={"a": "2"}, parent_commit=first)
    with pytest.raises(ClientError, match="A commit has happened since") as caught:
        client(commit, repo="alice/m", token=token, files={"b": "3"}, parent_commit=first)
    assert caught.value.status == 412
    assert hub.repo("alice/m")["sha"] == second
    with pytest.raises(ClientError) as caught:
        client(commit_and_delete, repo="alice/m", token=token, missing="not/here")
    assert caught.value.type == "RemoteEntryNotFoundError"
    assert sorted(hub.files("alice/m")) == [".gitattributes", "a"]


def test_branches_tags_and_history(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.reset(page_size=1)
    token = TOKENS["alice"]
    client(create, repo="alice/m", token=token)
    client(commit, repo="alice/m", token=token, files={"a": "1"})
    client(branch_and_tag, repo="alice/m", token=token)
    client(commit, repo="alice/m", token=token, files={"a": "2"})
    found = client(refs, repo="alice/m", token=token)
    assert found["branches"] == ["main", "try/this"]
    assert found["tags"] == ["v1.0"]
    assert found["titles"] == ["files", "files", "initial commit"]
    for revision, expected in [
        ("v1.0", [".gitattributes", "a"]),
        ("try/this", [".gitattributes", "a", "only-here.txt"]),
    ]:
        arguments = {"repo": "alice/m", "cache": str(tmp_path), "token": token}
        assert client(download, revision=revision, **arguments) == expected
    assert client(about, repo="alice/m", revision="v1.0")["sha"] != hub.repo("alice/m")["sha"]
    with pytest.raises(ClientError) as caught:
        client(about, repo="alice/m", revision="v2.0")
    assert caught.value.type == "RevisionNotFoundError"
    for name, tag, status in [("create_tag", "v1.0", 409), ("delete_tag", "v9", 404)]:
        with pytest.raises(ClientError) as caught:
            client(call, name=name, token=token, repo_id="alice/m", tag=tag)
        assert caught.value.status == status


def propose(repo: str, token: str, files: dict[str, str]) -> dict[str, Any]:
    """A pull request with one commit; gives its number and its commit."""
    operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    made = HfApi(token=token).create_commit(
        repo, operations, commit_message="proposed", create_pr=True
    )
    return {"num": made.pr_num, "revision": made.pr_revision, "oid": made.oid}


def pull_request(repo: str, num: int) -> dict[str, Any]:
    """What the client tells of a pull request."""
    found = HfApi().get_discussion_details(repo, num)
    return {
        "status": found.status,
        "author": found.author,
        "base": found.target_branch,
        "conflicts": found.conflicting_files,
        "events": [event.type for event in found.events],
    }


def upload_as_proposal(repo: str, token: str, folder: str) -> str | None:
    """Upload a folder as a pull request."""
    made = HfApi(token=token).upload_folder(repo_id=repo, folder_path=folder, create_pr=True)
    return made.pr_url


def test_pull_requests(hub: HubServer, client: Client, tmp_path: Path) -> None:
    before = hub.put_repo("alice/m", files={"a": b"1", "b": b"1"})["sha"]
    made = client(propose, repo="alice/m", token=TOKENS["bob"], files={"a": "2"})
    assert made["revision"] == "refs/pr/1"
    assert hub.repo("alice/m")["sha"] == before
    told = client(pull_request, repo="alice/m", num=1)
    assert told == {
        "status": "open",
        "author": "bob",
        "base": "refs/heads/main",
        "conflicts": [],
        "events": ["comment", "commit"],
    }
    with pytest.raises(ClientError) as caught:
        client(
            call,
            name="merge_pull_request",
            token=TOKENS["bob"],
            repo_id="alice/m",
            discussion_num=1,
        )
    assert caught.value.status == 403
    client(propose, repo="alice/m", token=TOKENS["carol"], files={"a": "3"})
    for num in (1, 2):
        arguments: dict[str, Any] = {"repo_id": "alice/m", "discussion_num": num}
        if num == 1:
            client(call, name="merge_pull_request", token=TOKENS["alice"], **arguments)
        else:
            assert client(pull_request, repo="alice/m", num=2)["conflicts"] == ["a"]
            with pytest.raises(ClientError) as caught:
                client(call, name="merge_pull_request", token=TOKENS["alice"], **arguments)
            assert caught.value.status == 409
    assert client(pull_request, repo="alice/m", num=1)["status"] == "merged"
    assert hub.files("alice/m")["a"]["size"] == 1
    (tmp_path / "new.txt").write_text("new")
    url = client(upload_as_proposal, repo="alice/m", token=TOKENS["bob"], folder=str(tmp_path))
    assert url.endswith("/alice/m/discussions/3")
    assert "new.txt" in hub.files("alice/m", hub.repo("alice/m")["refs"]["refs/pr/3"])
    assert "new.txt" not in hub.files("alice/m")


CARD = """---
library_name: sparsedelta
license: mit
base_model: {base}
{relation}
tags: [sparse-delta]
---
# A delta
"""


def card(base: str, relation: str = "base_model_relation: adapter") -> bytes:
    """A card of a delta."""
    return CARD.format(base=base, relation=relation).encode()


def test_models_are_found_by_what_their_cards_say(hub: HubServer, client: Client) -> None:
    hub.put_repo("alice/a", files={"README.md": card("org/base")})
    hub.put_repo("alice/b", files={"README.md": card("org/other")})
    hub.put_repo("bob/c", files={"README.md": card("org/base", "")})
    hub.put_repo("bob/secret", files={"README.md": card("org/base")}, private=True)
    adapters = "base_model:adapter:org/base"
    assert client(models, filter="base_model:org/base") == ["alice/a", "bob/c"]
    assert client(models, filter=adapters) == ["alice/a"]
    assert client(models, filter=adapters, token=TOKENS["bob"]) == ["alice/a", "bob/secret"]
    assert client(models, filter=["sparsedelta", "base_model:org/other"]) == ["alice/b"]
    assert client(models, filter="sparse-delta", author="alice") == ["alice/a", "alice/b"]
    assert client(models, search="OB/C") == ["bob/c"]
    assert client(models, filter="sparse-delta", limit=2) == ["alice/b", "bob/c"]
    hub.ask("POST", "settings", {"page_size": 1})
    hub.clear_log()
    assert client(models, filter="sparse-delta") == ["alice/a", "alice/b", "bob/c"]
    assert len(hub.log()) == 3


def test_cards_that_the_hub_refuses(hub: HubServer, client: Client) -> None:
    token = TOKENS["alice"]
    client(create, repo="alice/m", token=token)
    for wrong in ("license: free", "base_model: [1]", "base_model_relation: patch", "a: [", "- a"):
        files = {"README.md": f"---\n{wrong}\n---\n"}
        with pytest.raises(ClientError, match=r"Invalid metadata in README\.md"):
            client(commit, repo="alice/m", token=token, files=files)
    client(commit, repo="alice/m", token=token, files={"README.md": card("org/base").decode()})
    assert client(about, repo="alice/m")["tags"][0] == "sparsedelta"
