"""Valid vectors: sets of a root and part files."""

from __future__ import annotations

from collections.abc import Iterator

from expected_json import Vector, bases, targets
from valid_beside import INDEX, ONE, also, carried_files, some
from vector_layout import Layout
from vector_records import P, R, X, bare, edited
from vector_samples import bias, tensor
from vector_sets import set_case


def valid_sets() -> Iterator[Vector]:
    """Sets of one part file and of three, whose records refer to each other."""
    records = [r for r in some() if r.touched]
    rest = [r for r in some() if not r.touched]
    yield set_case("set-of-1", [records], rest)
    three = [records[::3], records[1::3], records[2::3]]
    yield set_case("set-of-3", three, rest)
    yield set_case("set-of-3-lean", three, rest, lean=True)
    yield set_case("set-compressed", three, rest, shrink_manifest=True)
    blobs, files = carried_files()
    layout = Layout(blobs=list(blobs))
    old, new = bases(some()), targets(some())
    layout.record("base", old, {ONE: [*old]}, index=INDEX)
    layout.record("target", new, {ONE: [*new]})
    beside = {"blobs": layout.blobs, "layout": layout.value, "files": files}
    vector = set_case("set-with-layout-and-files", three, rest, **beside)
    vector.expected |= layout.files
    yield vector
    a, b = X("U8", [3], b"abc"), X("U8", [3], b"xyz")
    swap = [[R("a", b, b, source="b")], [R("b", a, a, source="a")]]
    yield set_case("set-swap", swap, [bias()])
    # Alone, the first part file cannot know the base tensor a: that is the record of another name.
    beside_swap = [[*swap[0], R("m", None, a, [bare("new", "a", a)])], swap[1]]
    yield set_case("set-swap-and-copy", beside_swap, [])
    part = P("difference", {0: 1})
    edit = edited("a", "U8", [3], a.data, [part])
    copies = [
        [R("m", None, a, [bare("new", "a", a)])],  # of a tensor that another part file changes
        [edit],
        [R("z", edit.target, None, [bare("drop", "a", edit.target)])],
    ]
    yield set_case("set-copies", copies, [])
    untouched = [[R("m", None, a, [bare("new", "a", a)])], [tensor("w", "U8", 3, part)]]
    yield set_case("set-copy-of-untouched", untouched, [R("a", a, a)])
    mixed = [[tensor("w", "U8", 3, P("replace", {0: 1}, value="planes"))]]
    mixed += [[tensor("v", "U8", 3, part)]]  # one part file can be inverted, the other not
    yield set_case("set-half-invertible", mixed, [])
    keys = {number: {"manifest": also((), ("set",))} for number in (1, 2)}
    hook = also((), ("set",), ("set", "parts", 0))
    yield set_case("set-unknown-keys", swap, [], manifest=hook, parts=keys)
