"""Fuzz whole files: opening, validating and reading end alike in both readers.

The mutator is that of the tests, so that most inputs have their digests right; libFuzzer says which
of them were new.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import harness

with harness.instrumented():
    import sparsedelta.operations.apply
    import sparsedelta.operations.validate  # noqa: F401 (imported to be instrumented)
    from sparsedelta import DeltaReader

from mutations import BROKEN, Draft, mutate, mutate_bytes, mutate_sections
from sections import Sections
from sources import names, source
from verdicts import BUDGET, check_read, of_package, of_reference

MAX_INPUT: Final = 1 << 15


@cache
def _folder() -> Path:
    shared = Path("/dev/shm")  # noqa: S108 (a folder of our own is made in it)
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def one_input(data: bytes) -> None:
    """The law, for one input."""
    path = _folder() / "delta.safetensors"
    path.write_bytes(data)
    rule, expected = of_package(path), of_reference(path)
    if BUDGET in (rule, expected.rule):
        return
    assert rule == expected.rule, f"the package says {rule!r}, the reference {expected.text}"
    if not rule.startswith(("SD1", "SD2", "SD6")):
        with DeltaReader(path) as reader:
            check_read(reader, expected)


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """An input changed by the mutations of the tests, or as bytes."""
    rng = random.Random(seed)  # noqa: S311 (no cryptography)
    try:
        if rng.random() < 0.5:  # another step from what was found
            found = Draft(source("empty-delta"), {"empty-delta.safetensors": Sections.of(data)})
            mutate_sections(rng, found)
        else:
            found = mutate(rng)
        files = list(found.build().values())
    except (*BROKEN, IndexError):
        files = [mutate_bytes(rng, data)]
    return rng.choice(files)[:max_size]


def seeds() -> Iterator[bytes]:
    """The files of the vectors."""
    for name in names():
        yield from source(name).files.values()


if __name__ == "__main__":
    harness.main(one_input, seeds, mutated)
