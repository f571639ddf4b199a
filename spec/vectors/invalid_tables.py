"""Invalid vectors: the tables, rules SD301 to SD308."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vector_encoder import build
from vector_records import P, R, X, bare, edited, whole
from vector_samples import Invalid, at_block, put, simple, stream, tensor

WIDE = X("BF16", [3, 100], bytes(range(200)) * 3)
ROW = X("BF16", [0, 100], b"")


def invalid_tables() -> Iterator[Invalid]:
    """Rules SD301 to SD306."""
    base = simple()

    def bad(name: str, why: str, tensors: list[R] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
        return name, why, build(tensors or base, **how)

    yield bad("sd301-long", "a byte too many", tables=lambda t: t + b"\0")
    yield bad("sd301-short", "a byte too few", tables=lambda t: t[:-1])
    yield bad("sd301-no-tables", "no byte at all", tables=lambda _: b"")
    vast = [edited("w", "U8", [2**48], b"abcd", [P("difference", {1: 1})])]
    yield bad("sd301-vast", "2^48 words, and tables for 4", vast)
    yield bad("sd302-digest", "another digest", manifest=put("0" * 64, "tables"))
    yield bad("sd302-bit", "a bit of the tables", body=_flip_table_bit)

    over = dict.fromkeys(range(256), 1) | {300: 1}
    tensors = [tensor("w", "BF16", 400, P("difference", over))]
    hook = lambda r, _n, _p, b: [[257, 0][b], *r[1:]]  # noqa: E731 - a hook
    yield bad("sd303-words", "257 entries in 256 words", tensors, row=hook)
    yield bad("sd303-sum", "one entry fewer than nnz", row=at_block(1, lambda r: [1, *r[1:]]))
    huge = at_block(0, lambda r: [2**32 - 1, *r[1:]])
    yield bad("sd303-huge", "2^32 - 1 entries", row=huge)

    for op, old, late in (("new", None, WIDE), ("drop", WIDE, None), ("resize", ROW, WIDE)):
        fewer = at_block(1, lambda r: [43, *r[1:]])
        yield bad(
            f"sd303-{op}", f"43 of 44 words of {op}", [R("w", old, late, [whole(op)])], row=fewer
        )
    swapped = lambda r, _n, _p, b: [[44, 256][b], *r[1:]]  # noqa: E731 - a hook
    yield bad("sd303-new-sum", "the right sum", [R("w", None, WIDE, [whole("new")])], row=swapped)

    longer = at_block(0, lambda f: [f[0] + b"\0", *f[1:]])
    yield bad("sd304-encoded", "an encoded length above the decoded", frames=longer)
    split, run = simple("gap8-split"), simple("range")
    run_planes, run_raw = simple("range", "planes"), simple("range", "raw")
    new = [R("w", None, WIDE, [whole("new")])]
    for name, why, tensors, hook in (
        ("gap8-short", "GAPS shorter than the count", simple(), stream(0, lambda s: s[1:])),
        ("gap8-long", "GAPS too long", simple(), stream(0, lambda s: b"\xff\xff" + s)),
        ("bitmask", "BITS of 31 bytes", simple("bitmask"), stream(0, lambda s: s[:-1])),
        ("bitmask-long", "BITS of 33 bytes", simple("bitmask"), stream(0, lambda s: s + b"\0")),
        ("sign-short", "SIGN too short", simple(value="packed"), stream(1, lambda _: b"")),
        ("mag-long", "MAG too long", simple(value="packed"), stream(2, lambda s: s + b"\0")),
        ("sym-short", "SYM too short", simple(), stream(1, lambda s: s[1:])),
        ("plane-long", "a plane too long", simple(value="planes"), stream(2, lambda s: s + b"\0")),
        ("sign", "SIGN too long", simple(value="packed"), stream(1, lambda s: s + b"\0")),
        ("mag", "MAG too short", simple(value="packed"), stream(2, lambda s: s[:-1])),
        ("mag-0", "MAG of width 0", simple(value="packed", width=0), stream(2, lambda _: b"\0")),
        ("exc-odd", "EXC of half a word", simple(value="packed"), stream(3, lambda s: s + b"\0")),
        ("exc-long", "EXC above m words", simple(value="packed"), stream(3, lambda _: bytes(10))),
        ("sym", "SYM too long", simple(), stream(1, lambda s: s + b"\1")),
        ("zigzag-exc-odd", "EXC of half a word", simple(), stream(2, lambda s: s + b"\0")),
        ("zigzag-exc-long", "EXC above m words", simple(), stream(2, lambda _: bytes(10))),
        ("plane", "a plane too short", simple(value="planes"), stream(2, lambda s: s[1:])),
        ("dense", "values for the entries only", simple("dense"), stream(0, lambda s: s[:4])),
        ("quo-short", "QUO shorter than the count", split, stream(0, lambda s: s[1:])),
        ("quo-long", "QUO too long", split, stream(0, lambda s: b"\xff\xff" + s)),
        ("low-empty", "LOW without k", split, stream(1, lambda _: b"")),
        ("low-long", "LOW of 25 planes", split, stream(1, lambda _: b"\x19" + bytes(25))),
        ("run-short", "RUN of 7 bytes", run, stream(0, lambda s: s[:-1])),
        ("run-long", "RUN of 12 bytes", run, stream(0, lambda s: s + bytes(4))),
        ("run-few-values", "fewer values than the count", run, stream(1, lambda _: b"\2\2\2")),
        ("run-many-values", "more values than words", run, stream(1, lambda _: b"\2" * 257)),
        ("run-planes", "planes of two lengths", run_planes, stream(2, lambda s: s + b"\0")),
        ("run-exc-odd", "EXC of half a word", run, stream(2, lambda _: b"\0")),
        ("run-raw-odd", "WORDS of half a word", run_raw, stream(1, lambda s: s + b"\0")),
        ("raw-short", "INDICES too short", simple("raw"), stream(0, lambda s: s[:-4])),
        ("raw-odd", "INDICES of a byte more", simple("raw"), stream(0, lambda s: s + b"\0")),
        ("words-short", "WORDS too short", simple(value="raw"), stream(1, lambda s: s[:-2])),
        ("words-long", "WORDS too long", simple(value="raw"), stream(1, lambda s: s + b"\0\0")),
        ("new", "a plane too short", new, stream(1, lambda s: s[1:])),
    ):
        yield bad(f"sd304-{name}", why, tensors, streams=hook)
    gap = [tensor("w", "BF16", 400, P("difference", {0: 1}))]
    yield bad(
        "sd304-empty-block", "bytes of an empty block", gap, streams=stream(1, lambda _: b"\1", 1)
    )

    for name, codecs in (("index", ("raw", "zigzag")), ("value", ("gap8", "raw"))):
        many = P("difference", dict.fromkeys(range(200), 1), *codecs, compress=True)
        why = f"a raw {name} stream is compressed"
        yield bad(f"sd304-raw-{name}-compressed", why, [tensor("w", "F32", 256, many)])
    nothing = stream(1, lambda _: bytes(8), 1)
    yield bad("sd304-empty-run", "values of an empty block", [_sparse("range")], streams=nothing)
    nothing = stream(0, lambda _: b"\0" * 8, 1)
    yield bad(
        "sd304-empty-run-index", "a run of an empty block", [_sparse("range")], streams=nothing
    )
    yield bad(
        "sd304-empty-dense",
        "values of an empty block",
        [_sparse("dense")],
        streams=stream(0, lambda _: bytes(144), 1),
    )

    yield bad(
        "sd305-blob",
        "a blob is one byte too long",
        blobs=[b"ab"],
        facts=put(1, "blobs", 0, "bytes"),
    )
    yield bad("sd305-new", "bytes is one too many", new, facts=_more_bytes)
    yield bad("sd305-bytes", "bytes is one too many", facts=_more_bytes)
    yield bad("sd305-data", "a byte that no part holds", data=lambda d: d + b"\0")
    two = [edited(n, "U8", [4], b"abcd", [P("difference", {1: 1})]) for n in "ab"]
    yield bad("sd305-shift", "a byte counted for another part", two, facts=_shift_bytes)

    for key in ("base", "target"):
        yield bad(f"sd306-{key}", f"another {key}", claim={key: "0" * 64})
    flip = lambda t: bytes([t[0] ^ 1]) + t[1:]  # noqa: E731 - a hook
    yield bad("sd306-untouched", "another digest of an untouched tensor", tables=flip)
    yield bad("sd306-empty", "another base of nothing", [], claim={"base": "0" * 64})
    base_only = [R("w", WIDE, None, [whole("drop")])]
    yield bad("sd306-drop", "another base", base_only, claim={"base": "0" * 64})


def invalid_relations() -> Iterator[Invalid]:
    """Rules SD307 and SD308."""
    a, b, c = (X("U8", [3], text) for text in (b"abc", b"abd", b"xyz"))
    step, words = P("difference", {2: 1}), P("replace", {2: 100}, value="planes")
    kept, changed_a = R("a", a, a), edited("a", "U8", [3], b"abc", [step])
    one = P("add", {0: 0}, value="planes", dtype="BF16", scale="3ff0000000000000")
    number = X("BF16", [1], b"\x80\x3f")

    def of(op: str, name: str, x: X) -> P:
        return bare(op, name, x)

    for name, why, records in (
        ("same", "a difference that changes nothing", [R("w", a, a, [step])]),
        ("same-replace", "a replace that changes nothing", [R("w", b, b, [words])]),
        ("same-add", "an add that changes nothing", [R("w", number, number, [one])]),
        ("rename", "a rename that changes words", [R("w", a, b, source="v")]),
        ("rename-same", "a rename with parts, and no change", [R("w", a, a, [step], "v")]),
        (
            "drop-new",
            "D and N that lead to the same",
            [R("w", a, a, [whole("drop"), whole("new")])],
        ),
        (
            "drop-new-from",
            "N is a copy of the same",
            [kept, R("w", a, a, [whole("drop"), of("new", "a", a)])],
        ),
        ("new-from", "a copy with other words", [kept, R("w", None, b, [of("new", "a", a)])]),
        (
            "new-from-same",
            "a copy that is changed, and the same",
            [kept, R("w", None, a, [of("new", "a", a), step])],
        ),
        (
            "drop-to",
            "another tensor, and no difference",
            [kept, R("w", b, None, [of("drop", "a", a)])],
        ),
        (
            "drop-to-same",
            "a difference between equal tensors",
            [kept, R("w", a, None, [step, of("drop", "a", a)])],
        ),
    ):
        yield f"sd307-{name}", why, build(records)
    for name, why, records in (
        ("new-missing", "there is no tensor q", [R("w", None, a, [of("new", "q", a)])]),
        ("drop-missing", "there is no tensor q", [R("w", a, None, [of("drop", "q", a)])]),
        (
            "new-untouched",
            "the untouched has other words",
            [R("a", c, c), R("w", None, a, [of("new", "a", a)])],
        ),
        (
            "drop-untouched",
            "the untouched has other words",
            [R("a", c, c), R("w", a, None, [of("drop", "a", a)])],
        ),
        (
            "new-touched",
            "the words of the target, not of the base",
            [changed_a, R("w", None, b, [of("new", "a", b)])],
        ),
        (
            "drop-touched",
            "the words of the base, not of the target",
            [changed_a, R("w", a, None, [of("drop", "a", a)])],
        ),
        (
            "new-target-name",
            "a name that is in the target only",
            [R("n", None, a, [whole("new")]), R("w", None, a, [of("new", "n", a)])],
        ),
        (
            "drop-base-name",
            "a name that is in the base only",
            [R("g", a, None, [whole("drop")]), R("w", a, None, [of("drop", "g", a)])],
        ),
        (
            "new-renamed",
            "the new name of a rename",
            [R("n", a, a, source="o"), R("w", None, a, [of("new", "n", a)])],
        ),
        (
            "drop-renamed",
            "the old name of a rename",
            [R("n", a, a, source="o"), R("w", a, None, [of("drop", "o", a)])],
        ),
        (
            "new-dtype",
            "the bytes of another dtype",
            [
                R("a", X("I8", [3], b"abc"), X("I8", [3], b"abc")),
                R("w", None, a, [of("new", "a", a)]),
            ],
        ),
        (
            "new-shape",
            "the bytes of another shape",
            [
                R("a", X("U8", [3, 1], b"abc"), X("U8", [3, 1], b"abc")),
                R("w", None, a, [of("new", "a", a)]),
            ],
        ),
        (
            "drop-dtype",
            "the bytes of another dtype",
            [
                R("a", X("I8", [3], b"abc"), X("I8", [3], b"abc")),
                R("w", a, None, [of("drop", "a", a)]),
            ],
        ),
        (
            "drop-new-itself",
            "a copy of what the drop leaves: nothing of that name is in the target",
            [R("w", a, None, [of("drop", "w", a)])],
        ),
    ):
        yield f"sd308-{name}", why, build(records)
    lean = [changed_a, R("w", None, c, [of("new", "a", c)])]
    yield "sd308-lean-known", "of a touched tensor, in a lean delta", build(lean, lean=True)
    absent = [R("n", None, a, [whole("new")]), R("w", None, a, [of("new", "n", a)])]
    why = "a name that the base cannot have, in a lean delta"
    yield "sd308-lean-absent", why, build(absent, lean=True)


def _sparse(index: str) -> R:
    return tensor("w", "BF16", 400, P("difference", {0: 1, 1: 1}, index))


def _flip_table_bit(body: bytes) -> bytes:
    start = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]  # behind the manifest
    return body[:start] + bytes([body[start] ^ 1]) + body[start + 1 :]


def _more_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["tensors"][0]["parts"][0]["bytes"] += 1
    return manifest


def _shift_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    for record, step in zip(manifest["tensors"], (1, -1), strict=True):
        record["parts"][0]["bytes"] += step
    return manifest
