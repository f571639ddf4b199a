"""The files of a checkpoint, written plainly: headers, whole files, the layout of an end."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from vector_records import X


def infos(ends: dict[str, X], names: list[str]) -> dict[str, Any]:
    """The tensors of a header, in the order of their bytes."""
    out, at = {}, 0
    for name in names:
        x = ends[name]
        offsets = [at, at + len(x.data)]
        out[name] = {"dtype": x.dtype, "shape": x.shape, "data_offsets": offsets}
        at = offsets[1]
    return out


def with_length(text: bytes) -> bytes:
    """A header with its length word."""
    return struct.pack("<Q", len(text)) + text


def header_of(ends: dict[str, X], names: list[str], *, plain: bool = False) -> bytes:
    """A header as usual, padded to 8 bytes; `plain`: of Python's spacing, names last first."""
    if plain:
        return with_length(json.dumps(dict(reversed(infos(ends, names).items()))).encode())
    value = {"__metadata__": {"format": "pt"}} | infos(ends, names)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return with_length(text + b" " * (-len(text) % 8))


@dataclass
class Layout:
    """The layouts of both ends, their blobs, and the SHA-256 of the files to which they lead."""

    blobs: list[bytes] = field(default_factory=list)
    value: dict[str, Any] = field(default_factory=lambda: {"base": None, "target": None})
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def blob(self, data: bytes) -> int:
        """The position of a blob, which is added if it is new."""
        if data not in self.blobs:
            self.blobs.append(data)
        return self.blobs.index(data)

    def record(
        self,
        side: str,
        ends: dict[str, X],
        shards: dict[str, list[str]],
        *,
        index: str = "",
        plain: bool = False,
        sha: bool = True,
    ) -> None:
        """Record an end: its files, and which tensors each of them holds.

        Args:
            side: `base` or `target`.
            ends: The tensors.
            shards: File name to names of tensors.
            index: The name of the index, if there is one.
            plain: How headers are written.
            sha: Whether the SHA-256 of the files is recorded.
        """
        listed, whole = [], {}
        for name, names in sorted(shards.items()):
            header = header_of(ends, names, plain=plain)
            data = header + b"".join(ends[n].data for n in names)
            whole[name] = hashlib.sha256(data).hexdigest()
            row = {"name": name, "header": self.blob(header)}
            listed.append(row | {"sha256": whole[name] if sha else None})
        found = None
        if index:
            weights = {n: file for file, names in shards.items() for n in names}
            text = json.dumps({"metadata": {}, "weight_map": weights}, indent=2).encode()
            found = {"name": index, "blob": self.blob(text)}
            whole[index] = hashlib.sha256(text).hexdigest()
        self.value[side] = {"files": listed, "index": found}
        self.files[f"{side}_files"] = whole
