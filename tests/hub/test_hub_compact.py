"""Pushing a compact delta: what only its base shows is checked where that is at hand, or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hub_material import BASE, REPO, command, validations
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from safetensors.numpy import save_file
from sections import Sections

import sparsedelta
from sparsedelta.hub.checking import given_base

TOKEN = TOKENS["alice"]
FALSE = "5" * 64


class Compact(NamedTuple):
    """A base and another model, a delta of the base, and the same with a false content digest."""

    base: Path
    other: Path
    honest: Path
    lying: Path


def checkpoint(folder: Path, words: np.ndarray[Any, Any]) -> Path:
    """A folder with one tensor of float16, of more bytes than a push reads of any base."""
    folder.mkdir()
    save_file({"weight": words}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Compact:
    folder = tmp_path_factory.mktemp("compact")
    chance = np.random.default_rng(3)
    words = chance.normal(size=(1 << 12, 1100)).astype(np.float16)
    tuned = words.copy()
    tuned[:60] += np.float16(0.25)
    other = words.copy()
    other[-1, -1] += np.float16(1)
    base = checkpoint(folder / "base", words)
    honest, lying = folder / "honest.safetensors", folder / "lying.safetensors"
    sparsedelta.diff(base, checkpoint(folder / "target", tuned), honest, profile="compact")
    assert sparsedelta.info(honest).needs_base == 1
    each = Sections.of(honest.read_bytes())
    lying.write_bytes(each.edited(each.copied() | {"content": FALSE}).agreeing().build())
    assert sparsedelta.validate(lying).ok
    return Compact(base, checkpoint(folder / "other", other), honest, lying)


def pushed(client: Client, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """What a push says, as JSON; or of one that failed its message."""
    done = client(command, arguments=["push", *map(str, arguments), "--json"], token=TOKEN)
    assert done["code"] == code, done["err"]
    return dict(json.loads(done["out"])) if code == 0 else {"err": done["err"]}


def is_there(hub: HubServer) -> bool:
    """Whether something was pushed."""
    try:
        hub.repo(REPO)
    except OSError:
        return False
    return True


def test_a_base_that_lies_here_shows_what_is_wrong(
    hub: HubServer, client: Client, compact: Compact
) -> None:
    told = pushed(client, compact.lying, REPO, "--base", compact.base, code=3)["err"]
    assert "SD410" in told
    assert FALSE in told
    assert f"hint: sparsedelta validate {compact.lying} --base {compact.base}" in told
    told = pushed(client, compact.honest, REPO, "--base", compact.other, code=3)["err"]
    assert "SD501" in told
    assert not is_there(hub)
    report = pushed(client, compact.honest, REPO, "--base", compact.base)
    assert report["unread"] == 0
    assert not any("not checked" in note for note in report["notes"])


def test_so_does_one_in_the_cache(hub: HubServer, client: Client, compact: Compact) -> None:
    hub.put_repo(BASE, folder=compact.base)
    assert client(command, arguments=["fingerprint", BASE], token=TOKEN)["code"] == 0
    hub.clear_log()
    assert "SD410" in pushed(client, compact.lying, REPO, "--base", BASE, code=3)["err"]
    assert not is_there(hub)
    assert pushed(client, compact.honest, REPO, "--base", BASE)["unread"] == 0
    read = sum(e["sent"] for e in hub.log() if "/resolve/" in e["path"] and "base" in e["path"])
    assert read == 0


def test_a_delta_is_validated_once(hub: HubServer, client: Client, compact: Compact) -> None:
    """Also where it is only known after a look at the Hub whether its base is at hand."""
    commit = hub.put_repo(BASE, folder=compact.base)["sha"]
    push = ["push", str(compact.honest), REPO, "--dry-run"]
    named = [*push, "--base", BASE]
    here = str(compact.base)
    assert client(validations, arguments=[*push, "--base", here], token=TOKEN) == [here]
    assert client(validations, arguments=named, token=TOKEN) == [None]
    assert client(command, arguments=["fingerprint", BASE], token=TOKEN)["code"] == 0
    assert client(validations, arguments=named, token=TOKEN) == [f"hf://{BASE}@{commit}"]


def test_what_is_not_checked_is_told(hub: HubServer, client: Client, compact: Compact) -> None:
    """With the command that checks it; and that finds it."""
    commit = hub.put_repo(BASE, folder=compact.base)["sha"]
    for arguments, base in (
        (["--base", BASE], f"{BASE}@{commit}"),
        (["--base", BASE, "--no-check-base"], f"{BASE}@{commit}"),
        ([], "BASE"),
    ):
        report = pushed(client, compact.lying, REPO, *arguments, "--dry-run")
        assert report["unread"] == 1
        (note,) = (each for each in report["notes"] if "not checked" in each)
        assert "the entries of 1 tensors and the content digest" in note
        assert f"sparsedelta validate {compact.lying} --base {base} checks" in note
    named = f"{BASE}@{commit}"
    done = client(command, arguments=["validate", str(compact.lying), "--base", named], token=TOKEN)
    assert (done["code"], "SD410" in done["out"]) == (3, True)


def test_a_folder_of_a_repositorys_name_is_not_meant(tmp_path: Path, compact: Compact) -> None:
    assert given_base(None) == (None, None)
    assert given_base(str(compact.base)) == (compact.base, None)
    assert given_base(compact.base) == (compact.base, None)
    assert given_base("org/base@main") == (None, "org/base@main")
    missing = str(tmp_path / "missing")
    assert given_base(missing) == (None, missing)
