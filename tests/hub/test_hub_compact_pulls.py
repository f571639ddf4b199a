"""Pulling compact deltas: what only their base shows is checked where that is at hand, or told."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_material import BASE, REPO, command
from hubserver.client import Client
from hubserver.process import HubServer
from safetensors.numpy import load_file
from sections import Sections
from test_hub_compact import FALSE, TOKEN, Compact, checkpoint, compact, pushed

import sparsedelta

__all__ = ["compact"]  # a fixture
CHAIN = "alice/run"


def ran(client: Client, *arguments: object, code: int | None = 0) -> dict[str, Any]:
    """What a command wrote."""
    done = client(command, arguments=[str(each) for each in arguments], token=TOKEN)
    assert code in (None, done["code"]), (arguments, done["err"])
    return dict(done)


def pulled(client: Client, *arguments: object) -> dict[str, Any]:
    """The report of a pull."""
    return dict(json.loads(ran(client, "pull", *arguments, "--json")["out"]))


@pytest.fixture
def lying(hub: HubServer, client: Client, compact: Compact) -> str:
    """A Hub with a base, and a delta that lies about its content; the commit of the base."""
    commit = str(hub.put_repo(BASE, folder=compact.base)["sha"])
    assert pushed(client, compact.lying, REPO, "--base", BASE)["unread"] == 1
    return commit


def test_what_is_not_checked_is_told(
    hub: HubServer, client: Client, lying: str, tmp_path: Path
) -> None:
    """With the command that checks it, of the file that was written; and that finds it."""
    hub.clear_log()
    out = tmp_path / "out.safetensors"
    report = pulled(client, REPO, "-o", out)
    assert report["unread"] == 1
    (note,) = report["notes"]
    assert "the entries of 1 tensors and the content digest were not checked" in note
    check = f"sparsedelta validate {out} --base {BASE}@{lying}"
    assert f"; {check} checks them, and so does a pull with --base PATH" in note
    assert note in ran(client, "pull", REPO, "-o", out, "--force")["err"]
    report = pulled(client, REPO)
    assert f"validate {report['path']} --base" in report["notes"][0]
    assert not [each["path"] for each in hub.log() if BASE in each["path"]]  # nobody named it
    assert "SD410" in ran(client, *shlex.split(check)[1:], code=3)["out"]


def test_a_named_base_shows_what_is_wrong(
    hub: HubServer, client: Client, lying: str, compact: Compact, tmp_path: Path
) -> None:
    """One that lies here, and one that is got for it."""
    out = tmp_path / "out"
    for base in (compact.base, BASE, f"{BASE}@{lying}"):
        told = ran(client, "pull", REPO, "-o", out, "--base", base, code=3)["err"]
        assert "SD410" in told
        assert FALSE in told
        assert f"it is not taken from {REPO}" in told
    assert not out.exists()
    pushed(client, compact.honest, REPO, "--base", compact.base)
    told = ran(client, "pull", REPO, "-o", out, "--base", compact.other, code=3)["err"]
    assert "SD501" in told
    told = ran(client, "pull", REPO, "-o", out, "--base", tmp_path / "none", code=1)["err"]
    assert str(tmp_path / "none") in told
    assert not out.exists()
    for arguments in (["-o", out], ["--local-dir", tmp_path / "here"], []):
        report = pulled(client, REPO, *arguments, "--base", compact.base)
        assert (report["unread"], report["notes"]) == (0, [])
    assert out.read_bytes() == compact.honest.read_bytes()
    file = compact.base / "model.safetensors"
    for name in (file, compact.base / "delta"):
        for base in (file, compact.base):
            before = file.read_bytes()
            told = ran(client, "pull", REPO, "-o", name, "--force", "--base", base, code=None)
            assert file.read_bytes() == before
            assert (told["code"] == 1) == (name == file or base != file), told["err"]
    (compact.base / "delta").unlink()


def test_a_cached_base_shows_what_is_wrong(
    hub: HubServer, client: Client, lying: str, compact: Compact, tmp_path: Path
) -> None:
    ran(client, "fingerprint", BASE)
    hub.clear_log()
    out = tmp_path / "out"
    assert "SD410" in ran(client, "pull", REPO, "-o", out, code=3)["err"]
    assert not out.exists()
    assert not [each["path"] for each in hub.log() if BASE in each["path"]]
    (snapshot,) = client.home.rglob(f"snapshots/{lying}")
    assert [path.name for path in snapshot.iterdir()] == ["model.safetensors"]
    pushed(client, compact.honest, REPO, "--base", f"{BASE}@{lying}")
    report = pulled(client, REPO, "-o", out)
    assert (report["unread"], report["notes"]) == (0, [])


@pytest.mark.parametrize("how", ["another", "cut", "gone"])
def test_a_cached_model_that_is_not_the_base_is_told(
    hub: HubServer, client: Client, compact: Compact, tmp_path: Path, how: str
) -> None:
    """What a delta says of its base is believed by nobody: it is no reason to refuse the delta."""
    commit = hub.put_repo(BASE, folder=compact.base)["sha"]
    pushed(client, compact.honest, REPO, "--base", BASE)
    ran(client, "fingerprint", BASE)
    (found,) = client.home.rglob(f"snapshots/{commit}/model.safetensors")
    content = found.read_bytes()
    found.unlink()
    if how == "another":
        shutil.copyfile(compact.other / found.name, found)
    elif how == "cut":
        found.write_bytes(content[:-1000])
    report = pulled(client, REPO, "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == compact.honest.read_bytes()
    assert report["unread"] == 1
    (note,) = report["notes"]
    assert f"{BASE}@{commit}" in note
    assert f"validate {tmp_path / 'out'} --base BASE checks them" in note


# --- chains ---


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, compact: Compact) -> list[Path]:
    """Checkpoints one after the other, and beside each the compact delta that leads there."""
    folder = tmp_path_factory.mktemp("steps")
    found = [compact.base]
    words = load_file(compact.base / "model.safetensors")["weight"]
    for number in range(1, 4):
        words = words.copy()
        words[20 * number : 20 * number + 60] += np.float16(0.25)
        found.append(checkpoint(folder / f"step{number}", words))
    for before, after in pairwise(found):
        delta = after.with_suffix(".delta")
        sparsedelta.diff(before, after, delta, profile="compact")
        assert sparsedelta.info(delta).needs_base == 1
    return found


@pytest.fixture
def chain(hub: HubServer, client: Client, steps: list[Path]) -> HubServer:
    """A Hub with a base and a chain of three compact deltas."""
    hub.put_repo(BASE, folder=steps[0])
    pushed(client, steps[1].with_suffix(".delta"), CHAIN, "--chain", "--base", BASE)
    for step in steps[2:]:
        pushed(client, step.with_suffix(".delta"), CHAIN, "--chain")
    return hub


@pytest.fixture(scope="module")
def lies(steps: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact delta of the last checkpoint with a false content digest."""
    folder = tmp_path_factory.mktemp("lies")
    words = load_file(steps[-1] / "model.safetensors")["weight"].copy()
    words[:60] += np.float16(0.25)
    honest = folder / "honest"
    sparsedelta.diff(steps[-1], checkpoint(folder / "next", words), honest, profile="compact")
    each = Sections.of(honest.read_bytes())
    found = folder / "lies.safetensors"
    found.write_bytes(each.edited(each.copied() | {"content": FALSE}).agreeing().build())
    return found


