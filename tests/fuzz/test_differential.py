"""Two independent readers, one verdict: the package and the reference agree on every mutated file.

The law: for any file whatsoever both give the same rule, or both give the same delta. ``make fuzz``
runs it for longer.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import decode as reference
import pytest
from mutations import mutate

from sparsedelta import DeltaReader, FormatError

VALID = sorted((Path(__file__).parents[2] / "spec" / "vectors" / "valid").glob("*.safetensors"))
SEEDS = int(os.environ.get("SPARSEDELTA_FUZZ_SEEDS", "20"))
MUTATIONS = 250


def verdict_of_package(path: Path) -> str:
    """Content digest, or the rule that is broken; anything else that is raised fails the test."""
    try:
        with DeltaReader(path) as reader:
            return reader.read().content
    except FormatError as error:
        return error.rule


def verdict_of_reference(path: Path) -> str:
    """Content digest, or the rule that is broken."""
    try:
        return reference.decode(path).content
    except reference.RuleError as error:
        return error.code


@pytest.mark.parametrize("seed", range(SEEDS))
def test_package_and_reference_agree(seed: int, tmp_path: Path) -> None:
    """Section 9: the code of the first rule that is broken is the same for every reader."""
    rng = random.Random(seed)  # noqa: S311 (no cryptography)
    seen = set()
    for number in range(MUTATIONS):
        source = rng.choice(VALID)
        path = tmp_path / "mutated"
        path.write_bytes(mutate(rng, source.read_bytes()))
        package, expected = verdict_of_package(path), verdict_of_reference(path)
        assert package == expected, f"seed {seed}, mutation {number} of {source.name}"
        seen.add(expected)
    assert len(seen) > 12, "the mutations do not reach the rules any more"
