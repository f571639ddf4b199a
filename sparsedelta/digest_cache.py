"""Digests of checkpoint files, remembered beside them: a hint for speed, as git's index is.

A record holds the tensor digests of one file and what the file looked like when they were taken:
size, times and inode. It is believed while the file looks the same. What is verified bit for bit
never rests on it: ``apply`` and ``revert`` read what they verify.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sparsedelta.checkpoint import CheckpointReader, FileCheckpoint
from sparsedelta.digests import DIGEST_BYTES, Digest
from sparsedelta.errors import CheckpointError
from sparsedelta.file_names import DIGESTS_SUFFIX
from sparsedelta.files import InputFile
from sparsedelta.strict_json import parse

Verified = Literal["read", "full", "touched"]
"""How digests were come by: from the file's bytes; as a result that was verified whole, or of which
only the tensors were verified that a delta touches."""

MIN_FILE_BYTES: Final = 1 << 24
"""Smaller files are digested in the time that a record takes to be looked up."""

_FORMAT: Final = "sparsedelta digests 1"
_MAX_RECORD_BYTES: Final = 1 << 26

_SETTLED_NS: Final = 50_000_000
_SETTLED_COARSE_NS: Final = 2_000_000_000
"""How old the last change of a file must be when its digests are recorded: one within the same tick
of the clock would not show. Some file systems only know whole or even seconds."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file looks like from outside.

    Attributes:
        size: Its size in bytes.
        modified_ns: When its content was last changed.
        changed_ns: When its content, its name or its rights were last changed.
        inode: Its number in the file system.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of a file now.

        Raises:
            OSError: It cannot be looked at.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def is_settled(self, now_ns: int) -> bool:
        """Whether a change from ``now_ns`` on would show."""
        coarse = self.modified_ns % 1_000_000_000 == 0
        last = max(self.modified_ns, self.changed_ns)
        return now_ns - last >= (_SETTLED_COARSE_NS if coarse else _SETTLED_NS)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is remembered of a file that looks as it did.

    Attributes:
        tensors: Tensor digests by name; where only the touched tensors were verified, of those.
        verified: How they were come by.
    """

    tensors: Mapping[str, Digest]
    verified: Verified


def record_path(path: Path) -> Path:
    """Where the digests of a file are remembered."""
    return path.parent / f".{path.name}{DIGESTS_SUFFIX}"


def recall(path: Path) -> Remembered | None:
    """What is remembered of a file, if it still looks the same.

    Whatever is wrong with a record, it counts as none.
    """
    try:
        with InputFile(record_path(path)) as source:
            if source.size > _MAX_RECORD_BYTES:
                return None
            found = parse(source.read(0, source.size))
        state = FileState.of(path)
        if found["format"] != _FORMAT or found["file"] != _state_text(state):
            return None
        tensors = {name: bytes.fromhex(digest) for name, digest in found["tensors"].items()}
        verified: Verified = found["verified"]
    except (OSError, CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if any(len(digest) != DIGEST_BYTES for digest in tensors.values()):
        return None
    return Remembered(tensors, verified) if verified in ("read", "full", "touched") else None


def remember(
    path: Path, state: FileState, tensors: Mapping[str, Digest], verified: Verified = "read"
) -> None:
    """Record the digests of a file; what cannot be recorded is not.

    Args:
        path: The file. Of a symbolic link, such as the Hub's cache consists of, nothing is
            recorded: the folder belongs to somebody else.
        state: What it looked like *before* it was read.
        tensors: Tensor digests by name.
        verified: How they were come by.
    """
    with contextlib.suppress(OSError):
        now = time.time_ns()
        if state.size < MIN_FILE_BYTES or path.is_symlink():
            return
        if verified != "read" and not state.is_settled(now):  # it was just written, by us
            time.sleep(_SETTLED_NS / 1e9)
            now = time.time_ns()
        if FileState.of(path) != state or not state.is_settled(now):
            return
        document = {
            "format": _FORMAT,
            "file": _state_text(state),
            "verified": verified,
            "tensors": {name: digest.hex() for name, digest in tensors.items()},
        }
        _write(record_path(path), json.dumps(document).encode())


class KnownDigests:
    """Digests of the tensors of a checkpoint, as far as they are remembered.

    Args:
        reader: The checkpoint, just opened.
        use: Whether to remember at all.

    Attributes:
        tensors: Tensor digests by name.
    """

    def __init__(self, reader: CheckpointReader, *, use: bool) -> None:
        self.tensors: dict[str, Digest] = {}
        self._fresh: list[tuple[Path, FileState, list[str]]] = []
        for file in reader.files if use and isinstance(reader, FileCheckpoint) else ():
            path = file.source.location
            if not isinstance(path, Path) or file.source.size < MIN_FILE_BYTES:
                continue
            try:
                state = FileState.of(path)
            except OSError:
                continue
            names = [stored.spec.name for stored in file.layout.tensors]
            found = recall(path)
            known = {} if found is None else found.tensors
            self.tensors.update((name, known[name]) for name in names if name in known)
            if any(name not in known for name in names):
                self._fresh.append((path, state, names))

    def remember(self, leaves: Mapping[str, Digest]) -> None:
        """Record the digests of the files of which not all were known.

        Args:
            leaves: Tensor digests by name, of bytes that were read since.
        """
        for path, state, names in self._fresh:
            if all(name in leaves for name in names):
                remember(path, state, {name: leaves[name] for name in names})


def _state_text(state: FileState) -> str:
    # Nanoseconds are more than a number of strict JSON holds.
    return f"{state.size} {state.modified_ns} {state.changed_ns} {state.inode}"


def _write(path: Path, data: bytes) -> None:
    spare = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        spare.write_bytes(data)
        spare.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            spare.unlink()
        raise
