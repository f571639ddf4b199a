"""An independent reader of the sparsedelta format 0.1, to check other readers against.

It follows SPEC.md rule by rule and holds everything in memory: made to be read, not to be fast.
Its parts are `terms.py`, `encoding.py`, `structure.py` and `streams.py`; each imports only from
those before it.
`python decode.py FILE` prints the delta as JSON, or the first broken rule on stderr (exit 3).
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from streams import read_part
from structure import read_header, read_layouts, read_manifest, read_tables
from terms import RuleError, Tensor, Tensors, b3, content_digest, fingerprint, need, word_bytes

__all__ = ["Decoded", "RuleError", "apply", "decode", "describe", "fingerprint", "revert"]

LISTED = 64
WORK = 2**31  # bytes; below the 2^36 of a streaming reader, since all of it is held in memory


@dataclass(frozen=True)
class Decoded:
    """A delta all of whose rules have been checked."""

    base: str
    target: str
    content: str
    invertible: bool
    nnz: int
    tensors: dict[str, Tensor]


def decode(path: str | Path, work: int = WORK) -> Decoded:
    """Read a delta, checking every rule.

    Raises:
        RuleError: The first rule that is broken, or SD504 for more work than allowed.
    """
    meta, (frame, table, data) = read_header(Path(path).read_bytes())
    manifest = read_manifest(meta, frame)
    layouts = read_layouts(manifest)
    read_tables(manifest, layouts, table, len(data))
    flat = [part for parts in layouts for part in parts]
    cost = sum(int(part.rows["streams"]["decoded"].sum(dtype=np.int64)) for part in flat)
    need("SD504", cost + 16 * manifest["nnz"] <= work, "more work than allowed")
    cursor, tensors = io.BytesIO(data), {}
    for r, layout in zip(manifest["tensors"], layouts, strict=True):
        parts = tuple(read_part(part, cursor) for part in layout)
        tensors[r["name"]] = Tensor(r["dtype"], tuple(r["shape"]), parts)
    for name, tensor in tensors.items():
        every = np.concatenate([part.indices for part in tensor.parts])
        need("SD409", len(np.unique(every)) == len(every), f"the parts of {name} overlap")
    base, target, content = manifest["base"], manifest["target"], manifest["content"]
    need("SD410", content_digest(base, target, tensors) == content, "the content digest")
    return Decoded(base, target, content, manifest["invertible"], manifest["nnz"], tensors)


def apply(tensors: Tensors, delta: Decoded, *, back: bool = False) -> Tensors:
    """Lead a checkpoint from base to target, or back; unchanged if it is already there."""
    need("SD503", delta.invertible or not back, "a delta with replaced words has no inverse")
    start, goal = (delta.target, delta.base) if back else (delta.base, delta.target)
    found, result = fingerprint(tensors), dict(tensors)
    need("SD501", found in (start, goal), f"the checkpoint is {found}, not {start}")
    if found == goal:
        return result
    for name, tensor in delta.tensors.items():
        dtype, shape, data = tensors[name]
        words = np.frombuffer(data, f"<u{word_bytes(dtype)}").copy()
        for part in tensor.parts:
            old = 0 if part.op == "replace" else words[part.indices]
            words[part.indices] = old - part.words if back else old + part.words
        result[name] = dtype, shape, words.tobytes()
    need("SD502", fingerprint(result) == goal, "the result is another checkpoint")
    return result


def revert(tensors: Tensors, delta: Decoded) -> Tensors:
    """Lead a checkpoint from target to base."""
    return apply(tensors, delta, back=True)


def describe(delta: Decoded) -> dict[str, Any]:
    """A delta as the JSON of the expected.json files: long lists as their B3."""
    tensors = []
    for name, t in delta.tensors.items():
        parts: list[dict[str, Any]] = []
        for part in t.parts:
            parts.append({"op": part.op, "nnz": len(part.indices)})
            if len(part.indices) <= LISTED:
                digits = 2 * part.words.itemsize
                parts[-1]["indices"] = part.indices.tolist()
                parts[-1]["words"] = [f"{word:0{digits}x}" for word in part.words.tolist()]
            else:
                parts[-1]["indices_b3"] = b3(part.indices.astype("<u8").tobytes()).hex()
                parts[-1]["words_b3"] = b3(part.words.tobytes()).hex()
        tensors.append({"name": name, "dtype": t.dtype, "shape": [*t.shape], "parts": parts})
    return {**vars(delta), "tensors": tensors}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(describe(decode(sys.argv[1])), indent=1) + "\n")
    except RuleError as broken:
        sys.stderr.write(f"{broken}\n")
        sys.exit(3)
