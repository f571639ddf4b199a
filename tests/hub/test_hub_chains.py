"""Chains in a repository, and what is used without one more request: links, offline, references."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_material import BASE, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from safetensors.numpy import load_file, save_file

import sparsedelta

TOKEN = TOKENS["alice"]
CHAIN = "alice/run"


def ran(client: Client, *arguments: object, code: int = 0) -> str:
    """What a command wrote."""
    done = client(command, arguments=[str(each) for each in arguments], token=TOKEN)
    assert done["code"] == code, (arguments, done["err"])
    return str(done["out"] if code == 0 else done["err"])


@pytest.fixture(scope="module")
def steps(material: Material, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four checkpoints; beside each but the first the delta that leads there."""
    folder = tmp_path_factory.mktemp("steps")
    tensors = load_file(material.base / "model.safetensors")
    found = [material.base]
    rng = np.random.default_rng(11)
    for number in range(1, 4):
        tensors = {name: tensor.copy() for name, tensor in tensors.items()}
        for tensor in tensors.values():
            tensor.reshape(-1)[rng.integers(0, tensor.size, 50)] += 1
        step = folder / f"step{number}"
        step.mkdir()
        save_file(tensors, step / "model.safetensors")
        sparsedelta.diff(found[-1], step, step.with_suffix(".delta"))
        found.append(step)
    return found


@pytest.fixture
def stocked(hub: HubServer, client: Client, steps: list[Path]) -> HubServer:
    """A Hub with a base and a chain of three deltas."""
    hub.put_repo(BASE, folder=steps[0])
    ran(client, "push", steps[1].with_suffix(".delta"), CHAIN, "--chain", "--base", BASE)
    for step in steps[2:]:
        ran(client, "push", step.with_suffix(".delta"), CHAIN, "--chain")
    return hub


def test_links_lie_in_order(stocked: HubServer, client: Client, steps: list[Path]) -> None:
    files = stocked.files(CHAIN)
    for number, step in enumerate(steps[1:], 1):
        assert files[f"chain/{number:06}.safetensors"]["sha256"] == sha256(
            step.with_suffix(".delta")
        )
    found = json.loads(ran(client, "history", CHAIN, "--json"))
    ends = [sparsedelta.fingerprint(step / "model.safetensors").fingerprint for step in steps]
    assert [link["base"] for link in found["deltas"]] == ends[:-1]
    assert [link["target"] for link in found["deltas"]] == ends[1:]
    assert (found["base"]["repo"], found["is_chain"]) == (BASE, True)
    before = stocked.repo(CHAIN)
    assert "nothing to push" in ran(
        client, "push", steps[2].with_suffix(".delta"), CHAIN, "--chain"
    )
    assert stocked.repo(CHAIN) == before


def test_what_does_not_follow_is_refused(
    stocked: HubServer, client: Client, steps: list[Path], material: Material
) -> None:
    before = stocked.repo(CHAIN)
    told = ran(client, "push", material.delta, CHAIN, "--chain", code=2)
    assert "is not the next link" in told
    told = ran(client, "push", material.delta, CHAIN, "--base", BASE, code=2)
    assert "holds a chain of 3 deltas" in told
    assert stocked.repo(CHAIN) == before
    ran(client, "push", material.delta, REPO, "--base", BASE)
    told = ran(client, "push", steps[1].with_suffix(".delta"), REPO, "--chain", code=2)
    assert "holds a single delta" in told


