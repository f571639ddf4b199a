"""Compact deltas and their base on the Hub: by ranges or whole, of one commit, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hub_material import BASE, REPO, command, sha256
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer
from safetensors.numpy import save_file

import sparsedelta

TOKEN = TOKENS["alice"]


class Pair(NamedTuple):
    """Folders with a base and a target, the compact delta between them, and the same as a set."""

    base: Path
    target: Path
    files: Mapping[str, bytes]
    parts: Mapping[str, bytes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    chance = np.random.default_rng(9)
    words = {n: chance.normal(size=(160, 160)).astype(np.float16) for n in "abcd"}
    tuned = {name: tensor.copy() for name, tensor in words.items()}
    for name in "abc":
        tuned[name].reshape(-1)[chance.integers(0, 25600, 2500)] += np.float16(0.25)
    found = Pair(folder / "base", folder / "target", {}, {})
    for path, tensors in ((found.base, words), (found.target, tuned)):
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    (folder / "set").mkdir()
    one, several = folder / "delta.safetensors", folder / "set" / "delta.safetensors"
    compact: dict[str, Any] = {"profile": "compact", "codec": "ranked"}
    sparsedelta.diff(found.base, found.target, one, **compact)
    sparsedelta.diff(found.base, found.target, several, shards=2, **compact)
    parts = {path.name: path.read_bytes() for path in several.parent.iterdir()}
    return found._replace(files={one.name: one.read_bytes()}, parts=parts)


COMMANDS = {
    "by ranges": ["apply", BASE, REPO, "-o", "{}/out", "--stream"],
    "a set by ranges": ["apply", BASE, REPO, "-o", "{}/out", "--stream"],
    "rows": ["rows", REPO, "a", "0:2", "--base", BASE, "--json"],
    "pulled": ["pull", REPO, "-o", "{}/out", "--base", BASE],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_flipped_bit_of_any_answer_is_told_or_made_good(
    hub: HubServer, client: Client, pair: Pair, what: str, tmp_path: Path
) -> None:
    """On other base words most blocks decode to something: none of it may be seen."""
    place = tmp_path / "place"

    def run(fault: dict[str, Any] | None) -> tuple[int, str, str, dict[str, str]]:
        hub.reset()
        shutil.rmtree(client.home, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        hub.put_repo(BASE, folder=pair.base)
        hub.put_repo(REPO, files=pair.parts if "set" in what else pair.files)
        hub.clear_log()
        if fault is not None:
            hub.fail(fault)
        arguments = [each.format(place) for each in COMMANDS[what]]
        done = client(command, arguments=arguments, token=TOKEN)
        files = (path for path in place.rglob("*") if path.is_file())
        return done["code"], done["out"], done["err"], {p.name: sha256(p) for p in files}

    code, out, err, made = run(None)
    assert code == 0, err
    answers = [entry for entry in hub.log() if entry["sent"] > 1000]
    if "ranges" in what:
        assert made["model.safetensors"] == sha256(pair.target / "model.safetensors")
    assert len(answers) > 1
    for entry in answers:
        path = entry["path"].partition("?")[0].rpartition("/")[2]
        same = [each for each in answers if path in each["path"]]
        nth = 1 + [each is entry for each in same].index(True)
        # The last bytes of a file are words; somewhere in each answer there are some.
        fault = {"kind": "corrupt", "at": -5, "match": f"GET .*resolve.*{path}", "nth": nth}
        code, found, err, files = run(fault)
        assert "Traceback" not in err
        if code == 0:
            assert (files, found) == (made, out)
        else:
            assert code in (1, 3, 4), err
            assert err.startswith("error: "), err
            assert not files, (fault, err)


def test_the_commit_that_the_delta_names_is_meant(
    hub: HubServer, client: Client, pair: Pair, tmp_path: Path
) -> None:
    """Whatever the main branch holds by now; and another one is refused, wherever it is read."""
    first = hub.put_repo(BASE, folder=pair.base)["sha"]
    delta = tmp_path / "delta.safetensors"
    delta.write_bytes(pair.files["delta.safetensors"])
    push = ["push", str(delta), REPO, "--base", BASE]
    assert client(command, arguments=push, token=TOKEN)["code"] == 0
    newer = hub.put_repo(BASE, folder=pair.target)["sha"]
    assert newer != first
    out = tmp_path / "out"
    commands = (
        ["apply", "{}", REPO, "-o", str(out)],
        ["apply", "{}", REPO, "-o", str(out), "--stream"],
        ["pull", REPO, "-o", str(out), "--base", "{}"],
        ["validate", REPO, "--base", "{}"],
        ["rows", REPO, "a", "0:2", "--base", "{}"],
        ["squash", REPO, "-o", str(out), "--base", "{}"],
    )
    for words in commands:
        shutil.rmtree(client.home, ignore_errors=True)
        for base, expected in ((BASE, 0), (f"{BASE}@{first}", 0), (f"{BASE}@main", 3)):
            if words[0] == "apply" and expected == 3:
                continue  # it is the target already, which is copied
            arguments = [each.format(base) for each in words]
            done = client(command, arguments=arguments, token=TOKEN)
            assert done["code"] == expected, (arguments, done["err"])
            assert "SD501" in done["out"] + done["err"] or expected == 0
            assert out.exists() == (expected == 0 and str(out) in words), arguments
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)
