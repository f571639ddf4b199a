"""The container: header, metadata and the three tensors (section 3, SD101 to SD107)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from encoding import parse
from terms import need

MAX_HEADER, PADDING = 65_528, 7

# A form is one of: a type (`object` is any value); a pattern; [the form of the items]; (the form
# of what is not null,); {key: form}, where other keys are ignored, a key that ends with "?" may be
# missing, and the key `str` stands for all keys.
HEX, NUMBER, SECTIONS = "[0-9a-f]{64}", "0|[1-9][0-9]*", ("sd.manifest", "sd.tables", "sd.data")
VERSION, PROFILE = rf"({NUMBER})\.({NUMBER})", "[a-z0-9-]{1,32}"
SECTION: Any = {"dtype": "U8", "shape": [int], "data_offsets": [int]}
HEADER: Any = dict.fromkeys(("sd.base", "sd.target", "sd.content", "sd.manifest"), HEX)
HEADER |= {"sd.profile": PROFILE, "sd.invertible": "true|false"}
HEADER |= {"sd.nnz": NUMBER, "sd.manifest_size": NUMBER}
SET_HEADER = {"sd.set_id": HEX, "sd.part": NUMBER}


def fits(value: Any, form: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a JSON value has a form."""
    if isinstance(form, tuple):
        return value is None or fits(value, form[0])
    if isinstance(form, str):
        return isinstance(value, str) and re.fullmatch(form, value) is not None
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if not isinstance(form, dict):
        return form is object or type(value) is form  # exactly: a bool is no int
    if str in form:
        return isinstance(value, dict) and all(fits(item, form[str]) for item in value.values())
    return isinstance(value, dict) and all(
        fits(value[key.rstrip("?")], kind) if key.rstrip("?") in value else key[-1] == "?"
        for key, kind in form.items()
    )


def known(value: Any, form: Any) -> Any:  # noqa: ANN401 - JSON
    """A JSON value that has a form, without the keys that the form does not have."""
    if isinstance(form, tuple):
        return value and known(value, form[0])
    if isinstance(form, list):
        return [known(item, form[0]) for item in value]
    if isinstance(form, dict) and str not in form:
        return {key: known(value[key], kind) for key, kind in form.items()}
    return value


def read_header(data: bytes) -> tuple[dict[str, str], list[bytes]]:
    """Check SD101 to SD107; return the metadata and the bytes of the three tensors."""
    n = int.from_bytes(data[:8], "little")
    whole = len(data) >= 8 + n  # 8 bytes at least, since n is not negative
    need("SD101", n <= MAX_HEADER and n % 8 == 0 and whole, "no whole header")
    padded, body = data[8 : 8 + n], data[8 + n :]
    header = parse(padded.rstrip(b" "), "SD102", "SD103")
    need("SD103", len(padded) - len(padded.rstrip(b" ")) <= PADDING, "more than 7 spaces")
    meta = header.get("__metadata__")
    need("SD104", fits(meta, {str: str}), "__metadata__ is missing or does not map to strings")
    need("SD104", meta.get("format") == "sparsedelta", "not the metadata of a delta")
    version = re.fullmatch(VERSION, meta.get("sd.version", ""))
    need("SD105", version and version[1] == "1", f"version {meta.get('sd.version')}")
    for key, form in HEADER.items():
        need("SD106", fits(meta.get(key), form), f"{key} is {meta.get(key)}")
    of_set = not SET_HEADER.keys().isdisjoint(meta)
    for key, form in SET_HEADER.items():
        need("SD106", not of_set or fits(meta.get(key), form), f"{key} is {meta.get(key)}")
    need("SD107", header.keys() == {"__metadata__", *SECTIONS}, "not exactly the three tensors")
    ends = [0]
    for name in SECTIONS:
        info = header[name]
        need("SD107", fits(info, SECTION) and info.keys() == SECTION.keys(), f"form of {name}")
        ends.append(info["data_offsets"][1] if len(info["data_offsets"]) > 1 else -1)
        need("SD107", info["data_offsets"] == ends[-2:], f"{name} does not follow its predecessor")
        need("SD107", info["shape"] == [ends[-1] - ends[-2]], f"the shape of {name}")
    need("SD107", ends[-1] == len(body), "the tensors do not end with the file")
    return meta, [body[start:end] for start, end in pairwise(ends)]
