"""Valid vectors: tensors that come, go, are renamed or change their shape."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from expected_json import Vector, case
from terms import BITS
from vector_records import SEGMENT, P, R, X, bare, changed, edited, whole
from vector_samples import bias


def u8(*words: int) -> X:
    """A tensor of one dimension."""
    return X("U8", [len(words)], bytes(words))


def rows(dtype: str, shape: list[int], first: int = 1) -> X:
    """A tensor whose bytes count upwards."""
    size = math.prod(shape) * BITS[dtype] // 8
    return X(dtype, shape, bytes((first + i) % 256 for i in range(size)))


def step(*pairs: tuple[int, int]) -> P:
    """A difference."""
    return P("difference", dict(pairs))


def words(*pairs: tuple[int, int]) -> P:
    """A replace."""
    return P("replace", dict(pairs), value="planes")


def valid_new_and_drop() -> Iterator[Vector]:
    """Tensors of one end, of every dtype and odd shape."""
    every = [(d.lower(), X(d, [4, 2], bytes(range(bits)))) for d, bits in BITS.items()]
    yield case("new-dtypes", [R(name, None, x, [whole("new")]) for name, x in every])
    yield case("drop-dtypes", [R(name, x, None, [whole("drop", "raw")]) for name, x in every])
    odd = [
        ("empty", X("F32", [0], b"")),
        ("empty-3d", X("BF16", [3, 0, 5], b"")),
        ("scalar", X("F32", [], struct.pack("<f", 1.5))),
        ("dims", X("U8", [1] * 63 + [4], b"abcd")),
        ("zeros", X("F64", [2], bytes(16))),
    ]
    yield case("new-shapes", [R(name, None, x, [whole("new")]) for name, x in odd])
    yield case("drop-shapes", [R(name, x, None, [whole("drop")]) for name, x in odd])
    yield case("drop-forgotten", [bias(), *(R(name, x, None, [bare("drop")]) for name, x in odd)])
    old, new = u8(1, 2), u8(3)
    only = [R("old", old, None, [whole("drop")]), R("young", None, new, [whole("new")])]
    yield case("nothing-in-common", only)
    yield case("new-of-all", [R("w", None, old, [whole("new")])])
    yield case("drop-of-all", [R("w", old, None, [whole("drop")])])


def valid_copies() -> Iterator[Vector]:
    """`new` with `from`, `drop` with `to`."""
    a, b = u8(1, 2, 3, 4), u8(9, 8, 7, 6)
    kept = R("a", a, a)
    yield case("new-from", [kept, R("b", None, a, [bare("new", "a", a)])])
    parts = [step((0, 1), (3, 255)), words((1, 7))]
    both = [bare("new", "a", a), *parts]
    yield case("new-from-parts", [kept, R("b", None, changed(a, parts), both)])
    one = [bare("new", "a", a), parts[0]]
    yield case("new-from-difference", [kept, R("b", None, changed(a, parts[:1]), one)])
    edit = edited("a", "U8", [4], a.data, [step((2, 5))])
    yield case("new-from-changed", [edit, R("b", None, a, [bare("new", "a", a)])])
    gone = R("a", a, None, [whole("drop")])
    twice = [R(name, None, a, [bare("new", "a", a)]) for name in ("b", "c")]
    yield case("new-from-dropped-twice", [gone, *twice])
    renamed = R("z", a, a, source="a")
    yield case("new-from-renamed", [renamed, R("b", None, a, [bare("new", "a", a)])])
    empty = X("BF16", [0, 4], b"")
    records = [R("a", empty, empty), R("b", None, empty, [bare("new", "a", empty)])]
    yield case("new-from-empty", [*records, R("c", empty, None, [bare("drop", "a", empty)])])

    yield case("drop-to", [kept, R("head", a, None, [bare("drop", "a", a)])])
    yield case(
        "drop-to-new", [R("n", None, a, [whole("new")]), R("o", a, None, [bare("drop", "n", a)])]
    )
    records = [edit, R("head", edit.target, None, [bare("drop", "a", edit.target)])]
    yield case("drop-to-changed", records)
    diff = step((0, 8), (1, 6), (2, 4), (3, 2))  # from a to b
    records = [R("b", b, b), R("a", a, None, [diff, bare("drop", "b", b)])]
    yield case("drop-to-difference", records)
    records = [R("z", b, b, source="b"), R("a", a, None, [diff, bare("drop", "z", b)])]
    yield case("drop-to-renamed", records)
    ring = [
        R("a", a, b, [bare("drop", "b", a), bare("new", "b", b)]),
        R("b", b, a, [bare("drop", "a", b), bare("new", "a", a)]),
    ]
    yield case("swap-by-copies", ring)
    long = X("U8", [SEGMENT + 9], bytes(SEGMENT + 9))
    edge = P("difference", {0: 1, SEGMENT: 1}, block=24)
    records = [
        R("a", long, long),
        R("b", None, changed(long, [edge]), [bare("new", "a", long), edge]),
    ]
    yield case("new-from-two-segments", records)


def valid_both() -> Iterator[Vector]:
    """D, then N: one name for two tensors."""
    old, b = X("F32", [2, 2], bytes(range(16))), u8(9, 8, 7)
    for name, new in (
        ("dtype", X("BF16", [2, 2], bytes(range(8)))),
        ("same-words", X("I32", [2, 2], old.data)),
        ("shape", X("F32", [4], old.data)),
        ("everything", X("U8", [], b"\7")),
        ("same-type", X("F32", [2, 2], bytes(range(1, 17)))),
        ("empty", X("F32", [0], b"")),
    ):
        records = [bias(), R("w", old, new, [whole("drop"), whole("new", "raw")])]
        yield case(f"drop-new-{name}", records)
        if name == "dtype":
            records = [bias(), R("w", old, new, [bare("drop"), whole("new")])]
            yield case("drop-forgotten-new", records)
    kept, a = R("b", b, b), u8(1, 2, 3)
    parts = [step((0, 1)), words((2, 0))]
    copy = [whole("drop"), bare("new", "b", b), *parts]
    yield case("drop-new-from-parts", [kept, R("w", old, changed(b, parts), copy)])
    copy = [whole("drop"), bare("new", "b", b), parts[0]]
    yield case("drop-new-from-difference", [kept, R("w", old, changed(b, parts[:1]), copy)])
    # The differences before the drop and after the new meet the same indices of two tensors.
    to = [
        step((0, 8), (1, 6), (2, 4)),
        bare("drop", "b", b),
        bare("new", "b", b),
        step((0, 1), (1, 2)),
    ]
    yield case("drop-to-new-from-differences", [kept, R("w", a, changed(b, to[3:]), to)])
    to = [step((0, 8), (1, 6), (2, 4)), bare("drop", "b", b), whole("new")]
    yield case("drop-to-difference-new", [kept, R("w", a, X("U8", [2], b"xy"), to)])


def valid_resize() -> Iterator[Vector]:
    """`resize`: grown and cut, with words and without, and with parts behind it."""
    for dtype in ("U8", "BF16", "F32", "F64", "F4", "F6_E2M3"):
        small, large = rows(dtype, [2, 8]), rows(dtype, [5, 8])
        low = dtype.lower().replace("_", "-")
        records = [bias(), R("grown", small, large, [whole("resize")])]
        records += [R("cut", large, small, [whole("resize", "raw")])]
        yield case(f"resize-{low}", records)
    small, large = rows("BF16", [2, 3, 2]), rows("BF16", [4, 3, 2])
    forgotten = [bias(), R("cut", large, small, [bare("resize")])]
    yield case("resize-forgotten", forgotten)
    other = rows("BF16", [2, 3, 2], 7)
    parts = [step((0, 1), (11, 65535)), words((1, 0), (10, 0x7FC1))]
    for count, name in ((1, "difference"), (2, "difference-replace")):
        after = parts[:count]
        grown = X("BF16", [4, 3, 2], changed(small, after).data + large.data[24:])
        records = [R("grown", small, grown, [whole("resize"), *after])]
        records += [R("cut", large, changed(small, after), [whole("resize"), *after])]
        records += [R("cut-all", large, changed(small, after), [bare("resize"), *after])]
        yield case(f"resize-{name}", records)
    grown = X("BF16", [4, 3, 2], changed(small, parts[1:]).data + large.data[24:])
    yield case("resize-replace", [R("w", small, grown, [whole("resize"), parts[1]])])
    yield case("resize-renamed", [R("new", small, large, [whole("resize")], source="old")])
    hole, none = X("F32", [2, 0], b""), X("F32", [0, 3], b"")
    records = [
        R("no-words-grown", hole, X("F32", [5, 0], b""), [whole("resize")]),
        R("no-words-cut", X("F32", [5, 0], b""), hole, [whole("resize", "raw")]),
        R("from-nothing", none, rows("F32", [2, 3]), [whole("resize")]),
        R("to-nothing", rows("F32", [2, 3]), none, [whole("resize")]),
        R("vector", u8(1, 2, 3), u8(1, 2, 3, 4), [whole("resize")]),
    ]
    yield case("resize-empty", records)
    yield case(
        "resize-to-nothing-forgotten", [R("w", other, X("BF16", [0, 3, 2], b""), [bare("resize")])]
    )
    short, long = (X("U8", [SEGMENT + k], bytes(SEGMENT + k)) for k in (-1, 3))
    part = whole("resize")
    yield case("resize-two-segments", [R("w", short, long, [part])])
    tail = rows("U8", [5, 100])
    yield case("resize-blocks", [R("w", X("U8", [1, 100], tail.data[:100]), tail, [part])])


def valid_renames() -> Iterator[Vector]:
    """Records with `from`."""
    a, b = u8(1, 2, 3, 4), u8(9, 8, 7, 6)
    yield case("rename", [bias(), R("new", a, a, source="old")])
    part = [step((0, 1), (3, 255))]
    replaced = [*part, words((1, 7))]
    yield case("rename-difference", [R("new", a, changed(a, part), part, "old")])
    yield case("rename-replace", [R("new", a, changed(a, replaced), replaced, "old")])
    yield case("rename-swap", [R("a", b, b, source="b"), R("b", a, a, source="a")])
    swapped = [R("a", b, changed(b, part), part, "b"), R("b", a, a, source="a")]
    yield case("rename-swap-difference", swapped)
    ring = [R(n, x, x, source=s) for n, s, x in (("a", "c", a), ("b", "a", b), ("c", "b", a))]
    yield case("rename-ring", ring)
    # a goes to b, b to c, and another a comes: the record of a name at both ends is D and N.
    young = R("a", a, b, [bare("drop", "b", a), whole("new")])
    moved = R("b", b, a, [bare("drop", "c", b), bare("new", "a", a)])
    yield case("moved-and-new", [young, moved, R("c", None, b, [bare("new", "b", b)])])
    chain = [R("b", a, a, source="a"), R("c", b, b, source="b"), R("a", b, b, source="c")]
    yield case("rename-chain", [*chain, R("d", None, b, [bare("new", "c", b)])])
    yield case("rename-same-words", [R("b", a, a, source="a"), R("d", a, a, source="c")])
    odd = [R("\U0001f40e", a, a, source="\uffff"), R("x" * 1024, a, a, source="../up")]
    yield case("rename-odd-names", odd)
    empty = X("F32", [0], b"")
    yield case("rename-empty", [R("new", empty, empty, source="old")])
    one = P("add", {0: 0x3F80}, value="planes", dtype="BF16", scale="3fe0000000000000")
    number = edited("new", "F32", [1], struct.pack("<f", 1.5), [one], "old")
    yield case("rename-add", [number])


def valid_structure() -> Iterator[Vector]:
    """All of them."""
    groups = (valid_new_and_drop, valid_copies, valid_both, valid_resize, valid_renames)
    for group in groups:
        yield from group()
