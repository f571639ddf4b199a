"""The Hub for tests: ranges, the log, and every fault as the wire and the real client see it."""

from __future__ import annotations

import hashlib
import http.client
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hubserver.client import Client, ClientError
from hubserver.faults import KINDS
from hubserver.people import TOKENS
from hubserver.process import HubServer
from hubserver.xet import XetFile, parse_shard
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

CLIENT = tuple(int(part) for part in version("huggingface_hub").split(".")[:2])
TRIES_AGAIN = CLIENT >= (1, 31)
"""Whether the client goes on after a connection has ended."""

CONTENT = bytes(range(256)) * 40


def get(
    hub: HubServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request: status, headers (names in lower case), body."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, headers=sent)
    answer = connection.getresponse()
    found = {name.lower(): text for name, text in answer.getheaders()}
    body = answer.read()
    connection.close()
    return answer.status, found, body


RANGES = [
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=5-99", 206, slice(5, 100)),
    ("bytes=10200-", 206, slice(10200, None)),
    ("bytes=10200-99999", 206, slice(10200, None)),
    ("bytes=-7", 206, slice(-7, None)),
    ("bytes=-99999", 206, slice(None)),
    ("bytes=10240-", 416, slice(0, 0)),
    ("bytes=-0", 416, slice(0, 0)),
    ("bytes=0-1,5-6", 200, slice(None)),
    ("lines=0-1", 200, slice(None)),
]


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize("case", RANGES, ids=[case[0] for case in RANGES])
def test_ranges(hub: HubServer, tmp_path: Path, case: tuple[str, int, slice], origin: str) -> None:
    asked, status, part = case
    hub.reset(cdn=origin == "cdn")
    (tmp_path / "w.safetensors").write_bytes(CONTENT)
    sha = hub.put_repo("org/base", folder=tmp_path)["sha"]
    found, headers, body = get(hub, "/org/base/resolve/main/w.safetensors", Range=asked)
    if origin == "cdn":
        assert found == 302
        assert headers["x-linked-size"] == str(len(CONTENT))
        path = headers["location"].removeprefix(hub.cdn_url)
        assert path != headers["location"]
        connection = http.client.HTTPConnection(hub.cdn_url.removeprefix("http://"))
        connection.request("GET", path, headers={"Range": asked})
        answer = connection.getresponse()
        found, body = answer.status, answer.read()
        connection.close()
    else:
        assert headers["x-repo-commit"] == sha
        assert headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        if status == 206:
            start, stop, _ = part.indices(len(CONTENT))
            assert headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
        if status == 416:
            assert headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert (found, body) == (status, CONTENT[part])
    assert sum(entry["sent"] for entry in hub.log()) == len(body)


def test_conditions(hub: HubServer) -> None:
    hub.put_repo("org/base", files={"a.json": b"{}  "})
    path = "/org/base/resolve/main/a.json"
    status, headers, body = get(hub, path, "HEAD")
    assert (status, headers["content-length"], body) == (200, "4", b"")
    assert get(hub, path, If_None_Match=headers["etag"])[0] == 304
    fresh = get(hub, path, Range="bytes=0-1", If_Range=headers["etag"])
    stale = get(hub, path, Range="bytes=0-1", If_Range='"another"')
    assert (fresh[0], fresh[2], stale[0], stale[2]) == (206, b"{}", 200, b"{}  ")
    missing = get(hub, "/org/base/resolve/main/no")
    assert missing[1]["x-error-code"] == "EntryNotFound"
    assert "x-repo-commit" in missing[1]


def test_the_log(hub: HubServer) -> None:
    hub.put_repo("org/base", files={"a.json": b"{}  "})
    get(hub, "/org/base/resolve/main/a.json?x=1", Range="bytes=1-2", User_Agent="me/1")
    get(hub, "/org/base/resolve/main/a.json", Authorization=f"Bearer {TOKENS['bob']}")
    first, second = hub.log()
    assert first == {
        "number": 1,
        "origin": "hub",
        "method": "GET",
        "path": "/org/base/resolve/main/a.json",
        "query": "x=1",
        "range": "bytes=1-2",
        "authenticated": False,
        "agent": "me/1",
        "status": 206,
        "received": 0,
        "sent": 2,
        "fault": None,
    }
    assert second["authenticated"]
    assert second["sent"] == 4
    assert TOKENS["bob"] not in str(hub.log())


def fetch(repo: str, cache: str, name: str = "w.safetensors") -> str:
    """The SHA-256 of a file, as the client has it afterwards."""
    path = Path(hf_hub_download(repo, name, cache_dir=cache, token=False))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commit(repo: str, token: str, size: int) -> str:
    """Commit a large file and a small one."""
    operations = [
        CommitOperationAdd("w.safetensors", b"\1" * size),
        CommitOperationAdd("a.txt", b"text"),
    ]
    made = HfApi(token=token).create_commit(repo, operations, commit_message="files")
    return str(made.oid)


FAULTS: list[tuple[dict[str, Any], bool]] = [
    ({"kind": "status", "status": 503}, False),
    ({"kind": "status", "status": 429, "retry_after": 1}, True),
    ({"kind": "status", "status": 429, "ratelimit": 1}, True),
    ({"kind": "status", "status": 500, "times": None}, False),
    ({"kind": "drop"}, TRIES_AGAIN),
    ({"kind": "cut", "after": 100}, TRIES_AGAIN),
    ({"kind": "slow", "seconds": 0.01}, True),
    ({"kind": "lost"}, TRIES_AGAIN),
]


@pytest.mark.parametrize(("fault", "comes"), FAULTS)
def test_faults_of_downloads(
    hub: HubServer,
    client: Client,
    tmp_path: Path,
    fault: dict[str, Any],
    comes: bool,  # noqa: FBT001
) -> None:
    (tmp_path / "w.safetensors").write_bytes(CONTENT)
    hub.put_repo("org/base", folder=tmp_path)
    hub.fail(fault | {"match": "^GET .*resolve"})
    cache = str(tmp_path / "cache")
    if comes:
        expected = hashlib.sha256(CONTENT).hexdigest()
        assert client(fetch, repo="org/base", cache=cache) == expected
        assert [entry["used"] for entry in hub.faults()] == [1]
    else:
        with pytest.raises(ClientError) as caught:
            client(fetch, repo="org/base", cache=cache)
        assert caught.value.status == fault.get("status")
        assert not [path for path in Path(cache).rglob("*") if path.name == "w.safetensors"]
    found = [entry["fault"] for entry in hub.log() if entry["method"] == "GET"]
    assert found[0] == fault["kind"]


def test_a_wrong_byte_of_the_right_length_is_not_seen_by_the_client(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(CONTENT)
    hub.put_repo("org/base", folder=tmp_path)
    hub.fail({"kind": "corrupt", "match": "^GET .*resolve", "at": -1})
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    found = client(fetch, repo="org/base", cache=str(tmp_path / "cache"))
    assert found == hashlib.sha256(wrong).hexdigest()


UPLOADS: list[tuple[dict[str, Any], bool]] = [
    ({"kind": "corrupt_upload", "match": "^PUT", "at": 5}, False),
    ({"kind": "cut_upload", "match": "^PUT", "after": 1000}, TRIES_AGAIN),
    ({"kind": "cut_upload", "match": "^PUT", "after": 1000, "times": None}, False),
    ({"kind": "status", "match": "/commit/", "status": 403}, False),
    ({"kind": "cut_upload", "match": "/commit/", "after": 100}, False),
    ({"kind": "drop", "match": "/verify", "times": None}, False),
]


@pytest.mark.parametrize(("fault", "comes"), UPLOADS)
def test_faults_of_uploads(
    hub: HubServer,
    client: Client,
    fault: dict[str, Any],
    comes: bool,  # noqa: FBT001
) -> None:
    before = hub.put_repo("alice/m", files={"a.txt": b"before"})["sha"]
    hub.fail(fault)
    arguments = {"repo": "alice/m", "token": TOKENS["alice"], "size": 50_000}
    if comes:
        assert client(commit, **arguments) == hub.repo("alice/m")["sha"]
        assert hub.files("alice/m")["w.safetensors"]["size"] == 50_000
    else:
        with pytest.raises(ClientError):
            client(commit, **arguments)
        assert hub.repo("alice/m")["sha"] == before
    assert hub.faults()[0]["used"]


def test_a_commit_whose_answer_is_lost_is_there(hub: HubServer, client: Client) -> None:
    before = hub.put_repo("alice/m", files={"a.txt": b"before"})["sha"]
    hub.fail({"kind": "lost", "match": "/commit/"})
    with pytest.raises(ClientError) as caught:
        client(commit, repo="alice/m", token=TOKENS["alice"], size=50_000)
    assert caught.value.type == "RemoteProtocolError"
    found = hub.repo("alice/m")
    assert found["commits"][found["sha"]]["parents"] == [before]
    assert sorted(hub.files("alice/m")) == [".gitattributes", "a.txt", "w.safetensors"]


def test_faults_by_number_and_seed(hub: HubServer) -> None:
    hub.put_repo("org/base", files={"a": b"a"})
    hub.fail({"kind": "status", "status": 500, "match": "/a$", "nth": 2, "times": 2})
    statuses = [get(hub, "/org/base/resolve/main/a")[0] for _ in range(4)]
    assert statuses == [200, 500, 500, 200]
    drawn = [hub.fail_at_random(seed, 10) for seed in range(60)]
    assert drawn == [hub.fail_at_random(seed, 10) for seed in range(60)]
    assert {fault["kind"] for fault in drawn} == set(KINDS)
    assert {fault["nth"] for fault in drawn} == set(range(1, 11))
    with pytest.raises(Exception, match="400"):
        hub.fail({"kind": "earthquake"})


def test_a_shard_of_xet() -> None:
    def entry(raw: bytes, *numbers: int) -> bytes:
        return raw + struct.pack("<4I", *numbers)

    xet, sha = bytes(range(32)), bytes(range(32, 64))
    flags = (1 << 31) | (1 << 30)
    data = b"".join(
        [
            b"\0" * 48,
            entry(b"\7" * 32, 0, 1, 0, 0),  # a file without metadata, of one segment
            entry(b"\7" * 32, 0, 99, 0, 1),
            entry(xet, flags, 2, 0, 0),
            entry(b"\7" * 32, 0, 1000, 0, 1),
            entry(b"\7" * 32, 0, 234, 1, 2),
            entry(b"\7" * 32, 0, 0, 0, 0) * 2,  # the entries that verify its segments
            entry(sha, 0, 0, 0, 0),
            entry(b"\xff" * 32, 0, 0, 0, 0),
            entry(xet, flags, 0, 0, 0),  # behind the end
        ]
    )
    words = struct.unpack("<4Q", sha), struct.unpack("<4Q", xet)
    texts = ["".join(f"{word:016x}" for word in part) for part in words]
    assert list(parse_shard(data)) == [XetFile(texts[0], texts[1], 1234)]


def test_the_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from hubserver.process import HubServer\n"
        "server = HubServer(pathlib.Path(sys.argv[1]))\n"
        "print(server.process.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tests,
        timeout=60,
    )
    server = Path(f"/proc/{run.stdout.strip()}")
    assert run.stdout.strip().isdigit()
    for _ in range(100):
        if not server.exists() or "hubserver" not in (server / "cmdline").read_text():
            return
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.1)"], check=True)
    raise AssertionError("the server is still there")
