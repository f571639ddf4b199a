"""The Hub for tests: what the real client uploads comes back bit for bit, by every way there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hubserver.client import Client, ClientError
from hubserver.people import TOKENS
from hubserver.process import HubServer
from huggingface_hub import HfApi, HfFileSystem, get_safetensors_metadata, snapshot_download

CARD = "---\nlicense: mit\n---\n# A model\n"


CLIENT = tuple(int(part) for part in version("huggingface_hub").split(".")[:2])
"""The version of the client: what it does by itself differs."""


def upload(repo: str, folder: str, token: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Create a repository and upload a folder to it, twice."""
    api = HfApi(token=token)
    api.create_repo(repo, exist_ok=True)
    first = api.upload_folder(repo_id=repo, folder_path=folder, **options)
    second = api.upload_folder(repo_id=repo, folder_path=folder, **options)
    return {"first": first.oid, "second": second.oid}


def download(repo: str, cache: str, token: str, **options: Any) -> dict[str, str]:  # noqa: ANN401
    """The SHA-256 of each file of a snapshot."""
    root = Path(snapshot_download(repo, cache_dir=cache, token=token, **options))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def peek(repo: str, name: str, start: int, stop: int, token: str) -> str:
    """A range of a file, through the file system of the client."""
    system = HfFileSystem(token=token, skip_instance_cache=True)
    with system.open(f"{repo}/{name}", "rb", block_size=1 << 12) as file:
        file.seek(start)
        return bytes(file.read(stop - start)).hex()


def tensors(repo: str, token: str) -> list[str]:
    """The names of tensors of a repository, by ranges of its header."""
    found = get_safetensors_metadata(repo, token=token)
    return sorted(found.files_metadata["model.safetensors"].tensors)


def listed(repo: str, token: str, *, recursive: bool, path: str | None = None) -> list[str]:
    """The paths in a folder of a repository."""
    tree = HfApi(token=token).list_repo_tree(repo, path_in_repo=path, recursive=recursive)
    return [entry.path for entry in tree]


