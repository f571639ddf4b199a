"""Invalid vectors: the manifest, rules SD201 to SD212."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import zstandard
from vector_encoder import Hook, P, T, build, zstd
from vector_samples import SKIPPABLE, Invalid, drop, flat, one, put, simple, swap, tensor


def invalid_manifest() -> Iterator[Invalid]:
    """Rules SD201 to SD206."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **({"metadata": {"note": "?"}} | how))

    yield bad("sd201-manifest", "another note", body=swap('"note":"?"', '"note":"!"'))
    yield bad("sd201-header", "another digest", meta=put("0" * 64, "sd.manifest"))

    yield bad("sd202-too-large", "2^27 + 1", meta=put(str(2**27 + 1), "sd.manifest_size"))
    yield bad("sd202-huge", "a number of 5,000 digits", meta=put("9" * 5000, "sd.manifest_size"))
    yield bad("sd202-just-too-large", "a frame of 2^27 + 1 bytes", **_just_too_large())
    yield bad("sd202-zero", "a size of 0", meta=put("0", "sd.manifest_size"))
    yield bad("sd202-larger", "stored, but too long by one", manifest_frame=lambda f: f + b" ")
    yield bad("sd202-smaller", "stored, but short by one", manifest_frame=lambda f: f[:-1])
    small = zstandard.ZstdCompressor(level=9).compress
    unsized = zstandard.ZstdCompressor(level=9, write_content_size=False).compress
    for name, why, hook in (
        ("trailing", "a byte after the frame", lambda f: small(f) + b"\0"),
        ("truncated", "the frame lacks its last byte", lambda f: small(f)[:-1]),
        ("skippable", "a skippable frame comes first", lambda f: SKIPPABLE + bytes(4) + small(f)),
        ("unsized", "the frame declares no content size", unsized),
        ("bomb", "declares 2^40 bytes", lambda _: zstd((b"[", 9), declared=2**40)),
        ("lie", "declares more than it holds", lambda f: zstd((b"[", 9), declared=len(f))),
    ):
        yield bad(f"sd202-{name}", why, manifest_frame=hook)

    for name, why, old, new in (
        ("space", "a space", '"note":"?"', b'"note": "?"'),
        ("duplicate-key", "a key twice", '"note":"?"', b'"note":"?","note":"?"'),
        ("utf8", "a byte that is not UTF-8", '"note":"?"', b'"note":"\xff"'),
        ("escape", "an escape that is not needed", '"note":"?"', b'"note":"\\u0041"'),
        ("lone-surrogate", "a lone surrogate", '"note":"?"', b'"note":"\\udfff"'),
        ("fraction", "6.0", '"nnz":6,"profile"', b'"nnz":6.0,"profile"'),
        ("exponent", "6e0", '"nnz":6,"profile"', b'"nnz":6e0,"profile"'),
        ("leading-zero", "06", '"nnz":6,"profile"', b'"nnz":06,"profile"'),
        ("negative", "-6", '"nnz":6,"profile"', b'"nnz":-6,"profile"'),
        ("above-2-53", "2^53", '"nnz":6,"profile"', b'"nnz":9007199254740992,"profile"'),
        (
            "huge-number",
            "5,000 digits",
            '"nnz":6,"profile"',
            b'"nnz":' + b"9" * 5000 + b',"profile"',
        ),
        ("nan", "NaN", '"nnz":6,"profile"', b'"nnz":NaN,"profile"'),
        ("depth-9", "depth 9", '"must_understand":[]', b'"must_understand":' + b"[" * 8 + b"]" * 8),
    ):
        yield bad(f"sd203-{name}", why, manifest_text=swap(old, new))
    yield bad("sd203-unsorted", "keys not in order", manifest_text=_reverse)
    utf16 = {"\uffff": "", "\U0001f40e": ""}
    hook = swap('"\uffff":"","\U0001f40e":""', '"\U0001f40e":"","\uffff":""')
    yield bad("sd203-utf16-order", "keys in UTF-16 order", metadata=utf16, manifest_text=hook)
    yield bad("sd203-bom", "a byte order mark", manifest_text=lambda t: b"\xef\xbb\xbf" + t)
    yield bad("sd203-newline", "a line end", manifest_text=lambda t: t + b"\n")
    yield bad("sd203-empty", "no text", manifest_text=lambda _: b"")
    deep = b"[" * 100_000 + b"]" * 100_000
    yield bad("sd203-deep", "depth 100,000", manifest_text=lambda _: deep, shrink_manifest=True)

    record, part = ("tensors", 0), ("tensors", 0, "parts", 0)
    wrong_forms: tuple[tuple[str, str, Hook], ...] = (
        ("depth-8", "arrays to depth 8", put([[[[[[[]]]]]]], "must_understand")),
        ("array", "an array", lambda _: []),
        ("null", "null", lambda _: None),
        ("unknown-key", "a reserved key", put([], "parents")),
        ("no-untouched", "a key is missing", drop("untouched")),
        ("no-metadata", "a key is missing", drop("metadata")),
        ("base-upper-case", "upper-case hex", put("A" * 64, "base")),
        ("tables-short", "63 digits", put("a" * 63, "tables")),
        ("invertible-number", "1 for true", put(1, "invertible")),
        ("metadata-number", "a value that is no string", put({"a": 1}, "metadata")),
        ("metadata-array", "an array", put([], "metadata")),
        ("must-understand-number", "a feature that is no string", put([1], "must_understand")),
        ("nnz-string", "a string for a number", put("6", "nnz")),
        ("nnz-bool", "true for a number", put(True, "nnz")),
        ("profile", "an unknown profile", put("compact", "profile")),
        ("version", "another version", put("0.2", "version")),
        ("tensors-object", "an object", put({}, "tensors")),
        ("untouched-number", "a name that is no string", put([0], "untouched")),
        ("record-unknown-key", "a reserved key", put([0, 1], *record, "slice")),
        ("record-no-shape", "a key is missing", drop(*record, "shape")),
        ("shape-string", "a string for a number", put(["400"], *record, "shape")),
        ("shape-bool", "true for a number", put([True, 400], *record, "shape")),
        ("shape-number", "a number for an array", put(400, *record, "shape")),
        ("parts-object", "an object for an array", put({}, *record, "parts")),
        ("part-unknown-key", "an unknown key", put(0, *part, "offset")),
        ("part-no-bytes", "a key is missing", drop(*part, "bytes")),
        ("part-null", "a part is null", put(None, *part)),
        ("op-number", "an op that is no string", put(1, *part, "op")),
        ("block-null", "null for a number", put(None, *part, "block")),
        ("index-string", "a codec that is no object", put("gap8", *part, "index")),
        ("value-no-id", "a codec without id", put({"width": 4}, *part, "value")),
        ("value-id-number", "an id that is no string", put({"id": 8}, *part, "value")),
    )
    for name, why, hook in wrong_forms:
        yield bad(f"sd204-{name}", why, manifest=hook)

    for key, text in (("nnz", "7"), ("invertible", "false")):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put(text, f"sd.{key}"))
    for key in ("base", "target", "content"):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put("0" * 64, f"sd.{key}"))
    huge = put("6" * 5000, "sd.nnz")
    yield bad("sd205-nnz-huge", "a number of 5,000 digits", meta=huge)
    yield bad("sd206-feature", "a feature", manifest=put(["rows"], "must_understand"))
    yield bad("sd206-empty-feature", "an empty feature", manifest=put([""], "must_understand"))


