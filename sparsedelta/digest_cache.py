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
from functools import cache
from pathlib import Path
from typing import Final, Literal

from sparsedelta.checkpoint import CheckpointReader, FileCheckpoint
from sparsedelta.digests import DIGEST_BYTES, Digest
from sparsedelta.errors import CheckpointError
from sparsedelta.file_names import DIGESTS_SUFFIX
from sparsedelta.files import FileState, InputFile
from sparsedelta.strict_json import parse

Verified = Literal["read", "full", "touched"]
"""How digests were come by: from the file's bytes; as a result that was verified whole, or of which
only the tensors were verified that a delta touches."""

MIN_FILE_BYTES: Final = 1 << 24
"""Smaller files are digested in the time that a record takes to be looked up."""

_FORMAT: Final = "sparsedelta digests 2"
_MAX_RECORD_BYTES: Final = 1 << 26

_TICK_NS: Final = 12_000_000
_COARSE_TICK_NS: Final = 2_000_000_000
"""How old the last change of a file must be when its digests are recorded: one within the same tick
of the clock would not show. Some file systems only know whole or even seconds."""

_CLEAN_NS: Final = 60_000_000_000
_CHEAP_BYTES: Final = 1 << 26
"""Of a larger file that has just been written nothing is recorded: see :class:`KnownDigests`."""

_IN_MEMORY: Final = ("tmpfs", "ramfs")


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


def recall(path: Path, state: FileState | None = None) -> Remembered | None:
    """What is remembered of a file, if it still looks the same.

    Whatever is wrong with a record, it counts as none.

    Args:
        path: The file.
        state: What it looked like when it was opened; None: now.
    """
    try:
        now = FileState.of(path.stat())
        if now != (state or now) or _is_in_memory(now.device):
            return None
        with InputFile(record_path(path)) as source:
            if source.size > _MAX_RECORD_BYTES:
                return None
            found = parse(source.read(0, source.size))
        if found["format"] != _FORMAT or found["file"] != _state_text(now):
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
        state: What it looked like *before* it was read, written back to the disk.
        tensors: Tensor digests by name.
        verified: How they were come by.
    """
    with contextlib.suppress(OSError):
        last = max(state.modified_ns, state.changed_ns)
        if (
            state.size < MIN_FILE_BYTES
            or path.is_symlink()
            or _is_in_memory(state.device)
            or not time.time_ns() - last > -_COARSE_TICK_NS
        ):
            return
        is_coarse = state.modified_ns % 1_000_000_000 == 0
        left = last + (_COARSE_TICK_NS if is_coarse else _TICK_NS) - time.time_ns()
        if left > 0 and not is_coarse:
            time.sleep(left / 1e9)  # a result that was just written
        elif left > 0:
            return
        status = path.stat()
        if FileState.of(status) != state:
            return
        document = {
            "format": _FORMAT,
            "file": _state_text(state),
            "verified": verified,
            "tensors": {name: digest.hex() for name, digest in tensors.items()},
        }
        _write(record_path(path), json.dumps(document).encode(), status.st_mode & 0o666)


class KnownDigests:
    """Digests of the tensors of a checkpoint, as far as they are remembered.

    Nothing shows that a page of a mapped file is changed once more before the system has written it
    back. So what others have changed is written back before a file is read whose digests are to be
    recorded; of a large file that was changed a moment ago that could take long, and nothing is
    recorded instead.

    Args:
        reader: The checkpoint, of which nothing has been read yet but headers.
        use: Whether to remember at all.

    Attributes:
        tensors: Tensor digests by name.
    """

    def __init__(self, reader: CheckpointReader, *, use: bool) -> None:
        self.tensors: dict[str, Digest] = {}
        self._fresh: list[tuple[Path, FileState, list[str]]] = []
        for file in reader.files if use and isinstance(reader, FileCheckpoint) else ():
            source = file.source
            path = source.location
            if not isinstance(source, InputFile) or not isinstance(path, Path):
                continue  # of what lies in somebody's cache nothing is recorded
            if source.size < MIN_FILE_BYTES:
                continue
            names = [stored.spec.name for stored in file.layout.tensors]
            found = recall(path, source.state)
            known = {} if found is None else found.tensors
            if all(name in known for name in names):
                self.tensors.update((name, known[name]) for name in names)
            elif _is_written_back(source):
                self._fresh.append((path, source.state, names))

    def remember(self, leaves: Mapping[str, Digest]) -> None:
        """Record the digests of the files of which not all were known.

        Args:
            leaves: Tensor digests by name, of bytes that were read since.
        """
        for path, state, names in self._fresh:
            if all(name in leaves for name in names):
                remember(path, state, {name: leaves[name] for name in names})


def _is_written_back(source: InputFile) -> bool:
    age = time.time_ns() - source.state.modified_ns
    if source.size > _CHEAP_BYTES and age < _CLEAN_NS:
        return False
    try:
        source.sync()
    except OSError:
        return False
    return True


@cache
def _is_in_memory(device: int) -> bool:
    """Whether a file system lives in memory: mapped files there change without a trace."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0] in _IN_MEMORY
    return False


def _state_text(state: FileState) -> str:
    # Nanoseconds are more than a number of strict JSON holds.
    return " ".join(map(str, state))


def _write(path: Path, data: bytes, mode: int) -> None:
    import tempfile  # noqa: PLC0415 (slow, and seldom needed)

    descriptor, name = tempfile.mkstemp(prefix=".", suffix=DIGESTS_SUFFIX, dir=path.parent)
    spare = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor)
            os.fchmod(descriptor, mode)
            file.write(data)
        spare.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            spare.unlink()
        raise
