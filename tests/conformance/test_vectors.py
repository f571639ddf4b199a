"""The reference reader over all vectors, and whether the vectors are all there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import decode as ref
import generate
import pytest
from terms import Tensors, b3
from valid_vectors import Dice, combinations

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = SPEC / "vectors"
INDEX: dict[str, str] = json.loads((VECTORS / "index.json").read_text())
NAMES = [name.removesuffix(".safetensors") for name in INDEX if name.endswith(".safetensors")]
VALID = [name for name in NAMES if name.startswith("valid/")]
INVALID = [name for name in NAMES if name.startswith("invalid/")]
MAX_TOTAL = 2**20


def file_of(name: str) -> Path:
    return VECTORS / f"{name}.safetensors"


def expected_of(name: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads((VECTORS / f"{name}.expected.json").read_text())


def rebuild(records: list[dict[str, Any]]) -> Tensors:
    """The base tensors of a valid vector, from their recipes."""
    tensors = {}
    for record in records:
        how = record["bytes"]
        data = bytes.fromhex(how.get("hex", how.get("repeat"))) * how.get("times", 1)
        tensors[record["name"]] = (record["dtype"], tuple(record["shape"]), data)
    return tensors


def test_every_file_of_the_index_is_there_and_no_other() -> None:
    folders = (VECTORS / "valid", VECTORS / "invalid")
    found = {
        path.relative_to(VECTORS).as_posix(): b3(path.read_bytes()).hex()
        for folder in folders
        for path in folder.iterdir()
    }
    assert found == INDEX


def test_vectors_are_small() -> None:
    assert sum((VECTORS / name).stat().st_size for name in INDEX) < MAX_TOTAL


def test_every_rule_has_a_vector() -> None:
    table = (SPEC / "SPEC.md").read_text(encoding="utf-8").split("## 9. Rules")[1]
    rules = set(re.findall(r"^\| `(SD[1-4]\d\d)` \|", table, re.MULTILINE))
    assert len(rules) >= 36
    assert {expected_of(name)["rule"] for name in INVALID} == rules


def test_every_combination_of_op_and_codecs_has_a_vector() -> None:
    for combination in combinations():
        assert f"valid/{'-'.join(combination)}" in VALID


def test_generator_writes_what_is_stored() -> None:
    assert list(generate.differences()) == []


@pytest.mark.parametrize("name", VALID)
def test_reference_reads_valid_vector(name: str) -> None:
    expected = expected_of(name)
    expected.pop("base_tensors")
    assert ref.describe(ref.decode(file_of(name))) == expected


@pytest.mark.parametrize("name", VALID)
def test_reference_applies_and_reverts_valid_vector(name: str) -> None:
    delta = ref.decode(file_of(name))
    base = rebuild(expected_of(name)["base_tensors"])
    assert ref.fingerprint(base) == delta.base
    target = ref.apply(base, delta)
    assert ref.fingerprint(target) == delta.target
    assert ref.apply(target, delta) == target
    if delta.invertible:
        assert ref.revert(target, delta) == base
        assert ref.revert(base, delta) == base
    else:
        with pytest.raises(ref.RuleError) as caught:
            ref.revert(target, delta)
        assert caught.value.code == "SD503"


@pytest.mark.parametrize("name", INVALID)
def test_reference_refuses_invalid_vector(name: str) -> None:
    with pytest.raises(ref.RuleError) as caught:
        ref.decode(file_of(name))
    assert caught.value.code == expected_of(name)["rule"]


def test_wrong_base_and_wrong_result_are_told_apart() -> None:
    name = "valid/difference-gap8-zigzag"
    delta, base = ref.decode(file_of(name)), rebuild(expected_of(name)["base_tensors"])
    dtype, shape, data = base["w16"]
    with pytest.raises(ref.RuleError) as caught:
        ref.apply(base | {"w16": (dtype, shape, bytes([data[0] ^ 1]) + data[1:])}, delta)
    assert caught.value.code == "SD501"
    with pytest.raises(ref.RuleError) as caught:
        ref.apply(base, dataclasses.replace(delta, target="0" * 64))
    assert caught.value.code == "SD502"


def test_work_is_limited() -> None:
    with pytest.raises(ref.RuleError) as caught:
        ref.decode(file_of("valid/compressed-gap8-packed"), work=1000)
    assert caught.value.code == "SD504"


@pytest.mark.parametrize("name", VALID)
def test_a_damaged_file_is_refused_or_means_the_same(name: str, tmp_path: Path) -> None:
    """Flips and cuts, all over the file, never raise anything but RuleError.

    Only the metadata that a reader ignores can change without a trace.
    """
    data, path, dice = file_of(name).read_bytes(), tmp_path / "x.safetensors", Dice(1)
    whole = ref.describe(ref.decode(file_of(name)))
    for _ in range(40):
        at, bit = dice.below(len(data)), dice.below(8)
        for damaged in (data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], data[:at]):
            path.write_bytes(damaged)
            with contextlib.suppress(ref.RuleError):
                assert ref.describe(ref.decode(path)) == whole


def test_command_line(tmp_path: Path) -> None:
    script = SPEC / "reference" / "decode.py"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(file_of(name))]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    good = run("valid/names")
    expected = expected_of("valid/names")
    expected.pop("base_tensors")
    assert (good.returncode, json.loads(good.stdout)) == (0, expected)
    bad = run("invalid/sd307-same")
    assert (bad.returncode, bad.stdout, bad.stderr[:5]) == (3, "", "SD307")
