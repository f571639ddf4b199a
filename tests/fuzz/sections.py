"""Delta files taken apart without a check, and put together again.

Written once more on purpose, and not taken from the package: what builds the lies must not share
code with what has to find them.
"""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import zstandard
from blake3 import blake3

NAMES: Final = ("sd.manifest", "sd.tables", "sd.data")
FACTS: Final = ("base", "target", "content", "nnz", "invertible", "profile", "version")
_COMPRESSOR: Final = zstandard.ZstdCompressor(level=1)

Files = dict[str, bytes]
"""The files of a delta by name, in the order root, part 1, part 2, …"""


def canonical(document: object) -> bytes:
    """The canonical text of a document (spec section 3.2)."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode("utf-8", "surrogatepass")


def shrunk(data: bytes) -> bytes:
    """A frame: compressed where that helps."""
    return min(data, _COMPRESSOR.compress(data), key=len)


def unframed(frame: bytes, size: int) -> bytes:
    """What a valid frame holds."""
    if len(frame) == size:
        return frame
    return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)


def digest(data: bytes) -> str:
    """B3 in hex."""
    return blake3(data).hexdigest()


@dataclass(frozen=True)
class Sections:
    """One file: header, text of the manifest, tables, data.

    Attributes:
        header: The JSON of the header.
        text: The text of the manifest.
        compressed: Whether the manifest is stored in a Zstandard frame.
        tables: The bytes of ``sd.tables``.
        data: The bytes of ``sd.data``.
        spaces: Spaces behind the header; None: as many as are needed.
        frame: The bytes of ``sd.manifest`` if they are not those that follow from the text.
    """

    header: Any
    text: bytes
    compressed: bool
    tables: bytes
    data: bytes
    spaces: int | None = None
    frame: bytes | None = None

    @classmethod
    def of(cls, file: bytes) -> Sections:
        """Take a valid file apart."""
        (length,) = struct.unpack_from("<Q", file)
        header = json.loads(file[8 : 8 + length])
        body = file[8 + length :]
        frame, tables, data = (body[slice(*header[key]["data_offsets"])] for key in NAMES)
        size = int(header["__metadata__"]["sd.manifest_size"])
        return cls(header, unframed(frame, size), len(frame) != size, tables, data)

    @cached_property
    def manifest(self) -> Any:  # noqa: ANN401 (JSON)
        """The manifest; not to be changed, see :meth:`edited`."""
        return json.loads(self.text)

    def edited(self, manifest: Any, **changes: Any) -> Sections:  # noqa: ANN401 (JSON)
        """The same with another manifest, the rest as given, and the digest of the tables right."""
        tables = changes.get("tables", self.tables)
        if isinstance(manifest, dict) and isinstance(manifest.get("tables"), str):
            manifest["tables"] = digest(tables)
        return replace(self, text=canonical(manifest), frame=None, **changes)

    def copied(self) -> Any:  # noqa: ANN401 (JSON)
        """A copy of the manifest that may be changed."""
        return json.loads(self.text)

    def agreeing(self) -> Sections:
        """The same with a header that says what the manifest says."""
        manifest = self.manifest
        if not isinstance(manifest, dict):
            return self
        header = copy.deepcopy(self.header)
        meta = header["__metadata__"]
        for key in FACTS:
            value = manifest.get(key)
            if isinstance(value, str | int):
                meta[f"sd.{key}"] = value if isinstance(value, str) else json.dumps(value)
        place = manifest.get("set")
        for key, name in (("id", "sd.set_id"), ("part", "sd.part")):
            meta.pop(name, None)
            if isinstance(place, dict) and isinstance(place.get(key), str | int):
                meta[name] = str(place[key])
        return replace(self, header=header)

    def build(self) -> bytes:
        """The file, with the digest and the size of the manifest and all offsets made right."""
        frame = self.frame
        if frame is None:
            frame = shrunk(self.text) if self.compressed else self.text
        header = dict(self.header)
        if isinstance(header.get("__metadata__"), dict):
            meta = dict(header["__metadata__"])
            if "sd.manifest" in meta:
                meta["sd.manifest"] = digest(frame)
            if "sd.manifest_size" in meta:
                meta["sd.manifest_size"] = str(len(self.text))
            header["__metadata__"] = meta
        offset = 0
        for key, part in zip(NAMES, (frame, self.tables, self.data), strict=True):
            end = offset + len(part)
            header[key] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [offset, end]}
            offset = end
        text = canonical(header)
        text += b" " * (-len(text) % 8 if self.spaces is None else self.spaces)
        return struct.pack("<Q", len(text)) + text + frame + self.tables + self.data


def rebuilt(sections: dict[str, Sections], root: str) -> Files:
    """The files of a delta; the root of a set states sizes and digests of what is built."""
    files = {name: each.build() for name, each in sections.items() if name != root}
    top = sections[root]
    try:
        manifest = top.copied() if files else None
    except ValueError:  # no JSON any more
        manifest = None
    if manifest is not None:
        place = manifest.get("set") if isinstance(manifest, dict) else None
        parts = place.get("parts") if isinstance(place, dict) else None
        for entry in parts if isinstance(parts, list) else ():
            name = entry.get("name") if isinstance(entry, dict) else None
            file = files.get(name) if isinstance(name, str) else None
            if file is not None:
                (length,) = struct.unpack_from("<Q", file)
                meta = json.loads(file[8 : 8 + length]).get("__metadata__")
                if isinstance(meta, dict) and "sd.manifest" in meta:
                    entry |= {"size": len(file), "manifest": meta["sd.manifest"]}
        top = top.edited(manifest)
    return {root: top.build(), **files}