def test_links_are_checked_with_the_base_of_the_first(
    chain: HubServer, client: Client, steps: list[Path], tmp_path: Path
) -> None:
    report = pulled(client, CHAIN)
    assert report["unread"] == 3
    (note,) = report["notes"]
    commits = {repo: chain.repo(repo)["sha"] for repo in (CHAIN, BASE)}
    check = f"sparsedelta squash {CHAIN}@{commits[CHAIN]} --base {BASE}@{commits[BASE]}"
    assert f"{check} -o OUT --dry-run checks them" in note
    ran(client, *shlex.split(check)[1:], "-o", tmp_path / "OUT", "--dry-run")
    assert not any(tmp_path.iterdir())
    report = pulled(client, CHAIN)  # the base has been got for that
    assert (report["unread"], report["notes"]) == (0, [])
    report = pulled(client, CHAIN, "--local-dir", tmp_path / "links", "--base", steps[0])
    assert (report["unread"], report["notes"]) == (0, [])
    told = ran(client, "pull", CHAIN, "--base", steps[1], code=3)["err"]
    assert "SD501" in told


def test_a_link_that_lies_is_found(
    chain: HubServer, client: Client, steps: list[Path], lies: Path, tmp_path: Path
) -> None:
    pushed(client, lies, CHAIN, "--chain")
    arguments: tuple[list[object], ...] = (
        [],
        ["--local-dir", tmp_path / "x"],
        ["-o", tmp_path / "y"],
    )
    for more in arguments:
        told = ran(client, "pull", CHAIN, "--base", steps[0], *more, code=3)["err"]
        assert "SD410" in told
        assert "000004.safetensors" in told
        assert chain.repo(CHAIN)
    assert not any(tmp_path.iterdir())


