"""Invalid vectors: the text of the manifest and its forms, rules SD201 to SD206."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import zstandard
from stream_encoder import zstd
from vector_encoder import Hook, build
from vector_samples import SKIPPABLE, Invalid, drop, put, simple, swap


def invalid_manifest() -> Iterator[Invalid]:
    """Rules SD201 to SD206."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **({"metadata": {"note": "?"}} | how))

    yield bad("sd201-manifest", "another note", body=swap('"note":"?"', '"note":"!"'))
    yield bad("sd201-header", "another digest", meta=put("0" * 64, "sd.manifest"))

    yield bad("sd202-too-large", "2^26 + 1", meta=put(str(2**26 + 1), "sd.manifest_size"))
    yield bad("sd202-huge", "a number of 5,000 digits", meta=put("9" * 5000, "sd.manifest_size"))
    yield bad("sd202-just-too-large", "a frame of 2^26 + 1 bytes", **_just_too_large())
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

    yield from _wrong_forms(bad)
    for key, text in (("nnz", "7"), ("invertible", "false")):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put(text, f"sd.{key}"))
    for key in ("base", "target", "content"):
        yield bad(f"sd205-{key}", f"{key} differs", meta=put("0" * 64, f"sd.{key}"))
    huge = put("6" * 5000, "sd.nnz")
    yield bad("sd205-nnz-huge", "a number of 5,000 digits", meta=huge)
    meta = {"sd.set_id": "a" * 64, "sd.part": "1"}
    yield bad("sd205-set-null", "a set in the header only", extra=meta)
    place = {"id": "a" * 64, "part": 1, "parts": []}
    yield bad("sd205-set", "a set in the manifest only", manifest=put(place, "set"))
    for key, value in (("sd.set_id", "b" * 64), ("sd.part", "2")):
        name = f"sd205-{key[3:].replace('_', '-')}"
        yield bad(name, f"another {key}", place=place, meta=put(value, key))
    yield bad("sd205-profile", "another profile", meta=put("other", "sd.profile"))
    yield bad("sd205-version", "another minor version", meta=put("1.1", "sd.version"))
    yield bad("sd205-version-major", "1.0 and 2.0", manifest=put("2.0", "version"))
    for name, feature in (
        ("feature", "slice@1.1"),
        ("known-name", "sparse@1.0"),
        ("odd", "rows"),
        ("ranked-of-1.2", "ranked@1.2"),
        ("ranked-of-none", "ranked"),
        ("profile-name", "compact@1.1"),
    ):
        hook = put([feature], "must_understand")
        yield bad(f"sd206-{name}", f"the feature {feature}", manifest=hook)
    later = put(["ranked@1.7"], "must_understand")
    yield bad("sd206-version-1.7", "a feature of 1.7", version="1.7", manifest=later)
    yield bad("sd206-empty-feature", "an empty feature", manifest=put([""], "must_understand"))


def _just_too_large() -> dict[str, Hook]:
    """A manifest with a long note: one byte too many, and nothing else wrong with it."""
    size = 2**26 + 1

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


