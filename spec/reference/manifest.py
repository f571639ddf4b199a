"""The manifest: its frame, its text, the form of its values, and its names (SD201 to SD207)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from encoding import MAX_DIGITS, MAX_INT, canonical, parse, unframe
from header import HEX, PROFILE, VERSION, fits
from terms import b3, need

MAX_MANIFEST, MAX_NAMES, MAX_NAME = 2**26, 2**20, 1024
FEATURES = {"ranked@1.1"}

# Forms: see header.py.
END: Any = ({"dtype": str, "shape": [int]},)
CODED: Any = {"nnz": int, "block": int, "bytes": int, "index": {"id": str}, "value": {"id": str}}
PART: Any = {"op": str} | {f"{key}?": form for key, form in CODED.items()}
PART |= {"from?": str, "to?": str, "dtype?": str, "scale?": "[0-9a-f]{16}"}
RECORD: Any = {"name": str, "from": (str,), "base": END, "target": END, "parts": [PART]}
BLOB: Any = {"bytes": int, "size": int, "digest": HEX}
LAYOUT_FILE: Any = {"name": str, "header": int, "sha256": (HEX,)}
LAYOUT_END: Any = ({"files": [LAYOUT_FILE], "index": ({"name": str, "blob": int},)},)
FILE_END: Any = ({"blob": (int,), "digest": HEX, "size": int},)
FILE: Any = {"name": str, "base": FILE_END, "target": FILE_END}
SET: Any = ({"id": HEX, "part": int, "parts": [{"name": str, "size": int, "manifest": HEX}]},)
MANIFEST: Any = dict.fromkeys(("base", "target", "content", "tables"), HEX)
MANIFEST |= {"invertible": bool, "lean": bool, "nnz": int, "metadata": {str: str}}
MANIFEST |= {"must_understand": [str], "profile": PROFILE, "version": VERSION, "set": SET}
MANIFEST |= {"tensors": [RECORD], "untouched": [str], "blobs": [BLOB], "files": [FILE]}
MANIFEST |= {"layout": ({"base": LAYOUT_END, "target": LAYOUT_END},)}
FACTS = ("base", "target", "content", "invertible", "nnz", "profile", "version")


def names_of(manifest: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Every name of a tensor in a manifest, some of them twice."""
    yield from manifest["untouched"]
    for r in manifest["tensors"]:
        yield r["name"]
        yield from [r["from"]] if r["from"] is not None else []
        for part in r["parts"]:
            yield from (part[key] for key in ("from", "to") if key in part)


def read_names(manifest: Any) -> None:  # noqa: ANN401 - JSON
    """Check SD207."""
    records, untouched = manifest["tensors"], manifest["untouched"]
    touched = [r["name"] for r in records]
    need("SD207", len(touched) + len(untouched) <= MAX_NAMES, "too many names")
    for name in names_of(manifest):
        valid = 1 <= len(name.encode()) <= MAX_NAME and not re.search("[\0-\x1f\x7f-\x9f]", name)
        need("SD207", valid, f"invalid name {name!r}")
    for names in (touched, untouched):
        need("SD207", all(a < b for a, b in pairwise(names)), "names not unique and ascending")
    base_names = [r["name"] if r["from"] is None else r["from"] for r in records]
    for names in (touched, base_names):
        every = names + untouched
        need("SD207", len(set(every)) == len(every), "a name of two tensors of one end")
    for r in records:
        rename = r["from"] is not None
        both = r["base"] is not None and r["target"] is not None
        need("SD207", not rename or (both and r["from"] != r["name"]), f"from of {r['name']}")
    need("SD207", not (manifest["lean"] and untouched), "lean, and yet untouched names")


def read_manifest(meta: dict[str, str], frame: bytes) -> Any:  # noqa: ANN401 - JSON
    """Check SD201 to SD207; return the manifest."""
    need("SD201", b3(frame).hex() == meta["sd.manifest"], "the digest of the manifest")
    digits = meta["sd.manifest_size"]
    size = int(digits) if len(digits) <= MAX_DIGITS else MAX_INT
    need("SD202", size <= MAX_MANIFEST, "the manifest is too large")
    manifest = parse(unframe("SD202", frame, size), "SD203", "SD203")
    need("SD204", fits(manifest, MANIFEST), "a key is missing, or a value's form wrong")
    for part in (part for r in manifest["tensors"] for part in r["parts"]):
        have = CODED.keys() & part.keys()
        need("SD204", have in (set(), CODED.keys()), f"a part with {sorted(have)} only")
    for key in FACTS:
        fact = manifest[key] if isinstance(manifest[key], str) else canonical(manifest[key])
        need("SD205", fact == meta[f"sd.{key}"], f"header and manifest differ in {key}")
    place = manifest["set"] or {"id": None, "part": None}
    number = None if place["part"] is None else str(place["part"])
    need("SD205", place["id"] == meta.get("sd.set_id"), "header and manifest differ in the set")
    need("SD205", number == meta.get("sd.part"), "header and manifest differ in the part")
    unknown = [name for name in manifest["must_understand"] if name not in FEATURES]
    need("SD206", not unknown, f"unknown: {unknown}")
    read_names(manifest)
    return manifest
