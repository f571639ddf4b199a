"""Invalid vectors: names, ends, codecs and counts of records (SD207, SD208, SD210 to SD212)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vector_encoder import Hook, build
from vector_records import P, R, X, bare, changed, edited, whole
from vector_samples import Invalid, flat, one, put, simple, tensor

BAD_NAMES = (
    ("", "an empty name"),
    ("a\0", "U+0000"),
    ("a\x1f", "U+001F"),
    ("a\n", "a line end"),
    ("a\x7f", "U+007F"),
    ("a\u0080", "U+0080"),
    ("a\u009f", "U+009F"),
    ("x" * 1025, "1,025 bytes"),
    ("\u00e9" * 513, "1,026 bytes in 513 characters"),
)
A, B = X("U8", [4], b"abcd"), X("U8", [4], b"wxyz")
STEP = P("difference", {2: 1})


def invalid_names() -> Iterator[Invalid]:
    """Rule SD207."""
    for name, why in BAD_NAMES:
        label = f"sd207-{why.lower().replace('+', '').replace(',', '').replace(' ', '-')}"
        yield f"{label}-touched", why, build([one(name)])
        yield f"{label}-untouched", why, build([tensor(name, "U8", 1), one("w")])
    for name, why in (BAD_NAMES[0], BAD_NAMES[3], BAD_NAMES[7]):
        label = f"sd207-{why.lower().replace(',', '').replace(' ', '-')}"
        if name:
            yield f"{label}-from", why, build([R("w", A, A, source=name)])
        named = R(name, A, A)
        copy = [named, R("w", None, A, [bare("new", name or "", A)])]
        copy[1].parts[0].labels = {"from": name}
        yield f"{label}-new-from", why, build(copy, lean=True)
        gone = R("w", A, None, [bare("drop", name, A)])
        gone.parts[0].labels = {"to": name}
        yield f"{label}-drop-to", why, build([named, gone], lean=True)
    hook = put("", "tensors", 0, "from")
    yield "sd207-an-empty-name-from", "an empty name", build([R("w", A, A, source="v")], facts=hook)
    untouched = tensor("w", "U8", 1)
    for name, why, tensors in (
        ("twice-touched", "a name twice", [one("w"), one("w")]),
        ("twice-untouched", "a name twice", [untouched, untouched]),
        ("both", "a name touched and untouched", [one("w"), untouched]),
        ("order-touched", "b before a", [one("b"), one("a")]),
        ("order-untouched", "b before a", [tensor("b", "U8", 1), tensor("a", "U8", 1)]),
        ("utf16-touched", "UTF-16 order", [one("\U0001f40e"), one("\uffff")]),
        (
            "utf16-untouched",
            "UTF-16 order",
            [tensor("\U0001f40e", "U8", 1), tensor("\uffff", "U8", 1)],
        ),
        ("new-untouched", "new, and untouched", [R("w", None, A, [whole("new")]), R("w", A, A)]),
        ("same-from", "one base name twice", [R(n, A, A, source="a") for n in "bc"]),
        (
            "from-touched",
            "a base name of two records",
            [edited("a", "U8", [4], A.data, [STEP]), R("b", A, A, source="a")],
        ),
        ("from-untouched", "from an untouched name", [R("a", A, A), R("b", A, A, source="a")]),
        (
            "renamed-and-new",
            "a base name of two records, of which one is new",
            [R("a", None, B, [whole("new")]), R("b", A, A, source="a")],
        ),
        (
            "dropped-and-renamed",
            "a name that goes and comes",
            [R("b", B, None, [whole("drop")]), R("b", A, A, source="a")],
        ),
    ):
        yield f"sd207-{name}", why, build(tensors, ordered=False)
    same = put("w", "tensors", 0, "from")
    yield "sd207-from-own-name", "from is the name", build([one("w")], facts=same)
    for name, r in (
        ("new", R("w", None, A, [whole("new")])),
        ("drop", R("w", A, None, [whole("drop")])),
    ):
        hook = put("v", "tensors", 0, "from")
        yield f"sd207-from-of-{name}", "a rename with one end", build([r], facts=hook)
    listed = put(["bias"], "untouched")
    yield "sd207-lean", "an untouched name, and lean", build(simple(), lean=True, facts=listed)


def invalid_ends() -> Iterator[Invalid]:
    """Rule SD208."""
    for name, why, dtype, shape in (
        ("dtype", "an unknown dtype", "Q8", [4]),
        ("lower-case", "a dtype in lower case", "u8", [4]),
        ("torch-name", "the name of another library", "bfloat16", [4]),
        ("empty-dtype", "an empty dtype", "", [4]),
        ("65-dimensions", "65 dimensions", "U8", [1] * 64 + [4]),
        ("half-byte", "3 elements of 4 bits", "F4", [3]),
        ("quarter-byte", "5 elements of 6 bits", "F6_E2M3", [5]),
        ("words", "2^48 + 1 words", "U8", [2**48 + 1]),
        ("product", "2^106 words", "F64", [2**53 - 1, 2**53 - 1]),
    ):
        t = edited("w", dtype, shape, b"abcd", [P("difference", {1: 1})])
        yield f"sd208-{name}", why, build([t])
    for name, odd in (("dtype", X("F7", [4], b"abcd")), ("words", X("U8", [2**48 + 1], b"abcd"))):
        yield f"sd208-new-{name}", "of the target only", build([R("w", None, odd, [whole("new")])])
        gone = [R("w", odd, A, [whole("drop"), whole("new")])]
        yield f"sd208-drop-{name}", "of the base only", build(gone)


def invalid_codecs() -> Iterator[Invalid]:
    """Rule SD210."""
    for name, why, labels in (
        ("index", "an unknown index codec", {"index": {"id": "runs"}}),
        ("reserved", "ranked with values of another codec", {"index": {"id": "ranked"}}),
        ("value", "an unknown value codec", {"value": {"id": "huffman"}}),
        ("upper-case", "an id in upper case", {"index": {"id": "GAP8"}}),
        ("exchanged", "a value codec for the index", {"index": {"id": "planes"}}),
        ("index-for-value", "an index codec for the value", {"value": {"id": "dense"}}),
        ("width-3", "a width of 3", {"value": {"id": "packed", "width": 3}}),
        ("width-16", "a width of 16", {"value": {"id": "packed", "width": 16}}),
        ("width-missing", "no width", {"value": {"id": "packed"}}),
        ("width-bool", "true for 1", {"value": {"id": "packed", "width": True}}),
        ("width-string", "a string", {"value": {"id": "packed", "width": "4"}}),
        ("parameter", "a parameter of no codec", {"index": {"id": "gap8", "width": 8}}),
        ("k", "k in the manifest", {"index": {"id": "gap8-split", "k": 4}}),
        ("unknown-key", "a key that no codec has", {"index": {"id": "gap8", "x": None}}),
        ("null-parameter", "a parameter that is null", {"value": {"id": "packed", "width": None}}),
    ):
        part = P("difference", {1: 1}, value="packed", width=4, labels=labels)
        yield f"sd210-{name}", why, build([tensor("w", "BF16", 4, part)])
    part = P("difference", {1: 1}, labels={"index": {"id": "ranked"}})
    later = build([tensor("w", "BF16", 4, part)], version="1.7")
    yield "sd210-version-1.7", "a codec of 1.7", later
    every = {i: 1 + i for i in range(4)}
    add: dict[str, Any] = {"dtype": "BF16", "scale": "3ff0000000000000"}
    for name, part in (
        ("replace-zigzag", P("replace", every)),
        ("replace-packed", P("replace", every, value="packed", width=4)),
        ("replace-dense-zigzag", P("replace", every, "dense")),
        ("replace-range-zigzag", P("replace", every, "range")),
        ("add-zigzag", P("add", every, **add)),
        ("add-packed", P("add", every, value="packed", width=4, **add)),
        ("add-dense-zigzag", P("add", every, "dense", **add)),
        ("dense-packed", P("difference", every, "dense", "packed", 4)),
        ("range-packed", P("difference", every, "range", "packed", 4)),
        ("block-7", P("difference", every, block=7)),
        ("block-25", P("difference", every, block=25)),
        ("block-0", P("difference", every, block=0)),
    ):
        small = edited("w", "BF16", [4], bytes.fromhex("803f803f803f803f"), [part])
        yield f"sd210-{name}", name.replace("-", " "), build([small])
    long = X("U8", [6], b"abcdef")
    for op, old, new in (("new", None, A), ("drop", A, None), ("resize", A, long)):
        for index, value in (("gap8", "planes"), ("range", "planes"), ("raw", "raw")):
            part = whole(op, value, labels={"index": {"id": index}})
            yield f"sd210-{op}-{index}", f"{op} with {index}", build([R("w", old, new, [part])])
        part = whole(op, "zigzag")
        yield f"sd210-{op}-zigzag", f"{op} with zigzag", build([R("w", old, new, [part])])
    part = whole("new", labels={"block": 30})
    yield "sd210-new-block", "a block of 2^30", build([R("w", None, A, [part])])


def _nnz(number: int, place: int = 0, *, total: bool = False) -> Hook:
    """A hook that sets the nnz of a part, and that of the delta."""
    first = put(number, "tensors", 0, "parts", place, "nnz")
    return (lambda m: put(number, "nnz")(first(m))) if total else first


def invalid_counts() -> Iterator[Invalid]:
    """Rules SD211 and SD212."""
    part = P("difference", {0: 1})
    for op in ("difference", "replace"):
        parts = [P(op, {}, value="planes")]
        yield f"sd211-zero-{op}", "a part without entries", build([tensor("w", "U8", 4, *parts)])
    add = P("add", {}, value="planes", dtype="F32", scale="3ff0000000000000")
    yield "sd211-zero-add", "a part without entries", build([tensor("w", "F32", 4, add)])
    parts = [part, P("replace", {}, value="planes")]
    yield "sd211-zero", "a second part without entries", build([tensor("w", "U8", 4, *parts)])
    words = build([tensor("w", "U8", 4, part)], facts=_nnz(5, total=True))
    yield "sd211-words", "5 entries in 4 words", words
    parts = [P("difference", dict.fromkeys((0, 1, 2), 1))]
    parts += [P("replace", dict.fromkeys((1, 2, 3), 1), value="planes")]
    yield "sd211-sum", "3 + 3 entries in 4 words", build([tensor("w", "U8", 4, *parts)])
    yield "sd211-total", "another sum", build(simple(), facts=put(7, "nnz"))
    yield "sd211-largest-total", "2^53 - 1", build(simple(), facts=put(2**53 - 1, "nnz"))
    empty = edited("w", "U8", [0], b"", [P("difference", {})])
    one_more = build([empty], facts=_nnz(1, total=True))
    yield "sd211-empty-tensor", "an entry of an empty tensor", one_more
    long = X("U8", [6], b"abcdef")
    for op, old, new in (("new", None, A), ("drop", A, None), ("resize", A, long)):
        for name, number in (("few", 1), ("many", 5), ("zero", 0)):
            why = f"another number of words than those of {op}"
            file = build([R("w", old, new, [whole(op)])], facts=_nnz(number))
            yield f"sd211-{op}-{name}", why, file
    counted = put(4, "nnz")
    file = build([R("w", None, A, [whole("new")])], facts=counted)
    yield "sd211-total-with-new", "the words of new counted as entries", file
    resized = [R("w", A, long, [whole("resize"), P("difference", dict.fromkeys(range(4), 1))])]
    resized[0].parts[1].given[4] = 1
    yield "sd211-resize", "5 entries in 4 surviving words", build(resized)
    steps = P("difference", dict.fromkeys(range(4), 1))
    small = X("U8", [2], b"ab")
    copied = [R("b", small, small), R("a", A, None, [steps, bare("drop", "c", B)])]
    copied += [R("c", None, changed(A, [steps]), [whole("new")])]
    both = R("a", A, small, [steps, bare("drop", "c", B), bare("new", "b", small)])
    both.parts.append(P("difference", {0: 1, 1: 1, 2: 1}))
    yield (
        "sd211-drop-new",
        "3 entries in the 2 words of the copy",
        build([copied[0], both, copied[2]]),
    )

    yield "sd212-true", "true with a replace", build([flat()], facts=put(True, "invertible"))
    yield "sd212-false", "false without one", build(simple(), facts=put(False, "invertible"))
    add = P("add", {0: 0x3F80}, value="planes", dtype="BF16", scale="3ff0000000000000")
    for name, r in (
        ("add", edited("w", "BF16", [1], b"\x80\x3f", [add])),
        ("drop", R("w", A, None, [bare("drop")])),
        ("resize", R("w", long, A, [bare("resize")])),
    ):
        true = build([r], facts=put(True, "invertible"))
        yield f"sd212-{name}", f"true with {name} that forgets", true
    for name, records in (
        ("new", [R("w", None, A, [whole("new")])]),
        ("rename", [R("w", A, A, source="v")]),
        ("drop-to", [R("v", A, A), R("w", A, None, [bare("drop", "v", A)])]),
        ("new-from", [R("v", A, A), R("w", None, A, [bare("new", "v", A)])]),
        ("empty", [R("w", A, A)]),
    ):
        false = build(records, facts=put(False, "invertible"))
        yield f"sd212-{name}", f"false with nothing but {name}", false


def invalid_records() -> Iterator[Invalid]:
    """All of them."""
    for group in (invalid_names, invalid_ends, invalid_codecs, invalid_counts):
        yield from group()
