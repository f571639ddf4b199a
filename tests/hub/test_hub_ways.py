"""Every way to the Hub and back gives the same bits; and reading a part costs that part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_material import BASE, DELTA_FILES, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from safetensors.numpy import load_file, save_file

import sparsedelta
from sparsedelta.records import PartRecord

KIB = 1 << 10


def succeeded(done: dict[str, Any]) -> str:
    """What a command wrote that ended well."""
    assert done["code"] == 0, done["err"]
    return str(done["out"])


@pytest.fixture
def xet_client(hub: HubServer, tmp_path: Path) -> Iterator[Client]:
    """The real client as it comes: with Xet."""
    environment = hub.environment(tmp_path / "home", None, xet=True)
    with Client(environment, tmp_path / "errors.txt") as process:
        yield process


WAYS: dict[str, dict[str, object]] = {
    "lfs": {},
    "lfs in parts, pages, another origin": {
        "multipart": 4000,
        "page_size": 1,
        "cdn": True,
        "resolve_cache": True,
    },
    "xet": {"xet": True},
    "xet, another origin": {"xet": True, "cdn": True, "page_size": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back(
    hub: HubServer, material: Material, request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    client: Client = request.getfixturevalue("xet_client" if "xet" in way else "client")
    hub.reset(**WAYS[way])
    hub.put_repo(BASE, folder=material.base)
    token, push = TOKENS["alice"], ["push", str(material.delta), REPO, "--base", BASE]
    succeeded(client(command, arguments=push, token=token))
    repo = hub.repo(REPO)
    assert len(repo["commits"]) == 2
    assert set(hub.files(REPO)) == DELTA_FILES
    assert hub.files(REPO)["delta.safetensors"]["sha256"] == sha256(material.delta)
    assert "nothing to push" in succeeded(client(command, arguments=push, token=token))
    assert hub.repo(REPO) == repo
    out = tmp_path / "out.safetensors"
    succeeded(client(command, arguments=["pull", REPO, "-o", str(out)], token=token))
    assert sha256(out) == sha256(material.delta)
    made = tmp_path / "made"
    succeeded(client(command, arguments=["apply", BASE, REPO, "-o", str(made)], token=token))
    assert sha256(made / "model.safetensors") == sha256(material.target)
    # What follows it is pushed over it: one more commit, and its parent is the one before.
    push = ["push", str(material.other), f"{REPO}@main", "--base", BASE, "--tag", "v2"]
    succeeded(client(command, arguments=push, token=token))
    after = hub.repo(REPO)
    assert after["commits"][after["sha"]]["parents"] == [repo["sha"]]
    assert after["refs"]["refs/tags/v2"] == after["sha"]
    assert hub.files(REPO)["delta.safetensors"]["sha256"] == sha256(material.other)
    succeeded(client(command, arguments=["pull", REPO, "--force", "-o", str(out)], token=token))
    assert sha256(out) == sha256(material.other)
    again = ["pull", f"{REPO}@{repo['sha']}", "--force", "-o", str(out)]
    succeeded(client(command, arguments=again, token=token))
    assert sha256(out) == sha256(material.delta)


def test_a_dry_run_changes_nothing(hub: HubServer, client: Client, material: Material) -> None:
    hub.put_repo(BASE, folder=material.base)
    push = ["push", str(material.delta), REPO, "--base", BASE, "--dry-run"]
    assert "would push" in succeeded(client(command, arguments=push, token=TOKENS["alice"]))
    with pytest.raises(OSError, match="404"):
        hub.repo(REPO)
    assert {entry["method"] for entry in hub.log()} == {"GET"}


def test_a_stranger_proposes(hub: HubServer, client: Client, material: Material) -> None:
    hub.put_repo(BASE, folder=material.base)
    push = ["push", str(material.delta), REPO, "--base", BASE, "--private"]
    succeeded(client(command, arguments=push, token=TOKENS["alice"]))
    assert hub.repo(REPO)["private"] is True
    hub.put_repo(REPO, private=False)
    before = hub.repo(REPO)["sha"]
    propose = ["push", str(material.other), REPO, "--base", BASE, "--create-pr"]
    said = succeeded(client(command, arguments=propose, token=TOKENS["bob"]))
    assert f"{REPO}/discussions/1" in said
    found = hub.repo(REPO)
    assert found["sha"] == before
    assert found["discussions"]["1"]["author"] == "bob"
    proposed = hub.files(REPO, found["refs"]["refs/pr/1"])
    assert proposed["delta.safetensors"]["sha256"] == sha256(material.other)


def test_a_private_delta_is_nobody_elses(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    push = ["push", str(material.delta), "acme/delta", "--base", BASE, "--private"]
    succeeded(client(command, arguments=push, token=TOKENS["alice"]))
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert client(command, arguments=["pull", "acme/delta", *cache])["code"] == 4
    for user, code in {"carol": 4, "bob": 0}.items():
        done = client(command, arguments=["pull", "acme/delta", *cache], token=TOKENS[user])
        assert done["code"] == code


@dataclass(frozen=True)
class Large:
    """A base (a folder), a target, and the delta between them."""

    base: Path
    target: Path
    delta: Path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """A delta of 24 MiB, in which all words of 12 tensors are new."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(3)
    names = [f"layers.{number}.weight" for number in range(12)]
    for path in ("base/model", "target"):
        words = {
            name: rng.integers(0, 1 << 16, size=(1024, 1024), dtype=np.uint16) for name in names
        }
        (folder / "base").mkdir(exist_ok=True)
        save_file(words, folder / f"{path}.safetensors")
    base, target = folder / "base" / "model.safetensors", folder / "target.safetensors"
    delta = folder / "large.safetensors"
    sparsedelta.diff(base, target, delta, codec="dense+raw")
    assert delta.stat().st_size > 20_000_000
    return Large(base.parent, target, delta)


