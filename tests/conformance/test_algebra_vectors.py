"""The vectors of spec/algebra.md: squashes and sums, by the reference and by the package."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import algebra
import decode
import generate_algebra
import pytest
from test_package import write_checkpoint
from test_vectors import rebuild

import sparsedelta
from sparsedelta.errors import NotFiniteError, SparseDeltaError, StructureError, WrongBaseError

FOLDER = generate_algebra.FOLDER
NAMES = sorted({name.split("/")[0] for name in json.loads((FOLDER / "index.json").read_text())})
SQUASHES = [name for name in NAMES if name.startswith("squash-")]
SUMS = [name for name in NAMES if name.startswith("sum-")]

REFUSALS = {"SD501": WrongBaseError, "SD505": NotFiniteError, "tasks": StructureError}
"""What the package raises where a sum is refused."""


def expected_of(name: str) -> Any:  # noqa: ANN401 (any JSON value)
    return json.loads((FOLDER / name / "expected.json").read_text())


def deltas_of(name: str) -> list[Path]:
    return [FOLDER / name / file for file in expected_of(name)["deltas"]]


def described(path: Path, expected: dict[str, Any]) -> None:
    """What the reference reads in a delta is what the vector says."""
    found = decode.describe(decode.decode(path))
    for key in ("base", "target", "content", "nnz", "invertible", "tensors"):
        assert found[key] == expected[key], key


def test_the_vectors_are_those_that_the_generator_writes() -> None:
    assert list(generate_algebra.differences()) == []
    assert len(SQUASHES) >= 15
    assert len(SUMS) >= 20


@pytest.mark.parametrize("name", SQUASHES)
def test_the_reference_squashes(name: str) -> None:
    """In the order of the chain, whatever the order of its files."""
    expected = expected_of(name)
    deltas = sorted(map(decode.decode, deltas_of(name)), key=lambda delta: delta.base)
    orders = list(itertools.permutations(deltas))
    if "refused" in expected:
        for order in orders:
            with pytest.raises(decode.RuleError) as caught:
                algebra.squash_chain(order)
            assert caught.value.code in (expected["refused"], "chain")
        return
    follows = [
        order
        for order in orders
        if all(one.target == two.base for one, two in itertools.pairwise(order))
    ]
    content, _ = algebra.squash_chain(follows[0])
    assert content == expected["result"]["content"]


@pytest.mark.parametrize("name", SQUASHES)
def test_the_package_squashes(name: str, tmp_path: Path) -> None:
    expected, out = expected_of(name), tmp_path / "out"
    if "refused" in expected:
        with pytest.raises(SparseDeltaError):
            sparsedelta.squash(deltas_of(name), out)
        assert not out.exists()
        return
    sparsedelta.squash(deltas_of(name), out)
    described(out, expected["result"])
    base = write_checkpoint(tmp_path / "base", expected["base_tensors"])
    target = sparsedelta.apply(base, out, tmp_path / "target")
    assert target.fingerprint == expected["result"]["target"]
    to = expected["result"]["target"]  # a circle has no end of its own
    through = sparsedelta.apply(base, deltas_of(name), tmp_path / "through", to=to)
    assert through.fingerprint == expected["result"]["target"]


@pytest.mark.parametrize("name", SUMS)
def test_the_reference_adds_up(name: str) -> None:
    expected = expected_of(name)
    base = rebuild(expected["base_tensors"])
    tasks = list(zip(map(decode.decode, deltas_of(name)), expected["weights"], strict=True))
    for order in (tasks, tasks[::-1]):
        if "refused" in expected:
            with pytest.raises(decode.RuleError) as caught:
                algebra.total(base, order)
            assert caught.value.code == expected["refused"]
            continue
        content, tensors = algebra.total(base, order)
        assert content == expected["result"]["content"]
        assert decode.fingerprint(tensors) == expected["result"]["target"]


@pytest.mark.parametrize("name", SUMS)
def test_the_package_adds_up(name: str, tmp_path: Path) -> None:
    expected, out = expected_of(name), tmp_path / "out"
    base = write_checkpoint(tmp_path / "base", expected["base_tensors"])
    weights = expected["weights"]
    if "refused" in expected:
        with pytest.raises(REFUSALS[expected["refused"]]):
            sparsedelta.compose(base, deltas_of(name), out, weights=weights)
        assert not out.exists()
        return
    sparsedelta.compose(base, deltas_of(name), out, weights=weights)
    described(out, expected["result"])
    found = sparsedelta.apply_stack(base, deltas_of(name), tmp_path / "sum", weights=weights)
    assert found.fingerprint == expected["result"]["target"]
