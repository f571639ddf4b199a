"""Pushes, pulls and applications with a fault at a random request: right, or a clear error.

Nothing is left half-written, no commit is half of one, and the next run gets it right. The client
is the real one, in processes that live for many runs; only the pauses between tries are shortened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_material import BASE, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.faults import KINDS
from hubserver.people import TOKENS
from hubserver.process import HubServer

LANES = 2
"""Servers, each with a client of its own, that share the runs."""

RUNS = int(os.environ.get("SPARSEDELTA_FAULT_RUNS", "100"))
"""How many seeds are tried; each takes about a sixth of a second of CPU time."""


WHATS = {
    "push": ["push", "{delta}", REPO, "--base", BASE],
    "push over": ["push", "{other}", REPO, "--base", BASE],
    "push set": ["push", "{parts}", REPO, "--base", BASE],
    "push first link": ["push", "{delta}", REPO, "--base", BASE, "--chain"],
    "push link": ["push", "{link}", REPO, "--chain"],
    "pull": ["pull", REPO, "-o", "{place}/out", "--cache-dir", "{place}/cache"],
    "pull set": ["pull", REPO, "--local-dir", "{place}/out", "--cache-dir", "{place}/cache"],
    "pull chain": ["pull", REPO, "-o", "{place}/out", "--cache-dir", "{place}/cache"],
    "apply": ["apply", BASE, REPO, "-o", "{place}/out"],
    "apply chain": ["apply", BASE, REPO, "-o", "{place}/out"],
}
"""What is run: ``{name}`` is a file of the material, or the folder of the run."""

BEFORE = {
    "push over": "push",
    "push link": "push first link",
    "pull": "push",
    "pull set": "push set",
    "pull chain": "push link",
    "apply": "push",
    "apply chain": "push link",
}
"""What is on the Hub before: what another push has made of it."""


@dataclass
class Lane:
    """A server and a client that carry out runs, one after the other."""

    hub: HubServer
    client: Client
    folder: Path
    material: Material
    requests: dict[str, int] = field(default_factory=dict)
    expected: dict[str, dict[str, str]] = field(default_factory=dict)

    def prepare(self, what: str) -> Path:
        """The Hub as it is before a run, and an empty cache; gives a new folder for the run."""
        self.hub.reset()
        shutil.rmtree(self.folder / "home" / "hub", ignore_errors=True)
        self.hub.put_repo(BASE, folder=self.material.base)
        if what in BEFORE:
            self.hub.put_repo(REPO, folder=self.folder / BEFORE[what], message="before")
        place = self.folder / "run"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def arguments(self, what: str, place: Path) -> list[str]:
        """The command of a run."""
        names = asdict(self.material) | {"place": place}
        return [text.format(**names) for text in WHATS[what]]

    def result(self, what: str, place: Path) -> dict[str, str]:
        """What is there: SHA-256 by path, of the output, or of the deltas on the Hub."""
        if what.startswith("push"):
            return self.pushed(what)
        there = {path.name for path in place.iterdir()} - {"cache"}
        assert there <= {"out"}, f"left behind: {sorted(there)}"
        return {
            path.relative_to(place).as_posix(): sha256(path)
            for path in sorted(place.glob("out")) + sorted(place.rglob("out/**/*"))
            if path.is_file()
        }

    def pushed(self, what: str) -> dict[str, str]:
        """The deltas on the Hub; every commit must be whole."""
        try:
            repo = self.hub.repo(REPO)
        except OSError:
            return {}
        whole = [set(self.expected.get(each, {})) for each in (what, BEFORE.get(what, ""))]
        for commit in repo["commits"].values():
            files = set(commit["files"])
            if commit["title"] == "initial commit" or what not in self.expected:
                continue
            assert files - {".gitattributes"} in whole, f"half a commit: {sorted(files)}"
        files = repo["commits"][repo["sha"]]["files"]
        deltas = {name: files[name]["sha256"] for name in files if name not in OTHERS}
        return deltas | {name: self.told(name) for name in TEXTS & set(files)}

    def told(self, name: str) -> str:
        """The SHA-256 of a text on the Hub, without the ids of commits in it."""
        url = f"{self.hub.url}/{REPO}/resolve/main/{name}"
        with urllib.request.urlopen(url) as answer:  # noqa: S310
            text = re.sub(rb"\b[0-9a-f]{40}\b", b"", answer.read())
        return hashlib.sha256(text).hexdigest()

    def commits(self) -> int:
        """How many commits the repository of the delta has."""
        return len(self.hub.repo(REPO)["commits"])


TEXTS = {"README.md", "sparsedelta.json"}
"""What a push writes beside the delta."""

OTHERS = {".gitattributes", *TEXTS}
"""What is in a repository beside deltas."""


@pytest.fixture(scope="module")
def lanes(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    """Servers and clients, and what each command makes, in how many requests, if all is well."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(LANES):
            folder = tmp_path_factory.mktemp("lane")
            hub = stack.enter_context(HubServer(folder / "hub"))
            environment = hub.environment(folder / "home", "alice")
            client = stack.enter_context(Client(environment, folder / "errors.txt"))
            found.append(Lane(hub, client, folder, material))
        for what in WHATS:
            rehearse(found[0], what)
        for lane in found[1:]:
            lane.requests, lane.expected = found[0].requests, found[0].expected
            for what in set(BEFORE.values()):
                shutil.copytree(found[0].folder / what, lane.folder / what)
        yield found


