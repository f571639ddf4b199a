"""Invalid vectors: the headers of a layout, rule SD415."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from expected_json import bases, targets
from vector_encoder import Hook, build
from vector_layout import header_of, with_length
from vector_records import P, R, X, bare, edited, whole
from vector_samples import Invalid, drop, put

RECORDS = [
    edited("a", "U8", [3], b"abc", [P("difference", {0: 1})]),
    R("b", X("U8", [3], b"abc"), X("U8", [3], b"abc")),
    R("new", None, X("BF16", [1], b"xy"), [whole("new")]),
    R("old", X("F32", [1], b"wxyz"), None, [bare("drop")]),
    R("to", X("U8", [], b"q"), X("U8", [], b"q"), source="of"),
]
BASE, TARGET = bases(RECORDS), targets(RECORDS)
GOOD = header_of(BASE, [*BASE])
INFO: Any = json.loads(GOOD[8:])


def vector(name: str, why: str, *headers: bytes, side: str = "base", lean: bool = False) -> Invalid:
    """A vector with these headers as the files of one end."""
    files = [{"name": f"{k}.safetensors", "header": k, "sha256": None} for k in range(len(headers))]
    layout = {"base": None, "target": None} | {side: {"files": files, "index": None}}
    return f"sd415-{name}", why, build(RECORDS, blobs=[*headers], layout=layout, lean=lean)


def text(name: str, why: str, old: str, new: str | bytes) -> Invalid:
    """A vector in whose header a text is replaced."""
    raw = GOOD[8:].rstrip(b" ")
    if old.encode() not in raw:
        raise ValueError(old)
    raw = raw.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)
    return vector(name, why, with_length(raw))


def changed(name: str, why: str, change: Hook) -> Invalid:
    """A vector in whose header a value is changed."""
    return vector(name, why, with_length(json.dumps(change(INFO)).encode()))


def _later(header: dict[str, Any]) -> dict[str, Any]:
    tensors = {name: info for name, info in header.items() if name != "__metadata__"}
    return {n: i | {"data_offsets": [k + 1 for k in i["data_offsets"]]} for n, i in tensors.items()}


def invalid_headers() -> Iterator[Invalid]:
    """Headers that are not strict."""
    yield vector("empty", "no byte", b"")
    yield vector("short", "7 bytes", GOOD[:7])
    yield vector("length", "a length that is too great", struct.pack("<Q", len(GOOD)) + GOOD[8:])
    yield vector("with-data", "bytes behind the header", GOOD + b"abc")
    yield vector("no-json", "no JSON", with_length(b"{"))
    yield vector("array", "an array", with_length(b"[]"))
    yield text("utf8", "a byte that is not UTF-8", '"pt"', b'"\xff"')
    yield text("duplicate", "a tensor twice", '"b":', f'"b":{json.dumps(INFO["b"])},"b":')
    yield text("duplicate-inside", "a key twice", '"dtype":"U8"', '"dtype":"U8","dtype":"U8"')
    yield text("nan", "NaN", '"pt"', "NaN")
    yield text("surrogate", "a lone surrogate", '"pt"', r'"\ud83d"')
    yield vector("space", "white space before the object", with_length(b" " + GOOD[8:]))
    yield text("minus-zero", "an offset of -0", '"data_offsets":[0,', '"data_offsets":[-0,')
    yield changed("metadata", "a value that is no string", put({"x": 1}, "__metadata__"))
    yield changed("null", "a tensor is null", put(None, "b"))
    yield changed("dtype", "an unknown dtype", put("Q8", "b", "dtype"))
    yield changed("no-dtype", "a key is missing", drop("b", "dtype"))
    yield changed("negative", "a negative dimension", put([-3, -1], "b", "shape"))
    yield changed("fraction", "a dimension of 3.0", put([3.0], "b", "shape"))
    yield changed("bool", "a dimension of true", put([True], "of", "shape"))
    yield changed("offsets", "one offset", put([3], "b", "data_offsets"))
    start, end = INFO["b"]["data_offsets"]
    yield changed("size", "two bytes for three words", put([start, end - 1], "b", "data_offsets"))
    longer = put(INFO["of"]["data_offsets"][1] + 1, "of", "data_offsets", 1)
    yield changed("size-of-last", "two bytes for one word, and nothing behind", longer)
    yield changed("gap-before", "a gap before the first tensor", _later)
    last = INFO["of"]["data_offsets"]
    yield changed("gap", "a gap", put([last[0] + 1, last[1] + 1], "of", "data_offsets"))
    yield changed("overlap", "an overlap", put([start - 1, end - 1], "b", "data_offsets"))


def invalid_owners() -> Iterator[Invalid]:
    """Strict headers whose tensors are not those of the end."""
    for name, why, names in (
        ("missing", "a tensor is missing", ["a", "b", "old"]),
        ("missing-untouched", "an untouched tensor is missing", ["a", "of", "old"]),
        ("none", "no tensor at all", []),
    ):
        yield vector(name, why, header_of(BASE, names))
    more = BASE | {"x": X("U8", [1], b"")}
    yield vector("unknown", "a tensor that is not there", header_of(more, [*more]))
    yield vector("twice", "a tensor in two files", GOOD, header_of(BASE, ["a"]))
    yield vector("other-end", "the tensors of the target", header_of(TARGET, [*TARGET]))
    yield vector("target", "the tensors of the base", GOOD, side="target")
    for name, x in (
        ("touched-dtype", X("I8", [3], b"abc")),
        ("touched-shape", X("U8", [3, 1], b"abc")),
    ):
        odd = BASE | {"a": x}
        why = "another tensor than that of the record"
        yield vector(name, why, header_of(odd, [*odd]))
    missing = header_of(BASE, ["b", "old", "of"])
    yield vector("lean-missing", "a touched tensor is missing", missing, lean=True)
    new = BASE | {"new": TARGET["new"]}
    why = "a tensor of the target, in the base"
    yield vector("lean-other-end", why, header_of(new, [*new]), lean=True)
