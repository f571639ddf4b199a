"""Files that are changed where they lie: open for writing, locked, and nobody else's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import operator
import os
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sparsedelta.closing import Closing
from sparsedelta.errors import CheckpointError, OutputError
from sparsedelta.files import sync
from sparsedelta.inodes import Inode
from sparsedelta.outputs import write_all

_ELSEWHERE: Final = "-o OUT writes the result elsewhere; or copy it first: cp -rL {} COPY"
_LOCKED: Final = (errno.EAGAIN, errno.EACCES)


class LockedFiles(Closing):
    """Files of one folder, open for positioned reads and writes from any thread.

    They stay locked, against other processes that do the same, until they are closed; a process
    that dies has closed them.

    Args:
        folder: The folder.
        names: Their names there.

    Raises:
        OutputError: One is a symbolic link, has more than one name, is read-only, or is being
            changed by another process.
        CheckpointError: One is not there, or is no regular file.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.paths = [folder / name for name in names]
        self._descriptors: list[int] = []
        self._begun: list[os.stat_result] = []
        try:
            for path in self.paths:
                self._descriptors.append(_open(path))
                self._begun.append(_lock(path, self._descriptors[-1]))
        except BaseException:
            self.close()
            raise

    @property
    def mode(self) -> int:
        """Who may read and write all of them."""
        modes = [stat.S_IMODE(found.st_mode) for found in self._begun]
        return functools.reduce(operator.and_, modes, 0o666)

    def size(self, number: int) -> int:
        """Bytes of a file at present."""
        return os.fstat(self._descriptors[number]).st_size

    def inode(self, number: int) -> Inode:
        """Which file it is, whatever its name."""
        return Inode.of(self._descriptors[number])

    def read_into(self, number: int, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` of a file.

        Raises:
            CheckpointError: The file is shorter, or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptors[number], [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"cannot read {self.paths[number]}: {error.strerror}"
                ) from None
            if not count:
                raise CheckpointError(
                    f"{self.paths[number]} ends at byte {offset + done}, {len(buffer) - done} bytes"
                    " early: it became shorter"
                )
            done += count

    def write(self, number: int, data: memoryview, offset: int) -> None:
        """Write bytes that replace others; raises OSError."""
        write_all(self._descriptors[number], data, offset)

    def are_as_opened(self) -> bool:
        """Whether sizes and times of change are still those from the beginning."""
        return all(
            (now.st_size, now.st_mtime_ns) == (begun.st_size, begun.st_mtime_ns)
            for now, begun in zip(map(os.fstat, self._descriptors), self._begun, strict=True)
        )

    def sha256(self, number: int) -> str:
        """SHA-256 of a file, hex."""
        with os.fdopen(os.dup(self._descriptors[number]), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sync(self) -> None:
        """Bring what was written to the disk; raises OSError."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def close(self) -> None:
        """Close and unlock the files; further calls do nothing."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _open(path: Path) -> int:
    hint = _ELSEWHERE.format(shlex.quote(str(path)))
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link: the file behind it may be shared, as in the cache of the "
            "Hub, so it is not changed in place",
            hint=hint,
        )
    try:
        if not path.stat().st_mode & 0o222:
            raise OutputError(f"{path} is read-only", hint=hint)
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"there is no file {path}") from None
        reason = error.strerror or str(error)
        raise OutputError(f"cannot change {path} in place: {reason}", hint=hint) from None


def _lock(path: Path, descriptor: int) -> os.stat_result:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    if found.st_nlink > 1:
        raise OutputError(
            f"{path} has {found.st_nlink} names (hard links): it would change under all of them, "
            "so it is not changed in place",
            hint=_ELSEWHERE.format(shlex.quote(str(path))),
        )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _LOCKED:
            raise OutputError(f"cannot lock {path}: {error.strerror}") from None
        raise OutputError(
            f"{path} is being changed in place by another process",
            hint="wait for its end, then look: sparsedelta fingerprint "
            f"{shlex.quote(str(path.parent))}",
        ) from None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), found):
            return os.fstat(descriptor)
    raise CheckpointError(f"{path} was replaced by another file just now")


def read_small(path: Path, limit: int) -> bytes | None:
    """A small file beside the weights, or None if there is none.

    Raises:
        OutputError: Something else has the name: a link, a folder, or a large file.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise OutputError(
                f"{path} is a link, a folder or a file of more than {limit} bytes: it is not "
                "replaced in place",
                hint="-o OUT writes the result elsewhere; --no-files leaves such files alone",
            )
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None


def replace_small(path: Path, content: bytes | None) -> None:
    """Give a small file its content, or remove it, in one step; raises OSError."""
    work = path.with_name(f".{path.name}.sparsedelta-new")
    try:
        if content is None:
            path.unlink(missing_ok=True)
            return
        work.unlink(missing_ok=True)
        with work.open("xb") as file:  # never through a link that somebody put there
            file.write(content)
        with contextlib.suppress(FileNotFoundError):
            work.chmod(stat.S_IMODE(path.stat().st_mode))
        sync(work)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)  # also that of a run which died