def test_compact_links_are_squashed_and_applied(
    chain: HubServer, client: Client, steps: list[Path], tmp_path: Path
) -> None:
    out, target = tmp_path / "out", sparsedelta.fingerprint(steps[3]).fingerprint
    told = ran(client, "pull", CHAIN, "-o", out, code=1)["err"]
    assert "000001.safetensors is compact" in told
    assert "hint: name it: --base BASE" in told
    told = ran(client, "pull", CHAIN, "-o", out, "--base", steps[2], code=3)["err"]
    assert "SD501" in told
    assert not any(tmp_path.iterdir())
    assert pulled(client, CHAIN, "-o", out, "--base", steps[0])["unread"] == 0
    assert sparsedelta.apply(steps[0], out, tmp_path / "made").fingerprint == target
    report = pulled(client, CHAIN, "--onto", steps[1], "-o", tmp_path / "caught-up")
    assert (report["unread"], report["applied"]["fingerprint"]) == (0, target)
    told = ran(client, "pull", CHAIN, "--onto", steps[1], "--base", BASE, "-o", "x", code=2)["err"]
    assert "leave out --base" in told
    assert chain.repo(CHAIN)
    ran(client, "fingerprint", BASE)  # once it is in the cache it need not be named
    assert pulled(client, CHAIN, "-o", out, "--force")["unread"] == 0
    (cached,) = client.home.rglob("snapshots/*/model.safetensors")
    for code, content in ((3, (steps[1] / cached.name).read_bytes()), (1, b"")):
        cached.unlink()
        cached.write_bytes(content)
        told = ran(client, "pull", CHAIN, "-o", out, "--force", code=code)["err"]
        assert f"what the cache holds of {BASE}@" in told
        assert "hint: name the base: --base BASE" in told
    assert not os.path.lexists("x")


@pytest.mark.parametrize("name", ["../../../etc", "org/base; rm -rf x", "org/base\n", "a"])
def test_a_name_of_no_repository_is_not_repeated(
    hub: HubServer, client: Client, compact: Compact, tmp_path: Path, name: str
) -> None:
    """It could be taken for a path, or for a part of the command that checks the delta."""
    delta, target = tmp_path / "d.safetensors", compact.base.parent / "target"
    sparsedelta.diff(
        compact.base,
        target,
        delta,
        profile="compact",
        base_repo=name,
        base_revision="0123456789" * 4,
    )
    hub.put_repo(REPO, files={"delta.safetensors": delta.read_bytes()})
    report = pulled(client, REPO, "-o", tmp_path / "out")
    assert report["unread"] == 1
    assert f"validate {tmp_path / 'out'} --base BASE checks" in report["notes"][0]
    report = pulled(client, REPO, "-o", tmp_path / "out", "--force", "--base", compact.base)
    assert report["unread"] == 0
