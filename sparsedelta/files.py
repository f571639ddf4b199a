"""Positioned reads of local files that never come up short.

Reads are ``pread`` into memory rather than a mapping: a mapped file that shrinks kills the process,
a short read is an error that names the file, and resident memory stays what we allocate.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Final, NamedTuple

from sparsedelta.closing import Closing
from sparsedelta.errors import CheckpointError
from sparsedelta.locations import Location

OPEN_FILES: Final = "more files than this process may have open: raise the limit with ulimit -n"

_OUTPUT_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Where copying by the kernel fails, reading and writing tells which file is at fault; but for
these, which are the output's in any case."""


_FACTS: Final = ("size", "mtime_ns", "ino", "dev")


class FileState(NamedTuple):
    """What a file looks like from outside.

    Attributes:
        size: Its size in bytes.
        modified_ns: When its content was last changed.
        changed_ns: When its content, its name or its rights were last changed.
        inode: Its number in the file system.
        device: The file system.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """The state that a status tells."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


class InputFile(Closing):
    """A regular file, open for positioned reads from any thread.

    Args:
        path: The file; symbolic links are followed (Hub snapshots consist of them).
        location: What it is a copy of, in a cache; None: it is itself what is read.

    Attributes:
        location: Where it lies.

    Raises:
        CheckpointError: No such file, no permission, or no regular file.
    """

    def __init__(self, path: Path, location: Location | None = None) -> None:
        self.location: Location = path if location is None else location
        self._fd = -1
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            hint = OPEN_FILES if getattr(error, "errno", None) == errno.EMFILE else None
            raise CheckpointError(f"cannot read {path}: {reason(error)}", hint=hint) from None
        self._status = os.fstat(self._fd)
        self.size = self._status.st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``.

        Raises:
            CheckpointError: The file is shorter, or became so.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"cannot read {self.location}: {error.strerror}") from None
            if not count:
                raise CheckpointError(
                    f"{self.location} ends at byte {offset + done}, {len(buffer) - done} bytes "
                    "early"
                )
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises as :meth:`read_into`.

        The caller has bounded ``length`` by the file's size or a limit.
        """
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def copy_to(self, descriptor: int, position: int, offset: int, length: int) -> bool:
        """Let the kernel copy ``length`` bytes from ``offset`` into another file.

        Where the file system can share extents, nothing is copied at all.

        Args:
            descriptor: A file open for writing.
            position: Where in it.
            offset: First byte.
            length: Number of bytes.

        Returns:
            Whether it was done; if not, some of it may have been written.

        Raises:
            OSError: The output cannot be written.
        """
        done = 0 if hasattr(os, "copy_file_range") else length + 1
        while done < length:
            try:
                count = os.copy_file_range(
                    self._fd, descriptor, length - done, offset + done, position + done
                )
            except OSError as error:
                if error.errno in _OUTPUT_FAULTS:
                    raise
                return False
            if not count:  # the file became shorter: reading it says so
                return False
            done += count
        return done == length

    @property
    def state(self) -> FileState:
        """What the file looked like when it was opened."""
        return FileState.of(self._status)

    def sync(self) -> None:
        """Write back what others have changed of the file in memory: later changes show then.

        Raises:
            OSError: It cannot be.
        """
        os.fsync(self._fd)

    def identity(self) -> list[Any]:
        """What would be other, as far as can be told, if it were another file; as JSON."""
        return [str(self.location), *(getattr(self._status, f"st_{fact}") for fact in _FACTS)]

    def check_unchanged(self) -> None:
        """Insist that nobody has written to the file since it was opened.

        Raises:
            CheckpointError: Somebody has.
        """
        found, known = os.fstat(self._fd), self._status
        if (found.st_size, found.st_mtime_ns) != (known.st_size, known.st_mtime_ns):
            raise CheckpointError(
                f"{self.location} changed while it was being read",
                hint="wait until it is written, and run it again",
            )

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def reason(error: Exception) -> str:
    """What the operating system says is wrong."""
    return getattr(error, "strerror", None) or str(error)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync this
            raise
    finally:
        os.close(fd)
