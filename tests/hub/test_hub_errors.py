"""What goes wrong with the Hub: one line of cause, one of remedy, exit 4; and never a token."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_material import BASE, DELTA_FILES, REPO, Material, command, function, sha256
from hubserver.client import Client
from hubserver.people import BAD_TOKEN, TOKENS
from hubserver.process import HubServer


@pytest.fixture
def stocked(hub: HubServer, client: Client, material: Material) -> HubServer:
    """A Hub with a base and a delta of it."""
    hub.put_repo(BASE, folder=material.base)
    arguments = ["push", str(material.delta), REPO, "--base", BASE]
    done = client(command, arguments=arguments, token=TOKENS["alice"])
    assert done["code"] == 0, done["err"]
    hub.clear_log()
    return hub


def complaint(done: dict[str, Any], code: int = 4) -> tuple[str, str]:
    """The line of cause and the line of remedy of a command that failed."""
    assert done["code"] == code, done["out"] + done["err"]
    said = done["out"] + done["err"]
    assert not any(token in said for token in [*TOKENS.values(), BAD_TOKEN])
    assert "Traceback" not in said
    lines = done["err"].splitlines()
    causes = [line for line in lines if line.startswith("error: ")]
    remedies = [line for line in lines if line.startswith("hint: ")]
    assert (len(causes), len(remedies)) == (1, 1), done["err"]
    return causes[0], remedies[0]


REFUSED = {
    "no repository": ("nobody/nothing", "bob", "no model nobody/nothing", "hf auth login"),
    "no repository, no token": ("nobody/nothing", None, "no model nobody/nothing", "HF_TOKEN"),
    "private": ("acme/secret", "carol", "no model acme/secret", "hf auth login"),
    "gated": ("acme/gated", "carol", "acme/gated is gated", "ask for access at http"),
    "gated, no token": ("acme/gated", None, "acme/gated is gated", "ask for access at http"),
    "disabled": ("acme/disabled", "bob", "disabled", "acme/disabled"),
    "bad token": (REPO, "nobody", "does not accept the token", "hf auth login"),
    "no revision": (f"{REPO}@nope", "bob", "no revision 'nope'", "/tree/main"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("verb", ["pull", "info", "apply"])
def test_what_is_not_there_or_not_for_all(
    stocked: HubServer, client: Client, tmp_path: Path, verb: str, case: str
) -> None:
    repo, user, cause, remedy = REFUSED[case]
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "delta.safetensors").write_bytes(b"no delta")
    stocked.put_repo("acme/secret", folder=folder, private=True)
    stocked.put_repo("acme/gated", folder=folder, gated="manual")
    stocked.put_repo("acme/disabled", folder=folder, disabled=True)
    token = (TOKENS | {"nobody": BAD_TOKEN})[user] if user is not None else None
    out = tmp_path / "out"
    arguments = {
        "pull": ["pull", repo, "-o", str(out)],
        "info": ["info", repo],
        "apply": ["apply", BASE, repo, "-o", str(out)],
    }[verb]
    told = complaint(client(command, arguments=arguments, token=token))
    assert cause in told[0]
    assert remedy in told[1]
    assert not out.exists()


PUSHED = {
    "another's": (REPO, "bob", "no right to", "a token with that right"),
    "a token that reads": (REPO, "alice-read", "no right to", "a token with that right"),
    "another's namespace": ("carol/new", "bob", "no right to", "a token with that right"),
    "bad token": (REPO, "nobody", "does not accept the token", "hf auth login"),
    "no token": ("alice/new", None, "", "hf auth login"),
}


@pytest.mark.parametrize("case", PUSHED)
def test_who_may_not_push(
    stocked: HubServer, client: Client, material: Material, tmp_path: Path, case: str
) -> None:
    repo, user, cause, remedy = PUSHED[case]
    before = stocked.repo(REPO)
    token = (TOKENS | {"nobody": BAD_TOKEN})[user] if user is not None else None
    arguments = ["push", str(material.other), repo, "--base", BASE]
    told = complaint(client(command, arguments=arguments, token=token))
    assert cause in told[0]
    assert remedy in told[1]
    assert stocked.repo(REPO) == before
    with pytest.raises(OSError, match="404"):
        stocked.repo("alice/new")


FAILING: dict[str, tuple[dict[str, Any], str, str]] = {
    "rate limit": ({"kind": "status", "status": 429, "retry_after": 1}, "(429)", "wait"),
    "rate limit of the API": ({"kind": "status", "status": 429, "ratelimit": 2}, "(429)", "wait"),
    "server error": ({"kind": "status", "status": 500}, "fails", "again"),
    "overloaded": ({"kind": "status", "status": 503}, "fails", "again"),
    "no connection": ({"kind": "drop"}, "connection", "network"),
    "cut": ({"kind": "cut", "after": 700, "match": "GET .*resolve.*/delta"}, "connection", "again"),
    "corrupt": (
        {"kind": "corrupt", "at": 9000, "match": "GET .*resolve.*/delta"},
        "",
        "another one",
    ),
}


@pytest.mark.parametrize(
    ("verb", "case"),
    [("pull", case) for case in FAILING]
    # What is pushed over is not read.
    + [("push", case) for case in FAILING if "match" not in FAILING[case][0]],
)
def test_what_does_not_pass(
    stocked: HubServer, client: Client, request: pytest.FixtureRequest, verb: str, case: str
) -> None:
    material: Material = request.getfixturevalue("material")
    tmp_path: Path = request.getfixturevalue("tmp_path")
    fault, cause, remedy = FAILING[case]
    stocked.fail(fault | {"times": None})
    before = stocked.repo(REPO)
    arguments = {
        "pull": ["pull", REPO, "-o", str(tmp_path / "out")],
        "push": ["push", str(material.other), REPO, "--base", BASE],
    }[verb]
    token = TOKENS["alice"]
    told = complaint(client(command, arguments=arguments, token=token))
    assert cause in told[0]
    assert remedy in told[1]
    assert stocked.repo(REPO) == before
    assert list(tmp_path.iterdir()) == []
    stocked.fail()
    assert client(command, arguments=arguments, token=token)["code"] == 0


def test_another_commit_comes_first(stocked: HubServer, client: Client, material: Material) -> None:
    """A card that somebody edits meanwhile is no reason not to push; what they wrote is kept."""
    stocked.fail({"kind": "slow", "seconds": 1.0, "match": "POST .*/commit/"})
    arguments = ["push", str(material.other), REPO, "--base", BASE]
    done: list[dict[str, Any]] = []
    pushing = threading.Thread(
        target=lambda: done.append(client(command, arguments=arguments, token=TOKENS["alice"]))
    )
    pushing.start()
    while not stocked.faults()[0]["used"]:
        time.sleep(0.01)
    card = b"---\nlicense: mit\n---\n# Written by a person\n"
    theirs = stocked.put_repo(REPO, files={"README.md": card})["sha"]
    pushing.join()
    assert done[0]["code"] == 0, done[0]["err"]
    statuses = [entry["status"] for entry in stocked.log() if "/commit/" in entry["path"]]
    assert statuses == [412, 200]
    repo = stocked.repo(REPO)
    assert repo["commits"][repo["sha"]]["parents"] == [theirs]
    files = stocked.files(REPO)
    assert set(files) == DELTA_FILES
    assert files["delta.safetensors"]["sha256"] == sha256(material.other)
    assert files["README.md"]["sha256"] != theirs


def test_a_parent_that_stays_stale(stocked: HubServer, client: Client, material: Material) -> None:
    before = stocked.repo(REPO)
    stocked.fail({"kind": "status", "status": 412, "match": "POST .*/commit/", "times": None})
    arguments = ["push", str(material.other), REPO, "--base", BASE]
    told = complaint(client(command, arguments=arguments, token=TOKENS["alice"]))
    assert "another commit came first (412)" in told[0]
    assert stocked.repo(REPO) == before


@pytest.fixture
def offline(hub: HubServer, tmp_path: Path) -> Iterator[Client]:
    """A client in offline mode, with the cache of ``home``."""
    environment = hub.environment(tmp_path / "home", "alice", HF_HUB_OFFLINE="1")
    with Client(environment, tmp_path / "errors.txt") as process:
        yield process


def test_offline(
    stocked: HubServer, client: Client, offline: Client, material: Material, tmp_path: Path
) -> None:
    out = ["-o", str(tmp_path / "out")]
    told = complaint(offline(command, arguments=["pull", REPO, *out]))
    assert "offline mode" in told[0]
    assert "HF_HUB_OFFLINE" in told[1]
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    assert client(command, arguments=["pull", REPO])["code"] == 0
    shutil.copytree(client.home, tmp_path / "home", symlinks=True)
    stocked.clear_log()
    done = offline(command, arguments=["pull", REPO, *out])
    assert done["code"] == 0, done["err"]
    assert sha256(tmp_path / "out") == sha256(material.delta)
    told = complaint(offline(command, arguments=["push", str(material.other), REPO]))
    assert "offline mode" in told[0]
    assert stocked.log() == []


def test_a_hub_without_xet(stocked: HubServer, material: Material, tmp_path: Path) -> None:
    environment = stocked.environment(tmp_path / "home", "alice", xet=True)
    before = stocked.repo(REPO)
    with Client(environment, tmp_path / "errors.txt") as with_xet:
        arguments = ["push", str(material.other), REPO, "--base", BASE]
        done = with_xet(command, arguments=arguments)
    if done["code"] == 0:
        return  # a client that asks the Hub first
    told = complaint(done)
    assert "does not offer Xet" in told[0]
    assert "HF_HUB_DISABLE_XET=1" in told[1]
    assert stocked.repo(REPO) == before


FUNCTIONS: dict[str, dict[str, Any]] = {
    "no repository": {"repo": "nobody/nothing"},
    "no revision": {"repo": REPO, "revision": "nope"},
    "bad token": {"repo": REPO, "token": BAD_TOKEN},
    "nobody there": {"repo": REPO, "endpoint": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_the_error_of_the_client_is_the_cause(
    stocked: HubServer, client: Client, tmp_path: Path, case: str
) -> None:
    arguments = {"cache_dir": str(tmp_path / "cache")} | FUNCTIONS[case]
    told = client(function, name="pull", **arguments)
    assert told["type"] == "HubError"
    expected = {
        "no repository": ("repository", "RepositoryNotFoundError"),
        "no revision": ("revision", "RevisionNotFoundError"),
        "bad token": ("token", "HfHubHTTPError"),
        "nobody there": ("connection", "ConnectError"),
    }[case]
    assert told["reason"] == expected[0]
    assert expected[1] in told["cause"]
    assert BAD_TOKEN not in told["everything"]


def test_prose_that_comes_damaged_is_not_pushed_back(
    stocked: HubServer, client: Client, material: Material
) -> None:
    """The client compares neither size nor content of what it reads by ranges."""
    prose = (b"Written by a person. " * 200).strip()
    stocked.put_repo(REPO, files={"README.md": b"# Mine\n\n" + prose})
    stocked.fail({"kind": "corrupt", "at": 999, "match": "GET .*README", "nth": 1})
    push = ["push", str(material.other), REPO, "--base", BASE]
    done = client(command, arguments=push, token=TOKENS["alice"])
    assert done["code"] == 0, done["err"]
    assert stocked.faults()[0]["used"] == 1
    with urllib.request.urlopen(f"{stocked.url}/{REPO}/resolve/main/README.md") as answer:  # noqa: S310
        assert prose in answer.read()


WHERE = ["GET .*/tree/", "GET .*/resolve/", "/preupload/", "/batch", "^PUT", "/verify", "/commit/"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("status", [403, 500])
def test_no_token_is_told_wherever_the_hub_tells_it(
    stocked: HubServer, client: Client, material: Material, where: str, status: int
) -> None:
    """As above, from the middle of a push or a pull on."""
    token = TOKENS["alice"]
    fault = {"kind": "status", "status": status, "echo": True, "times": None}
    stocked.fail(fault | {"match": where})
    for name, given in {
        "push": {"delta": str(material.other), "repo": REPO, "base": BASE},
        "pull": {"repo": REPO},
        "info": {"delta": f"hf://{REPO}"},
    }.items():
        if name != "push" and not where.startswith("GET"):
            continue
        kept = {} if name == "info" else {"token": token}
        told = client(function, name=name, environment_token=token, **kept, **given)
        assert told["type"] == "HubError"
        assert token not in told["everything"]
    assert stocked.faults()[0]["used"]
    assert token not in client.errors.read_text()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413, 416, 429, 500, 503])
def test_no_token_is_told_though_the_hub_tells_it(
    stocked: HubServer, client: Client, material: Material, tmp_path: Path, status: int
) -> None:
    """A server that repeats what it was sent, in the message of every refusal."""
    token = TOKENS["alice"]
    stocked.fail({"kind": "status", "status": status, "echo": True, "times": None})
    for arguments in (
        ["push", str(material.other), REPO, "--base", BASE],
        ["pull", REPO, "--cache-dir", str(tmp_path / "cache")],
        ["info", REPO],
    ):
        complaint(client(command, arguments=arguments, token=token))
    for name, given in {
        "push": {"delta": str(material.other), "repo": REPO, "base": BASE},
        "pull": {"repo": REPO, "cache_dir": str(tmp_path / "cache")},
    }.items():
        told = client(function, name=name, token=token, **given)
        assert told["type"] == "HubError"
        assert token not in told["everything"]
    assert stocked.log()[0]["authenticated"]
    for path in [*tmp_path.rglob("*"), *client.home.rglob("*")]:
        assert not path.is_file() or token.encode() not in path.read_bytes()
    assert token not in client.errors.read_text()
