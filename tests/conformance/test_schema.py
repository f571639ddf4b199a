"""The JSON Schema of the manifest, against the manifests of all vectors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from encoding import unframe
from header import read_header
from jsonschema import Draft202012Validator

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = SPEC / "vectors"
INDEX: dict[str, str] = json.loads((VECTORS / "index.json").read_text())
FILES = [name.removesuffix(".safetensors") for name in INDEX if name.endswith(".safetensors")]
VALID = [name for name in FILES if name.startswith("valid/")]
# SD204 in full; of the later rules, these can be said in a schema.
SCHEMA_RULES = ("sd204", "sd206", "sd210", "sd217")
# Of a set, one file of several is the invalid one, and the name does not say which.
INVALID = [name for name in FILES if re.match(rf"invalid/({'|'.join(SCHEMA_RULES)})[^/]*$", name)]
VALIDATOR = Draft202012Validator(json.loads((SPEC / "manifest.schema.json").read_text()))


def manifest_of(name: str) -> Any:  # noqa: ANN401 - JSON
    meta, (frame, _, _) = read_header((VECTORS / f"{name}.safetensors").read_bytes())
    return json.loads(unframe("SD202", frame, int(meta["sd.manifest_size"])))


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("name", VALID)
def test_schema_takes_valid_manifest(name: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(manifest_of(name))] == []


@pytest.mark.parametrize("name", INVALID)
def test_schema_refuses_invalid_manifest(name: str) -> None:
    assert not VALIDATOR.is_valid(manifest_of(name))
