"""The reference reader over all vectors, and whether the vectors are all there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import decode as ref
import generate
import pytest
import rules
from dice import Dice
from terms import Tensors, b3, tensor_digests
from valid_codecs import combinations

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = SPEC / "vectors"
INDEX: dict[str, str] = json.loads((VECTORS / "index.json").read_text())
SUFFIX = ".expected.json"
NAMES = [name.removesuffix(SUFFIX) for name in INDEX if name.endswith(SUFFIX)]
EXPECTED: dict[str, Any] = {
    name: json.loads((VECTORS / f"{name}{SUFFIX}").read_text()) for name in NAMES
}
VALID = [name for name in NAMES if name.startswith("valid/")]
INVALID = [name for name in NAMES if EXPECTED[name].get("kind") == "read"]
OPERATIONS = [name for name in NAMES if EXPECTED[name].get("kind") in ("apply", "revert")]
RANKED = [
    name
    for name in VALID
    if "ranked" in name and EXPECTED[name]["nnz"] and not EXPECTED[name]["invertible"]
]
SETS = [name for name in VALID if EXPECTED[name]["set"]]
BESIDE = ("base_tensors", "target_tensors", "base_files", "target_files", "alone")
MAX_TOTAL = 6 * 2**20


def file_of(name: str) -> Path:
    """The file of a vector, or the root of one that is a set."""
    folder = VECTORS / name
    return (
        folder / f"{folder.name}.safetensors"
        if folder.is_dir()
        else VECTORS / f"{name}.safetensors"
    )


def with_base(name: str, delta: ref.Decoded) -> ref.Decoded:
    """A delta with the entries that take the base of a vector to be read."""
    return ref.resolved(delta, ref.words_of(rebuild(EXPECTED[name]["base_tensors"])))


def found_in(name: str) -> Any:  # noqa: ANN401 - JSON
    """What a reader finds in a valid vector."""
    return {key: value for key, value in EXPECTED[name].items() if key not in BESIDE}


def rebuild(records: list[dict[str, Any]]) -> Tensors:
    """Tensors from their recipes."""
    tensors = {}
    for record in records:
        how = record["bytes"]
        data = bytes.fromhex(how.get("hex", how.get("repeat"))) * how.get("times", 1)
        tensors[record["name"]] = (record["dtype"], tuple(record["shape"]), data)
    return tensors


def test_every_file_of_the_index_is_there_and_no_other() -> None:
    stored = generate.stored_files()
    assert {name: b3(data).hex() for name, data in stored.items()} == INDEX


def test_vectors_are_small() -> None:
    assert sum((VECTORS / name).stat().st_size for name in INDEX) < MAX_TOTAL


def test_every_vector_has_a_kind() -> None:
    assert len(VALID) + len(INVALID) + len(OPERATIONS) == len(NAMES)
    assert all(name.startswith("invalid/") for name in INVALID + OPERATIONS)
    assert all((VECTORS / name).is_dir() for name in SETS)


def test_every_rule_has_a_vector_and_the_page_says_which() -> None:
    known = rules.rules()
    assert len(known) >= 58
    assert {EXPECTED[name]["rule"] for name in INVALID + OPERATIONS} == known.keys() - {"SD504"}
    assert (SPEC / "rules.md").read_text("utf-8") == rules.page()


def test_every_combination_of_op_and_codecs_has_a_vector() -> None:
    every = list(combinations())
    assert len(every) == 22 + 12 + 12 + 6
    for combination in every:
        assert f"valid/{'-'.join(combination)}" in VALID


def test_generator_writes_what_is_stored() -> None:
    assert list(generate.differences()) == []


@pytest.mark.parametrize("name", VALID)
def test_reference_reads_valid_vector(name: str) -> None:
    assert ref.describe(with_base(name, ref.decode(file_of(name)))) == found_in(name)


@pytest.mark.parametrize("name", RANKED)
def test_reference_tells_without_a_base_what_it_can(name: str) -> None:
    """The numbers of entries; neither where they are nor what they are."""
    found = ref.describe(ref.decode(file_of(name)))
    wanted = found_in(name)
    assert found.keys() == wanted.keys()
    parts = [
        (part, full)
        for record, whole in zip(found["tensors"], wanted["tensors"], strict=True)
        for part, full in zip(record["parts"], whole["parts"], strict=True)
    ]
    hidden = [part for part, full in parts if part != full]
    assert hidden
    assert all(part.keys() == {"op", "nnz"} for part in hidden)
    assert all(part.items() <= full.items() for part, full in parts)


@pytest.mark.parametrize("name", SETS)
def test_reference_reads_part_file_alone(name: str) -> None:
    for file, wanted in EXPECTED[name]["alone"].items():
        assert ref.describe(with_base(name, ref.decode(VECTORS / name / file))) == wanted


@pytest.mark.parametrize("name", VALID)
def test_reference_applies_and_reverts_valid_vector(name: str) -> None:
    delta = ref.decode(file_of(name))
    base = rebuild(EXPECTED[name]["base_tensors"])
    assert ref.fingerprint(base) == delta.base
    target = ref.apply(base, delta)
    assert ref.fingerprint(target) == delta.target
    digests = {key: digest.hex() for key, digest in tensor_digests(target).items()}
    assert digests == EXPECTED[name]["target_tensors"]
    assert ref.apply(target, delta) == target
    if delta.invertible:
        assert ref.revert(target, delta) == base
        assert ref.revert(base, delta) == base
    else:
        with pytest.raises(ref.RuleError) as caught:
            ref.revert(target, delta)
        assert caught.value.code == "SD503"
    for back, tensors in ((False, target), (True, base)):
        files = ref.files_of(tensors, delta, back=back)
        wanted = EXPECTED[name].get("base_files" if back else "target_files")
        assert (files is None) == (wanted is None)
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in (files or {}).items()}
        assert hashes == (wanted or {})


@pytest.mark.parametrize("name", VALID)
def test_reference_gives_back_carried_files(name: str) -> None:
    delta = ref.decode(file_of(name))
    for back, side in ((False, "target"), (True, "base")):
        found = ref.carried(delta, back=back)
        for file in EXPECTED[name]["files"]:
            end = file[side]
            if end is None:
                assert found.pop(file["name"]) is None
            elif end["blob"] is not None:
                data = found.pop(file["name"])
                assert data is not None
                assert (b3(data).hex(), len(data)) == (end["digest"], end["size"])
        assert found == {}


@pytest.mark.parametrize("name", INVALID)
def test_reference_refuses_invalid_vector(name: str) -> None:
    with pytest.raises(ref.RuleError) as caught:
        ref.decode(file_of(name))
    assert caught.value.code == EXPECTED[name]["rule"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_reference_refuses_operation(name: str) -> None:
    delta = ref.decode(file_of(name))
    tensors = rebuild(EXPECTED[name]["tensors"])
    with pytest.raises(ref.RuleError) as caught:
        ref.apply(tensors, delta, back=EXPECTED[name]["kind"] == "revert")
    assert caught.value.code == EXPECTED[name]["rule"]


def test_wrong_sha256_of_a_file_is_told() -> None:
    name = "valid/layout-one-file"
    delta, base = ref.decode(file_of(name)), rebuild(EXPECTED[name]["base_tensors"])
    layout = json.loads(json.dumps(delta.layout))
    layout["base"]["files"][0]["sha256"] = "0" * 64
    with pytest.raises(ref.RuleError) as caught:
        ref.files_of(base, dataclasses.replace(delta, layout=layout), back=True)
    assert caught.value.code == "SD502"


def test_a_part_file_alone_is_not_applied() -> None:
    name = "valid/set-of-3"
    delta = ref.decode(VECTORS / name / "part-1.safetensors")
    with pytest.raises(ref.RuleError) as caught:
        ref.apply(rebuild(EXPECTED[name]["base_tensors"]), delta)
    assert caught.value.code == "SD502"


def test_work_is_limited() -> None:
    with pytest.raises(ref.RuleError) as caught:
        ref.decode(file_of("valid/compressed-gap8-packed"), work=1000)
    assert caught.value.code == "SD504"


@pytest.mark.parametrize("name", [name for name in VALID if name not in SETS])
def test_a_damaged_file_is_refused_or_means_the_same(name: str, tmp_path: Path) -> None:
    """Flips and cuts, all over the file, never raise anything but RuleError.

    Only the metadata that a reader ignores can change without a trace.
    """
    data, path, dice = file_of(name).read_bytes(), tmp_path / "x.safetensors", Dice(1)
    whole = found_in(name)
    for _ in range(20):
        at, bit = dice.below(len(data)), dice.below(8)
        for damaged in (data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], data[:at]):
            path.write_bytes(damaged)
            with contextlib.suppress(ref.RuleError):
                assert ref.describe(with_base(name, ref.decode(path))) == whole


def test_command_line(tmp_path: Path) -> None:
    script = SPEC / "reference" / "decode.py"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(file_of(name))]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    for name in ("valid/names", "valid/set-of-3"):
        good = run(name)
        assert (good.returncode, json.loads(good.stdout)) == (0, found_in(name))
    bad = run("invalid/sd307-same")
    assert (bad.returncode, bad.stdout, bad.stderr[:5]) == (3, "", "SD307")