@pytest.fixture
def stocked(hub: HubServer, large: Large, tmp_path: Path) -> HubServer:
    """A Hub with the large delta and its base, put there as anybody might have done."""
    hub.put_repo(BASE, folder=large.base)
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "delta.safetensors").hardlink_to(large.delta)
    hub.put_repo(REPO, folder=folder)
    return hub


def carried(hub: HubServer) -> int:
    """Bytes of all answers since the log was cleared."""
    return sum(entry["sent"] for entry in hub.log())


@pytest.mark.parametrize("cdn", [False, True], ids=["here", "elsewhere"])
def test_looking_at_a_delta_costs_its_header(
    stocked: HubServer,
    client: Client,
    large: Large,
    cdn: bool,  # noqa: FBT001
) -> None:
    stocked.ask("POST", "settings", {"cdn": cdn})
    for arguments in (["info"], ["ls"], ["validate", "--headers"]):
        stocked.clear_log()
        done = client(command, arguments=[*arguments, REPO], token=TOKENS["bob"])
        here = client(command, arguments=[*arguments, str(large.delta)])
        assert succeeded(done).splitlines()[1:] == succeeded(here).splitlines()[1:]
        assert carried(stocked) <= 64 * KIB


def test_rows_cost_their_blocks(stocked: HubServer, client: Client, large: Large) -> None:
    name = "layers.7.weight"
    with sparsedelta.DeltaReader(large.delta) as reader:
        part = reader.records[name].parts[0]
        assert isinstance(part, PartRecord)
        block_log2 = part.block_log2
        offsets = reader.tables.tensors[name].blocks(0).offsets
    for start, stop in [(0, 1), (40, 72), (1023, 1024)]:
        first, last = (start << 10) >> block_log2, ((stop << 10) - 1) >> block_log2
        blocks = int(offsets[last + 1] - offsets[first])
        stocked.clear_log()
        arguments = ["rows", REPO, name, f"{start}:{stop}", "--json"]
        done = client(command, arguments=arguments, token=TOKENS["bob"])
        assert carried(stocked) <= 64 * KIB + blocks
        here = client(command, arguments=["rows", str(large.delta), *arguments[2:]])
        assert json.loads(succeeded(done)) == json.loads(succeeded(here))
    # With the base, whole segments are verified.
    stocked.clear_log()
    arguments = ["rows", REPO, name, "40:72", "--base", BASE, "--json"]
    words = json.loads(succeeded(client(command, arguments=arguments, token=TOKENS["bob"])))
    # One segment is all of this tensor: its words in the base, and its blocks in the delta.
    assert carried(stocked) <= 96 * KIB + (1024 * 1024 * 2) + int(offsets[-1] - offsets[0])
    target = load_file(large.target)[name][40:72].reshape(-1)
    assert words["words"] == target.tolist()
