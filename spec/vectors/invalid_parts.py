"""Invalid vectors: ends and parts that do not belong together, rule SD209."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vector_encoder import build
from vector_records import P, R, X, bare, edited, whole
from vector_samples import Invalid, drop, one, put

A, B, LONG = X("U8", [4], b"abcd"), X("U8", [4], b"wxyz"), X("U8", [6], b"abcdef")
ROWS, MORE = X("U8", [2, 2], b"abcd"), X("U8", [3, 2], b"abcdef")
ONE = "3ff0000000000000"
NUMBERS = X("BF16", [2], struct.pack("<2H", 0x3F80, 0x4000))


def step(*places: int) -> P:
    """A difference of 1."""
    return P("difference", dict.fromkeys(places or (0,), 1))


def words(*places: int) -> P:
    """A replace."""
    return P("replace", dict.fromkeys(places or (1,), 9), value="planes")


def add(**how: Any) -> P:  # noqa: ANN401 - the options of build
    """An add."""
    return P("add", {0: 1}, value="planes", **({"dtype": "BF16", "scale": ONE} | how))


def labelled(part: P, **labels: Any) -> P:  # noqa: ANN401 - JSON
    """A part with more keys."""
    part.labels = labels
    return part


def sequences() -> Iterator[tuple[str, str, X | None, X | None, list[P]]]:
    """Name, why, ends and parts: sequences that section 5 does not have."""
    for name, why, parts in (
        ("unknown", "an unknown op", [P("xor", {1: 1})]),
        ("upper-case", "an op in upper case", [P("Difference", {1: 1})]),
        ("order", "replace, then difference", [words(1), step(2)]),
        ("same-twice", "two differences", [step(1), step(2)]),
        ("replace-twice", "two replaces", [words(1), words(2)]),
        ("three", "three parts", [step(1), words(0), words(2)]),
        ("resize-same", "resize to the same shape", [P("resize", {}, "dense", "planes")]),
        ("new-both", "new, and a base", [whole("new")]),
        ("drop-both", "drop, and a target", [whole("drop")]),
        ("new-drop", "N, then D", [whole("new"), whole("drop")]),
        ("drop-new-replace", "words after a coded new", [whole("drop"), whole("new"), words(1)]),
        ("drop-twice", "drop twice", [whole("drop"), whole("drop"), whole("new")]),
        ("add-integers", "add to U8", [add()]),
        ("bare-difference", "a bare difference", [bare("difference")]),
        ("bare-replace", "a bare replace", [bare("replace")]),
        ("bare-new", "a bare new without from", [whole("drop"), bare("new")]),
        (
            "difference-forgotten",
            "a difference, then words forgotten",
            [step(), bare("drop"), whole("new")],
        ),
        (
            "difference-dropped",
            "a difference, then words carried",
            [step(), whole("drop"), whole("new")],
        ),
    ):
        yield name, why, A, B, parts
    for name, why, base, target, parts in (
        ("other-dtype", "a difference to another dtype", A, X("I8", [4], b"abcd"), [step()]),
        ("other-shape", "a difference to another shape", A, ROWS, [step()]),
        (
            "add-difference",
            "add, then difference",
            NUMBERS,
            NUMBERS,
            [add(), P("difference", {1: 1})],
        ),
        (
            "difference-add",
            "difference, then add",
            NUMBERS,
            NUMBERS,
            [P("difference", {1: 1}), add()],
        ),
        ("add-twice", "add twice", NUMBERS, NUMBERS, [add(), add()]),
        (
            "bare-add",
            "a bare add",
            NUMBERS,
            NUMBERS,
            [labelled(bare("add"), dtype="BF16", scale=ONE)],
        ),
        ("add-values-u16", "values of U16", NUMBERS, NUMBERS, [add(dtype="U16")]),
        ("add-values-f8", "values of F8_E4M3", NUMBERS, NUMBERS, [add(dtype="F8_E4M3")]),
        ("add-values-unknown", "values of F128", NUMBERS, NUMBERS, [add(dtype="F128")]),
        ("add-infinite", "an infinite scale", NUMBERS, NUMBERS, [add(scale="7ff0000000000000")]),
        ("add-minus-infinite", "scale -inf", NUMBERS, NUMBERS, [add(scale="fff0000000000000")]),
        ("add-nan", "a scale that is no number", NUMBERS, NUMBERS, [add(scale="7ff8000000000001")]),
        (
            "add-grown",
            "add after resize",
            X("BF16", [1], NUMBERS.data[:2]),
            NUMBERS,
            [whole("resize"), add()],
        ),
        ("target-nothing", "a target, and no part", None, A, []),
        ("base-nothing", "a base, and no part", A, None, []),
        ("neither", "no end", None, None, []),
        ("neither-new", "no end, and new", None, None, [whole("new")]),
        ("target-difference", "a difference, and no base", None, A, [step()]),
        ("target-drop", "drop, and no base", None, A, [whole("drop")]),
        ("base-new", "new, and no target", A, None, [whole("new")]),
        ("base-difference", "a difference, and no target", A, None, [step()]),
        ("base-replace-drop", "a replace before drop", A, None, [words(), bare("drop", "z", A)]),
        ("new-difference", "a difference of a coded new", None, A, [whole("new"), step()]),
        ("new-twice", "new twice", None, A, [whole("new"), bare("new", "z", A)]),
        ("new-add", "add to a copy", None, NUMBERS, [bare("new", "z", NUMBERS), add()]),
        ("grown-nothing", "another shape, and no part", A, LONG, []),
        ("grown-difference", "a difference before resize", A, LONG, [step(), whole("resize")]),
        ("grown-twice", "resize twice", A, LONG, [whole("resize"), whole("resize")]),
        ("grown-bare", "appended words that are not stored", A, LONG, [bare("resize")]),
        (
            "cut-bare-nothing",
            "bare, and no words go",
            X("U8", [3, 0], b""),
            X("U8", [2, 0], b""),
            [bare("resize")],
        ),
        (
            "resize-second",
            "another second dimension",
            X("U8", [1, 4], b"abcd"),
            X("U8", [1, 6], b"abcdef"),
            [whole("resize")],
        ),
        ("resize-both", "two other dimensions", X("U8", [4, 1], b"abcd"), MORE, [whole("resize")]),
        ("resize-rank", "another number of dimensions", A, MORE, [whole("resize")]),
        ("resize-to-scalar", "a scalar", X("U8", [2], b"ab"), X("U8", [], b"a"), [whole("resize")]),
        ("resize-scalar", "a scalar", X("U8", [], b"a"), X("U8", [2], b"ab"), [whole("resize")]),
        ("resize-dtype", "another dtype", A, X("I8", [6], b"abcdef"), [whole("resize")]),
    ):
        yield name, why, base, target, parts


def invalid_parts() -> Iterator[Invalid]:
    """Rule SD209."""
    for name, why, base, target, parts in sequences():
        yield f"sd209-{name}", why, build([R("w", base, target, parts), R("z", A, A)])
    later = build([R("w", A, A, [P("permute", {1: 1})])], version="1.7")
    yield "sd209-version-1.7", "an op of 1.7", later
    yield "sd209-none", "no part", build([one("w")], facts=put([], "tensors", 0, "parts"))
    for name, why, parts in (
        ("rename-drop-new", "a rename of D and N", [whole("drop"), whole("new")]),
        ("rename-order", "a rename with replace, then difference", [words(), step()]),
    ):
        yield f"sd209-{name}", why, build([R("w", A, B, parts, source="v")])
    kept = R("z", A, A)
    for name, why, r in (
        (
            "difference-from",
            "from of a difference",
            R("w", A, B, [labelled(step(), **{"from": "z"})]),
        ),
        ("difference-to", "to of a difference", R("w", A, B, [labelled(step(), to="z")])),
        (
            "difference-dtype",
            "dtype of a difference",
            R("w", A, B, [labelled(step(), dtype="F32")]),
        ),
        ("replace-scale", "scale of a replace", R("w", A, B, [labelled(words(), scale=ONE)])),
        (
            "new-coded-from",
            "from of a coded new",
            R("w", None, A, [labelled(whole("new"), **{"from": "z"})]),
        ),
        ("new-to", "to of a new", R("w", None, A, [labelled(whole("new"), to="z")])),
        (
            "new-bare-to",
            "to of a bare new",
            R("w", None, A, [labelled(bare("new", "z", A), to="z")]),
        ),
        ("drop-coded-to", "to of a coded drop", R("w", A, None, [labelled(whole("drop"), to="z")])),
        ("drop-from", "from of a drop", R("w", A, None, [labelled(bare("drop"), **{"from": "z"})])),
        ("resize-to", "to of a bare resize", R("w", LONG, A, [labelled(bare("resize"), to="z")])),
    ):
        yield f"sd209-{name}", why, build([r, kept])
    number = edited("w", "BF16", [2], NUMBERS.data, [add()])
    for key in ("dtype", "scale"):
        hook = drop("tensors", 0, "parts", 0, key)
        yield f"sd209-add-no-{key}", f"add without {key}", build([number], facts=hook)