def known(repo: str, paths: list[str], token: str) -> list[str]:
    """Those of the paths that are there."""
    return [entry.path for entry in HfApi(token=token).get_paths_info(repo, paths)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Large and small, empty and nested files."""
    root = tmp_path / "upload"
    (root / "sub" / "deep").mkdir(parents=True)
    header = b'{"w":{"dtype":"U8","shape":[300000],"data_offsets":[0,300000]}}'
    weights = len(header).to_bytes(8, "little") + header + os.urandom(300_000)
    (root / "model.safetensors").write_bytes(weights)
    (root / "sub" / "other.bin").write_bytes(os.urandom(120_001))
    (root / "sub" / "deep" / "a name.json").write_text("{}")
    (root / "empty.txt").write_bytes(b"")
    (root / "README.md").write_text(CARD)
    return root


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


WAYS: dict[str, dict[str, object]] = {
    "lfs": {},
    "lfs in parts, pages, another origin": {
        "multipart": 50_000,
        "page_size": 2,
        "cdn": True,
        "resolve_cache": True,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_comes_back(
    hub: HubServer, client: Client, folder: Path, tmp_path: Path, way: str
) -> None:
    hub.reset(**WAYS[way])
    made = client(upload, repo="alice/model", folder=str(folder), token=TOKENS["alice"])
    assert made["first"] == made["second"] == hub.repo("alice/model")["sha"]
    assert len(hub.repo("alice/model")["commits"]) == 2  # one of them is the first of all
    kept = hub.files("alice/model")
    assert {name: kept[name]["sha256"] for name in digests(folder)} == digests(folder)
    assert [name for name in kept if kept[name]["lfs"]] == ["model.safetensors", "sub/other.bin"]
    cache = str(tmp_path / "cache")
    found = client(download, repo="alice/model", cache=cache, token=TOKENS["alice"])
    del found[".gitattributes"]
    assert found == digests(folder)
    puts = [entry for entry in hub.log() if entry["method"] == "PUT"]
    assert len(puts) == (10 if "parts" in way else 2)
    assert not any(entry["authenticated"] for entry in puts)
    elsewhere = [entry for entry in hub.log() if entry["origin"] == "cdn"]
    assert not any(entry["authenticated"] for entry in elsewhere)
    assert bool(elsewhere) is ("origin" in way)


def test_a_pinned_snapshot_costs_no_request(
    hub: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    sha = hub.put_repo("org/base", folder=folder)["sha"]
    cache = str(tmp_path / "cache")
    first = client(download, repo="org/base", cache=cache, token=TOKENS["bob"], revision=sha)
    hub.clear_log()
    again = client(download, repo="org/base", cache=cache, token=TOKENS["bob"], revision=sha)
    assert first == again
    assert len(hub.log()) == (0 if CLIENT >= (1, 31) else 1)


def test_ranges_of_a_file(hub: HubServer, client: Client, folder: Path) -> None:
    hub.put_repo("org/base", folder=folder)
    token, data = TOKENS["bob"], (folder / "model.safetensors").read_bytes()
    window = {"repo": "org/base", "name": "model.safetensors", "start": 5000, "stop": 6000}
    assert client(peek, **window, token=token) == data[5000:6000].hex()
    reads = [entry for entry in hub.log() if "/resolve/" in entry["path"]]
    assert sum(entry["sent"] for entry in reads) < 10_000
    assert [entry["status"] for entry in reads if entry["method"] == "GET"] == [206]
    hub.clear_log()
    assert client(tensors, repo="org/base", token=token) == ["w"]
    assert sum(entry["sent"] for entry in hub.log()) < 150_000


def test_listings(hub: HubServer, client: Client, folder: Path) -> None:
    hub.put_repo("org/base", folder=folder)
    hub.reset(page_size=2)
    hub.put_repo("org/base", folder=folder)
    token = TOKENS["bob"]
    everything = client(listed, repo="org/base", token=token, recursive=True)
    assert sorted(everything) == sorted([*digests(folder), ".gitattributes", "sub", "sub/deep"])
    inside = client(listed, repo="org/base", token=token, recursive=False, path="sub")
    assert sorted(inside) == ["sub/deep", "sub/other.bin"]
    paths = ["sub", "no", "empty.txt", "sub/deep/a name.json"]
    found = client(known, repo="org/base", paths=paths, token=token)
    assert found == ["sub", "empty.txt", "sub/deep/a name.json"]
    with pytest.raises(ClientError) as caught:
        client(listed, repo="org/base", token=token, recursive=False, path="nowhere")
    assert caught.value.type == "RemoteEntryNotFoundError"


@pytest.fixture
def xet_client(hub: HubServer, tmp_path: Path) -> Iterator[Client]:
    """The real client as it comes: with Xet."""
    environment = hub.environment(tmp_path / "home", None, xet=True)
    with Client(environment, tmp_path / "errors.txt") as process:
        yield process


def test_xet(
    hub: HubServer,
    xet_client: Client,
    client: Client,
    folder: Path,
    tmp_path: Path,
) -> None:
    hub.reset(xet=True)
    made = xet_client(upload, repo="alice/model", folder=str(folder), token=TOKENS["alice"])
    assert made["first"] == made["second"]
    assert not [entry for entry in hub.log() if entry["method"] == "PUT"]
    kept = hub.files("alice/model")
    assert {name: kept[name]["sha256"] for name in digests(folder)} == digests(folder)
    assert kept["model.safetensors"]["xet"] is not None
    hub.clear_log()
    arguments = {"repo": "alice/model", "token": TOKENS["alice"]}
    found = xet_client(download, cache=str(tmp_path / "a"), **arguments)
    del found[".gitattributes"]
    assert found == digests(folder)
    large = [entry for entry in hub.log() if entry["path"].endswith(".safetensors")]
    assert not any(entry["method"] == "GET" for entry in large)
    # One that has no Xet gets the same over plain HTTP.
    found = client(download, cache=str(tmp_path / "b"), **arguments)
    del found[".gitattributes"]
    assert found == digests(folder)


@pytest.mark.skipif(CLIENT < (1, 31), reason="this client asks whether there is Xet")
def test_a_hub_without_xet_is_an_error_to_a_client_with_it(
    hub: HubServer, xet_client: Client, folder: Path
) -> None:
    with pytest.raises(ClientError, match="xet-write-token") as caught:
        xet_client(upload, repo="alice/model", folder=str(folder), token=TOKENS["alice"])
    assert caught.value.type == "ConnectionError"
    assert len(hub.repo("alice/model")["commits"]) == 1
