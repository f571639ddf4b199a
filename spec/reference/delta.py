"""A delta on checkpoints: apply and revert, with the exact rounding of `add` (5, 7, SD501 to 505).

Also what lies beside the tensors: the files of a layout, and carried files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from layout import weights
from streams import check_disjoint, with_base
from tables import Leaves
from terms import (
    Array,
    End,
    Part,
    Record,
    Tensors,
    content_digest,
    fingerprint_of,
    need,
    tensor_digests,
    word_bytes,
)

# Of each float dtype: bits of the fraction, the least exponent of a normal number, the greatest.
FORMATS = {"F16": (10, -14, 15), "BF16": (7, -126, 127), "F32": (23, -126, 127)}
NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class Decoded:
    """A delta all of whose rules have been checked.

    Attributes:
        base: Fingerprint of the base.
        target: Fingerprint of the target.
        content: The content digest.
        invertible: Whether it can be reverted.
        nnz: Entries of all `difference`, `replace` and `add` parts.
        lean: Whether the untouched tensors are left out.
        records: The records of all files, by name.
        untouched: The names of the untouched tensors.
        base_leaves: The tensor digests of the base, as far as the delta knows them.
        target_leaves: Those of the target.
        layout: `layout` of the manifest.
        files: `files` of the manifest.
        blobs: The content of the blobs.
        place: `set` of the manifest.
    """

    base: str
    target: str
    content: str
    invertible: bool
    nnz: int
    lean: bool
    records: tuple[Record, ...]
    untouched: tuple[str, ...]
    base_leaves: Leaves
    target_leaves: Leaves
    layout: Any
    files: Any
    blobs: tuple[bytes, ...]
    place: Any


# --- The arithmetic of `add` ---


def numbers(dtype: str, words: Array) -> Array:
    """Words of a float dtype as float64, which holds all of them exactly."""
    if dtype == "BF16":  # the upper half of a float32
        return (words.astype("<u4") << 16).view("<f4").astype(np.float64)
    return words.view(NUMPY[dtype]).astype(np.float64)


def rounded(dtype: str, values: Array) -> Array:
    """Finite float64 rounded once to a float dtype, ties to even, as words."""
    if dtype == "F64":
        return cast("Array", values.view("<u8"))
    fraction, least, greatest = FORMATS[dtype]
    exponent = np.maximum(np.frexp(values)[1] - 1, least)  # that of a subnormal is the least
    step = np.ldexp(1.0, exponent - fraction)  # between neighbours; a power of two, so that
    value = np.rint(values / step) * step  # division and product are exact, and rint is to even
    value = np.where(np.abs(value) < 2.0 ** (greatest + 1), value, np.copysign(np.inf, value))
    if dtype == "BF16":  # exact from here on
        return cast("Array", (value.astype("<f4").view("<u4") >> 16).astype("<u2"))
    return cast("Array", value.astype(NUMPY[dtype]).view(f"<u{word_bytes(dtype)}"))


def added(dtype: str, old: Array, part: Part) -> Array:
    """The words that an `add` leads to."""
    (scale,) = struct.unpack("<d", struct.pack("<Q", part.scale))
    w, v = numbers(dtype, old), numbers(part.dtype, cast("Array", part.words))
    with np.errstate(all="ignore"):  # what is not finite is refused below
        p = scale * v
        s = w + p
        finite = np.isfinite(w) & np.isfinite(v) & np.isfinite(p) & np.isfinite(s)
        need("SD505", finite.all(), "a number is not finite")
        new = rounded(dtype, s)
    need("SD505", np.isfinite(numbers(dtype, new)).all(), "a result is not finite")
    return new


# --- Records ---


def step(part: Part, end: End, words: Array, start: dict[str, Array], *, back: bool) -> Array:
    """The words of a tensor after one part, or before it.

    Args:
        part: The part.
        end: The tensor that the record leads to (`back`: from which it comes).
        words: The words so far.
        start: The words of all tensors of the checkpoint.
        back: Whether the inverse is wanted.
    """
    if part.op in ("new", "drop"):
        if (part.op == "new") == back:  # the tensor goes
            return words[:0]
        if part.words is None:  # a lean delta may copy from nowhere
            need("SD308", part.of in start, f"no tensor {part.of!r} to copy from")
            return start[part.of].copy()
        return part.words.copy()
    if part.op == "resize":
        grown = words[: end.words]
        return grown if len(grown) == end.words else np.concatenate([words, _carried(part)])
    out, values = words.copy(), _carried(part)
    old = words[part.indices]
    if part.op == "difference":
        out[part.indices] = old - values if back else old + values
    elif part.op == "replace":
        out[part.indices] = values
    else:
        out[part.indices] = added(end.dtype, old, part)
    return out


def _carried(part: Part) -> Array:
    if part.words is None:
        raise ValueError(part.op)
    return part.words


def lead(record: Record, start: dict[str, Array], *, back: bool) -> Array:
    """The words of the tensor to which a record leads from a checkpoint."""
    here, there = (record.target, record.base) if back else (record.base, record.target)
    name = record.name if back else record.base_name
    words = start[name] if here else np.empty(0, np.uint8)
    for part in reversed(record.parts) if back else record.parts:
        # The parts up to a `drop` are of the base tensor, all others of the target tensor.
        words = step(part, there or cast("End", here), words, start, back=back)
    return words


def apply(tensors: Tensors, delta: Decoded, *, back: bool = False) -> Tensors:
    """Lead a checkpoint from base to target, or back; unchanged if it is already there."""
    need("SD503", delta.invertible or not back, "a delta that forgets words has no inverse")
    start, goal = (delta.target, delta.base) if back else (delta.base, delta.target)
    leaves = tensor_digests(tensors)
    found = fingerprint_of(leaves.items())
    if found == goal:
        return dict(tensors)
    known = delta.target_leaves if back else delta.base_leaves
    odd = [name for name in sorted(known.keys() | leaves) if known.get(name) != leaves.get(name)]
    need("SD501", found == start, f"the checkpoint is {found}, not {start}; first: {odd[:1]}")
    gone = {
        (r.name if back else r.base_name) for r in delta.records if (r.target if back else r.base)
    }
    result = {name: tensor for name, tensor in tensors.items() if name not in gone}
    if delta.lean:
        check_lean(delta, {name: leaves[name] for name in result})
    words = words_of(tensors)
    delta = delta if back else resolved(delta, words)
    for record in delta.records:
        end = record.base if back else record.target
        if end:
            data = lead(record, words, back=back).tobytes()
            result[record.base_name if back else record.name] = end.dtype, end.shape, data
    need("SD502", fingerprint_of(tensor_digests(result).items()) == goal, "another checkpoint")
    return result


def words_of(tensors: Tensors) -> dict[str, Array]:
    """The words of all tensors."""
    return {k: np.frombuffer(b, f"<u{word_bytes(d)}") for k, (d, _, b) in tensors.items()}


def resolved(delta: Decoded, base: dict[str, Array]) -> Decoded:
    """A delta whose `ranked` parts have their entries: SD418, SD409 and SD410, with the base.

    Args:
        delta: The delta.
        base: The words of all tensors of the base, whose digests have been checked.
    """
    if not any(part.waiting for record in delta.records for part in record.parts):
        return delta
    records = []
    for record in delta.records:
        parts: list[Part] = []
        source = record.base_name
        for part in record.parts:
            source = part.of if part.op == "new" else source  # what follows applies to the copy
            parts.append(with_base(part, base[source]) if part.waiting else part)
        records.append(replace(record, parts=tuple(parts)))
    for found in records:
        check_disjoint(found)
    content = content_digest(delta.base, delta.target, records)
    need("SD410", content == delta.content, "the content digest")
    return replace(delta, records=tuple(records))


def check_lean(delta: Decoded, untouched: Leaves) -> None:
    """Check what SD306 asks for, with the untouched tensors of a checkpoint."""
    for known, end in ((delta.base_leaves, delta.base), (delta.target_leaves, delta.target)):
        ok = known.keys().isdisjoint(untouched)
        ok = ok and fingerprint_of((known | untouched).items()) == end
        need("SD306", ok, "a fingerprint does not follow from tables and checkpoint")


def revert(tensors: Tensors, delta: Decoded) -> Tensors:
    """Lead a checkpoint from target to base."""
    return apply(tensors, delta, back=True)


# --- Files ---


def files_of(tensors: Tensors, delta: Decoded, *, back: bool = False) -> dict[str, bytes] | None:
    """The files of the target (`back`: the base), from its tensors; `None` if not recorded."""
    side = (delta.layout or {}).get("base" if back else "target")
    return None if side is None else weights(side, list(delta.blobs), tensors)


def carried(delta: Decoded, *, back: bool = False) -> dict[str, bytes | None]:
    """The carried files to be written; `None` stands for a file that is to be left out.

    A file of the base whose content is not carried is in neither group.
    """
    found: dict[str, bytes | None] = {}
    for file in delta.files:
        end = file["base" if back else "target"]
        if end is None or end["blob"] is not None:
            found[file["name"]] = None if end is None else delta.blobs[end["blob"]]
    return found
