"""Two independent readers, one verdict: the package and the reference agree on every mutated delta.

The law, for any files whatsoever: both state the same rule, or both read the same delta; and
applying it to the base that it was made from is an error of ours, or gives exactly what the delta
claims, files and all. ``make fuzz`` runs it for longer.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutate
from sources import names, source
from thorough import examples
from verdicts import Place, Tally, check, run

SEEDS: Final = int(os.environ.get("SPARSEDELTA_FUZZ_SEEDS", "16"))
MUTATED: Final = 1300
"""Deltas that both readers read, per seed."""

REACHABLE: Final = {
    *(f"SD{number}" for number in (*range(101, 108), *range(201, 218), *range(301, 309))),
    *(f"SD{number}" for number in (*range(401, 418), *range(601, 604))),
}
"""Every rule of a delta by itself but SD504: the budgets of the readers differ."""

FLOOR: Final = 42
"""Rules of these that a seed reaches at least; it is 46 and more, and all together reach all."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A folder in memory, if there is one: results are synchronised to the disk otherwise."""
    shared = Path("/dev/shm")  # noqa: S108 (a folder of our own is made in it)
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield Place(folder)
    shutil.rmtree(folder)


def keep(place: Place, folder: Path) -> str:
    """Keep the delta that broke the law where pytest leaves it; say where."""
    shutil.copytree(place.delta, folder / "delta")
    place.clear()
    return f"kept in {folder / 'delta'}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_package_and_reference_agree_on_mutated_deltas(
    seed: int, place: Place, tmp_path: Path
) -> None:
    """Section 9: the code of the first rule that is broken is the same for every reader."""
    tally = Tally()
    number = 0
    while tally.files < MUTATED:
        rng = random.Random(f"{seed}-{number}")  # noqa: S311 (no cryptography)
        try:
            run(rng, place, tally)
        except BaseException as error:
            error.add_note(f"seed {seed}, mutation {number}; {keep(place, tmp_path)}")
            raise
        number += 1
    missing = sorted(REACHABLE - tally.rules.keys())
    sys.stdout.write(f"{tally.files} deltas; not reached: {', '.join(missing)}\n")
    assert len(missing) <= len(REACHABLE) - FLOOR, f"no mutation reaches {missing} any more"
    assert tally.rules[""] > MUTATED // 20, "too few mutated deltas are valid"
    assert tally.applied[""] > MUTATED // 20, "too few mutated deltas can be followed"


@examples(150)
@given(st.randoms(use_true_random=False), st.sampled_from(names()))
def test_package_and_reference_agree_on_what_hypothesis_finds(
    place: Place, rng: random.Random, other: str
) -> None:
    """The same law; what breaks it is shrunk to few and small choices."""
    draft = mutate(rng)
    files = draft.build()
    if len(files) == 1 and rng.random() < 0.1:  # a file of another delta under this one's name
        files = {draft.source.root: source(other).files[source(other).root]}
    try:
        check(place, draft.source, files)
    finally:
        place.clear()


def test_every_small_vector_is_read_alike(place: Place) -> None:
    """Without a mutation: the harness itself is right about what is valid."""
    for name in names():
        origin = source(name)
        verdict, applied = check(place, origin, origin.files)
        assert (verdict.content, applied) == (origin.expected["content"], ""), name
