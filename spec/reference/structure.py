"""The structure of a file: header, manifest, layouts and tables (section 3, SD1xx to SD3xx).

Each `read_` function checks a run of rules in the order of section 9.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from encoding import MAX_DIGITS, MAX_INT, canonical, parse, unframe
from terms import BITS, SEGMENT, Array, b3, fingerprint_of, need, tensor_digest, word_bytes

MAX_HEADER, MAX_MANIFEST, MAX_WORDS, MAX_NAMES, MAX_NAME = 65_528, 2**27, 2**48, 2**20, 1024
MIN_BLOCK, MAX_BLOCK, MAX_DIMS, PADDING, ESCAPE = 8, 24, 64, 7, 255

# A form is a type, a pattern, [the form of the items], {key: form}, or ({key: form}, the form of
# all other values).
HEX, NUMBER, SECTIONS = "[0-9a-f]{64}", "0|[1-9][0-9]*", ("sd.manifest", "sd.tables", "sd.data")
SECTION: Any = {"dtype": "U8", "shape": [int], "data_offsets": [int]}
HEADER: Any = dict.fromkeys(("sd.base", "sd.target", "sd.content", "sd.manifest"), HEX)
HEADER |= {"sd.profile": "portable", "sd.invertible": "true|false"}
HEADER |= {"sd.nnz": NUMBER, "sd.manifest_size": NUMBER}
PART: Any = {"op": str, "nnz": int, "block": int, "bytes": int}
PART |= {"index": ({"id": str}, object), "value": ({"id": str}, object)}
RECORD: Any = {"name": str, "dtype": str, "shape": [int], "parts": [PART]}
MANIFEST: Any = {"base": HEX, "target": HEX, "content": HEX, "invertible": bool, "nnz": int}
MANIFEST |= {"metadata": ({}, str), "must_understand": [str], "profile": "portable"}
MANIFEST |= {"tables": HEX, "tensors": [RECORD], "untouched": [str], "version": r"0\.1"}
INDEX_CODECS: list[Any] = [{"id": "gap8"}, {"id": "bitmask"}, {"id": "dense"}]
VALUE_CODECS: list[Any] = [{"id": "zigzag"}, {"id": "planes"}]
VALUE_CODECS += [{"id": "packed", "width": width} for width in (0, 1, 2, 4, 8)]


def fits(value: Any, form: Any) -> bool:  # noqa: ANN401 - any JSON value, any form
    """Whether a JSON value has a form (see `HEADER`)."""
    if isinstance(form, str):
        return isinstance(value, str) and re.fullmatch(form, value) is not None
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if form is None or isinstance(form, type):  # exactly: a bool is no int
        return form is object or type(value) is form
    keys, others = form if isinstance(form, tuple) else (form, None)
    return (
        isinstance(value, dict)
        and keys.keys() <= value.keys()
        and all(fits(item, keys.get(key, others)) for key, item in value.items())
    )


@dataclass
class Layout:
    """A part as the manifest describes it: n words of W bytes in blocks of 2^block words."""

    op: str
    index: str
    value: str
    p: int
    n: int
    W: int
    nnz: int
    block: int
    bytes: int

    def __post_init__(self) -> None:
        """Derive the type and number of the rows of the block table."""
        streams = (self.index != "dense") + {"packed": 3, "zigzag": 2}.get(self.value, self.W)
        stream = [("encoded", "<u4"), ("decoded", "<u4"), ("checksum", "V8")]
        self.row: np.dtype[Any] = np.dtype([("count", "<u4"), ("streams", stream, (streams,))])
        self.blocks, self.rows = -(-self.n >> self.block), np.empty(0, self.row)

    def sizes(self) -> Array:
        """The words of each block; call it once the length of the tables is checked."""
        starts = np.arange(self.blocks) << self.block
        return cast("Array", np.minimum(self.n - starts, 1 << self.block))


def read_header(data: bytes) -> tuple[dict[str, str], list[bytes]]:
    """Check SD101 to SD107; return the metadata and the bytes of the three tensors."""
    n = int.from_bytes(data[:8], "little")
    need("SD101", n <= MAX_HEADER and n % 8 == 0 and len(data) >= 8 + n, "no whole header")
    padded, body = data[8 : 8 + n], data[8 + n :]
    header = parse(padded.rstrip(b" "), "SD102", "SD103")
    need("SD103", len(padded) - len(padded.rstrip(b" ")) <= PADDING, "more than 7 spaces")
    meta = header.get("__metadata__")
    need("SD104", fits(meta, ({"format": "sparsedelta"}, str)), "not the metadata of a delta")
    need("SD105", meta.get("sd.version") == "0.1", f"version {meta.get('sd.version')}")
    for key, form in HEADER.items():
        need("SD106", fits(meta.get(key), form), f"{key} is {meta.get(key)}")
    need("SD107", header.keys() == {"__metadata__", *SECTIONS}, "not exactly the three tensors")
    ends = [0]
    for name in SECTIONS:
        info = header[name]
        need("SD107", fits(info, SECTION) and len(info["data_offsets"]) > 1, f"form of {name}")
        ends.append(info["data_offsets"][1])
        need("SD107", info["data_offsets"] == ends[-2:], f"{name} does not follow its predecessor")
        need("SD107", info["shape"] == [ends[-1] - ends[-2]], f"the shape of {name}")
    need("SD107", ends[-1] == len(body), "the tensors do not end with the file")
    return meta, [body[start:end] for start, end in pairwise(ends)]


def read_manifest(meta: dict[str, str], frame: bytes) -> Any:  # noqa: ANN401 - JSON
    """Check SD201 to SD207."""
    need("SD201", b3(frame).hex() == meta["sd.manifest"], "the digest of the manifest")
    digits = meta["sd.manifest_size"]
    size = int(digits) if len(digits) <= MAX_DIGITS else MAX_INT
    need("SD202", size <= MAX_MANIFEST, "the manifest is too large")
    manifest = parse(unframe("SD202", frame, size), "SD203", "SD203")
    need("SD204", fits(manifest, MANIFEST), "a key is unknown or missing, or a value's form wrong")
    for key in ("base", "target", "content", "invertible", "nnz", "profile", "version"):
        fact = manifest[key] if isinstance(manifest[key], str) else canonical(manifest[key])
        need("SD205", fact == meta[f"sd.{key}"], f"header and manifest differ in {key}")
    need("SD206", not manifest["must_understand"], f"unknown: {manifest['must_understand']}")
    touched, untouched = [r["name"] for r in manifest["tensors"]], manifest["untouched"]
    need("SD207", len(touched) + len(untouched) <= MAX_NAMES, "too many names")
    for name in touched + untouched:
        valid = 1 <= len(name.encode()) <= MAX_NAME and not re.search("[\0-\x1f\x7f-\x9f]", name)
        need("SD207", valid, f"invalid name {name!r}")
    for names in (touched, untouched, sorted(touched + untouched)):
        need("SD207", all(a < b for a, b in pairwise(names)), "names not unique and ascending")
    return manifest


def read_layouts(manifest: Any) -> list[list[Layout]]:  # noqa: ANN401 - JSON
    """Check SD208 to SD212; return the parts of each record."""
    records, words = manifest["tensors"], []
    layouts: list[list[Layout]] = []
    for r in records:
        known = r["dtype"] in BITS and len(r["shape"]) <= MAX_DIMS
        bits = math.prod(r["shape"]) * BITS[r["dtype"]] if known else 1
        words.append(bits // 8 // word_bytes(r["dtype"]) if bits % 8 == 0 else MAX_WORDS + 1)
        need("SD208", words[-1] <= MAX_WORDS, f"dtype, dimensions or size of {r['name']}")
    for r in records:
        ops = [part["op"] for part in r["parts"]]
        allowed = (["difference"], ["replace"], ["difference", "replace"])
        need("SD209", ops in allowed, f"the ops of {r['name']}: {ops}")
    for r, n in zip(records, words, strict=True):
        layouts.append([])
        for part in r["parts"]:
            op, index, value = part["op"], part["index"], part["value"]
            # As texts, since 1 == True.
            ok = canonical(index) in map(canonical, INDEX_CODECS)
            ok &= canonical(value) in map(canonical, VALUE_CODECS)
            ok &= op != "replace" or value["id"] == "planes"
            ok &= (index["id"], value["id"]) != ("dense", "packed")
            ok &= MIN_BLOCK <= part["block"] <= MAX_BLOCK
            need("SD210", ok, f"the codecs or the block of {r['name']}")
            width, rest = word_bytes(r["dtype"]), (part["nnz"], part["block"], part["bytes"])
            p = value.get("width", 0)
            layouts[-1].append(Layout(op, index["id"], value["id"], p, n, width, *rest))
    for r, n, parts in zip(records, words, layouts, strict=True):
        counts = [part.nnz for part in parts]
        need("SD211", min(counts) > 0 and sum(counts) <= n, f"the nnz of {r['name']}")
    flat = [part for parts in layouts for part in parts]
    need("SD211", sum(part.nnz for part in flat) == manifest["nnz"], "the sum of all nnz")
    replaces = any(part.op == "replace" for part in flat)
    need("SD212", manifest["invertible"] is not replaces, "invertible, or not, against its parts")
    return layouts


def stream_limits(part: Layout, count: Array, n: Array) -> list[tuple[Array, Array, int]]:
    """The least and greatest decoded length of each stream, and what it is a multiple of."""
    m, p = (n if part.index == "dense" else count), part.p
    index = {"gap8": [(count, count + n // ESCAPE, 1)], "bitmask": [(-(-n // 8), -(-n // 8), 1)]}
    exceptions = (0 * m, m * part.W, part.W)
    value = {"planes": [(m, m, 1)] * part.W, "zigzag": [(m, m, 1), exceptions]}
    value["packed"] = [(-(-k // 8), -(-k // 8), 1) for k in (m, m * p)] + [exceptions]
    return index.get(part.index, []) + value[part.value]


def read_tables(manifest: Any, layouts: list[list[Layout]], table: bytes, size: int) -> None:  # noqa: ANN401
    """Check SD301 to SD307 for data of some size; fill in the rows of the layouts."""
    untouched, flat = manifest["untouched"], [part for parts in layouts for part in parts]
    segments = [-(-parts[0].n // SEGMENT) for parts in layouts]
    length = 32 * (len(untouched) + 2 * sum(segments))
    length += sum(part.blocks * part.row.itemsize for part in flat)
    need("SD301", len(table) == length, f"tables of {len(table)} bytes, not {length}")
    need("SD302", b3(table).hex() == manifest["tables"], "the digest of the tables")
    take = io.BytesIO(table).read
    old = [(name, take(32)) for name in untouched]
    new, same = list(old), []
    for r, parts, n in zip(manifest["tensors"], layouts, segments, strict=True):
        sides = [[take(32) for _ in range(n)] for _ in range(2)]
        digests = [tensor_digest(r["dtype"], tuple(r["shape"]), side) for side in sides]
        old.append((r["name"], digests[0]))
        new.append((r["name"], digests[1]))
        same += [r["name"]] if sides[0] == sides[1] else []
        for part in parts:
            part.rows = np.frombuffer(take(part.blocks * part.row.itemsize), part.row)
    for part in flat:
        counts = part.rows["count"].astype(np.int64)
        need("SD303", (counts <= part.sizes()).all(), "more entries in a block than words")
        need("SD303", counts.sum() == part.nnz, "the counts do not add up to nnz")
    for part in flat:
        counts, streams = part.rows["count"].astype(np.int64), part.rows["streams"]
        need("SD304", (streams["encoded"] <= streams["decoded"]).all(), "encoded above decoded")
        for k, (low, high, unit) in enumerate(stream_limits(part, counts, part.sizes())):
            decoded = streams["decoded"][:, k].astype(np.int64)
            ok = (low <= decoded) & (decoded <= high) & (decoded % unit == 0)
            need("SD304", np.where(counts, ok, decoded == 0).all(), f"decoded length of stream {k}")
    for part in flat:
        total = part.rows["streams"]["encoded"].sum(dtype=np.int64)
        need("SD305", total == part.bytes, "the encoded lengths do not add up to bytes")
    need("SD305", sum(part.bytes for part in flat) == size, "the parts do not add up to the data")
    need("SD306", fingerprint_of(old) == manifest["base"], "the fingerprint of the base")
    need("SD306", fingerprint_of(new) == manifest["target"], "the fingerprint of the target")
    need("SD307", not same, f"touched and yet the same: {same}")
