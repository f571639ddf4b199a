"""Valid vectors: lean deltas, layouts, carried files, and what a reader of 1.0 does not know."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from expected_json import Vector, bases, case, targets
from terms import b3
from vector_encoder import Hook
from vector_layout import Layout
from vector_records import P, R, X, bare, edited, whole
from vector_samples import bias, put, simple, tensor

ONE, FIRST, SECOND = "model.safetensors", "model-1-of-2.safetensors", "model-2-of-2.safetensors"
INDEX = "model.safetensors.index.json"


def some() -> list[R]:
    """A tensor of each kind: untouched, changed, renamed, new, dropped, grown."""
    short, long = X("U8", [2, 2], b"abcd"), X("U8", [3, 2], b"abcdef")
    empty = X("BF16", [0, 7], b"")
    return [
        *(bias(), R("empty", empty, empty)),
        tensor("changed", "BF16", 9, P("difference", {0: 1, 8: 65535})),
        edited("to", "F32", [], struct.pack("<f", 2.5), [], "of"),
        R("fresh", None, short, [whole("new")]),
        R("gone", long, None, [whole("drop")]),
        R("grown", short, long, [whole("resize")]),
    ]


def valid_lean() -> Iterator[Vector]:
    """Deltas without the untouched tensors."""
    yield case("lean", some(), lean=True)
    a = X("U8", [3], b"abc")
    copies = [R("a", a, a), R("b", None, a, [bare("new", "a", a)])]
    copies += [R("c", a, None, [bare("drop", "a", a)])]
    yield case("lean-copies", copies, lean=True)  # a is there, but the delta does not say so
    yield case("lean-nothing-else", [tensor("w", "U8", 3, P("difference", {1: 1}))], lean=True)
    yield case("lean-empty", [bias()], lean=True)


def laid(name: str, records: list[R], layout: Layout, **how: Any) -> Vector:  # noqa: ANN401
    """A vector with a layout."""
    vector = case(name, records, blobs=layout.blobs, layout=layout.value, **how)
    vector.expected |= layout.files
    return vector


def valid_layouts() -> Iterator[Vector]:
    """Files of both ends."""
    records = some()
    old, new = bases(records), targets(records)

    def both(first: dict[str, list[str]], last: dict[str, list[str]], **how: Any) -> Layout:  # noqa: ANN401
        layout = Layout()
        layout.record("base", old, first, **how)
        layout.record("target", new, last, **how)
        return layout

    one = both({ONE: [*old]}, {ONE: [*new]})
    yield laid("layout-one-file", records, one)
    yield laid("layout-lean", records, one, lean=True)
    yield laid("layout-compressed", records, one, shrink_manifest=True)
    halves = {FIRST: [*old][:3], SECOND: [*old][3:]}, {FIRST: [*new][3:], SECOND: [*new][:3]}
    yield laid("layout-shards", records, both(*halves, index=INDEX))
    yield laid("layout-plain-headers", records, both(*halves, plain=True))
    yield laid("layout-no-sha256", records, both({ONE: [*old]}, {ONE: [*new]}, sha=False))
    ends = {ONE: [*old]}, {"A.safetensors": [*new][1:], "_b+c-d.safetensors": [*new][:1]}
    yield laid("layout-other-files", records, both(*ends))
    odd = {"empty.safetensors": [], "some.safetensors": [*reversed(old)]}
    yield laid("layout-file-without-tensors", records, both(odd, {ONE: [*new]}))
    for side, tensors in (("base", old), ("target", new)):
        layout = Layout()
        layout.record(side, tensors, {ONE: [*tensors]})
        yield laid(f"layout-{side}-only", records, layout)
    none = Layout()
    yield laid("layout-of-neither-end", records, none)
    same = [bias(), tensor("w", "U8", 3, P("difference", {1: 1}))]
    layout = Layout()
    for side, tensors in (("base", bases(same)), ("target", targets(same))):
        layout.record(side, tensors, {"x" * 243 + ".safetensors": [*tensors]}, index=INDEX)
    yield laid("layout-shared-blobs", same, layout)


def content(data: bytes, blob: int | None) -> dict[str, Any]:
    """A carried file at one end."""
    return {"blob": blob, "digest": b3(data).hex(), "size": len(data)}


def carried_files() -> tuple[list[bytes], list[dict[str, Any]]]:
    """Files that are added, removed and changed; blobs and the manifest's `files`."""
    old, new, empty, twice = b'{"a": 1}', b'{"a": 2, "b": [3]}', b"", b"abc" * 50
    blobs = [old, new, empty, twice]
    files = [
        ("added.txt", None, content(new, 1)),
        ("changed.json", content(old, 0), content(new, 1)),
        ("emptied", content(old, 0), content(empty, 2)),
        ("filled", content(empty, 2), content(twice, 3)),
        ("forgotten.json", content(b"nobody knows", None), content(twice, 3)),
        ("removed.model", content(twice, 3), None),
        ("removed-forgotten", content(b"lost", None), None),
        ("tokenizer.safetensors.txt", None, content(empty, 2)),
    ]
    listed = [{"name": n, "base": b, "target": t} for n, b, t in sorted(files, key=lambda f: f[0])]
    return blobs, listed


