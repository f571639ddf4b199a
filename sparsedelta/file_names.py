"""Names of files that a delta may write or refer to (spec section 3.6): never paths.

The rule is strict enough for every file system, so that a name means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

from sparsedelta.limits import MAX_FILE_NAME_BYTES

CHECKPOINT_SUFFIX: Final = ".safetensors"
DIGESTS_SUFFIX: Final = ".sparsedelta-digests"
"""End of the hidden files beside checkpoint files in which their digests are remembered."""

INDEX_SUFFIX: Final = ".safetensors.index.json"

_WEIGHT_SUFFIXES: Final = frozenset(
    {
        CHECKPOINT_SUFFIX,
        ".bin",
        ".ckpt",
        ".gguf",
        ".h5",
        ".msgpack",
        ".npz",
        ".onnx",
        ".ot",
        ".pb",
        ".pt",
        ".pth",
        ".pickle",
        ".pkl",
        ".tflite",
    }
)
"""Files of these kinds hold the old weights: they would contradict the new ones."""

_ALLOWED: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", re.ASCII)
_DEVICE: Final = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]", re.ASCII)


def file_name_problem(name: str) -> str | None:
    """What makes a name unfit to be a file of a delta, or None."""
    if not _ALLOWED.fullmatch(name):
        return "holds more than letters, digits and _ . + - or begins with one of . + -"
    if len(name) > MAX_FILE_NAME_BYTES:
        return f"is longer than {MAX_FILE_NAME_BYTES} bytes"
    if name.endswith("."):
        return "ends with a dot"
    if _DEVICE.fullmatch(name.partition(".")[0].lower()):
        return "is the name of a device on some systems"
    return None


def is_weights_file(path: PurePath) -> bool:
    """Whether a file holds weights, in whatever format, by its name."""
    return path.suffix.lower() in _WEIGHT_SUFFIXES


def is_weights_name(name: str) -> bool:
    """Whether a file of this name would be taken for weights or their index, in any case."""
    return name.lower().endswith((CHECKPOINT_SUFFIX, INDEX_SUFFIX))


def same_ignoring_case(names: Iterable[str]) -> str | None:
    """A name that occurs twice where case is ignored, or None."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            return name
        seen.add(name.lower())
    return None
