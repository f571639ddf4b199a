"""What travels beside the tensors: blobs, layout, carried files (sections 3.6 to 3.8).

The manifest's side of it (SD213 to SD216), the content of the blobs (SD414), and that of carried
files (SD416). The headers of a layout stand in layout.py.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from encoding import unframe
from terms import b3, need

MAX_BLOBS, MAX_BLOB, MAX_ALL_BLOBS, MAX_PARTS = 2**16, 2**27, 2**30, 2**16
WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
FILE_NAME = "[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}"
RESERVED = "con|prn|aux|nul|(com|lpt)[0-9]"


def file_name(name: str) -> bool:
    """Whether a name may name a file (3.6)."""
    stem = name.split(".", maxsplit=1)[0].lower()
    ok = re.fullmatch(FILE_NAME, name) and not name.endswith(".")
    return bool(ok) and re.fullmatch(RESERVED, stem) is None


def differ(names: list[str]) -> bool:
    """Whether names differ even where case is ignored."""
    return len({name.lower() for name in names}) == len(names)


def ascending(names: list[str]) -> bool:
    """Whether names ascend."""
    return all(a < b for a, b in pairwise(names))


def read_blobs(manifest: Any) -> None:  # noqa: ANN401 - JSON
    """Check SD213."""
    blobs = manifest["blobs"]
    need("SD213", len(blobs) <= MAX_BLOBS, "too many blobs")
    for blob in blobs:
        need("SD213", blob["bytes"] <= blob["size"] <= MAX_BLOB, "the size of a blob")
    total = sum(blob["size"] for blob in blobs)
    need("SD213", total <= MAX_ALL_BLOBS, "the size of all blobs")


def read_layout(manifest: Any) -> None:  # noqa: ANN401 - JSON
    """Check SD214."""
    number = len(manifest["blobs"])
    for end in ("base", "target"):
        side = (manifest["layout"] or {}).get(end)
        if side is None:
            continue
        names, index = [file["name"] for file in side["files"]], side["index"]
        need("SD214", names and ascending(names), f"no file of the {end}, or not ascending")
        ok = all(file_name(name) and name.endswith(WEIGHTS) for name in names)
        ok &= all(file["header"] < number for file in side["files"])
        need("SD214", ok, f"a file of the {end}: its name, or no such blob")
        if index is not None:
            ok = file_name(index["name"]) and index["name"].endswith(INDEX)
            need("SD214", ok and index["blob"] < number, f"the index of the {end}")
            names.append(index["name"])
        need("SD214", differ(names), f"two files of the {end} of one name")
        used = [file["header"] for file in side["files"]] + ([index["blob"]] if index else [])
        total = sum(manifest["blobs"][blob]["size"] for blob in used)
        need("SD214", total <= MAX_ALL_BLOBS, f"the headers of the {end} are too large")


def read_files(manifest: Any) -> None:  # noqa: ANN401 - JSON
    """Check SD215."""
    blobs, names = manifest["blobs"], [file["name"] for file in manifest["files"]]
    need("SD215", ascending(names) and differ(names), "names of files not unique and ascending")
    for file in manifest["files"]:
        name, ends = file["name"], [file["base"], file["target"]]
        ok = file_name(name) and not name.lower().endswith((WEIGHTS, INDEX))
        need("SD215", ok, f"the name {name!r} of a file")
        known = [end and end["digest"] for end in ends]
        need("SD215", known[0] != known[1], f"the ends of {name} do not differ")
        need("SD215", ends[1] is None or ends[1]["blob"] is not None, f"no content for {name}")
        for end in ends:
            if end is not None and end["blob"] is not None:
                ok = end["blob"] < len(blobs) and blobs[end["blob"]]["size"] == end["size"]
                need("SD215", ok, f"the blob of {name}")
    for side in ("base", "target"):
        ends = [file[side] for file in manifest["files"]]
        total = sum(end["size"] for end in ends if end and end["blob"] is not None)
        need("SD215", total <= MAX_ALL_BLOBS, f"the files of the {side} are too large")


def read_set(manifest: Any) -> None:  # noqa: ANN401 - JSON
    """Check SD216."""
    place = manifest["set"]
    if place is None:
        return
    names, part = [entry["name"] for entry in place["parts"]], place["part"]
    if part == 0:
        need("SD216", 1 <= len(names) <= MAX_PARTS, "the number of part files")
        need("SD216", all(map(file_name, names)) and differ(names), "the names of part files")
        need("SD216", not manifest["tensors"], "a root with records")
        return
    need("SD216", part <= MAX_PARTS and not names, "the number of a part file, or parts of it")
    need("SD216", manifest["tensors"], "a part file without records")
    more = [key for key in ("untouched", "blobs", "layout", "files") if manifest[key]]
    need("SD216", not more, f"what only the root has: {more}")


def read_contents(manifest: Any, data: bytes) -> list[bytes]:  # noqa: ANN401 - JSON
    """Check SD414 for the frames of all blobs; return what they hold."""
    found, at = [], 0
    for k, blob in enumerate(manifest["blobs"]):
        frame, at = data[at : at + blob["bytes"]], at + blob["bytes"]
        need("SD414", b3(frame).hex() == blob["digest"], f"the digest of blob {k}")
        found.append(unframe("SD414", frame, blob["size"]))
    return found


def check_files(manifest: Any, blobs: list[bytes]) -> None:  # noqa: ANN401 - JSON
    """Check SD416."""
    for file in manifest["files"]:
        for end in (file["base"], file["target"]):
            if end is not None and end["blob"] is not None:
                ok = b3(blobs[end["blob"]]).hex() == end["digest"]
                need("SD416", ok, f"the content of {file['name']}")