def valid_carried() -> Iterator[Vector]:
    """Carried files."""
    blobs, files = carried_files()
    yield case("files", simple(), blobs=blobs, files=files)
    yield case("files-compressed", simple(), blobs=blobs, files=files, shrink_manifest=True)
    yield case("files-only", [bias()], blobs=blobs, files=files)
    yield case("files-lean", simple(), blobs=blobs, files=files, lean=True)
    long = "Z" * 255
    odd = [{"name": long, "base": None, "target": content(b"", 0)}]
    odd += [{"name": n, "base": content(b"", 0), "target": None} for n in ("_", "a.con", "coma")]
    yield case("files-names", simple(), blobs=[b""], files=odd)
    records = some()
    layout = Layout(blobs=list(blobs))
    layout.record("base", bases(records), {ONE: [*bases(records)]}, index=INDEX)
    layout.record("target", targets(records), {ONE: [*targets(records)]})
    yield laid("files-and-layout", records, layout, files=files)


def also(*paths: tuple[str | int, ...]) -> Hook:
    """A hook that puts an unknown key into each of some objects."""

    def hook(manifest: Any) -> Any:  # noqa: ANN401 - JSON
        for k, path in enumerate(paths):
            manifest = put([{"x": k}, None], *path, "x_unknown")(manifest)
        return manifest

    return hook


def valid_unknown() -> Iterator[Vector]:
    """Keys, versions and profiles that a reader of 1.0 does not know."""
    records = some()
    blobs, files = carried_files()
    layout = Layout(blobs=[*blobs, b"of no use to a reader of 1.0"])
    layout.record("base", bases(records), {ONE: [*bases(records)]}, index=INDEX)
    layout.record("target", targets(records), {ONE: [*targets(records)]}, index=INDEX)
    side = ("layout", "base")
    paths: list[tuple[str | int, ...]] = [(), ("blobs", 0), ("layout",), side]
    paths += [(*side, "files", 0), (*side, "index"), ("files", 1), ("files", 1, "base")]
    paths += [("tensors", 0), ("tensors", 0, "base"), ("tensors", 0, "target")]
    paths += [("tensors", 0, "parts", 0)]
    yield laid("unknown-keys", records, layout, files=files, manifest=also(*paths))
    gone = [bias(), R("w", X("U8", [1], b"a"), None, [bare("drop")])]
    part = also(("tensors", 0, "parts", 0))
    yield case("unknown-key-of-a-bare-part", gone, manifest=part)
    reserved = put([], "parents")
    yield case(
        "reserved-keys", simple(), manifest=lambda m: put([1], "tensors", 0, "rows")(reserved(m))
    )
    for version in ("1.7", "1.10", "1.4294967296"):
        yield case(f"version-{version}", simple(), version=version, manifest=also(()))
    yield case("other-profile", simple(), profile="compact-2")
    yield case("longest-profile", simple(), profile="a" * 32)


def valid_beside() -> Iterator[Vector]:
    """All of them."""
    for group in (valid_lean, valid_layouts, valid_carried, valid_unknown):
        yield from group()
