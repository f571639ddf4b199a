"""The Hub for tests: every operation of a commit, commits that race, and the ``hf`` command."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
)

WEIGHTS = bytes(range(256)) * 20


def rearrange(repo: str, token: str) -> str:
    """Copy a large file and a small one, delete a file and a folder, add another file."""
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationCopy("w.safetensors", "copies/w.safetensors"),
        CommitOperationCopy("a.txt", "copies/a.txt"),
        CommitOperationDelete("old/"),
        CommitOperationDelete("gone.txt"),
        CommitOperationAdd("new.txt", b"new"),
    ]
    return str(HfApi(token=token).create_commit(repo, operations, commit_message="moved").oid)


def squash(repo: str, token: str) -> list[str]:
    """Make one commit of all; gives the titles of the history."""
    api = HfApi(token=token)
    api.super_squash_history(repo, commit_message="all in one")
    return [commit.title for commit in api.list_repo_commits(repo)]


def write_through(repo: str, token: str) -> str:
    """Write a file through the file system of the client, and read it back."""
    system = HfFileSystem(token=token, skip_instance_cache=True)
    with system.open(f"{repo}/notes/today.txt", "wb") as file:
        file.write(b"written")
    system.invalidate_cache()
    return bytes(system.cat_file(f"{repo}/notes/today.txt")).decode()


def test_all_operations_of_a_commit(hub: HubServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS)
    for name in ("a.txt", "gone.txt", "old/b.txt", "old/deep/c.txt"):
        (tmp_path / name).write_text(name)
    hub.put_repo("alice/m", folder=tmp_path)
    before = hub.files("alice/m")
    made = client(rearrange, repo="alice/m", token=TOKENS["alice"])
    files = hub.files("alice/m")
    assert hub.repo("alice/m")["sha"] == made
    names = {"a.txt", "w.safetensors", "new.txt", ".gitattributes"}
    assert set(files) == names | {"copies/a.txt", "copies/w.safetensors"}
    for name in ("a.txt", "w.safetensors"):
        assert files[f"copies/{name}"] == files[name] == before[name]
    assert client(write_through, repo="alice/m", token=TOKENS["alice"]) == "written"
    assert client(squash, repo="alice/m", token=TOKENS["alice"]) == ["all in one"]
    assert set(hub.files("alice/m")) == {*files, "notes/today.txt"}


def post_commit(hub: HubServer, parent: str, name: str) -> int:
    """A commit on a parent, past the client; gives the status of the answer."""
    lines = [
        {"key": "header", "value": {"summary": name, "parentCommit": parent}},
        {"key": "file", "value": {"path": name, "content": "YQ==", "encoding": "base64"}},
    ]
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    connection.request(
        "POST",
        "/api/models/alice/m/commit/main",
        "\n".join(json.dumps(line) for line in lines),
        {"Authorization": f"Bearer {TOKENS['alice']}"},
    )
    status = connection.getresponse().status
    connection.close()
    return status


def test_of_commits_that_race_one_comes_first(hub: HubServer) -> None:
    parent = hub.put_repo("alice/m", files={"a": b"a"})["sha"]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda n: post_commit(hub, parent, f"{n}.txt"), range(24)))
    assert sorted(statuses) == [200] + [412] * 23
    first = f"{statuses.index(200)}.txt"
    assert set(hub.files("alice/m")) == {".gitattributes", "a", first}


def test_paths_that_lead_elsewhere_are_refused(hub: HubServer) -> None:
    parent = hub.put_repo("alice/m", files={"a": b"a"})["sha"]
    for name in ("../out", "/etc/x", "x/../../y", ".git/config", "a\\b", "", "x//y", "a/b"):
        assert post_commit(hub, parent, name) == 400
    assert hub.repo("alice/m")["sha"] == parent


def hf(hub: HubServer, home: Path, *arguments: str) -> str:
    """What the ``hf`` command writes."""
    command = [str(Path(sys.executable).with_name("hf")), *arguments]
    run = subprocess.run(
        command, env=hub.environment(home), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_command_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "w.safetensors"
    source.write_bytes(WEIGHTS)
    hf(hub, home, "upload", "alice/m", str(source), "w.safetensors")
    target = tmp_path / "there"
    hf(hub, home, "download", "alice/m", "w.safetensors", "--local-dir", str(target))
    assert (target / "w.safetensors").read_bytes() == WEIGHTS
