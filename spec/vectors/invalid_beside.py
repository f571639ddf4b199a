"""Invalid vectors: blobs, layouts, carried files and sets (SD213 to SD216, SD414 to SD416)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from expected_json import bases, targets
from stream_encoder import zstd
from terms import b3
from valid_beside import content, some
from vector_encoder import Hook, build
from vector_layout import Layout
from vector_records import P, R, X
from vector_samples import Invalid, put, simple, tensor
from vector_sets import SET_ID

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
BAD_FILE_NAMES = (
    ("empty", ""),
    ("dot", ".hidden{}"),
    ("dash", "-x{}"),
    ("plus", "+x{}"),
    ("slash", "a/b{}"),
    ("backslash", "a\\b{}"),
    ("up", "..{}"),
    ("space", "a b{}"),
    ("colon", "a:b{}"),
    ("accent", "\u00e9{}"),
    ("line-end", "a\n{}"),
    ("con", "con{}"),
    ("nul", "NUL.x{}"),
    ("com0", "Com0{}"),
    ("lpt9", "lpt9.y{}"),
    ("long", "x" * 256 + "{}"),
)


def bad(name: str, why: str, records: list[R], **how: Any) -> Invalid:  # noqa: ANN401
    """An invalid vector."""
    return name, why, build(records, **how)


def invalid_blobs() -> Iterator[Invalid]:
    """Rules SD213 and SD414."""
    base = simple()

    def blob(**facts: int) -> dict[str, Any]:
        return {"bytes": 0, "size": 0, "digest": b3(b"").hex()} | facts

    for name, why, blobs in (
        ("bytes", "a frame longer than its content", [blob(bytes=2, size=1)]),
        ("size", "2^27 + 1 bytes", [blob(size=2**27 + 1)]),
        ("sum", "2^30 + 1 bytes", [blob(size=2**27)] * 8 + [blob(size=1)]),
        ("number", "2^16 + 1 blobs", [blob()] * (2**16 + 1)),
        ("largest", "2^53 - 1 bytes", [blob(size=2**53 - 1)]),
    ):
        hook = put(blobs, "blobs")
        yield bad(f"sd213-{name}", why, base, facts=hook, shrink_manifest=True)

    text = b"7" * 300
    wrong = put("0" * 64, "blobs", 0, "digest")
    yield bad("sd414-digest", "another digest", base, blobs=[text], facts=wrong)
    plain = put(b3(text).hex(), "blobs", 0, "digest")
    small = zstd((b"7", 300), declared=300)
    of_content = bad("sd414-digest-of-content", "the digest of the content", base, blobs=[text])
    yield (*of_content[:2], build(base, blobs=[text], facts=plain, blob_frame=lambda *_: small))
    wrong = put("0" * 64, "blobs", 1, "digest")
    yield bad("sd414-second", "another digest", base, blobs=[b"", text], facts=wrong)
    for name, why, frame in (
        ("no-zstd", "not Zstandard", b"7" * 40),
        ("trailing", "a byte after the frame", small + b"\0"),
        ("declares", "declares 299 bytes", zstd((b"7", 300), declared=299)),
        ("unsized", "declares no size", zstd((b"7", 300), declared=None, window=10)),
        ("holds-less", "holds 299 bytes", zstd((b"7", 299), declared=300)),
        ("window", "a window of 2^28", zstd((b"7", 300), declared=300, window=28)),
        ("empty", "no byte for 300", b""),
    ):
        hook = _frame(frame)
        yield bad(f"sd414-{name}", why, base, blobs=[text], blob_frame=hook)


def _frame(frame: bytes) -> Hook:
    return lambda _plain, _number: frame


def plain_layout() -> tuple[list[R], Layout]:
    """Records, and the layout of both ends, one file each with an index."""
    records, layout = some(), Layout()
    layout.record("base", bases(records), {ONE: [*bases(records)]}, index=INDEX)
    layout.record("target", targets(records), {ONE: [*targets(records)]}, index=INDEX)
    return records, layout


def invalid_layouts() -> Iterator[Invalid]:
    """Rule SD214."""
    records, layout = plain_layout()

    def broken(name: str, why: str, change: Callable[[Any], Any], side: str = "base") -> Invalid:
        hook = lambda m: put(change(m["layout"][side]), "layout", side)(m)  # noqa: E731 - a hook
        how = {"blobs": layout.blobs, "layout": layout.value, "facts": hook}
        return bad(f"sd214-{name}", why, records, **how)

    def named(*names: str) -> Callable[[Any], Any]:
        return lambda end: end | {"files": [end["files"][0] | {"name": n} for n in names]}

    for name, text in BAD_FILE_NAMES:
        file = text.format(".safetensors") if name != "empty" else ""
        yield broken(f"name-{name}", f"the file name {file[:40]!r}", named(file))
    for name, file in (
        ("bin", "model.bin"),
        ("upper-case-suffix", "model.Safetensors"),
        ("index-as-file", "x.safetensors.index.json"),
        ("trailing-dot", "model.safetensors."),
        ("suffix-only", ".safetensors"),
    ):
        yield broken(f"name-{name}", f"the file name {file!r}", named(file))
    for name, why, names in (
        ("no-file", "no file", ()),
        ("order", "b before a", ("b.safetensors", "a.safetensors")),
        ("twice", "a name twice", (ONE, ONE)),
        ("case", "two names that differ in case only", ("A.safetensors", "a.safetensors")),
    ):
        yield broken(name, why, named(*names))

    def heavy(manifest: Any) -> Any:  # noqa: ANN401
        files = [{"name": f"{k}.safetensors", "header": 0, "sha256": None} for k in range(9)]
        manifest = put(2**27, "blobs", 0, "size")(manifest)
        return put({"files": files, "index": None}, "layout", "base")(manifest)

    how = {"blobs": layout.blobs, "layout": layout.value, "facts": heavy}
    yield bad("sd214-heavy", "a blob of 2^27 bytes for nine files", records, **how)
    many = len(layout.blobs)
    yield broken("header", "no such blob", put(many, "files", 0, "header"))
    yield broken("index-blob", "no such blob", put(many, "index", "blob"))
    yield broken("target", "no such blob", put(many, "index", "blob"), "target")
    for name, file in (
        ("suffix", "model.json"),
        ("upper-case", "model.safetensors.INDEX.json"),
        ("slash", f"a/{INDEX}"),
        ("con", "con.safetensors.index.json"),
        ("only", ".safetensors.index.json"),
        ("long", "x" * 240 + ".safetensors.index.json"),
    ):
        hook = put(file, "index", "name")
        yield broken(f"index-{name}", f"the index {file[:40]!r}", hook)


def invalid_files() -> Iterator[Invalid]:
    """Rules SD215 and SD416."""
    base, blobs = simple(), [b"old", b"new!"]
    old, new = content(b"old", 0), content(b"new!", 1)

    def row(name: str = "x.json", base: Any = old, target: Any = new) -> dict[str, Any]:  # noqa: ANN401
        return {"name": name, "base": base, "target": target}

    for name, text in BAD_FILE_NAMES:
        file = text.format(".txt") if name != "empty" else ""
        listed = [row(file)]
        yield bad(
            f"sd215-name-{name}", f"the file name {file[:40]!r}", base, blobs=blobs, files=listed
        )
    for name, why, listed in (
        ("weights", "a file of weights", [row(ONE)]),
        ("weights-upper-case", "a file of weights", [row("A.SafeTensors")]),
        ("index", "an index", [row(INDEX)]),
        ("index-upper-case", "an index", [row(INDEX.upper())]),
        ("trailing-dot", "a name that ends with a dot", [row("x.json.")]),
        ("order", "b before a", [row("b"), row("a")]),
        ("twice", "a name twice", [row("a"), row("a")]),
        ("case", "two names that differ in case only", [row("A"), row("a")]),
        ("neither", "at neither end", [row(base=None, target=None)]),
        ("same", "the same at both ends", [row(target=old)]),
        ("same-forgotten", "the same at both ends", [row(base=content(b"new!", None))]),
        (
            "same-digest",
            "two sizes of one digest",
            [row(target=old | {"blob": 1, "size": new["size"]})],
        ),
        ("target-forgotten", "a target without content", [row(target=content(b"new!", None))]),
        ("blob", "no such blob", [row(target=new | {"blob": 2})]),
        ("base-blob", "no such blob", [row(base=old | {"blob": 2})]),
        ("size", "another size than that of the blob", [row(target=new | {"size": 5})]),
        ("base-size", "another size than that of the blob", [row(base=old | {"size": 2})]),
        ("removed-size", "another size", [row(base=old | {"size": 4}, target=None)]),
    ):
        yield bad(f"sd215-{name}", why, base, blobs=blobs, files=listed)
    for side in ("base", "target"):
        ends = {"base": old, "target": new} | {side: {"blob": 0, "digest": "0" * 64, "size": 2**27}}
        listed = [row(f"{k}.json", **ends) for k in range(9)]
        why = "a blob of 2^27 bytes for nine files"
        large = put(2**27, "blobs", 0, "size")
        yield bad(f"sd215-heavy-{side}", why, base, blobs=blobs, files=listed, facts=large)
    for name, listed in (
        ("target", [row(target=content(b"news", 1))]),
        ("base", [row(base=content(b"odd", 0))]),
        ("removed", [row(base=content(b"odd", 0), target=None)]),
    ):
        yield bad(f"sd416-{name}", "another content than digested", base, blobs=blobs, files=listed)


def invalid_places() -> Iterator[Invalid]:
    """Rule SD216: a file of a set, for itself."""
    base, part = (
        [tensor("w", "U8", 3, P("difference", {1: 1}))],
        {"id": SET_ID, "part": 1, "parts": []},
    )

    def row(name: str = "part.safetensors") -> dict[str, Any]:
        return {"name": name, "size": 0, "manifest": "0" * 64}

    root = {"id": SET_ID, "part": 0, "parts": [row()]}
    for name, text in BAD_FILE_NAMES:
        file = text.format(".safetensors") if name != "empty" else ""
        place = root | {"parts": [row(file)]}
        yield bad(f"sd216-name-{name}", f"the file name {file[:40]!r}", base, place=place)
    for name, why, place in (
        ("root-alone", "a root without part files", root | {"parts": []}),
        ("twice", "a name twice", root | {"parts": [row(), row()]}),
        (
            "case",
            "two names that differ in case only",
            root | {"parts": [row(), row("PART.safetensors")]},
        ),
        ("parts-of-a-part", "a part file that lists others", part | {"parts": [row()]}),
        ("number", "part 2^16 + 1", part | {"part": 2**16 + 1}),
    ):
        yield bad(f"sd216-{name}", why, base, place=place)
    many = root | {"parts": [row(f"{k}") for k in range(2**16 + 1)]}
    yield bad("sd216-many", "2^16 + 1 part files", base, place=many, shrink_manifest=True)
    records = [
        {"name": "w", "from": "v", "parts": []}
        | {k: {"dtype": "U8", "shape": [1]} for k in ("base", "target")}
    ]
    yield bad(
        "sd216-root-with-record",
        "a record of a root",
        [],
        place=root,
        facts=put(records, "tensors"),
    )
    empty = X("U8", [1], b"a")
    for name, why, more in (
        ("blob", "a blob", {"blobs": [b""]}),
        ("layout", "a layout", {"layout": {"base": None, "target": None}}),
        (
            "file",
            "a carried file",
            {"blobs": [b""], "files": [{"name": "x", "base": None, "target": content(b"", 0)}]},
        ),
    ):
        yield bad(f"sd216-part-{name}", why, base, place=part, **more)
    untouched = [*base, R("z", empty, empty)]
    yield bad("sd216-part-untouched", "an untouched name", untouched, place=part)
    yield bad("sd216-part-no-record", "a part file without records", [], place=part)


def invalid_beside() -> Iterator[Invalid]:
    """All of them."""
    for group in (invalid_blobs, invalid_layouts, invalid_files, invalid_places):
        yield from group()
