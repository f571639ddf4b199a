"""The valid vectors that mutations start from, with the places of everything in them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from block_codecs import Coded
from operations import Plan, read_records
from sections import Files, Sections
from tables import copied

VALID: Final = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"

MAX_FILE: Final = 1 << 15
MAX_TENSORS: Final = 1 << 20
"""Bytes of a delta, and of the base: larger ones take long and reach nothing else."""

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


@dataclass(frozen=True)
class Cell:
    """A stream: its cell in the tables and its frame in the data."""

    file: str
    record: int
    part: int
    cell: int
    start: int
    encoded: int
    decoded: int


@dataclass(frozen=True)
class Span:
    """What belongs to one record: bytes of the tables and of the data."""

    file: str
    record: int
    tables: tuple[int, int]
    data: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A blob and its frame in the data of the root."""

    blob: int
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """A vector, taken apart.

    Attributes:
        name: Name of the vector.
        root: Name of its file, or of the root of its set.
        files: The bytes of all files.
        sections: The files, taken apart.
        cells: Its streams.
        spans: Its records.
        blobs: Its blobs.
        expected: The vector's expected.json.
    """

    name: str
    root: str
    files: Files
    sections: dict[str, Sections]
    cells: tuple[Cell, ...]
    spans: tuple[Span, ...]
    blobs: tuple[Frame, ...]
    expected: Any

    @property
    def parts(self) -> list[str]:
        """The names of its part files."""
        return [name for name in self.files if name != self.root]

    @cached_property
    def twins(self) -> list[tuple[Cell, ...]]:
        """First streams of the same block of two parts of one tensor, with the same codec."""
        found: dict[tuple[str, int], list[Cell]] = {}
        for cell in self.cells:
            cells = found.setdefault((cell.file, cell.record), [])
            if cell.part not in [c.part for c in cells]:
                cells.append(cell)
        return [tuple(cells) for cells in found.values() if len(cells) > 1]

    @cached_property
    def base_tensors(self) -> Tensors:
        """The tensors of the base."""
        return {
            t["name"]: (t["dtype"], tuple(t["shape"]), bytes_of(t["bytes"]))
            for t in self.expected["base_tensors"]
        }


def bytes_of(description: dict[str, Any]) -> bytes:
    """The bytes that an expected.json describes."""
    if "hex" in description:
        return bytes.fromhex(description["hex"])
    return bytes.fromhex(description["repeat"]) * int(description["times"])


def _size_of(description: dict[str, Any]) -> int:
    if "hex" in description:
        return len(description["hex"]) // 2
    return len(description["repeat"]) // 2 * int(description["times"])


@cache
def names() -> tuple[str, ...]:
    """The vectors that are small enough."""
    found = []
    for path in sorted(VALID.glob("*.expected.json")):
        expected = json.loads(path.read_text())
        size = sum(_size_of(t["bytes"]) for t in expected["base_tensors"])
        files = paths_of(path.name.removesuffix(".expected.json"))
        if size <= MAX_TENSORS and sum(file.stat().st_size for file in files) <= MAX_FILE:
            found.append(path.name.removesuffix(".expected.json"))
    return tuple(found)


def paths_of(name: str) -> list[Path]:
    """The files of a vector, the root first."""
    folder = VALID / name
    if not folder.is_dir():
        return [VALID / f"{name}.safetensors"]
    root = folder / f"{name}.safetensors"
    return [root, *sorted(path for path in folder.iterdir() if path != root)]


@cache
def source(name: str) -> Source:
    """A vector by name."""
    paths = paths_of(name)
    files = {path.name: path.read_bytes() for path in paths}
    sections = {key: Sections.of(file) for key, file in files.items()}
    cells: list[Cell] = []
    spans: list[Span] = []
    offset = 0
    for key, each in sections.items():
        plans = read_records(each.manifest)
        offset = _walk(key, each, plans, cells, spans)
        if key == paths[0].name:
            root_offset = offset
    blobs = sections[paths[0].name].manifest["blobs"]
    starts = accumulate((blob["bytes"] for blob in blobs), initial=root_offset)
    frames = (Frame(k, at, at + b["bytes"]) for k, (at, b) in enumerate(zip(starts, blobs)))  # noqa: B905
    expected = json.loads((VALID / f"{name}.expected.json").read_text())
    return Source(name, paths[0].name, files, sections, (*cells,), (*spans,), (*frames,), expected)


def _walk(key: str, each: Sections, plans: list[Plan], cells: list[Cell], spans: list[Span]) -> int:
    position = 32 * len(each.manifest["untouched"])
    offset = 0
    for record, plan in enumerate(plans):
        begin = position, offset
        position += 32 * sum(end.segments for end in (plan.base, plan.target) if end)
        for number, part in enumerate(plan.parts):
            if not isinstance(part, Coded):
                position += 32 * copied(plan, part.op, part.of).segments
                continue
            streams = (part.row.itemsize - 4) // 16
            for _ in range(part.blocks):
                position += 4
                for _ in range(streams):
                    encoded, decoded = struct.unpack_from("<II", each.tables, position)
                    cells.append(Cell(key, record, number, position, offset, encoded, decoded))
                    position += 16
                    offset += encoded
        spans.append(Span(key, record, (begin[0], position), (begin[1], offset)))
    return offset
