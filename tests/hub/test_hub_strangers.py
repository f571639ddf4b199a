"""What strangers and accidents put on the Hub: nothing is overwritten, mixed, or believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hub_material import BASE, REPO, Material, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from test_hub_chains import offline

import sparsedelta

TOKEN = TOKENS["alice"]


def ran(client: Client, *arguments: object, code: int = 0) -> str:
    """What a command wrote."""
    done = client(command, arguments=[str(each) for each in arguments], token=TOKEN)
    assert done["code"] == code, (arguments, done["err"])
    return str(done["out"] if code == 0 else done["err"])


def listed(hub: HubServer) -> dict[str, Any]:
    """What `sparsedelta.json` says."""
    with urlopen(f"{hub.url}/{REPO}/resolve/main/sparsedelta.json") as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found


def test_files_that_only_the_list_adds_are_not_written(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    ran(client, "push", material.delta, REPO, "--base", BASE)
    document, evil = listed(hub), b"evil"
    extra = {"path": "model.safetensors", "size": len(evil), "sha256": "0" * 64}
    document["deltas"][0]["files"].append(extra)
    hub.put_repo(
        REPO,
        files={"model.safetensors": evil, "sparsedelta.json": json.dumps(document).encode()},
    )
    mine = tmp_path / "model.safetensors"
    mine.write_bytes(b"mine")
    ran(client, "pull", REPO, "-o", tmp_path / "d.safetensors", "--force")
    ran(client, "pull", REPO, "--local-dir", tmp_path, "--force")
    assert mine.read_bytes() == b"mine"
    document["deltas"][0]["target"] = "0" * 64
    hub.put_repo(REPO, files={"sparsedelta.json": json.dumps(document).encode()})
    told = ran(client, "pull", REPO, "-o", tmp_path / "e.safetensors", code=4)
    assert "sparsedelta.json says" in told
    assert not (tmp_path / "e.safetensors").exists()


def test_a_set_appears_whole_or_not_at_all(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    ran(client, "push", material.parts, REPO, "--base", BASE)
    parts = sorted(p.name for p in material.parts.parent.iterdir() if p != material.parts)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / parts[-1]).write_bytes(b"mine")
    told = ran(client, "pull", REPO, "--local-dir", folder, code=1)
    assert parts[-1] in told
    assert [p.name for p in folder.iterdir()] == [parts[-1]]
    ran(client, "pull", REPO, "--local-dir", folder, "--force")
    assert sorted(p.name for p in folder.iterdir()) == sorted([*parts, "delta.safetensors"])
    assert sparsedelta.validate(folder / "delta.safetensors").ok
    told = ran(client, "pull", REPO, "-o", tmp_path / parts[0], code=1)
    assert "has the name of a part file" in told
    assert not (tmp_path / parts[0]).exists()
    told = ran(client, "pull", REPO, "--to", 1, "--local-dir", tmp_path / "x", code=2)
    assert "-o OUT" in told
    assert not (tmp_path / "x").exists()


def pulled_by_location(url: str, token: str, out: str) -> str | None:
    """Pull with a location that carries a token."""
    location = sparsedelta.Url(url, {"token": token})
    return sparsedelta.pull(location, out).path


def test_what_a_location_carries_counts(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(REPO, files={"delta.safetensors": material.delta.read_bytes()}, private=True)
    out = tmp_path / "out.safetensors"
    client(pulled_by_location, url=f"hf://{REPO}", token=TOKEN, out=str(out))
    assert sha256(out) == sha256(material.delta)


def test_offline_another_commit_of_the_base_will_do(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    ran(client, "fingerprint", BASE)
    delta, out = tmp_path / "d.safetensors", tmp_path / "out"
    sparsedelta.diff(material.base, material.target, delta, base_repo=BASE, base_revision="0" * 40)
    arguments = ["apply", BASE, str(delta), "-o", str(out)]
    done = client(offline, folder=str(tmp_path), arguments=arguments)
    assert done["code"] == 0, done["err"]
    assert sha256(out / "model.safetensors") == sha256(material.target)


@pytest.mark.parametrize("times", [1, None])
def test_an_upload_that_is_refused(
    hub: HubServer, client: Client, material: Material, times: int | None
) -> None:
    """Places to upload to expire: another is asked for, and if that is no help, it is said."""
    hub.put_repo(BASE, folder=material.base)
    hub.fail({"kind": "status", "status": 403, "match": "^PUT", "times": times})
    push = ["push", material.delta, REPO, "--base", BASE]
    if times:
        ran(client, *push)
        assert "delta.safetensors" in hub.files(REPO)
    else:
        assert "run it again" in ran(client, *push, code=4)
    assert hub.faults()[0]["used"]


def test_a_recipe_reads_its_base_where_the_deltas_say(
    hub: HubServer, client: Client, material: Material, tmp_path: Path
) -> None:
    hub.put_repo(BASE, folder=material.base)
    ran(client, "push", material.delta, REPO, "--base", BASE)
    hub.put_repo(BASE, files={"model.safetensors": material.further.read_bytes()})
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: org/base\nmodels:\n"
        "  - model: alice/delta\n    parameters: {weight: 1}\n"
    )
    ran(client, "merge", recipe, "-o", tmp_path / "out")
    ran(client, "apply", BASE, REPO, "-o", tmp_path / "applied")
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(
        tmp_path / "applied" / "model.safetensors"
    )
