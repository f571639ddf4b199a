"""Pushes, pulls and applications with a fault at a random request: right, or a clear error.

Nothing is left half-written, no commit is half of one, and the next run gets it right. The client
is the real one, in processes that live for many runs; only the pauses between tries are shortened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_material import BASE, DELTA_FILES, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer

LANES = 2
"""Servers, each with a client of its own, that share the runs."""

RUNS = int(os.environ.get("SPARSEDELTA_FAULT_RUNS", "200"))
"""How many seeds are tried; each takes about a sixth of a second of CPU time."""


@dataclass
class Lane:
    """A server and a client that carry out runs, one after the other."""

    hub: HubServer
    client: Client
    folder: Path
    material: Material
    requests: dict[str, int] = field(default_factory=dict)

    def prepare(self, what: str) -> None:
        """The Hub as it is before a run, and an empty cache."""
        self.hub.reset()
        shutil.rmtree(self.folder / "home" / "hub", ignore_errors=True)
        self.hub.put_repo(BASE, folder=self.material.base)
        if what != "push":
            self.hub.put_repo(REPO, folder=self.folder / "pushed", message="before")

    def arguments(self, what: str, place: Path) -> list[str]:
        """The command of a run."""
        cache = ["--cache-dir", str(place / "cache")]
        out = ["-o", str(place / "out.safetensors")]
        return {
            "push": ["push", str(self.material.delta), REPO, "--base", BASE],
            "push again": ["push", str(self.material.other), REPO, "--base", BASE],
            "pull": ["pull", REPO, *out, *cache],
            "apply": ["apply", BASE, REPO, "-o", str(place / "model")],
        }[what]

    def result(self, what: str, place: Path) -> str | None:
        """What a run has made: the SHA-256 of its output, or of the delta on the Hub.

        All that is there must be whole.
        """
        if what.startswith("push"):
            return self.pushed()
        name = "model" if what == "apply" else "out.safetensors"
        there = {path.name for path in place.iterdir()} - {"cache"}
        assert there <= {name}, f"left behind: {sorted(there)}"
        if not there:
            return None
        if what == "pull":
            return sha256(place / name)
        inside = sorted(path.name for path in (place / name).iterdir())
        assert inside == ["README.md", "model.safetensors"], f"half a model: {inside}"
        return sha256(place / name / "model.safetensors")

    def pushed(self) -> str | None:
        """The SHA-256 of the delta on the Hub; every commit must be whole."""
        try:
            repo = self.hub.repo(REPO)
        except OSError:
            return None
        for commit in repo["commits"].values():
            files = commit["files"]
            if commit["title"] == "initial commit":
                continue
            assert set(files) == DELTA_FILES, f"half a commit: {sorted(files)}"
        found: dict[str, Any] = repo["commits"][repo["sha"]]["files"].get("delta.safetensors", {})
        digest: str | None = found.get("sha256")
        return digest

    def commits(self) -> int:
        """How many commits the repository of the delta has."""
        return len(self.hub.repo(REPO)["commits"])


@pytest.fixture(scope="module")
def lanes(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    """Servers and clients, and how many requests each command makes when all is well."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(LANES):
            folder = tmp_path_factory.mktemp("lane")
            hub = stack.enter_context(HubServer(folder / "hub"))
            environment = hub.environment(folder / "home", "alice")
            client = stack.enter_context(Client(environment, folder / "errors.txt"))
            found.append(Lane(hub, client, folder, material))
        requests = rehearsed(found[0])
        for lane in found[1:]:
            shutil.copytree(found[0].folder / "pushed", lane.folder / "pushed")
        for lane in found:
            lane.requests = requests
        yield found


WHATS = ("push", "push again", "pull", "apply")


def rehearsed(lane: Lane) -> dict[str, int]:
    """Each command once, without a fault; gives how many requests they make."""
    requests = {}
    for what in WHATS:
        lane.prepare(what)
        place = lane.folder / f"rehearsal of {what}"
        place.mkdir()
        done = lane.client(command, arguments=lane.arguments(what, place))
        assert done["code"] == 0, done["err"]
        requests[what] = len(lane.hub.log())
        assert lane.result(what, place) == expected(lane.material, what)
        if what == "push":
            keep(lane)
    return requests


def keep(lane: Lane) -> None:
    """Keep what a push has made, for the runs that start from there."""
    (lane.folder / "pushed").mkdir()
    for name, blob in lane.hub.files(REPO).items():
        url = f"{lane.hub.url}/{REPO}/resolve/main/{name}"
        with urllib.request.urlopen(url) as answer:  # noqa: S310
            (lane.folder / "pushed" / name).write_bytes(answer.read())
        assert sha256(lane.folder / "pushed" / name) == blob["sha256"]


def expected(material: Material, what: str) -> str:
    """The SHA-256 of what a run is to make."""
    path = {"push again": material.other, "apply": material.target}.get(what, material.delta)
    return sha256(path)


def run(lane: Lane, seed: int) -> str | None:
    """One run with a fault, and one without after it; gives what is wrong, if anything."""
    what = WHATS[seed % len(WHATS)]
    lane.prepare(what)
    place = lane.folder / f"run {seed}"
    place.mkdir()
    before = lane.result(what, place)
    fault = lane.hub.fail_at_random(seed, lane.requests[what])
    arguments = lane.arguments(what, place)
    done = lane.client(command, arguments=arguments)
    told = f"seed {seed}, {what}, {json.dumps(fault)}:\n{done['code']}\n{done['out']}{done['err']}"
    try:
        check(lane, what, done, fault, [before, lane.result(what, place)])
        lane.hub.fail()
        if done["code"] == 0 and not what.startswith("push"):
            return None
        again = lane.client(command, arguments=[*arguments, *forced(what)])
        told += f"\nagain: {again['code']}\n{again['err']}"
        assert again["code"] == 0, "the next run does not get it right"
        assert lane.result(what, place) == expected(lane.material, what)
        if what.startswith("push"):
            # An answer that was lost, and found to have come: still one commit.
            assert lane.commits() == (2 if what == "push" else 3), "a commit too many"
    except AssertionError as error:
        return f"{told}\n{error}"
    return None


def forced(what: str) -> list[str]:
    """What lets a command run again though its output may be there."""
    return [] if what.startswith("push") else ["--force"]


def check(
    lane: Lane, what: str, done: dict[str, Any], fault: dict[str, Any], found: list[str | None]
) -> None:
    """A run has ended well: with the right result, or as if it had not been.

    ``found`` is what there was before and afterwards.
    """
    said = done["out"] + done["err"]
    assert not any(token in said for token in TOKENS.values()), "a token"
    assert "Traceback" not in said
    before, after = found
    if done["code"] == 0:
        assert after == expected(lane.material, what), "wrong, and not noticed"
        return
    # What comes damaged is an error of verification; everything else is one of the Hub.
    assert done["code"] in ((3, 4) if fault["kind"] == "corrupt" else (4,)), "exit code"
    lines = done["err"].splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, "no line of cause"
    assert sum(line.startswith("hint: ") for line in lines) == 1, "no line of remedy"
    if what.startswith("push"):
        assert after in (before, expected(lane.material, what))
    else:
        assert after is None, "an output although it failed"


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
