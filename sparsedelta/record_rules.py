"""What one record of a manifest has to fulfil: rules SD208 to SD211 (spec section 5)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

from sparsedelta.codecs import INDEX_CODECS, VALUE_CODECS, Encoding
from sparsedelta.delta import (
    ADD,
    DENSE_OPS,
    DIFFERENCE,
    DROP,
    NEW,
    OPS,
    REPLACE,
    RESIZE,
    parts_away,
)
from sparsedelta.errors import UPGRADE, FormatError, UnsupportedError
from sparsedelta.limits import MAX_BLOCK_LOG2, MIN_BLOCK_LOG2
from sparsedelta.records import BarePart, PartRecord, TensorRecord
from sparsedelta.strict_json import Json
from sparsedelta.words import TensorSpec

FLOATS: Final = ("F16", "BF16", "F32", "F64")
"""Dtypes that ``add`` computes with."""

_CHANGES: Final = ((), (DIFFERENCE,), (REPLACE,), (DIFFERENCE, REPLACE))


def parse_ends(document: Json) -> tuple[TensorSpec | None, TensorSpec | None]:
    """Base and target tensor of a record that has passed SD204 and SD207.

    Raises:
        FormatError: SD208.
    """
    names = {"base": document["from"] or document["name"], "target": document["name"]}
    if document["from"] is None and document["base"] == document["target"]:
        names.pop("base")  # most tensors only change: one check for both ends
    ends = {}
    for end, name in names.items():
        found = document[end]
        try:
            ends[end] = found and TensorSpec(name, found["dtype"], tuple(found["shape"]))
        except ValueError as error:
            raise FormatError("SD208", f"tensor {name!r}, {end}: {error}") from None
    return ends.get("base", ends["target"]), ends["target"]


def check_sequence(document: Json, base: TensorSpec | None, target: TensorSpec | None) -> None:
    """Rule SD209: ops are known, and ends and parts are one of the sequences of section 5.

    Raises:
        FormatError: They are not.
        UnsupportedError: An op that this release does not know.
    """
    name, parts = document["name"], document["parts"]
    ops = [part["op"] for part in parts]
    unknown = sorted(set(ops) - set(OPS))
    if unknown:
        raise UnsupportedError(
            "SD209",
            f"tensor {name!r}: unknown operations {unknown}, this release knows {OPS}",
            hint=UPGRADE,
        )
    problem = _sequence_problem(parts, ops, base, target, renamed=document["from"] is not None)
    if problem:
        raise FormatError("SD209", f"tensor {name!r}: {problem}")


def _sequence_problem(
    parts: Sequence[Json],
    ops: Sequence[str],
    base: TensorSpec | None,
    target: TensorSpec | None,
    *,
    renamed: bool,
) -> str | None:
    for part in parts:
        problem = _part_problem(part)
        if problem:
            return f"{part['op']}: {problem}"
    split = parts_away(ops)
    away, made = parts[:split], parts[split:]
    if split or NEW in ops:
        fits = (base is not None) == bool(away) and (target is not None) == bool(made)
        if not fits or renamed or not _is_away(away) or not _is_made(made):
            return f"parts {ops} do not fit a tensor that is {_ends(base, target)}" + (
                " under two names" if renamed else ""
            )
        return None
    if base is None or target is None:
        return f"parts {ops} do not fit a tensor that is {_ends(base, target)}"
    if ops[:1] == [RESIZE]:
        return _resize_problem(parts, base, target)
    return _change_problem(tuple(ops), base, target, renamed=renamed)


def _ends(base: TensorSpec | None, target: TensorSpec | None) -> str:
    if base is None:
        return "in the target only" if target is not None else "at neither end"
    return "in the base only" if target is None else "at both ends"


def _is_away(parts: Sequence[Json]) -> bool:
    ops = [part["op"] for part in parts]
    return not parts or ops == [DROP] or (ops == [DIFFERENCE, DROP] and "to" in parts[1])


def _is_made(parts: Sequence[Json]) -> bool:
    if not parts:
        return True
    changes = tuple(part["op"] for part in parts[1:])
    return parts[0]["op"] == NEW and changes in (_CHANGES if "from" in parts[0] else ((),))


def _resize_problem(parts: Sequence[Json], base: TensorSpec, target: TensorSpec) -> str | None:
    ops = tuple(part["op"] for part in parts)
    if ops[1:] not in _CHANGES:
        return f"parts {ops} may not come together"
    rows = (base.dtype, base.shape[1:]) == (target.dtype, target.shape[1:])
    if not base.shape or not target.shape or not rows or base.shape == target.shape:
        return f"resize from {base} to {target}: only the first dimension may change"
    if "nnz" not in parts[0] and base.words <= target.words:
        return "a resize that grows or changes no word carries its words"
    return None


def _change_problem(
    ops: tuple[str, ...], base: TensorSpec, target: TensorSpec, *, renamed: bool
) -> str | None:
    if (base.dtype, base.shape) != (target.dtype, target.shape):
        return f"parts {ops} do not lead from {base} to {target}"
    if ops == (ADD,):
        return None if base.dtype in FLOATS else f"add to {base.dtype}, expected one of {FLOATS}"
    if ops not in _CHANGES or not (ops or renamed):
        return f"parts {ops} may not come together"
    return None


def _part_problem(part: Json) -> str | None:
    op, is_coded = part["op"], "nnz" in part
    wanted = set()
    if op == ADD:
        wanted = {"dtype", "scale"}
    elif not is_coded and op == NEW:
        wanted = {"from"}
    elif not is_coded and op == DROP and "to" in part:
        wanted = {"to"}
    found = {"dtype", "scale", "from", "to"}.intersection(part)
    if found != wanted:
        return f"has the keys {sorted(found)}, expected {sorted(wanted)}"
    if not is_coded and op not in DENSE_OPS:
        return "carries no entries"
    if op == ADD and part["dtype"] not in FLOATS:
        return f"values of {part['dtype']!r:.40}, expected one of {FLOATS}"
    if op == ADD and not math.isfinite(_scale(part)):
        return "the scale is not finite"
    return None


def _scale(part: Json) -> float:
    (scale,) = struct.unpack(">d", bytes.fromhex(part["scale"]))
    return float(scale)


def parse_part(part: Json, name: str) -> PartRecord | BarePart:
    """A part that has passed SD209.

    Raises:
        FormatError: SD210.
        UnsupportedError: A codec that this release does not know.
    """
    if "nnz" not in part:
        return BarePart(part["op"], part.get("from", part.get("to")))
    for key, codecs in (("index", INDEX_CODECS), ("value", VALUE_CODECS)):
        if part[key]["id"] not in codecs:
            raise UnsupportedError(
                "SD210",
                f"tensor {name!r}: unknown {key} codec {part[key]['id']!r}, this release knows "
                f"{sorted(codecs)}",
                hint=UPGRADE,
            )
    if not MIN_BLOCK_LOG2 <= part["block"] <= MAX_BLOCK_LOG2:
        raise FormatError(
            "SD210",
            f"tensor {name!r}: block {part['block']}, expected {MIN_BLOCK_LOG2} to "
            f"{MAX_BLOCK_LOG2}",
        )
    try:
        encoding = Encoding.from_json(part["op"], part["index"], part["value"])
    except ValueError as error:
        raise FormatError("SD210", f"tensor {name!r}: {error}") from None
    extra = (part["dtype"], _scale(part)) if part["op"] == ADD else ()
    return PartRecord(part["nnz"], part["block"], encoding, part["bytes"], *extra)


def check_dtypes(record: TensorRecord) -> None:
    """What rule SD210 says of codecs that look into words.

    Raises:
        FormatError: It is broken.
    """
    for number, part in record.coded:
        dtype = record.changed(number).dtype
        if not part.encoding.holds(dtype):
            raise FormatError(
                "SD210", f"tensor {record.name!r}: {part.encoding.describe()} cannot hold {dtype}"
            )


def count_problem(record: TensorRecord) -> str | None:
    """What of rule SD211 a record breaks by itself, or None."""
    sparse: dict[int, int] = {}
    for number, part in record.coded:
        domain = record.domain(number)
        if part.op in DENSE_OPS:
            if part.nnz != domain:
                return f"{part.op} carries {part.nnz} words, expected {domain}"
            continue
        side = int(number >= record.split)
        sparse[side] = sparse.get(side, 0) + part.nnz
        if not part.nnz or sparse[side] > domain:
            return (
                f"{part.op} of {part.nnz} entries, expected at least 1, and at most {domain} with "
                "those before"
            )
    return None
