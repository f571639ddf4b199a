"""The merge methods against mergekit: stored results of it, and itself where it is installed.

What mergekit computes in float32 and writes as bf16 is what ours computes in float64 and rounds
once: nearly every element is the same, and none is further away than one unit in the last place of
the base. Set ``MERGEKIT_PYTHON`` to the Python of an environment that has mergekit.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedelta.merging.aligned import Aligned, Marks, align
from sparsedelta.merging.methods import METHODS, settings_of
from sparsedelta.merging.settings import Settings
from sparsedelta.rounding import to_float64
from sparsedelta.words import TensorSpec

ROOT: Final = Path(__file__).parents[1]
STORED: Final = ROOT / "data" / "mergekit.npz"
ORACLE: Final = ROOT / "oracles" / "mergekit_oracle.py"
SHAPES: Final = {"matrix": (48, 112), "vector": (331,), "cube": (6, 20, 24)}
SAME: Final = 0.9995

Arrays = Mapping[str, NDArray[Any]]


@cache
def stored() -> Arrays:
    """What mergekit 0.1.5 gave."""
    with np.load(STORED) as arrays:
        return dict(arrays)


def recipes(arrays: Arrays) -> list[dict[str, Any]]:
    """The recipes of an oracle."""
    found = json.loads(arrays["recipes"].tobytes())
    assert isinstance(found, list)
    return found


def aligned_tasks(arrays: Arrays, recipe: dict[str, Any], name: str) -> tuple[Any, Aligned]:
    """The base words, and the entries of the recipe's tasks."""
    kind = "far" if recipe.get("far") else "near"
    base = arrays[f"{kind}/{name}/0"].reshape(-1)
    entries = []
    for task in recipe.get("tasks", [0, 1, 2]):
        words = arrays[f"{kind}/{name}/{task + 1}"].reshape(-1)
        at = np.flatnonzero(words != base)
        entries.append((at, words[at]))
    return base, align(TensorSpec(name, "BF16", SHAPES[name]), 0, base, entries)


def our_settings(recipe: dict[str, Any], tasks: int) -> Settings:
    """The recipe's settings, in our words."""
    parameters = {k: v for k, v in recipe.items() if k not in ("method", "weight", "tasks", "far")}
    weights = list(recipe.get("weight", [1.0] * tasks))
    if recipe["method"] == "linear":
        parameters["base_weight"], *weights = weights
    return settings_of(METHODS[recipe["method"]], parameters, weights, 0)


def masks(
    arrays: Arrays, number: int, name: str, aligned: Aligned, settings: Settings
) -> list[Marks]:
    """The masks by which mergekit kept entries, at our elements."""
    found, noted = [], 0
    for task in settings.tasks[:1] if settings.select_topk < 1 else settings.tasks:
        if task.density >= 1 and settings.select_topk >= 1:
            found.append(np.ones(aligned.size, np.bool_))
            continue
        bits = np.unpackbits(arrays[f"{number}/{name}/kept{noted}"])[: aligned.spec.words]
        found.append(bits.astype(np.bool_)[aligned.indices])
        noted += 1
    return found


def ours(arrays: Arrays, number: int, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The base, and what our method makes of it, given the same masks."""
    recipe = recipes(arrays)[number]
    base, aligned = aligned_tasks(arrays, recipe, name)
    settings = our_settings(recipe, aligned.tasks)
    method = METHODS[recipe["method"]]
    keep = {}
    if f"{number}/{name}/kept0" in arrays:
        keep["keep"] = masks(arrays, number, name, aligned, settings)
    numbers = to_float64(base, "BF16")
    outcome = method.function(aligned, settings, float((numbers**2).sum()), **keep)
    words = base.copy() if outcome.elsewhere is None else outcome.elsewhere(base)
    words[aligned.indices] = outcome.words
    return base, words


def compare(arrays: Arrays, number: int) -> tuple[float, float]:
    """Share of equal elements, and the largest distance in units of the base's last place."""
    same = total = 0
    worst = 0.0
    for name in SHAPES:
        base, found = ours(arrays, number, name)
        expected = arrays[f"{number}/{name}/result"].reshape(-1) ^ base
        equal = (found == expected) | ((found | expected) == 0x8000)  # -0 and +0: see the docs
        same += int(equal.sum())
        total += base.size
        one, other, old = (to_float64(w, "BF16") for w in (found, expected, base))
        place = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(old), np.abs(other)) + 1e-38)) - 7)
        worst = max(worst, float((np.abs(one - other) / place).max()))
    return same / total, worst


def labels() -> Iterator[Any]:
    """Number and a readable name of each recipe."""
    for number, recipe in enumerate(recipes(stored())):
        yield pytest.param(number, id=f"{number}-{recipe['method']}")


@pytest.mark.parametrize("number", list(labels()))
def test_stored_results_of_mergekit(number: int) -> None:
    """At least 99.95 % of the elements are equal, none is further off than 1 ulp of the base."""
    share, worst = compare(stored(), number)
    assert share >= SAME
    assert worst <= 1


def test_the_bar_can_be_missed() -> None:
    """The comparison sees a method that is another one: results of one recipe, those of another."""
    arrays = dict(stored())
    for name in SHAPES:
        arrays[f"0/{name}/result"] = arrays[f"2/{name}/result"]
    assert compare(arrays, 0)[0] < SAME


@pytest.mark.skipif("MERGEKIT_PYTHON" not in os.environ, reason="MERGEKIT_PYTHON names no Python")
def test_mergekit_itself(tmp_path: Path) -> None:
    """The same with tensors and random numbers that nobody has seen before."""
    out = tmp_path / "oracle.npz"
    seed = int.from_bytes(os.urandom(3), "big")
    command = [os.environ["MERGEKIT_PYTHON"], str(ORACLE), str(out), str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""}, timeout=500)
    with np.load(out) as loaded:
        arrays = dict(loaded)
    for number, recipe in enumerate(recipes(arrays)):
        share, worst = compare(arrays, number)
        assert share >= SAME, f"seed {seed}, {recipe}: {share}"
        assert worst <= 1, f"seed {seed}, {recipe}: {worst}"
