"""Valid vectors as files, and what a reader finds in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from terms import b3
from vector_encoder import build, end_of, identity
from vector_records import DENSE, P, R, X, no_inverse

LISTED, HEX_MAX, MAX_PERIOD = 64, 64, 16


@dataclass
class Vector:
    """A valid vector.

    Attributes:
        name: Its name.
        files: Path below `valid/` and bytes.
        expected: The content of its expected.json.
    """

    name: str
    files: dict[str, bytes]
    expected: dict[str, Any] = field(default_factory=dict)


def recipe(data: bytes) -> dict[str, Any]:
    """Bytes as hex, or as hex that is repeated some times."""
    for period in range(1, MAX_PERIOD + 1):
        times, rest = divmod(len(data), period)
        if len(data) > HEX_MAX and not rest and data == data[:period] * times:
            return {"repeat": data[:period].hex(), "times": times}
    return {"hex": data.hex()}


def tensors_of(ends: dict[str, X]) -> list[dict[str, Any]]:
    """Tensors with their bytes."""
    return [
        {"name": name, "dtype": x.dtype, "shape": x.shape, "bytes": recipe(x.data)}
        for name, x in sorted(ends.items())
    ]


def bases(records: list[R]) -> dict[str, X]:
    """The tensors of the base."""
    return {r.base_name: r.base for r in records if r.base}


def targets(records: list[R]) -> dict[str, X]:
    """The tensors of the target."""
    return {r.name: r.target for r in records if r.target}


def expected_part(r: R, number: int) -> dict[str, Any]:
    """A part as a reader finds it."""
    part: P = r.parts[number]
    out: dict[str, Any] = {"op": part.op}
    if part.bare:
        return part.bare_keys()
    if part.op == "add":
        out |= {"dtype": part.dtype, "scale": part.scale}
    entries, width = sorted(r.entries(number).items()), r.part_width(number)
    out["nnz"] = len(entries)
    if len(entries) <= LISTED:
        lists: dict[str, Any] = {"indices": [i for i, _ in entries]}
        lists |= {"words": [f"{v:0{2 * width}x}" for _, v in entries]}
    else:
        indices = b"".join(i.to_bytes(8, "little") for i, _ in entries)
        words = b"".join(v.to_bytes(width, "little") for _, v in entries)
        lists = {"indices_b3": b3(indices).hex(), "words_b3": b3(words).hex()}
    return out | {k: v for k, v in lists.items() if part.op not in DENSE or "words" in k}


def expected(
    records: list[R], *, lean: bool = False, claim: dict[str, str] | None = None
) -> dict[str, Any]:
    """What a reader finds in the delta of these tensors."""
    records = sorted(records, key=lambda r: r.name.encode())
    base, target, content = identity(records, claim)
    touched = [r for r in records if r.touched]
    return {
        "base": base,
        "target": target,
        "content": content,
        "invertible": not any(no_inverse(p) for r in touched for p in r.parts),
        "nnz": sum(r.nnz for r in touched),
        "lean": lean,
        "untouched": [r.name for r in records if not r.touched and not lean],
        "tensors": [
            {
                "name": r.name,
                "from": r.source,
                "base": end_of(r.base),
                "target": end_of(r.target),
                "parts": [expected_part(r, number) for number in range(len(r.parts))],
            }
            for r in touched
        ],
        "blobs": [],
        "layout": None,
        "files": [],
        "set": None,
    }


def both_ends(records: list[R]) -> dict[str, Any]:
    """The checkpoint to apply the delta to, and the one to which that leads."""
    return {
        "base_tensors": tensors_of(bases(records)),
        "target_tensors": {n: x.digest().hex() for n, x in sorted(targets(records).items())},
    }


def case(name: str, records: list[R], **how: Any) -> Vector:  # noqa: ANN401 - the options of build
    """A vector of one file."""
    out = expected(records, lean=how.get("lean", False)) | both_ends(records)
    out["blobs"] = [b3(blob).hex() for blob in how.get("blobs") or []]
    out |= {key: how[key] for key in ("layout", "files") if key in how}
    return Vector(name, {f"{name}.safetensors": build(records, **how)}, out)