def _wrong_forms(bad: Callable[..., Invalid]) -> Iterator[Invalid]:
    """Rule SD204."""
    record, part, end = ("tensors", 0), ("tensors", 0, "parts", 0), ("tensors", 0, "base")
    wrong_forms: tuple[tuple[str, str, Hook], ...] = (
        ("depth-8", "arrays to depth 8", put([[[[[[[]]]]]]], "must_understand")),
        ("array", "an array", lambda _: []),
        ("null", "null", lambda _: None),
        *((f"no-{key.replace('_', '-')}", f"{key} is missing", drop(key)) for key in KEYS),
        *((f"record-no-{key}", f"{key} is missing", drop(*record, key)) for key in RECORD_KEYS),
        *((f"part-no-{key}", f"{key} is missing", drop(*part, key)) for key in PART_KEYS),
        ("base-upper-case", "upper-case hex", put("A" * 64, "base")),
        ("tables-short", "63 digits", put("a" * 63, "tables")),
        ("invertible-number", "1 for true", put(1, "invertible")),
        ("lean-null", "null for false", put(None, "lean")),
        ("metadata-number", "a value that is no string", put({"a": 1}, "metadata")),
        ("metadata-array", "an array", put([], "metadata")),
        ("must-understand-number", "a feature that is no string", put([1], "must_understand")),
        ("nnz-string", "a string for a number", put("6", "nnz")),
        ("nnz-bool", "true for a number", put(True, "nnz")),
        ("profile", "a profile in upper case", put("Portable", "profile")),
        ("version", "a version of one number", put("1", "version")),
        ("tensors-object", "an object", put({}, "tensors")),
        ("untouched-number", "a name that is no string", put([0], "untouched")),
        ("record-null", "a record is null", put(None, *record)),
        ("from-number", "a number for a name", put(0, *record, "from")),
        ("end-array", "an array for an end", put([], *end)),
        ("end-no-dtype", "a key is missing", drop(*end, "dtype")),
        ("end-no-shape", "a key is missing", drop(*end, "shape")),
        ("dtype-null", "null for a string", put(None, *end, "dtype")),
        ("shape-string", "a string for a number", put(["400"], *end, "shape")),
        ("shape-bool", "true for a number", put([True, 400], *end, "shape")),
        ("shape-number", "a number for an array", put(400, *end, "shape")),
        ("parts-object", "an object for an array", put({}, *record, "parts")),
        ("part-null", "a part is null", put(None, *part)),
        ("op-number", "an op that is no string", put(1, *part, "op")),
        ("block-null", "null for a number", put(None, *part, "block")),
        ("index-string", "a codec that is no object", put("gap8", *part, "index")),
        ("value-no-id", "a codec without id", put({"width": 4}, *part, "value")),
        ("value-id-number", "an id that is no string", put({"id": 8}, *part, "value")),
        ("part-from-null", "null for a name", put(None, *part, "from")),
        ("part-to-number", "a number for a name", put(1, *part, "to")),
        ("part-dtype-number", "a number for a dtype", put(1, *part, "dtype")),
        ("scale-number", "a number for bits", put(1, *part, "scale")),
        ("scale-short", "15 digits", put("3" * 15, *part, "scale")),
        ("scale-upper-case", "upper-case hex", put("3FF0000000000000", *part, "scale")),
        ("blobs-null", "null for an array", put(None, "blobs")),
        ("blob-no-size", "a key is missing", put([{"bytes": 0, "digest": "0" * 64}], "blobs")),
        ("blob-digest", "a short digest", put([{"bytes": 0, "size": 0, "digest": "0"}], "blobs")),
        ("layout-array", "an array for an object", put([], "layout")),
        ("layout-no-target", "a key is missing", put({"base": None}, "layout")),
        *(
            (f"layout-{name}", why, put({"base": end, "target": None}, "layout"))
            for name, why, end in (
                ("no-index", "a key is missing", {"files": []}),
                ("files-object", "an object for an array", {"files": {}, "index": None}),
                ("file-no-sha256", "a key is missing", {"files": [NO_SHA], "index": None}),
                ("sha256", "63 digits", {"files": [NO_SHA | {"sha256": "0" * 63}], "index": None}),
                ("index-string", "a string for an object", {"files": [], "index": "x"}),
                ("index-no-blob", "a key is missing", {"files": [], "index": {"name": "x"}}),
            )
        ),
        ("file-no-target", "a key is missing", put([{"name": "x", "base": None}], "files")),
        ("file-number", "a file that is no object", put([1], "files")),
        ("file-digest", "a short digest", put([_file("0" * 63)], "files")),
        ("file-no-blob", "a key is missing", put([_file("0" * 64)], "files")),
        ("set-number", "a number for an object", put(1, "set")),
        ("set-no-parts", "a key is missing", put({"id": "0" * 64, "part": 1}, "set")),
        ("set-id", "a short id", put({"id": "0", "part": 1, "parts": []}, "set")),
        ("set-part-null", "null for a number", put(SET | {"part": None}, "set")),
        ("set-parts-number", "a part that is no object", put(SET | {"parts": [1]}, "set")),
    )
    for name, why, hook in wrong_forms:
        yield bad(f"sd204-{name}", why, manifest=hook)


def _file(digest: str) -> dict[str, Any]:
    return {"name": "x", "base": None, "target": {"digest": digest, "size": 0}}


KEYS = (
    *("base", "blobs", "content", "files", "invertible", "layout", "lean", "metadata"),
    *("must_understand", "nnz", "profile", "set", "tables", "target", "tensors", "untouched"),
    "version",
)
RECORD_KEYS = ("name", "from", "base", "target", "parts")
PART_KEYS = ("op", "nnz", "block", "index", "value", "bytes")
NO_SHA: dict[str, Any] = {"name": "x.safetensors", "header": 0}
SET: dict[str, Any] = {"id": "0" * 64, "part": 1, "parts": []}
