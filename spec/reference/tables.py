"""The tables: digests of tensors, and the block tables (3.4, SD301 to SD308)."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from block_codecs import INDEX_STREAMS, Coded, lengths_fit
from operations import Plan
from terms import DENSE_OPS, End, b3, fingerprint_of, need, tensor_digest


@dataclass
class File:
    """One file of a delta: its metadata, manifest and records, and the bytes of its tensors."""

    meta: dict[str, str]
    manifest: Any
    plans: list[Plan]
    tables: bytes
    data: bytes
    leaves: list[bytes] = field(default_factory=list)  # the digests of the untouched tensors


def length_of(file: File) -> int:
    """The length of the tables."""
    length = 32 * len(file.manifest["untouched"])
    for plan in file.plans:
        length += 32 * sum(end.segments for end in (plan.base, plan.target) if end)
        for part in plan.parts:
            if isinstance(part, Coded):
                length += part.blocks * part.row.itemsize
            else:
                length += 32 * copied(plan, part.op, part.of).segments
    return length


def copied(plan: Plan, op: str, of: str) -> End:
    """The tensor in the `from` or `to` of a part, which is like that of the record; else none."""
    end = plan.target if op == "new" else plan.base
    return end if of and end else End("U8", (0,))


def read_tables(file: File) -> None:
    """Check SD301 to SD305; fill in the digests and rows."""
    tables = file.tables
    need("SD301", len(tables) == length_of(file), f"tables of {len(tables)} bytes")
    need("SD302", b3(tables).hex() == file.manifest["tables"], "the digest of the tables")
    take = io.BytesIO(tables).read

    def digests(end: End | None) -> list[bytes]:
        return [take(32) for _ in range(end.segments if end else 0)]

    file.leaves = [take(32) for _ in file.manifest["untouched"]]
    for plan in file.plans:
        plan.base_segments, plan.target_segments = digests(plan.base), digests(plan.target)
        for part in plan.parts:
            plan.others.append([])
            if isinstance(part, Coded):
                part.rows = np.frombuffer(take(part.blocks * part.row.itemsize), part.row)
            else:
                plan.others[-1] = digests(copied(plan, part.op, part.of))
    flat = [part for plan in file.plans for part in plan.coded]
    for part in flat:
        counts, sizes = part.rows["count"].astype(np.int64), part.sizes()
        exact = part.op in DENSE_OPS
        ok = (counts == sizes).all() if exact else (counts <= sizes).all()
        need("SD303", ok, "more entries in a block than words, or fewer of a dense op")
        need("SD303", counts.sum() == part.nnz, "the counts do not add up to nnz")
    for part in flat:
        check_lengths(part)
    for part in flat:
        total = part.rows["streams"]["encoded"].sum(dtype=np.int64)
        need("SD305", total == part.bytes, "the encoded lengths do not add up to bytes")
    total = sum(part.bytes for part in flat) + sum(blob["bytes"] for blob in file.manifest["blobs"])
    need("SD305", total == len(file.data), "parts and blobs do not add up to the data")


def check_lengths(part: Coded) -> None:
    """Check SD304 for one part."""
    counts, streams = part.rows["count"].astype(np.int64), part.rows["streams"]
    encoded, decoded = (streams[key].astype(np.int64) for key in ("encoded", "decoded"))
    need("SD304", (encoded <= decoded).all(), "encoded above decoded")
    first = INDEX_STREAMS[part.index]  # the first stream of the value codec
    stored = [0] if part.index == "raw" else []
    stored += [first] if part.value == "raw" else []
    need("SD304", (encoded[:, stored] == decoded[:, stored]).all(), "a raw stream is compressed")
    need("SD304", lengths_fit(part, counts, part.sizes(), decoded), "a decoded length")


# --- The tensors of both ends ---

Leaves = dict[str, bytes]


def leaf(end: End, segments: list[bytes]) -> bytes:
    """The tensor digest of one end."""
    return tensor_digest(end.dtype, end.shape, segments)


def ends_of(files: list[File]) -> tuple[Leaves, Leaves]:
    """The tensor digests of base and target, as far as the tables tell."""
    base: Leaves = {}
    for file in files:
        base |= zip(file.manifest["untouched"], file.leaves, strict=True)
    target = dict(base)
    for plan in (plan for file in files for plan in file.plans):
        if plan.base:
            base[plan.base_name] = leaf(plan.base, plan.base_segments)
        if plan.target:
            target[plan.name] = leaf(plan.target, plan.target_segments)
    return base, target


def check_ends(manifest: Any, base: Leaves, target: Leaves) -> None:  # noqa: ANN401 - JSON
    """Check SD306."""
    need("SD306", fingerprint_of(base.items()) == manifest["base"], "the fingerprint of the base")
    need("SD306", fingerprint_of(target.items()) == manifest["target"], "that of the target")


def check_changes(plan: Plan) -> None:
    """Check SD307 for one record."""
    ops = [part.op for part in plan.parts]
    drop = ops.index("drop") if "drop" in ops else None
    if plan.base and plan.target and drop is not None:
        same = leaf(plan.base, plan.base_segments) == leaf(plan.target, plan.target_segments)
        need("SD307", not same, f"{plan.name} is replaced by itself")
    elif plan.base and plan.base == plan.target:
        same = plan.base_segments == plan.target_segments
        need("SD307", same == (not ops), f"{plan.name} changes, or not, against its parts")
    for place, (part, other) in enumerate(zip(plan.parts, plan.others, strict=True)):
        if isinstance(part, Coded) or not part.of:
            continue
        if part.op == "new":
            changed, same = place + 1 < len(ops), other == plan.target_segments
        else:
            changed, same = place > 0, other == plan.base_segments
        need("SD307", same != changed, f"{plan.name} and {part.of}, against the parts")


def check_copies(plans: list[Plan], base: Leaves, target: Leaves, *, alone: str) -> None:
    """Check SD308.

    Args:
        plans: All records.
        base: The known tensors of the base.
        target: The known tensors of the target.
        alone: Why a tensor may be there that is not known: "lean", "part", or nothing.
    """
    names, base_names = ({getattr(plan, key) for plan in plans} for key in ("name", "base_name"))
    for plan in plans:
        for part, other in zip(plan.parts, plan.others, strict=True):
            if isinstance(part, Coded) or not part.of:
                continue
            known = (base if part.op == "new" else target).get(part.of)
            # What a lean delta does not know is untouched, and then no record has its name. Of a
            # part file alone the other end of a record may have it: a swap, half of it elsewhere.
            own = base_names if part.op == "new" else names
            taken = names | base_names if alone == "lean" else own
            missing = alone and part.of not in taken
            need("SD308", known or missing, f"there is no {part.of} for {plan.name}")
            same = known is None or known == leaf(copied(plan, part.op, part.of), other)
            need("SD308", same, f"{part.of} is not what {plan.name} says")