def _just_too_large() -> dict[str, Hook]:
    """A manifest with a long note: one byte too many, and nothing else wrong with it."""
    size = 2**27 + 1

    def frame(text: bytes) -> bytes:
        head, tail = (half.encode() for half in text.decode().split("?"))
        blocks, rest = [(head, 0)], size - len(head) - len(tail)
        while rest:
            blocks.append((b"?", min(rest, 2**17)))
            rest -= blocks[-1][1]
        return zstd(*blocks, (tail, 0), declared=size)

    return {"manifest_frame": frame, "meta": put(str(size), "sd.manifest_size")}


def _reverse(text: bytes) -> bytes:
    pairs = reversed(json.loads(text).items())
    return json.dumps(dict(pairs), separators=(",", ":"), ensure_ascii=False).encode()


def invalid_layout() -> Iterator[Invalid]:
    """Rules SD207 to SD212."""
    for name, why in (
        ("", "an empty name"),
        ("a\0", "U+0000"),
        ("a\x1f", "U+001F"),
        ("a\n", "a line end"),
        ("a\x7f", "U+007F"),
        ("a\u0080", "U+0080"),
        ("a\u009f", "U+009F"),
        ("x" * 1025, "1,025 bytes"),
        ("\u00e9" * 513, "1,026 bytes in 513 characters"),
    ):
        label = f"sd207-{why.lower().replace('+', '').replace(',', '').replace(' ', '-')}"
        yield f"{label}-touched", why, build([one(name)])
        yield f"{label}-untouched", why, build([tensor(name, "U8", 1), one("w")])
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
    ):
        yield f"sd207-{name}", why, build(tensors, ordered=False)

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
        t = T("w", dtype, shape, b"abcd", [P("difference", {1: 1})])
        yield f"sd208-{name}", why, build([t])

    two = P("difference", {2: 1})
    for name, why, parts in (
        ("reserved", "a reserved op", [P("add", {1: 1})]),
        ("unknown", "an unknown op", [P("xor", {1: 1})]),
        ("order", "replace, then difference", [P("replace", {1: 1}, value="planes"), two]),
        ("same-twice", "two differences", [P("difference", {1: 1}), two]),
        (
            "three",
            "three parts",
            [P("difference", {1: 1}), *(P("replace", {i: 1}, value="planes") for i in (0, 2))],
        ),
    ):
        yield f"sd209-{name}", why, build([tensor("w", "U8", 4, *parts)])
    yield "sd209-none", "no part", build([one("w")], facts=put([], "tensors", 0, "parts"))

    for name, why, labels in (
        ("index", "an unknown index codec", {"index": {"id": "runs"}}),
        ("reserved", "a reserved index codec", {"index": {"id": "raw"}}),
        ("value", "an unknown value codec", {"value": {"id": "huffman"}}),
        ("exchanged", "a value codec for the index", {"index": {"id": "planes"}}),
        ("width-3", "a width of 3", {"value": {"id": "packed", "width": 3}}),
        ("width-16", "a width of 16", {"value": {"id": "packed", "width": 16}}),
        ("width-missing", "no width", {"value": {"id": "packed"}}),
        ("width-bool", "true for 1", {"value": {"id": "packed", "width": True}}),
        ("width-string", "a string", {"value": {"id": "packed", "width": "4"}}),
        ("parameter", "a parameter of no codec", {"index": {"id": "gap8", "width": 8}}),
        ("null-parameter", "a parameter that is null", {"value": {"id": "packed", "width": None}}),
    ):
        part = P("difference", {1: 1}, value="packed", width=4, labels=labels)
        yield f"sd210-{name}", why, build([tensor("w", "BF16", 4, part)])
    every = {i: 1 + i for i in range(4)}
    for name, part in (
        ("replace-zigzag", P("replace", every)),
        ("replace-packed", P("replace", every, value="packed", width=4)),
        ("replace-dense-zigzag", P("replace", every, "dense")),
        ("dense-packed", P("difference", every, "dense", "packed", 4)),
        ("block-7", P("difference", every, block=7)),
        ("block-25", P("difference", every, block=25)),
        ("block-0", P("difference", every, block=0)),
    ):
        yield f"sd210-{name}", name.replace("-", " "), build([tensor("w", "BF16", 4, part)])

    part = P("difference", {0: 1})
    parts = [part, P("replace", {}, value="planes")]
    yield "sd211-zero", "a part without entries", build([tensor("w", "U8", 4, *parts)])
    hook = put(5, "tensors", 0, "parts", 0, "nnz")
    yield (
        "sd211-words",
        "5 entries in 4 words",
        build([tensor("w", "U8", 4, part)], facts=lambda m: put(5, "nnz")(hook(m))),
    )
    parts = [P("difference", dict.fromkeys((0, 1, 2), 1))]
    parts += [P("replace", dict.fromkeys((1, 2, 3), 1), value="planes")]
    yield "sd211-sum", "3 + 3 entries in 4 words", build([tensor("w", "U8", 4, *parts)])
    yield "sd211-total", "another sum", build(simple(), facts=put(7, "nnz"))
    yield "sd211-largest-total", "2^53 - 1", build(simple(), facts=put(2**53 - 1, "nnz"))
    empty = T("w", "U8", [0], b"", [P("difference", {})])
    first = put(1, "tensors", 0, "parts", 0, "nnz")
    yield (
        "sd211-empty-tensor",
        "an entry of an empty tensor",
        build([empty], facts=lambda m: put(1, "nnz")(first(m))),
    )
    yield "sd212-true", "true with a replace", build([flat()], facts=put(True, "invertible"))
    yield "sd212-false", "false without one", build(simple(), facts=put(False, "invertible"))
