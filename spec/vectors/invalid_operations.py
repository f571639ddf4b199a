"""Vectors of operations that have to be refused: valid files, on checkpoints (SD306, SD501 to 505).

A reader without a base finds nothing wrong with these files, except where the name says `lean`
that it has the tensors of a checkpoint to look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from expected_json import bases, targets, tensors_of
from terms import fingerprint_of
from vector_encoder import build
from vector_records import P, R, X, bare, edited, sum_of, whole
from vector_samples import bias, flat, simple, tensor

# Name, what is done (apply or revert), why, the tensors of the checkpoint, and the file.
Operation = tuple[str, str, str, dict[str, X], bytes]
ONE = "3ff0000000000000"


def wrong_checkpoints() -> Iterator[Operation]:
    """Rule SD501."""
    records = simple()
    file, base, target = build(records), bases(records), targets(records)
    changed = base | {"bias": X("F32", [2], bytes(8))}
    yield "sd501-untouched", "apply", "an untouched tensor differs", changed, file
    w = base["w"]
    changed = base | {"w": X(w.dtype, w.shape, b"\1" + w.data[1:])}
    yield "sd501-touched", "apply", "a touched tensor differs", changed, file
    yield (
        "sd501-dtype",
        "apply",
        "the same bytes as F16",
        base | {"w": X("F16", w.shape, w.data)},
        file,
    )
    flat_shape = base | {"w": X(w.dtype, [20, 20], w.data)}
    yield "sd501-shape", "apply", "the same bytes in another shape", flat_shape, file
    yield "sd501-missing", "apply", "a tensor is missing", {"w": w}, file
    yield "sd501-more", "apply", "a tensor too many", base | {"more": w}, file
    yield "sd501-name", "apply", "another name", {"bias": base["bias"], "W": w}, file
    half = target | {"bias": X("F32", [2], bytes(8))}
    yield "sd501-revert", "revert", "an untouched tensor differs", half, file
    lean = build(records, lean=True)
    yield "sd501-lean", "apply", "an untouched tensor differs", changed, lean


def wrong_results() -> Iterator[Operation]:
    """Rule SD502: the tables promise what the parts do not lead to."""
    a, b = X("U8", [3], b"abc"), X("U8", [3], b"abz")
    step = P("difference", {0: 1})
    records = [R("w", a, b, [step])]
    yield "sd502-difference", "apply", "another word than promised", bases(records), build(records)
    yield "sd502-revert", "revert", "another word than promised", targets(records), build(records)
    records = [R("w", a, b, [P("replace", {0: 9}, value="planes")])]
    yield "sd502-replace", "apply", "another word than promised", bases(records), build(records)
    long = X("U8", [4], b"abxy")
    records = [R("w", a, long, [whole("resize")])]
    yield "sd502-resize", "apply", "another row than promised", bases(records), build(records)
    part = P("add", {0: 0x3F80}, value="planes", dtype="BF16", scale=ONE)
    wrong = X("BF16", [1], struct.pack("<H", sum_of("BF16", 0x3F80, part, 0x3F80) ^ 1))
    records = [R("w", X("BF16", [1], b"\x80\x3f"), wrong, [part])]
    yield "sd502-add", "apply", "rounded to another number", bases(records), build(records)
    records = [R("v", b, b), R("w", a, None, [step, bare("drop", "v", b)])]
    yield (
        "sd502-revert-drop-to",
        "revert",
        "the difference leads elsewhere",
        targets(records),
        build(records),
    )


def no_inverse() -> Iterator[Operation]:
    """Rule SD503."""
    long, short = X("U8", [4], b"abcd"), X("U8", [2], b"ab")
    part = P("add", {0: 0x3F80}, value="planes", dtype="BF16", scale=ONE)
    for name, records in (
        ("replace", [flat()]),
        ("add", [edited("w", "BF16", [1], b"\x80\x3f", [part])]),
        ("drop", [bias(), R("w", long, None, [bare("drop")])]),
        ("resize", [R("w", long, short, [bare("resize")])]),
    ):
        why = f"{name} forgot the words"
        yield f"sd503-{name}", "revert", why, targets(records), build(records)


def not_finite() -> Iterator[Operation]:
    """Rule SD505."""
    last, infinity, nan = 0x7F7F, 0x7F80, 0x7FC0

    def add(dtype: str, word: int, values: str, value: int, scale: str = ONE) -> list[R]:
        widths = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
        base = X(dtype, [1], word.to_bytes(widths[dtype], "little"))
        result = X(dtype, [1], infinity.to_bytes(widths[dtype], "little"))
        part = P("add", {0: value}, value="planes", dtype=values, scale=scale)
        return [R("w", base, result, [part])]

    f64 = {"last": 0x7FEFFFFFFFFFFFFF}
    for name, why, records in (
        ("old-infinite", "the old word is infinite", add("BF16", 0xFF80, "BF16", 0x3F80)),
        ("old-nan", "the old word is NaN", add("BF16", nan, "BF16", 0x3F80)),
        ("value-infinite", "a value is infinite", add("BF16", 0x3F80, "BF16", infinity)),
        ("value-nan", "a value is NaN", add("BF16", 0x3F80, "F32", 0x7FC00001)),
        ("value-infinite-scale-0", "0 * infinity", add("BF16", 0x3F80, "BF16", infinity, "0" * 16)),
        ("result", "the result rounds to infinity", add("BF16", last, "BF16", 0x7F00)),
        ("result-tie", "a tie with infinity", add("BF16", last, "F32", 0x7B000000)),
        ("result-f16", "65,520 as F16", add("F16", 0x7BFF, "F16", 0x4C00)),
        ("product", "the product overflows", add("F64", 0, "F64", f64["last"], "4000000000000000")),
        ("sum", "the sum overflows", add("F64", f64["last"], "F64", f64["last"])),
        (
            "product-of-bf16",
            "finite once scaled back",
            add("BF16", last, "F64", f64["last"], "c000000000000000"),
        ),
    ):
        yield f"sd505-{name}", "apply", why, bases(records), build(records)


def lean_lies() -> Iterator[Operation]:
    """Rule SD306, where it needs the untouched tensors of a checkpoint."""
    records = simple()
    base = bases(records)
    claim = {"target": "0" * 64}
    file = build(records, lean=True, claim=claim)
    yield "sd306-lean-target", "apply", "another target fingerprint", base, file
    other = [bias(), tensor("w", "BF16", 400, P("difference", {9: 1}))]
    other[1].base = X("BF16", [400], bytes(800))
    true = build(records)
    meta_base = fingerprint_in(true)
    file = build(other, lean=True, claim={"base": meta_base})
    yield "sd306-lean-base", "apply", "tables of another base", base, file
    young = X("U8", [1], b"w")  # new, and yet an untouched tensor of the base has its name
    both = fingerprint_of([("bias", base["bias"].digest()), ("w", young.digest())])
    claim = {"base": meta_base, "target": both}
    file = build([R("w", None, young, [whole("new")])], lean=True, claim=claim)
    yield "sd306-lean-new", "apply", "a new tensor whose name the base has", base, file


def fingerprint_in(file: bytes) -> str:
    """The base fingerprint that a file states."""
    at = file.index(b'"sd.base":"') + len(b'"sd.base":"')
    return file[at : at + 64].decode()


def described(rows: Iterable[Operation]) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Operations as name, expected JSON and file."""
    for name, kind, why, tensors, file in rows:
        rule = name[:5].upper()
        yield name, {"kind": kind, "rule": rule, "why": why, "tensors": tensors_of(tensors)}, file


def operations() -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """All of them: name, expected JSON and file."""
    groups = (wrong_checkpoints, wrong_results, no_inverse, not_finite, lean_lies)
    return described(row for group in groups for row in group())
