"""Writes the conformance vectors; `--check` compares the stored ones with what it would write."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))  # used by all the modules beside this one

from decode import RuleError, decode, describe  # noqa: E402
from invalid_operations import described, operations  # noqa: E402
from invalid_vectors import invalid  # noqa: E402
from invalid_with_base import ranked_operations  # noqa: E402
from stream_encoder import MAGIC  # noqa: E402
from terms import b3  # noqa: E402
from valid_add import valid_add  # noqa: E402
from valid_basics import valid_basics  # noqa: E402
from valid_beside import valid_beside  # noqa: E402
from valid_codecs import valid_codecs  # noqa: E402
from valid_ranked import valid_ranked  # noqa: E402
from valid_sets import valid_sets  # noqa: E402
from valid_structure import valid_structure  # noqa: E402

VALID = (
    *(valid_basics, valid_codecs, valid_structure, valid_add, valid_beside, valid_sets),
    valid_ranked,
)
KINDS = ("valid", "invalid")


def dump(value: object) -> bytes:
    """JSON for people: lists of numbers on one line, and ASCII, so that editors keep the names."""
    text = json.dumps(value, indent=1)
    flat = re.sub(r"\[\n([^\[\]{}]*)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return (flat + "\n").encode()


def everything() -> dict[str, bytes]:
    """All vectors: path below this folder and bytes."""
    files: dict[str, bytes] = {}

    def add(path: str, data: bytes) -> None:
        if path in files:
            raise ValueError(path)
        files[path] = data

    for group in VALID:
        for vector in group():
            for path, data in vector.files.items():
                add(f"valid/{path}", data)
            add(f"valid/{vector.name}.expected.json", dump(vector.expected))
    for name, why, found in invalid():
        several = {f"{name}.safetensors": found} if isinstance(found, bytes) else found
        folder = "invalid" if isinstance(found, bytes) else f"invalid/{name}"
        for path, data in several.items():
            add(f"{folder}/{path}", data)
        expected = {"kind": "read", "rule": name[:5].upper(), "why": why}
        add(f"invalid/{name}.expected.json", dump(expected))
    for name, expected, data in (*operations(), *described(ranked_operations())):
        add(f"invalid/{name}.safetensors", data)
        add(f"invalid/{name}.expected.json", dump(expected))
    return files


def outcome(path: str, files: dict[str, bytes]) -> object:
    """What the reference makes of a file; the part files of a set lie beside it."""
    beside = Path(path).parent
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if Path(name).parent == beside and (name == path or beside.name not in KINDS):
                (Path(folder) / Path(name).name).write_bytes(data)
        try:
            return describe(decode(Path(folder) / Path(path).name))
        except RuleError as error:
            return error.code


def stored_files() -> dict[str, bytes]:
    """All stored vectors: path below this folder and bytes."""
    return {
        path.relative_to(HERE).as_posix(): path.read_bytes()
        for kind in KINDS
        for path in (HERE / kind).rglob("*")
        if path.is_file()
    }


def differences() -> Iterator[str]:
    """What differs between the stored vectors and those that would be written.

    Builds of Zstandard may compress differently: where a file holds a frame, what a reader makes
    of it has to be the same instead.
    """
    files, stored = everything(), stored_files()
    yield from sorted(f"{name}: only stored" for name in stored.keys() - files.keys())
    for name, data in files.items():
        if name not in stored:
            yield f"{name}: missing"
            continue
        old = stored[name]
        framed = name.endswith(".safetensors") and MAGIC in old and MAGIC in data
        if old != data and not (framed and outcome(name, stored) == outcome(name, files)):
            yield f"{name}: differs"


def write() -> None:
    """Write the vectors and their index."""
    files = everything()
    for kind in KINDS:
        shutil.rmtree(HERE / kind, ignore_errors=True)
    for name, data in files.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
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