def test_only_missing_links_are_got(
    stocked: HubServer, client: Client, steps: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stocked.clear_log()
    ran(client, "pull", CHAIN, "--onto", steps[1] / "model.safetensors", "-o", out)
    assert sha256(out) == sha256(steps[3] / "model.safetensors")
    got = {e["path"].rpartition("/")[2] for e in stocked.log() if "/chain/" in e["path"]}
    assert got == {"000002.safetensors", "000003.safetensors"}
    target = sparsedelta.fingerprint(steps[2] / "model.safetensors").fingerprint
    ran(client, "pull", CHAIN, "--onto", BASE, "--to", target[:9], "-o", tmp_path / "two")
    assert sha256(tmp_path / "two" / "model.safetensors") == sha256(steps[2] / "model.safetensors")
    ran(client, "pull", CHAIN, "--to", 2, "-o", tmp_path / "squashed")
    one = sparsedelta.apply(steps[0], tmp_path / "squashed", tmp_path / "applied")
    assert one.fingerprint == target
    ran(client, "pull", CHAIN, "--to", 1, "-o", tmp_path / "one")
    assert sha256(tmp_path / "one") == sha256(steps[1].with_suffix(".delta"))
    end = steps[3] / "model.safetensors"
    assert "nothing is missing" in ran(client, "pull", CHAIN, "--onto", end, "-o", "x", code=2)
    assert "not on the chain up to link 1" in ran(
        client, "pull", CHAIN, "--onto", end, "--to", 1, "-o", "x", code=2
    )


def test_a_chain_is_applied_by_its_name(
    stocked: HubServer, client: Client, steps: list[Path], tmp_path: Path
) -> None:
    ran(client, "apply", BASE, CHAIN, "-o", tmp_path / "out")
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(steps[3] / "model.safetensors")
    link = f"hf://{CHAIN}/chain/000003.safetensors"
    ran(client, "revert", tmp_path / "out", link, "-o", tmp_path / "back")
    assert sha256(tmp_path / "back" / "model.safetensors") == sha256(steps[2] / "model.safetensors")
    assert "holds a chain of 3 deltas" in ran(client, "info", CHAIN, code=1)
    assert stocked.repo(CHAIN)["sha"][:7]


def offline(folder: str, arguments: list[str]) -> dict[str, Any]:
    """Run a command in offline mode."""
    from huggingface_hub import constants  # noqa: PLC0415 (in the client)

    os.chdir(folder)
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return command(arguments)
    finally:
        constants.HF_HUB_OFFLINE = before


def test_offline_what_is_cached_is_used(
    stocked: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    ran(client, "push", material.delta, REPO, "--base", BASE)
    ran(client, "apply", BASE, REPO, "-o", tmp_path / "online")
    stocked.clear_log()
    here = str(tmp_path)
    for arguments in (
        ["info", REPO],
        ["apply", BASE, REPO, "-o", "out"],
        ["pull", REPO, "-o", "pulled.safetensors"],
    ):
        done = client(offline, folder=here, arguments=arguments)
        assert done["code"] == 0, done["err"]
    assert sha256(tmp_path / "pulled.safetensors") == sha256(material.delta)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "online").iterdir()
    )
    for arguments in (["info", "alice/nothing"], ["pull", CHAIN, "-o", "x"], ["push", here, REPO]):
        done = client(offline, folder=here, arguments=arguments)
        assert done["code"] in (1, 4)
    assert "HF_HUB_OFFLINE" in client(offline, folder=here, arguments=["info", "a/b"])["err"]
    assert stocked.log() == []


def test_a_damaged_file_in_the_cache_is_got_again(
    stocked: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    ran(client, "push", material.delta, REPO, "--base", BASE)
    cache = tmp_path / "cache"
    path = Path(ran(client, "pull", REPO, "--cache-dir", cache).strip())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(content)
    ran(client, "pull", REPO, "--cache-dir", cache, "-o", tmp_path / "out.safetensors")
    assert sha256(tmp_path / "out.safetensors") == sha256(material.delta) == sha256(path)
    assert stocked.log()


def test_every_operation_takes_references(
    stocked: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    ran(client, "push", material.delta, REPO, "--base", BASE)
    ran(client, "push", material.other, "alice/other", "--base", BASE)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: linear\nbase_model: org/base\nmodels:\n"
        "  - model: alice/delta\n    parameters: {weight: 0.5}\n"
        "  - model: alice/other@main\n    parameters: {weight: 0.5}\n"
    )
    shutil.copytree(material.base, tmp_path / "base")
    here = (f"{material.delta}:0.5", f"{material.other}:2")
    commands: list[list[object]] = [
        ["compose", "--base", BASE, f"{REPO}:0.5", "alice/other@main:2"],
        ["compose", "--base", tmp_path / "base", *here],
        ["apply", BASE, REPO, "alice/other", "--stack"],
        ["merge", recipe],
        ["squash", CHAIN],
        ["invert", REPO],
        ["export", REPO, "--raw", "--base", BASE],
    ]
    for number, arguments in enumerate(commands):
        ran(client, *arguments, "-o", tmp_path / f"out{number}")
    assert sha256(tmp_path / "out0") == sha256(tmp_path / "out1")
    ran(client, "log", CHAIN, REPO)
    ran(client, "validate", REPO, "--base", BASE)
    ran(client, "apply", BASE, REPO, "-o", tmp_path / "streamed", "--stream")
    assert sha256(tmp_path / "streamed" / "model.safetensors") == sha256(material.target)
    assert "alice/delta" in ran(client, "search", "--base", BASE, "-q").split()
    assert "is a URL" in ran(client, "apply", BASE, REPO, "-o", "hf://alice/x", code=1)
    assert stocked.repo(REPO)["sha"]


def opened_by_fsspec(url: str, token: str) -> list[int]:
    """Entries of a delta that fsspec has opened; as a file, and about to be."""
    import fsspec  # noqa: PLC0415 (in the client)

    options = {"token": token, "skip_instance_cache": True}
    waiting = fsspec.open(url, **options)
    with waiting as file, sparsedelta.DeltaReader(file) as one:
        found = [one.read().nnz]
    with sparsedelta.DeltaReader(waiting) as other:
        return [*found, other.read().nnz]


def test_a_delta_that_fsspec_has_opened(hub: HubServer, client: Client, material: Material) -> None:
    hub.put_repo(REPO, files={"delta.safetensors": material.delta.read_bytes()}, private=True)
    nnz = sparsedelta.info(material.delta).nnz
    url = f"hf://{REPO}/delta.safetensors"
    assert client(opened_by_fsspec, url=url, token=TOKEN) == [nnz, nnz]
