"""Writes the conformance vectors; `--check` compares the stored ones with what it would write."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))  # used by all the modules beside this one

from decode import RuleError, decode, describe  # noqa: E402
from invalid_header import invalid_header, invalid_metadata  # noqa: E402
from invalid_manifest import invalid_layout, invalid_manifest  # noqa: E402
from invalid_streams import (  # noqa: E402
    invalid_entries,
    invalid_frames,
    invalid_index,
    invalid_value,
)
from invalid_tables import invalid_tables  # noqa: E402
from terms import b3  # noqa: E402
from valid_vectors import expected, valid  # noqa: E402
from vector_encoder import MAGIC  # noqa: E402
from vector_samples import Invalid  # noqa: E402


def invalid() -> Iterator[Invalid]:
    """All invalid vectors."""
    groups = (
        *(invalid_header, invalid_metadata, invalid_manifest, invalid_layout),
        *(invalid_tables, invalid_frames, invalid_index, invalid_value, invalid_entries),
    )
    for group in groups:
        yield from group()


def dump(value: object) -> bytes:
    """JSON for people: lists of numbers on one line, and ASCII, so that editors keep the names."""
    text = json.dumps(value, indent=1)
    flat = re.sub(r"\[\n([^\[\]{}]*)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return (flat + "\n").encode()


def everything() -> dict[str, bytes]:
    """All vectors: path below this folder and bytes."""
    files: dict[str, bytes] = {}

    def add(path: str, data: bytes, result: object) -> None:
        if f"{path}.safetensors" in files:
            raise ValueError(path)
        files[f"{path}.safetensors"] = data
        files[f"{path}.expected.json"] = dump(result)

    for name, tensors, data in valid():
        add(f"valid/{name}", data, expected(tensors))
    for name, why, data in invalid():
        add(f"invalid/{name}", data, {"rule": name[:5].upper(), "why": why})
    return files


def outcome(data: bytes) -> object:
    """What the reference makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        try:
            return describe(decode(path))
        except RuleError as error:
            return error.code


def differences() -> Iterator[str]:
    """What differs between the stored vectors and those that would be written.

    Builds of Zstandard may compress differently: where a file holds a frame, what a reader makes
    of it has to be the same instead.
    """
    files = everything()
    stored = {
        p.relative_to(HERE).as_posix() for k in ("valid", "invalid") for p in (HERE / k).iterdir()
    }
    yield from sorted(f"{name}: only stored" for name in stored - files.keys())
    for name, data in files.items():
        if name not in stored:
            yield f"{name}: missing"
            continue
        old = (HERE / name).read_bytes()
        framed = name.endswith(".safetensors") and MAGIC in old and MAGIC in data
        if old != data and not (framed and outcome(old) == outcome(data)):
            yield f"{name}: differs"


def write() -> None:
    """Write the vectors and their index."""
    files = everything()
    for kind in ("valid", "invalid"):
        (HERE / kind).mkdir(exist_ok=True)
        for path in (HERE / kind).iterdir():
            path.unlink()
    for name, data in files.items():
        (HERE / name).write_bytes(data)
    index = {name: b3(data).hex() for name, data in sorted(files.items())}
    (HERE / "index.json").write_bytes(dump(index))


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        write()
        return 0
    found = list(differences())
    print("\n".join(found) or "the stored vectors are those that would be written")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
