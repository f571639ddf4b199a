"""What the vectors share: small tensors, and hooks that break one thing."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from terms import word_bytes
from vector_encoder import Hook, build
from vector_records import P, R, edited

# Name (which begins with the code), why, and the file, or the files of a set.
Invalid = tuple[str, str, bytes | dict[str, bytes]]
WIDTHS = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}
SKIPPABLE = b"\x50\x2a\x4d\x18"


# --- Tensors ---


def tensor(name: str, dtype: str, n: int, *parts: P) -> R:
    """A vector-shaped tensor whose bytes repeat, so that its recipe is short."""
    width = word_bytes(dtype)
    return edited(name, dtype, [n], bytes.fromhex("007f80ff3fc00180")[:width] * n, list(parts))


def bias() -> R:
    """An untouched tensor."""
    return edited("bias", "F32", [2], struct.pack("<ff", 1.0, -0.0))


def flat(name: str = "w") -> R:
    """A tensor whose streams are runs of one byte, for Zstandard frames made by hand."""
    part = P("replace", dict.fromkeys(range(300), 7), "gap8", "planes", 0, 9)
    return tensor(name, "U8", 300, part)


def one(name: str) -> R:
    """A touched tensor of one word."""
    return tensor(name, "U8", 1, P("difference", {0: 1}))


def simple(
    index: str = "gap8", value: str = "zigzag", width: int = 4, dtype: str = "BF16"
) -> list[R]:
    """A tensor of two blocks (256 and 144 words) with entries in both, and an untouched one."""
    entries = {
        0: 1,
        3: 2,
        10: 256 ** WIDTHS[dtype] - 3,
        255: 1,
        256: 5,
        399: 256 ** WIDTHS[dtype] - 1,
    }
    return [bias(), tensor("w", dtype, 400, P("difference", entries, index, value, width))]


def bare_length(tensors: list[R]) -> int:
    """The length of the header with an empty note and without padding."""
    file = build(tensors, extra={"note": ""}, padded=lambda text: text.rstrip(b" "))
    return int.from_bytes(file[:8], "little")


# --- Hooks ---


def put(value: object, *path: str | int) -> Hook:
    """A hook that sets the value at a path of a JSON value."""

    def hook(root: Any, *_: object) -> Any:  # noqa: ANN401 - JSON
        root = node = json.loads(json.dumps(root))
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return root

    return hook


def drop(*path: str | int) -> Hook:
    """A hook that removes a key."""

    def hook(root: Any) -> Any:  # noqa: ANN401 - JSON
        root = node = json.loads(json.dumps(root))
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        return root

    return hook


def swap(old: str, new: str | bytes) -> Hook:
    """A hook that replaces the first occurrence of a text that must be there."""

    def hook(text: bytes) -> bytes:
        if old.encode() not in text:
            raise ValueError(old)
        return text.replace(old.encode(), new if isinstance(new, bytes) else new.encode(), 1)

    return hook


def at_block(block: int, change: Callable[[list[Any]], list[Any]]) -> Hook:
    """A hook for the streams, frames or row of one block of every part."""
    return lambda value, _name, _part, number: change(list(value)) if number == block else value


def stream(k: int, new: Callable[[bytes], bytes], block: int = 0) -> Hook:
    """A hook that changes stream k of a block."""
    return at_block(block, lambda s: [*s[:k], new(s[k]), *s[k + 1 :]])
