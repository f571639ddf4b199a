"""The files of an end: the headers of a layout, and files byte for byte (3.6, SD415)."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from encoding import canonical, strict
from header import fits
from operations import Plan
from terms import BITS, End, Tensors, need

INFO: Any = {"dtype": str, "shape": [int], "data_offsets": [int]}


def read_weights_header(blob: bytes, name: str) -> dict[str, End]:
    """The tensors of a checkpoint file in the order of their bytes; the header has to be strict."""
    length = int.from_bytes(blob[:8], "little")
    need("SD415", len(blob) == 8 + length and blob[8:9] == b"{", f"no header of {name}")
    header, _ = strict(blob[8:], "SD415", "SD415")
    lone = any("\ud800" <= char <= "\udfff" for char in canonical(header))
    need("SD415", not lone, f"a lone surrogate in {name}")
    meta = header.pop("__metadata__", {})
    need("SD415", fits(meta, {str: str}), f"__metadata__ of {name}")
    places: list[tuple[int, int, str]] = []
    found: dict[str, End] = {}
    for key, info in header.items():
        ok = fits(info, INFO) and info.keys() == INFO.keys() and info["dtype"] in BITS
        need("SD415", ok and len(info["data_offsets"]) == 2, f"{key!r} of {name}")  # noqa: PLR2004
        dtype, shape, (start, end) = info["dtype"], info["shape"], info["data_offsets"]
        bits = math.prod(shape) * BITS[dtype]
        ok = min([0, *shape]) == 0 and start >= 0 and 8 * (end - start) == bits
        need("SD415", ok, f"the size of {key!r} of {name}")
        places.append((start, end, key))
        found[key] = End(dtype, tuple(shape))
    places.sort()
    ends = [0, *(end for _, end, _ in places)]
    touching = all(start == end for (start, _, _), end in zip(places, ends, strict=False))
    need("SD415", touching, f"a gap or overlap in {name}")
    return {key: found[key] for _, _, key in places}


def check_layout(manifest: Any, blobs: list[bytes], plans: list[Plan]) -> None:  # noqa: ANN401
    """Check SD415."""
    for side in ("base", "target"):
        layout = (manifest["layout"] or {}).get(side)
        if layout is None:
            continue
        found: dict[str, End] = {}
        for file in layout["files"]:
            tensors = read_weights_header(blobs[file["header"]], file["name"])
            need("SD415", found.keys().isdisjoint(tensors), f"a tensor in two files of the {side}")
            found |= tensors
        if side == "base":
            touched = {plan.base_name: plan.base for plan in plans if plan.base}
        else:
            touched = {plan.name: plan.target for plan in plans if plan.target}
        same = {name: found.get(name) for name in touched} == touched
        need("SD415", same, f"a tensor of the {side} is missing or another")
        rest = found.keys() - touched.keys()
        if manifest["lean"]:  # the rest are the untouched, and of those no record has a name
            names = {name for plan in plans for name in (plan.name, plan.base_name)}
            need("SD415", rest.isdisjoint(names), f"a tensor that the {side} does not have")
        else:
            need("SD415", rest == set(manifest["untouched"]), f"not the tensors of the {side}")


def weights(layout: Any, blobs: list[bytes], tensors: Tensors) -> dict[str, bytes]:  # noqa: ANN401
    """The files of an end, by name, from what the layout says of it and from its tensors."""
    files: dict[str, bytes] = {}
    total = 0
    for file in layout["files"]:
        header = blobs[file["header"]]
        body = []
        for name, end in read_weights_header(header, file["name"]).items():
            dtype, shape, data = tensors.get(name, ("", (), b""))
            need("SD415", (dtype, shape) == (end.dtype, end.shape), f"{name} is another tensor")
            body.append(data)
        total += len(body)
        files[file["name"]] = header + b"".join(body)
        digest = hashlib.sha256(files[file["name"]]).hexdigest()
        need("SD502", file["sha256"] in (None, digest), f"{file['name']} has another SHA-256")
    need("SD415", total == len(tensors), "a tensor that is in no file")
    if layout["index"] is not None:
        files[layout["index"]["name"]] = blobs[layout["index"]["blob"]]
    return files