def rehearse(lane: Lane, what: str) -> None:
    """A command without a fault: what it makes is what it is to make with one."""
    place = lane.prepare(what)
    done = lane.client(command, arguments=lane.arguments(what, place))
    assert done["code"] == 0, done["err"]
    lane.requests[what] = len(lane.hub.log())
    made = lane.result(what, place)
    assert must_hold(lane.material, what) <= set(made.values())
    lane.expected[what] = made
    if what in BEFORE.values():
        keep(lane, what)


def must_hold(material: Material, what: str) -> set[str]:
    """SHA-256 of files that are among what a command makes."""
    return {
        sha256(path)
        for name, path in [
            ("push", material.delta),
            ("push over", material.other),
            ("push first link", material.delta),
            ("push link", material.link),
            ("pull", material.delta),
            ("pull set", material.parts),
            ("apply", material.target),
            ("apply chain", material.further),
        ]
        if name == what
    }


def keep(lane: Lane, what: str) -> None:
    """Keep what a push has made, for the runs that start from there."""
    for name, blob in lane.hub.files(REPO).items():
        path = lane.folder / what / name
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"{lane.hub.url}/{REPO}/resolve/main/{name}"
        with urllib.request.urlopen(url) as answer:  # noqa: S310
            path.write_bytes(answer.read())
        assert sha256(path) == blob["sha256"]
        if name == "README.md":
            path.write_bytes(path.read_bytes() + b"\nWhat a person has written about it.\n" * 20)


def run(lane: Lane, seed: int) -> str | None:
    """One run with a fault, and one without after it; gives what is wrong, if anything."""
    what = list(WHATS)[seed % len(WHATS)]
    place = lane.prepare(what)
    before = lane.result(what, place)
    # Of what a request says nothing is verified but by TLS, except the content of large files.
    if what.startswith("push") and seed % 3 == 0:
        fault = lane.hub.fail_at_random(seed, 1, match="^PUT")
    else:
        kinds = [kind for kind in KINDS if kind != "corrupt_upload"]
        fault = lane.hub.fail_at_random(seed, lane.requests[what], kinds=kinds)
    arguments = lane.arguments(what, place)
    done = lane.client(command, arguments=arguments)
    told = f"seed {seed}, {what}, {json.dumps(fault)}:\n{done['code']}\n{done['out']}{done['err']}"
    try:
        check(done, fault)
        lane.hub.fail()
        after = lane.result(what, place)
        if done["code"] == 0:
            assert after == lane.expected[what], "wrong, and not noticed"
            if not what.startswith("push"):
                return None
        else:
            # An answer that is lost may be that to the commit.
            assert after == before or (what.startswith("push") and after == lane.expected[what])
        again = lane.client(command, arguments=arguments)
        told += f"\nagain: {again['code']}\n{again['err']}"
        assert again["code"] == 0, "the next run does not get it right"
        assert lane.result(what, place) == lane.expected[what]
        if what.startswith("push"):
            # An answer that was lost, and found to have come: still one commit.
            assert lane.commits() == (3 if what in BEFORE else 2), "a commit too many"
    except AssertionError as error:
        return f"{told}\n{error}"
    return None


def check(done: dict[str, Any], fault: dict[str, Any]) -> None:
    """A command has said what it should: nothing of a token, and one cause and one remedy."""
    said = done["out"] + done["err"]
    assert not any(token in said for token in TOKENS.values()), "a token"
    assert "Traceback" not in said
    if done["code"] == 0:
        return
    # What comes damaged may be another answer of the Hub, to which other errors are right.
    assert done["code"] in ((1, 3, 4) if fault["kind"] == "corrupt" else (4,)), "exit code"
    lines = done["err"].splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, "no line of cause"
    assert sum(line.startswith("hint: ") for line in lines) == 1, "no line of remedy"


def test_every_run_ends_right_or_with_a_clear_error(lanes: list[Lane]) -> None:
    def some(number: int) -> list[str | None]:
        return [run(lanes[number], seed) for seed in range(number, RUNS, LANES)]

    with ThreadPoolExecutor(LANES) as pool:
        wrong = [text for texts in pool.map(some, range(LANES)) for text in texts if text]
    assert not wrong, f"{len(wrong)} of {RUNS} runs:\n\n" + "\n\n".join(wrong)


def test_no_token_is_in_any_file(lanes: list[Lane]) -> None:
    for lane in lanes:
        for path in lane.folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(token.encode() in content for token in TOKENS.values()), path
