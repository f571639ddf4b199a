"""Inodes: whether a name still leads to the file that had it, whatever is in it."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_GET_VERSION: Final = 0x80087601
"""FS_IOC_GETVERSION of Linux: ext4, XFS, Btrfs and others answer, the rest know no such call."""

_VERSION: Final = struct.Struct("=I4x")


@dataclass(frozen=True, slots=True)
class Inode:
    """What tells a file from others of its file system, for as long as it is mounted or longer.

    Not its device: that has another number after a restart on some file systems, or in a snapshot.

    Attributes:
        number: The number of the inode, which the next file may get once this one is removed.
        generation: What tells these two apart; 0 if it is not known.
    """

    number: int
    generation: int

    @classmethod
    def of(cls, descriptor: int) -> Self:
        """The inode of an open file."""
        try:
            answer = fcntl.ioctl(descriptor, _GET_VERSION, bytes(_VERSION.size))
            generation = int(_VERSION.unpack(answer)[0])
        except OSError:
            generation = 0
        return cls(os.fstat(descriptor).st_ino, generation)

    @classmethod
    def at(cls, path: Path) -> Self | None:
        """The inode of the regular file that has a name; None if something else has it, or nothing.

        Raises:
            OSError: The operating system refuses to look.
        """
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            return cls(found.st_ino, 0)
        try:
            return cls.of(descriptor)
        finally:
            os.close(descriptor)

    def may_be(self, other: Inode) -> bool:
        """Whether both are one file, as far as is known of both."""
        if self.generation and other.generation and self.generation != other.generation:
            return False
        return self.number == other.number
