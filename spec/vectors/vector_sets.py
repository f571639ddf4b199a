"""A delta as a set: a root, and part files that each hold some of its records (3.8)."""

from __future__ import annotations

import json
from typing import Any

from expected_json import Vector, both_ends, expected
from terms import b3
from vector_encoder import Hook, build, identity, uses_ranked
from vector_records import R

SET_ID = "5e7" + "0" * 61
Options = dict[str, Any]


def meta_of(file: bytes) -> dict[str, str]:
    """The metadata of a file."""
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    meta: dict[str, str] = header["__metadata__"]
    return meta


def part_name(number: int) -> str:
    """The name that a part file has here; a set may name its files as it likes."""
    return f"part-{number}.safetensors"


def build_set(
    groups: list[list[R]],
    rest: list[R],
    *,
    parts: dict[int, Options] | None = None,
    place: Hook | None = None,
    lean: bool = False,
    name: str = "root",
    **how: Any,  # noqa: ANN401 - the options of build
) -> dict[str, bytes]:
    """The files of a set: their names and bytes.

    Args:
        groups: The records of each part file.
        rest: The untouched tensors.
        parts: More options of `build` for some part files, by number.
        place: A hook for `set` of the root.
        lean: Whether the delta is lean.
        name: The name of the root without its suffix.
        how: The options of `build` for the root.
    """
    every = [r for group in groups for r in group] + rest
    base, target, _ = identity(every)
    files: dict[str, bytes] = {}
    listed = []
    for number, group in enumerate(groups, 1):
        own: Options = {"place": {"id": SET_ID, "part": number, "parts": []}, "lean": lean}
        own |= {"claim": {"base": base, "target": target}}
        if uses_ranked(every):  # of the whole delta; the feature is listed by who needs it
            own |= {"version": "1.1", "profile": "compact"}
        own |= (parts or {}).get(number, {})
        file = files[part_name(number)] = build(group, **own)
        row = {"name": part_name(number), "size": len(file)}
        listed.append(row | {"manifest": meta_of(file).get("sd.manifest", "0" * 64)})
    value = {"id": SET_ID, "part": 0, "parts": listed}
    value = place(value) if place else value
    return {f"{name}.safetensors": build(every, place=value, lean=lean, **how)} | files


def set_case(name: str, groups: list[list[R]], rest: list[R], **how: Any) -> Vector:  # noqa: ANN401
    """A vector of a set."""
    files = build_set(groups, rest, name=name, **how)
    every = [r for group in groups for r in group] + rest
    base, target, _ = identity(every)
    claim = {"base": base, "target": target}
    lean = how.get("lean", False)
    out = expected(every, lean=lean) | both_ends(every)
    out["blobs"] = [b3(blob).hex() for blob in how.get("blobs") or []]
    out |= {key: how[key] for key in ("layout", "files") if key in how}
    alone, listed = {}, []
    for number, group in enumerate(groups, 1):
        file = part_name(number)
        found = expected(group, lean=lean, claim=claim)
        alone[file] = found | {"set": {"id": SET_ID, "part": number, "parts": []}}
        row = {"name": file, "size": len(files[file])}
        listed.append(row | {"manifest": meta_of(files[file])["sd.manifest"]})
    out |= {"set": {"id": SET_ID, "part": 0, "parts": listed}, "alone": alone}
    return Vector(name, {f"{name}/{file}": data for file, data in files.items()}, out)
