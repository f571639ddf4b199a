"""The base of a delta: what a push finds out about it, and which commit an operation reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hub_material import BASE, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from safetensors.numpy import load_file, save_file

import sparsedelta

TOKEN = TOKENS["alice"]


def pushed(client: Client, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What a push says, as JSON; or of one that failed its message."""
    done = client(command, arguments=["push", *arguments, "--json"], token=TOKEN)
    assert done["code"] == code, done["err"]
    return dict(json.loads(done["out"])) if code == 0 else {"err": done["err"]}


def read(hub: HubServer) -> int:
    """Bytes of weights that the Hub has sent of the base since the log was cleared."""
    entries = hub.log()
    return sum(e["sent"] for e in entries if "/resolve/" in e["path"] and "base" in e["path"])


def changed(folder: Path, out: Path, tensor: str) -> Path:
    """A copy of a model in which one word of a tensor is another."""
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = tensors[tensor].copy()
    tensors[tensor].reshape(-1)[77] += 1
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.parametrize("tensor", ["embed", "norm"])
def test_a_small_base_is_compared_word_for_word(
    hub: HubServer, client: Client, material: Material, tmp_path: Path, tensor: str
) -> None:
    """One other word, of a tensor that the delta changes or leaves alone, is found."""
    hub.put_repo(BASE, folder=changed(material.base, tmp_path / "x", tensor))
    told = pushed(client, str(material.delta), REPO, "--base", BASE, code=3)["err"]
    assert "is not the base of" in told
    assert "hint: name the right model" in told
    with pytest.raises(OSError, match="404"):
        hub.repo(REPO)
    told = pushed(client, str(material.delta), REPO, "--base", BASE, "--no-check-base")
    assert told["base"]["how"] == "nothing"
    assert "was not compared" in told["notes"][0]


