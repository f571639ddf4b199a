"""The package over all vectors: it has to find what the vectors say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

import sparsedelta
from sparsedelta.container import DeltaReader
from sparsedelta.errors import FormatError, UnsupportedError

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
INDEX: dict[str, str] = json.loads((VECTORS / "index.json").read_text())
NAMES = [name.removesuffix(".safetensors") for name in INDEX if name.endswith(".safetensors")]
VALID = [name for name in NAMES if name.startswith("valid/")]
INVALID = [name for name in NAMES if name.startswith("invalid/")]
UNSUPPORTED = ("SD105", "SD206")


def file_of(name: str) -> Path:
    return VECTORS / f"{name}.safetensors"


def expected_of(name: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads((VECTORS / f"{name}.expected.json").read_text())


def check_part(part: Any, expected: dict[str, Any]) -> None:  # noqa: ANN401 - the package's own
    """Compare a part of the package with that of an expected.json."""
    assert part.op == expected["op"]
    assert part.indices.dtype == np.int64
    assert part.words.dtype.kind == "u"
    assert len(part.indices) == len(part.words) == expected["nnz"]
    if "indices" in expected:
        digits = 2 * part.words.dtype.itemsize
        assert part.indices.tolist() == expected["indices"]
        assert [f"{word:0{digits}x}" for word in part.words.tolist()] == expected["words"]
    else:
        little = part.words.dtype.newbyteorder("<")
        indices, words = part.indices.astype("<u8"), part.words.astype(little)
        assert blake3(indices.tobytes()).hexdigest() == expected["indices_b3"]
        assert blake3(words.tobytes()).hexdigest() == expected["words_b3"]


@pytest.mark.parametrize("name", VALID)
def test_package_reads_valid_vector(name: str) -> None:
    expected = expected_of(name)
    with DeltaReader(file_of(name)) as reader:
        delta = reader.read()
    for key in ("base", "target", "content", "nnz"):
        assert getattr(delta, key) == expected[key]
    assert list(delta.tensors) == [record["name"] for record in expected["tensors"]]
    for record in expected["tensors"]:
        tensor = delta.tensors[record["name"]]
        assert tensor.spec.name == record["name"]
        assert tensor.spec.dtype == record["dtype"]
        assert list(tensor.spec.shape) == record["shape"]
        assert len(tensor.parts) == len(record["parts"])
        for part, wanted in zip(tensor.parts, record["parts"], strict=True):
            check_part(part, wanted)


@pytest.mark.parametrize("name", VALID)
def test_package_finds_no_problem_in_valid_vector(name: str) -> None:
    assert [problem.rule for problem in sparsedelta.validate(file_of(name)).problems] == []


@pytest.mark.parametrize("name", INVALID)
def test_package_refuses_invalid_vector(name: str) -> None:
    rule = expected_of(name)["rule"]
    error = UnsupportedError if rule in UNSUPPORTED else FormatError
    with pytest.raises(error) as caught, DeltaReader(file_of(name)) as reader:
        reader.read()
    assert caught.value.rule == rule


@pytest.mark.parametrize("name", INVALID)
def test_package_reports_the_rule_of_invalid_vector(name: str) -> None:
    problems = sparsedelta.validate(file_of(name)).problems
    assert problems
    assert problems[0].rule == expected_of(name)["rule"]
