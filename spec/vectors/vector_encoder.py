"""A plain writer of deltas, whose every step passes through a named hook.

Through the hooks an invalid vector breaks one thing, and all digests and checksums above it are
computed over the broken thing: nothing else is wrong with the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from ranked_encoder import encode_ranked
from stream_encoder import encode_index, encode_value, shrink
from terms import Part, Record, b3, content_digest, fingerprint_of
from vector_records import DENSE, P, R, X, identity_of, no_inverse

Hook = Callable[..., Any]
Row = list[Any]


def canonical(value: object) -> bytes:
    """Canonical JSON (3.2)."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode()


# --- One part ---


def encode_part(r: R, number: int, hook: Hook) -> tuple[dict[str, Any], bytes, bytes]:
    """The part of the manifest, its share of the tables, and the frames."""
    part = r.parts[number]
    if part.bare:
        segments = part.copy.segments() if part.copy else []
        return part.bare_keys() | part.labels, b"".join(segments), b""
    n, size, table, data = r.domain(number), 2**part.block, b"", b""
    entries, width = sorted(r.entries(number).items()), r.part_width(number)
    for block in range(-(-n // size)):
        words = min(size, n - block * size)
        first = block * size
        inside = [(i - first, v) for i, v in entries if first <= i < first + words]
        k = part.ks[block % len(part.ks)]
        where = (r.name, number, block)
        if part.index == "ranked":
            old = r.applied_to(number)[first : first + words]
            pieces = encode_ranked(dict(inside), old, first, r.end(number).dtype, part.plan)
            streams = [b"".join(hook("pieces", pieces, *where).values())]
        else:
            streams = encode_block(part, inside, words, width, k)
        streams = hook("streams", streams, *where)
        frames = [shrink(s) if part.compress else s for s in streams]
        frames = hook("frames", frames, *where)
        row: Row = [len(inside)]
        row += [[len(f), len(s), b3(f)[:8]] for f, s in zip(frames, streams, strict=True)]
        row = hook("row", row, *where)
        table += struct.pack("<I", row[0]) + b"".join(struct.pack("<II8s", *s) for s in row[1:])
        data += b"".join(frames)
    record = {"op": part.op, "nnz": len(entries), "block": part.block, "bytes": len(data)}
    return record | part.codecs(), table, data


def encode_block(
    part: P, inside: list[tuple[int, int]], words: int, width: int, k: int = 0
) -> list[bytes]:
    """The streams of a block of so many words, from its (index, value) pairs."""
    places, values, known = [i for i, _ in inside], [v for _, v in inside], dict(inside)
    if inside and part.index == "dense":
        values = [known.get(i, 0) for i in range(words)]
    if inside and part.index == "range":
        values = [known.get(i, 0) for i in range(places[0], places[-1] + 1)]
    streams = encode_index(part.index, places, words, k)
    return streams + encode_value(part.value, values, width, part.width)


# --- The whole ---


def decoded(records: list[R]) -> list[Record]:
    """The records as a reader sees them."""
    found = []
    for r in records:
        parts = []
        for number, part in enumerate(r.parts):
            if part.bare:
                parts.append(Part(part.op, np.empty(0, "<u8"), None, part.of))
                continue
            entries = sorted(r.entries(number).items())
            indices = [] if part.op in DENSE else [i for i, _ in entries]
            words = np.array([v for _, v in entries], f"<u{r.part_width(number)}")
            scale = int(part.scale or "0", 16)
            parts.append(Part(part.op, np.array(indices, "<u8"), words, "", part.dtype, scale))
        ends = (identity_of(r.base), identity_of(r.target))
        found.append(Record(r.name, r.source, *ends, tuple(parts)))
    return found


def identity(records: list[R], claim: dict[str, str] | None = None) -> tuple[str, str, str]:
    """Base and target fingerprint, unless others are claimed, and the content digest."""
    base = fingerprint_of([(r.base_name, r.base.digest()) for r in records if r.base])
    target = fingerprint_of([(r.name, r.target.digest()) for r in records if r.target])
    base, target = (claim or {}).get("base", base), (claim or {}).get("target", target)
    return base, target, content_digest(base, target, decoded([r for r in records if r.touched]))


def uses_ranked(records: list[R]) -> bool:
    """Whether a reader of 1.0 cannot read the delta."""
    return any(part.index == "ranked" for r in records for part in r.parts)


def encode_blobs(
    blobs: list[bytes], hook: Hook, *, compress: bool
) -> tuple[list[dict[str, Any]], bytes]:
    """The blobs of the manifest, and their frames."""
    listed, data = [], b""
    for k, blob in enumerate(blobs):
        frame = hook("blob_frame", shrink(blob) if compress else blob, k)
        listed.append({"bytes": len(frame), "size": len(blob), "digest": b3(frame).hex()})
        data += frame
    return listed, data


def end_of(x: X | None) -> dict[str, Any] | None:
    """An end in the manifest."""
    return x and {"dtype": x.dtype, "shape": x.shape}


def build(
    records: list[R],
    *,
    blobs: list[bytes] | None = None,
    layout: Any = None,  # noqa: ANN401 - JSON
    files: list[Any] | None = None,
    place: dict[str, Any] | None = None,
    lean: bool = False,
    version: str = "",
    profile: str = "",
    metadata: dict[str, str] | None = None,
    extra: dict[str, str] | None = None,
    shrink_manifest: bool = False,
    ordered: bool = True,
    claim: dict[str, str] | None = None,
    **hooks: Hook,
) -> bytes:
    """A delta file, with hooks for what is to be broken.

    `place` is `set` of the manifest: a root (part 0) gets the facts of all records, and none of
    them.
    """

    def hook(name: str, value: Any, *where: Any) -> Any:  # noqa: ANN401 - JSON
        return hooks[name](value, *where) if name in hooks else value

    if ordered:
        records = sorted(records, key=lambda r: r.name.encode())
    base, target, content = identity(records, claim)
    touched = [r for r in records if r.touched]
    untouched = [r for r in records if not r.touched and not lean]
    tables, data = b"".join(r.base.digest() for r in untouched if r.base), b""
    written: list[dict[str, Any]] = []
    for r in [] if place and place["part"] == 0 else touched:
        tables += b"".join(s for end in (r.base, r.target) if end for s in end.segments())
        parts: list[dict[str, Any]] = []
        for number in range(len(r.parts)):
            record, table, frames = encode_part(r, number, hook)
            parts, tables, data = [*parts, record], tables + table, data + frames
        ends = {"base": end_of(r.base), "target": end_of(r.target)}
        written.append({"name": r.name, "from": r.source, "parts": parts} | ends)
    listed, frames = encode_blobs(blobs or [], hook, compress=shrink_manifest)
    tables, data = hook("tables", tables), hook("data", data + frames)
    manifest: dict[str, Any] = {"base": base, "target": target, "content": content}
    compact = uses_ranked(records)
    manifest |= {"version": version or ("1.1" if compact else "1.0"), "lean": lean, "set": place}
    manifest |= {"profile": profile or ("compact" if compact else "portable")}
    manifest |= {"must_understand": ["ranked@1.1"] * compact, "metadata": metadata or {}}
    manifest |= {"nnz": sum(r.nnz for r in touched), "blobs": listed, "layout": layout}
    manifest |= {"invertible": not any(no_inverse(p) for r in touched for p in r.parts)}
    manifest |= {"tables": b3(tables).hex(), "tensors": written, "files": files or []}
    manifest |= {"untouched": [r.name for r in untouched]}
    facts = hook("facts", manifest)  # changes in header and manifest
    return container(facts, tables, data, hook, extra or {}, shrink_manifest=shrink_manifest)


def container(
    facts: dict[str, Any],
    tables: bytes,
    data: bytes,
    hook: Hook,
    extra: dict[str, str],
    *,
    shrink_manifest: bool,
) -> bytes:
    """The file of a manifest, tables and data."""
    meta = {f"sd.{k}": facts[k] for k in ("base", "target", "content", "profile", "version")}
    meta |= {"sd.nnz": str(facts["nnz"]), "sd.invertible": str(facts["invertible"]).lower()}
    if facts["set"]:
        meta |= {"sd.set_id": facts["set"]["id"], "sd.part": str(facts["set"]["part"])}
    text = hook("manifest_text", canonical(hook("manifest", facts)))
    frame = hook("manifest_frame", shrink(text) if shrink_manifest else text)
    meta |= {"sd.manifest": b3(frame).hex(), "sd.manifest_size": str(len(text))}
    header: dict[str, Any] = {
        "__metadata__": hook("meta", meta | {"format": "sparsedelta"} | extra)
    }
    at = 0
    for name, body in (("sd.manifest", frame), ("sd.tables", tables), ("sd.data", data)):
        offsets = [at, at + len(body)]
        header[name] = {"dtype": "U8", "shape": [len(body)], "data_offsets": offsets}
        at = offsets[1]
    text = hook("header_text", canonical(hook("header", header)))
    text = hook("padded", text + b" " * (-len(text) % 8))
    whole = struct.pack("<Q", len(text)) + text + hook("body", frame + tables + data)
    return bytes(hook("file", whole))
