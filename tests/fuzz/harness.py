"""What the five atheris harnesses share: a seed corpus from the vectors, and the main program.

atheris is no dependency of the project. Where it is installed, ``python tests/fuzz/fuzz_codecs.py
-max_total_time=60`` fuzzes; without it the tests still run each harness over its seeds.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "reference"))

HAS_ATHERIS: Final = importlib.util.find_spec("atheris") is not None


def instrumented() -> AbstractContextManager[Any]:
    """A context whose imports report to atheris which branches they take."""
    if not HAS_ATHERIS:
        return nullcontext()
    atheris: Any = importlib.import_module("atheris")
    context: AbstractContextManager[Any] = atheris.instrument_imports(include=["sparsedelta"])
    return context


def main(
    one_input: Callable[[bytes], None],
    seeds: Callable[[], Iterable[bytes]],
    mutator: Callable[[bytes, int, int], bytes] | None = None,
) -> None:
    """Fuzz, from a corpus that is made anew each time; options are those of libFuzzer.

    Args:
        one_input: Tries one input; whatever it raises is a finding.
        seeds: Inputs to start from.
        mutator: Changes an input, given its greatest length and a seed; None: as libFuzzer does.
    """
    if not HAS_ATHERIS:
        sys.exit("atheris is not installed: pip install atheris")
    atheris: Any = importlib.import_module("atheris")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / f"{number:04}").write_bytes(seed)
        options = {} if mutator is None else {"custom_mutator": mutator}
        atheris.Setup([*sys.argv, corpus], one_input, **options)
        atheris.Fuzz()
