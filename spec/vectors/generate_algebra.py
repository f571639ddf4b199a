"""Writes the vectors of `algebra.md`; `--check` compares the stored ones with those."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))  # used by the modules beside this one

from algebra_vectors import algebra_vectors  # noqa: E402
from generate import dump  # noqa: E402
from terms import b3  # noqa: E402

FOLDER = HERE / "algebra"
INDEX = "index.json"


def everything() -> dict[str, bytes]:
    """All vectors, each in a folder: path below `algebra/` and bytes."""
    files: dict[str, bytes] = {}
    for vector in algebra_vectors():
        found = vector.files() | {"expected.json": dump(vector.expected())}
        for name, data in found.items():
            if f"{vector.name}/{name}" in files:
                raise ValueError(vector.name)
            files[f"{vector.name}/{name}"] = data
    return files | {INDEX: dump({name: b3(data).hex() for name, data in sorted(files.items())})}


def stored_files() -> dict[str, bytes]:
    """All stored vectors."""
    paths = (path for path in FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in paths}


def differences() -> Iterator[str]:
    """What differs between the stored vectors and those that would be written."""
    files, stored = everything(), stored_files()
    for name in sorted(files.keys() | stored.keys()):
        if files.get(name) != stored.get(name):
            yield f"{name}: differs" if name in files and name in stored else f"{name}: odd"


def write() -> None:
    """Write the vectors and their index."""
    files = everything()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, data in files.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_bytes(data)


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
