"""Mutations of delta files that keep the digests above them right, to reach deep rules."""

from __future__ import annotations

import copy
import json
import random
import struct
from dataclasses import dataclass
from typing import Any, Final

import zstandard
from blake3 import blake3

SECTIONS: Final = ("sd.manifest", "sd.tables", "sd.data")
_EDGES: Final = (0, 1, 127, 128, 254, 255)
_WORDS: Final = (0, 1, 2**31, 2**32 - 1, 2**24, 2**27)
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, 8, 24, 25, 2**53 - 1, "", "gap8", "replace", "BF16", [], {}),
    *({"id": "dense"}, {"id": "gap8"}, {"id": "packed", "width": 2}, {"id": "planes"}),
)


def canonical(document: object) -> bytes:
    """The canonical text of a document (spec section 3.2), written here once more on purpose."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode()


@dataclass
class Parsed:
    """A delta file, taken apart without a check."""

    header: dict[str, Any]
    manifest: Any
    is_compressed: bool
    tables: bytes
    data: bytes

    @classmethod
    def of(cls, file: bytes) -> Parsed:
        """Take a valid file apart."""
        (length,) = struct.unpack_from("<Q", file)
        header = json.loads(file[8 : 8 + length])
        body = file[8 + length :]
        manifest, tables, data = (body[slice(*header[k]["data_offsets"])] for k in SECTIONS)
        size = int(header["__metadata__"]["sd.manifest_size"])
        compressed = len(manifest) != size
        text = zstandard.ZstdDecompressor().decompress(manifest) if compressed else manifest
        return cls(header, json.loads(text), compressed, tables, data)

    def build(self) -> bytes:
        """Put it together again, with the digests of manifest and tables made right."""
        if isinstance(self.manifest, dict) and "tables" in self.manifest:
            self.manifest["tables"] = blake3(self.tables).hexdigest()
        text = canonical(self.manifest)
        frame = zstandard.ZstdCompressor(level=1).compress(text) if self.is_compressed else text
        if len(frame) > len(text):
            frame = text
        header = copy.deepcopy(self.header)
        header["__metadata__"]["sd.manifest"] = blake3(frame).hexdigest()
        header["__metadata__"]["sd.manifest_size"] = str(len(text))
        offset = 0
        for key, part in zip(SECTIONS, (frame, self.tables, self.data), strict=True):
            end = offset + len(part)
            header[key] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [offset, end]}
            offset = end
        text = canonical(header)
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + frame + self.tables + self.data


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, set, cut, splice or overwrite a few bytes."""
    if not data:
        return bytes([rng.randrange(256)])
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    kind = rng.randrange(6)
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at : at + rng.randint(1, 4)]
    elif kind == 2:
        changed[at:at] = rng.randbytes(rng.randint(1, 4))
    elif kind == 3:
        changed[at : at + 4] = struct.pack("<I", rng.choice(_WORDS))
    else:
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((*_EDGES, rng.randrange(256)))
    return bytes(changed)


def mutate_json(rng: random.Random, document: Any) -> None:  # noqa: ANN401 (any JSON)
    """Change, remove or repeat one value somewhere in a document."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:  # noqa: ANN401
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    node, key = rng.choice(places)
    value = node[key]
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = copy.deepcopy(rng.choice(_VALUES))
    elif isinstance(value, bool):
        node[key] = not value
    elif isinstance(value, int):
        node[key] = max(0, rng.choice((value + 1, value - 1, 2 * value, 0, 2**40, 2**53 - 1)))
    elif isinstance(value, str):
        node[key] = rng.choice((value + "x", value[:-1], value[::-1], "difference", "F64"))
    elif isinstance(value, list) and value:
        value.append(copy.deepcopy(rng.choice(value)))
    else:
        node[key] = 0


@dataclass
class _Row:
    """Where a stream lies: its cell in the tables and its frame in the data."""

    record: int
    part: int
    cell: int
    start: int
    encoded: int
    decoded: int


_STREAMS: Final = {"gap8": 1, "bitmask": 1, "dense": 0, "packed": 3, "zigzag": 2}
_WIDTHS: Final = {"16": 2, "32": 4, "64": 8}


def _rows(parsed: Parsed) -> list[_Row]:
    rows = []
    position = 32 * len(parsed.manifest["untouched"])
    offset = 0
    for number, record in enumerate(parsed.manifest["tensors"]):
        width = next((w for bits, w in _WIDTHS.items() if record["dtype"].endswith(bits)), 1)
        width = 8 if record["dtype"] == "C64" else width
        elements = 1
        for dimension in record["shape"]:
            elements *= dimension
        bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(record["dtype"], 8 * width)
        words = elements * bits // 8 // width
        position += 64 * -(-words >> 22)
        for index, part in enumerate(record["parts"]):
            value = part["value"]["id"]
            streams = _STREAMS[part["index"]["id"]] + _STREAMS.get(value, width)
            for _ in range(-(-words >> part["block"])):
                position += 4
                for _ in range(streams):
                    encoded, decoded = struct.unpack_from("<II", parsed.tables, position)
                    rows.append(_Row(number, index, position, offset, encoded, decoded))
                    position += 16
                    offset += encoded
    return rows


def mutate_stream(rng: random.Random, parsed: Parsed) -> None:
    """Change a stream, its frame or its length, and make checksum, lengths and sums right again."""
    rows = _rows(parsed)
    if not rows:
        return
    row = rng.choice(rows)
    frame = parsed.data[row.start : row.start + row.encoded]
    decoded = row.decoded
    kind = rng.randrange(5)
    if kind == 0:
        frame = mutate_bytes(rng, frame)
    elif kind == 1:
        decoded = max(0, decoded + rng.choice((-1, 1, 8, 2**20)))
    else:
        is_stored = row.encoded == row.decoded
        stream = frame if is_stored else zstandard.ZstdDecompressor().decompress(frame)
        stream = mutate_bytes(rng, stream)
        decoded = len(stream)
        packed = zstandard.ZstdCompressor(level=1).compress(stream)
        frame = packed if rng.random() < 0.4 and len(packed) < len(stream) else stream
    end = row.start + row.encoded
    parsed.data = parsed.data[: row.start] + frame + parsed.data[end:]
    cell = struct.pack("<II", len(frame), decoded) + blake3(frame).digest()[:8]
    parsed.tables = parsed.tables[: row.cell] + cell + parsed.tables[row.cell + 16 :]
    part = parsed.manifest["tensors"][row.record]["parts"][row.part]
    part["bytes"] += len(frame) - row.encoded


def mutate(rng: random.Random, file: bytes) -> bytes:
    """One mutation of a valid delta file."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(rng, file)
    parsed = Parsed.of(file)
    if kind < 0.35:
        parsed.tables = mutate_bytes(rng, parsed.tables)
    elif kind < 0.55:
        mutate_json(rng, parsed.manifest)
        if rng.random() < 0.5:  # let the header agree, so that later rules are reached
            for key in ("base", "target", "content", "nnz"):
                if isinstance(parsed.manifest.get(key), str | int):
                    parsed.header["__metadata__"][f"sd.{key}"] = str(parsed.manifest[key])
    elif kind < 0.62:
        mutate_json(rng, parsed.header["__metadata__"])
    else:
        mutate_stream(rng, parsed)
    return parsed.build()
