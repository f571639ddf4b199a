"""Safetensors files as memory-mapped words, with nothing of our package: peers read and write so.

No check is made: the files are our own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint16]
Bytes: TypeAlias = NDArray[np.uint8]

ITEM_BYTES: Final = {"U8": 1, "BF16": 2, "I32": 4, "F32": 4, "I64": 8}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        name: Its name.
        dtype: Its dtype, as safetensors writes it.
        shape: Its shape.
        start: First byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class StoredFile:
    """A safetensors file, mapped.

    Attributes:
        header: The bytes before the data.
        tensors: Name → tensor, in the order of the header.
        metadata: Strings of the header.
    """

    def __init__(self, path: Path) -> None:
        self._bytes: Bytes = np.memmap(path, np.uint8, "r")
        length = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        self.header = self._bytes[:length].tobytes()
        fields: dict[str, Any] = json.loads(self.header[8:])
        self.metadata: dict[str, str] = fields.pop("__metadata__", {})
        self.tensors = {
            name: Stored(
                name, field["dtype"], tuple(field["shape"]), length + field["data_offsets"][0]
            )
            for name, field in fields.items()
        }

    def bytes_of(self, name: str) -> Bytes:
        """Bytes of a tensor, as a view of the file."""
        stored = self.tensors[name]
        return self._bytes[stored.start : stored.start + stored.nbytes]

    def words(self, name: str) -> Words:
        """16-bit words of a tensor, as a view of the file."""
        return self.bytes_of(name).view(np.uint16)


def header_of(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    """The header of a file that holds these tensors (name, dtype, shape) one after the other."""
    fields: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