def test_other_tensors_are_found_by_headers_alone(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    tensors = load_file(material.base / "model.safetensors")
    for name, wrong in {
        "more": tensors | {"more": np.zeros(3, np.float32)},
        "fewer": {key: each for key, each in tensors.items() if key != "norm"},
        "dtype": tensors | {"embed": tensors["embed"].astype(np.float16)},
        "shape": tensors | {"embed": tensors["embed"][:80]},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        save_file(wrong, folder / "model.safetensors")
        hub.put_repo(f"org/base-{name}", folder=folder)
        hub.clear_log()
        pushed(client, str(material.delta), REPO, "--base", f"org/base-{name}", code=3)
        assert read(hub) <= 1 << 14


def test_sha256_that_the_delta_records_proves_the_base(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    delta = tmp_path / "d.safetensors"
    sparsedelta.diff(material.base, material.target, delta, layout="always", sha256=True)
    hub.put_repo(BASE, folder=material.base)
    hub.clear_log()
    told = pushed(client, str(delta), REPO, "--base", BASE)
    assert (told["base"]["how"], told["base"]["nbytes"]) == ("sha256", 0)
    assert read(hub) <= 1 << 14
    assert told["base"]["files"][0]["sha256"] == sha256(material.base / "model.safetensors")
    # Other bytes with the same tensors: not by SHA-256, but they are the base.
    tensors = load_file(material.base / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    content = (tmp_path / "model.safetensors").read_bytes()
    hub.put_repo(BASE, files={"model.safetensors": content})
    assert pushed(client, str(delta), "alice/two", "--base", BASE)["base"]["how"] == "words"


class Broad(NamedTuple):
    """A base and a target, both folders, and the delta."""

    base: Path
    target: Path
    delta: Path


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Broad:
    """A base of 36 MB, of which segments are compared only; three words of a tensor change."""
    folder = tmp_path_factory.mktemp("broad")
    rng = np.random.default_rng(5)
    base = {
        f"layers.{number}.w": rng.integers(0, 1 << 16, (1500, 1000), np.uint16)
        for number in range(12)
    }
    tuned = base | {"layers.7.w": base["layers.7.w"].copy()}
    tuned["layers.7.w"][:3, 0] ^= 5
    for name, tensors in (("base", base), ("target", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    delta = folder / "d.safetensors"
    sparsedelta.diff(folder / "base", folder / "target", delta)
    return Broad(folder / "base", folder / "target", delta)


def test_of_a_large_base_segments_are_compared(
    hub: HubServer, client: Client, broad: Broad
) -> None:
    hub.put_repo(BASE, folder=broad.base)
    hub.clear_log()
    told = pushed(client, str(broad.delta), REPO, "--base", BASE)
    assert told["base"]["how"] == "sample"
    assert read(hub) <= 9_000_000 + (1 << 15)
    assert "were compared" in told["notes"][0]
    full = pushed(client, str(broad.delta), REPO, "--base", BASE, "--full-check-base")
    assert full["base"]["how"] == "words"
    # The target in the place of the base, and another model of the same shape: both are found.
    hub.put_repo("org/base-not", folder=broad.target)
    hub.clear_log()
    told = pushed(client, str(broad.delta), REPO, "--base", "org/base-not", code=3)
    assert "layers.7.w" in told["err"]
    assert read(hub) <= 9_000_000 + (1 << 15)


def test_a_base_in_the_cache_is_read_there(hub: HubServer, client: Client, broad: Broad) -> None:
    hub.put_repo(BASE, folder=broad.base)
    done = client(command, arguments=["fingerprint", BASE], token=TOKEN)
    assert done["code"] == 0, done["err"]
    hub.clear_log()
    assert pushed(client, str(broad.delta), REPO, "--base", BASE)["base"]["how"] == "words"
    assert read(hub) == 0


def test_the_base_is_read_at_the_commit_that_the_delta_names(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    first = hub.put_repo(BASE, folder=material.base)["sha"]
    pushed(client, str(material.delta), REPO, "--base", BASE)
    same = hub.put_repo(BASE, files={"note.txt": b"the weights are as they were"})["sha"]
    other = hub.put_repo(BASE, folder=changed(material.base, tmp_path / "x", "norm"))["sha"]
    assert len({first, same, other}) == 3
    out = tmp_path / "out"
    asked = {BASE: 0, f"{BASE}@{same}": 0, f"{BASE}@{other}": 3, f"{BASE}@main": 3}
    for base, code in asked.items():
        arguments = ["apply", base, REPO, "-o", str(out), "--force"]
        done = client(command, arguments=arguments, token=TOKEN)
        assert done["code"] == code, (base, done["err"])
        if code == 0:
            assert sha256(out / "model.safetensors") == sha256(material.target)


def test_a_named_commit_that_is_gone(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    """The main branch is taken then, and verified as ever."""
    hub.put_repo(BASE, folder=material.base)
    delta = tmp_path / "d.safetensors"
    sparsedelta.diff(material.base, material.target, delta, base_repo=BASE, base_revision="0" * 40)
    out = str(tmp_path / "out")
    done = client(command, arguments=["apply", BASE, str(delta), "-o", out], token=TOKEN)
    assert done["code"] == 0, done["err"]
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(material.target)


def test_each_revision_is_looked_up_once(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    pushed(client, str(material.delta), REPO, "--base", BASE)
    hub.clear_log()
    for arguments in (["info", REPO], ["apply", f"{BASE}@main", REPO, "-o", str(tmp_path / "x")]):
        hub.clear_log()
        done = client(command, arguments=arguments, token=TOKEN)
        assert done["code"] == 0, done["err"]
        asked = [e["path"] for e in hub.log() if e["path"].startswith("/api/models/")]
        looked_up = [path for path in asked if "/tree/" not in path]
        assert len(looked_up) == len(set(looked_up)) <= 2


def test_a_diff_records_the_model_that_it_read(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    commit = hub.put_repo(BASE, folder=material.base)["sha"]
    delta = tmp_path / "d.safetensors"
    arguments = ["diff", BASE, str(material.target), "-o", str(delta)]
    done = client(command, arguments=arguments, token=TOKEN)
    assert done["code"] == 0, done["err"]
    hints = sparsedelta.info(delta).hints
    assert hints == {"base_repo": BASE, "base_revision": commit}
    told = pushed(client, str(delta), REPO)
    assert (told["base"]["repo"], told["base"]["commit"]) == (BASE, commit)
