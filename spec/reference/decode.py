"""An independent reader of the sparsedelta format 1.1, to check other readers against.

It follows SPEC.md rule by rule and holds everything in memory: made to be read, not to be fast.
README.md lists the files beside this one in the order of reading; each imports only from those
before it.
`python decode.py FILE` prints the delta as JSON, or the first broken rule on stderr (exit 3). FILE
is a delta, the root of a set, or a part file alone.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from beside import check_files, read_contents
from delta import Decoded, apply, carried, files_of, resolved, revert, words_of
from files import merged, read_delta
from header import known
from layout import check_layout
from manifest import MANIFEST
from streams import read_streams
from tables import File, check_changes, check_copies, check_ends, ends_of, read_tables
from terms import Array, End, Part, Record, RuleError, b3, content_digest, fingerprint, need

__all__ = [
    "Decoded",
    "RuleError",
    "apply",
    "carried",
    "decode",
    "describe",
    "files_of",
    "fingerprint",
    "resolved",
    "revert",
    "words_of",
]

LISTED = 64
WORK = 2**31  # bytes; below the 2^36 of a streaming reader, since all of it is held in memory


def check_work(files: list[File], work: int) -> None:
    """Check SD504: what has to be decoded, 16 bytes for each entry, 8 for each ranked word."""
    cost = 0
    for file in files:
        cost += sum(blob["size"] for blob in file.manifest["blobs"])
        for part in (part for plan in file.plans for part in plan.coded):
            cost += int(part.rows["streams"]["decoded"].sum(dtype=np.int64)) + 16 * part.nnz
            if part.index == "ranked":  # the places of the elements are held until there is a base
                cost += 8 * int(part.sizes()[part.rows["count"] > 0].sum())
    need("SD504", cost <= work, "more work than allowed")


def decode(path: str | Path, work: int = WORK) -> Decoded:
    """Read a delta, checking every rule.

    Raises:
        RuleError: The first rule that is broken, or SD504 for more work than allowed.
    """
    files = read_delta(Path(path))
    root, plans = files[0].manifest, merged(files)
    for file in files:
        read_tables(file)
    base, target = ends_of(files)
    part_alone = root["set"] is not None and root["set"]["part"] > 0
    if not root["lean"] and not part_alone:
        check_ends(root, base, target)
    for plan in plans:
        check_changes(plan)
    check_copies(plans, base, target, alone="part" if part_alone else "lean" * root["lean"])
    check_work(files, work)
    records: list[Record] = []
    for file in files:
        stream = io.BytesIO(file.data)
        own = read_streams(file.plans, stream)
        records += own
        if file is files[0]:  # it alone may have blobs, and they come last
            blobs_at = stream.tell()
        if len(files) == 1 or file is not files[0]:
            check_content(file, own)
    records.sort(key=lambda record: record.name)
    check_content(files[0], records)
    blobs = read_contents(root, files[0].data[blobs_at:])
    check_layout(root, blobs, plans)
    check_files(root, blobs)
    facts = {key: root[key] for key in ("base", "target", "content", "invertible", "nnz", "lean")}
    return Decoded(
        **facts,
        records=tuple(records),
        untouched=tuple(root["untouched"]),
        base_leaves=base,
        target_leaves=target,
        layout=root["layout"],
        files=root["files"],
        blobs=tuple(blobs),
        place=root["set"],
    )


def check_content(file: File, records: list[Record]) -> None:
    """Check SD410, unless entries wait for the base."""
    if any(part.waiting for record in records for part in record.parts):
        return
    m = file.manifest
    content = content_digest(m["base"], m["target"], records)
    need("SD410", content == m["content"], "the content digest")


# --- JSON ---


def listed(array: Array, name: str, shown: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """An array as a list, or as its BLAKE3 if it is long."""
    if len(array) <= LISTED:
        return {name: [shown(item) for item in array.tolist()]}
    return {f"{name}_b3": b3(array.tobytes()).hex()}


def describe_part(part: Part) -> dict[str, Any]:
    """A part as the JSON of the expected.json files."""
    out: dict[str, Any] = {"op": part.op}
    if part.of:
        out["from" if part.op == "new" else "to"] = part.of
    if part.op == "add":
        out |= {"dtype": part.dtype, "scale": f"{part.scale:016x}"}
    if part.waiting:
        coded, _ = part.waiting
        return out | {"nnz": coded.nnz}
    if part.words is None:
        return out
    digits = 2 * part.words.itemsize
    out["nnz"] = len(part.words)
    if part.op not in ("new", "drop", "resize"):
        out |= listed(part.indices.astype("<u8"), "indices", int)
    return out | listed(part.words, "words", lambda word: f"{word:0{digits}x}")


def describe(delta: Decoded) -> dict[str, Any]:
    """A delta as the JSON of the expected.json files: long lists as their B3."""

    def end(end: End | None) -> dict[str, Any] | None:
        return None if end is None else {"dtype": end.dtype, "shape": [*end.shape]}

    keys = ("base", "target", "content", "invertible", "nnz", "lean")
    out: dict[str, Any] = {key: getattr(delta, key) for key in keys}
    out["untouched"] = [*delta.untouched]
    out["tensors"] = [
        {
            "name": record.name,
            "from": record.source,
            "base": end(record.base),
            "target": end(record.target),
            "parts": [describe_part(part) for part in record.parts],
        }
        for record in delta.records
    ]
    out["blobs"] = [b3(blob).hex() for blob in delta.blobs]
    beside = {"layout": delta.layout, "files": delta.files, "set": delta.place}
    return out | {key: known(value, MANIFEST[key]) for key, value in beside.items()}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(describe(decode(sys.argv[1])), indent=1) + "\n")
    except RuleError as broken:
        sys.stderr.write(f"{broken}\n")
        sys.exit(3)
