"""Blocks of `ranked` that ask for much: a named rule or little memory, with their base or without.

They are compressed, so that a few kilobytes tell of many words. As in
`tests/integration/test_bombs.py`, they are read in a process with a bound on its memory.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from checkpoint_files import TIMEOUT, Stored, call, environment, failed, write_file
from ranked_encoder import varint
from sections import Sections, digest, shrunk

import sparsedelta

WORDS_LOG2: Final = 20
WORDS: Final = 1 << WORDS_LOG2
ROOM: Final = 120
"""MiB of address space above the imports: the base takes 2, a block of all words some 50."""

CHILD: Final = """
import json, os, resource, sys
from sparsedelta import SparseDeltaError, apply, validate
room, base, folder = sys.argv[1:]
def applied(delta):
    try:
        apply(base, delta, delta + ".out", threads=1)
    except SparseDeltaError as error:
        return error.rule
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + (int(room) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = []
for name in sorted(os.listdir(folder), key=int):
    delta = os.path.join(folder, name)
    problems = validate(delta, threads=1).problems
    found.append([problems[0].rule if problems else "none", applied(delta)])
print(json.dumps(found))
"""

FLAT: Final = b"\xff\0"
ALL: Final = b"\0\xff"
LARGEST: Final = (1 << 63) - 1


def head(*each: tuple[bytes, int, int, int], row: int = 0) -> bytes:
    """L and a class table: range, both codes, count, bytes of the ranks."""
    lines = b"".join(ends + bytes([codes]) for ends, codes, _, _ in each)
    sizes = b"".join(varint(count) + varint(size) for *_, count, size in each)
    return varint(row) + bytes([len(each)]) + lines + sizes


def one(*, row: int = 0, rows: bytes = b"", codes: int = 5, count: int = 1, size: int = 1) -> bytes:
    """A block of one entry, a new word, of which something else can be said."""
    return head((ALL, codes, count, size), row=row) + rows + b"\0" + b"\1\2"


def every_word(ends: bytes, idx: bytes, codes: int) -> bytes:
    """All words are entries, new words."""
    return head((ends, codes, WORDS, len(idx))) + idx + b"\1" * WORDS + b"\2" * WORDS


def escaped() -> bytes:
    """All words are entries by their difference, and each has an item."""
    signs, idx = bytes(WORDS // 8), b"\xff" * (WORDS // 8)
    return head((ALL, 0x10, WORDS, len(idx))) + signs + idx + bytes(2 * WORDS)


def many(codes: int, idx: bytes, given: int = 255) -> bytes:
    """255 classes of one entry each, of which some have their ranks."""
    table = head(*((bytes([e, e]), codes, 1, len(idx)) for e in range(255)))
    return table + idx * given + b"\1\2" * 255


MASK: Final = b"\1" + bytes(WORDS // 8 - 1)
ROWS: Final = b"\x55" * (WORDS // 8)

Case = tuple[bytes, int, str, str]
"""A block, its entries; the rule that it breaks without its base, and with it."""

CASES: Final[dict[str, Callable[[], Case]]] = {
    "gaps without end": lambda: (one(size=LARGEST), 1, "SD417", "SD417"),
    "as many gaps as there can be": lambda: (
        one(size=1 + WORDS // 255), 1, "SD417", "SD417",
    ),
    "a bitmask without end": lambda: (one(codes=0x15, size=LARGEST), 1, "SD417", "SD417"),
    "a bitmask of all words": lambda: (one(codes=0x15, size=WORDS // 8), 1, "SD417", "SD417"),
    "entries without end": lambda: (one(count=LARGEST), 1, "SD417", "SD417"),
    "rows without end": lambda: (one(row=1), 1, "SD417", "SD417"),
    "as much as a block may have": lambda: (
        one() + bytes((1 << 15) + WORDS + 5 - len(one())), 1, "SD417", "SD417",
    ),
    "more than a block may have": lambda: (
        one() + bytes((1 << 15) + WORDS + 6 - len(one())), 1, "SD304", "SD304",
    ),
    "bitmasks over all words": lambda: (many(0x15, MASK, 4), 255, "SD417", "SD417"),
    "255 classes": lambda: (many(5, b"\0"), 255, "none", "SD418"),
    "rows as long as numbers go": lambda: (one(row=LARGEST, rows=b"\1"), 1, "none", "SD502"),
    "every second row": lambda: (one(row=1, rows=ROWS), 1, "none", "SD502"),
    "every word by a bitmask": lambda: (
        every_word(ALL, b"\xff" * (WORDS // 8), 0x15), WORDS, "none", "SD502",
    ),
    "every word by gaps": lambda: (
        every_word(ALL, bytes(WORDS), 5), WORDS, "none", "SD502",
    ),
    "every word in no class": lambda: (
        every_word(FLAT, bytes(WORDS), 5), WORDS, "none", "SD502",
    ),
    "every word escaped": lambda: (escaped(), WORDS, "none", "SD502"),
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and a delta of one block."""
    folder = tmp_path_factory.mktemp("honest")
    words = np.zeros(WORDS, "<u2")
    base = write_file(folder / "base", {"w": Stored("BF16", (WORDS,), words.tobytes())})
    words[:: 1 << 12] = 1
    target = write_file(folder / "target", {"w": Stored("BF16", (WORDS,), words.tobytes())})
    sparsedelta.diff(base, target, folder / "delta", profile="compact", codec="ranked")
    return folder


def with_block(delta: bytes, block: bytes, count: int) -> bytes:
    """The delta with another block in the place of its only one, and tables that tell of it."""
    file = Sections.of(delta)
    manifest = file.copied()
    part = manifest["tensors"][0]["parts"][0]
    assert part["block"] == WORDS_LOG2
    frame = shrunk(block)
    part |= {"bytes": len(frame), "nnz": count}
    manifest["nnz"] = count
    row = struct.pack("<III", count, len(frame), len(block)) + bytes.fromhex(digest(frame))[:8]
    blobs = file.data[part_end(file) :]
    tables = file.tables[: -len(row)] + row
    return file.edited(manifest, tables=tables, data=frame + blobs).agreeing().build()


def part_end(file: Sections) -> int:
    end: int = file.manifest["tensors"][0]["parts"][0]["bytes"]
    return end


def test_no_block_takes_much(honest: Path, tmp_path: Path) -> None:
    """All in one process, with its base and without; none leaves anything behind."""
    expected = {}
    for number, (name, make) in enumerate(CASES.items()):
        block, count, *rules = make()
        expected[name] = rules
        (tmp_path / f"{number}").write_bytes(with_block(whole(honest), block, count))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOM), str(honest / "base"), str(tmp_path)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(zip(CASES, json.loads(done.stdout), strict=True)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(len(CASES))))


def whole(honest: Path) -> bytes:
    return (honest / "delta").read_bytes()


@pytest.mark.parametrize("name", ["gaps without end", "255 classes"])
def test_it_is_told_on_the_command_line(name: str, honest: Path, tmp_path: Path) -> None:
    block, count, without, with_base = CASES[name]()
    delta = tmp_path / "delta"
    delta.write_bytes(with_block(whole(honest), block, count))
    base, out = honest / "base", tmp_path / "out"
    assert call("validate", delta).code == (0 if without == "none" else 3)
    run = call("validate", delta, "--base", base)
    assert (run.code, with_base in run.out) == (3, True)
    commands: list[list[str | Path]] = [
        ["apply", base, delta, "-o", out],
        ["recode", delta, "--base", base, "--profile", "portable", "-o", out],
        ["squash", delta, "--base", base, "-o", out],
        ["export", "--raw", delta, "--base", base, "-o", out],
    ]
    for words in commands:
        assert with_base in failed(call(*words), 3)
        assert not out.exists()
