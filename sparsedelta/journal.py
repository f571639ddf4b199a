"""Journals of changes in place: what stood in the files, and what shall stand there.

A journal holds words, not blocks: of every changed word its place, its old bits and its new bits.
Whatever part of the new words has reached a file, writing all of them, or all of the old ones,
leaves it whole. Its name tells its state: under ``.NAME.sparsedelta-journal`` it is complete and
on the disk, and files may be half changed; with ``.new`` behind it nothing has been written yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NoReturn

from blake3 import blake3

from sparsedelta.closing import Closing
from sparsedelta.errors import CheckpointError, UnfinishedError
from sparsedelta.files import InputFile, sync
from sparsedelta.inodes import Inode
from sparsedelta.journal_frames import (
    CHECKSUM_BYTES,
    FRAME,
    HEAD,
    RUN,
    SMALL_FILE,
    TRAILER,
    Buffers,
    frame,
)
from sparsedelta.limits import MAX_INDEX_BYTES

SUFFIX: Final = ".sparsedelta-journal"
UNCOMMITTED: Final = ".new"

_MAGIC: Final = b"SDJRNL1\n"
_END: Final = struct.Struct("<Q32s")


@dataclass(frozen=True, slots=True)
class Head:
    """What a journal is about.

    Attributes:
        files: Name, size and inode of each checkpoint file, beside the journal.
        others: Names of the small files that belong to them: the index, those that are replaced.
        delta: Path of the delta, for messages.
        content: Content digest of the delta.
        reverse: Whether the delta was followed back.
        with_files: Whether the files that the delta carries are written.
        more: Paths of the deltas that were followed behind the first.
        start: Fingerprint of what the files were, 64 hex digits; empty where it is not known.
    """

    files: tuple[tuple[str, int, Inode], ...]
    others: tuple[str, ...]
    delta: str
    content: str
    reverse: bool
    with_files: bool
    more: tuple[str, ...] = ()
    start: str = ""

    @property
    def deltas(self) -> tuple[str, ...]:
        """Paths of all deltas, for messages."""
        return (self.delta, *self.more)

    @property
    def names(self) -> set[str]:
        """Names of all files that must not be used before the journal is settled."""
        return {name for name, _, _ in self.files}.union(self.others)

    @property
    def verb(self) -> str:
        """The command that wrote the journal."""
        return "revert" if self.reverse else "apply"


class JournalWriter:
    """Writes a journal beside the files that it is about; not yet committed.

    The caller has locked these files, so that nobody else writes a journal of that name.

    Args:
        path: Its name once it is committed.
        head: What it is about.
        mode: Permissions: nobody may see more words of a file in its journal than in itself.

    Raises:
        OSError: The disk is full, or the folder is read-only.
    """

    def __init__(self, path: Path, head: Head, *, mode: int = 0o600) -> None:
        self.path = path
        self._work = path.with_name(path.name + UNCOMMITTED)
        self._count = 0
        self._checksums = blake3()
        self._fd = os.open(self._work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(self._fd, mode)
            self._write([_MAGIC])
            self.append(frame(HEAD, [json.dumps(asdict(head)).encode()]))
        except BaseException:
            self.discard()
            raise

    def append(self, buffers: Buffers) -> None:
        """Append what :func:`frame` made."""
        self._write(buffers)
        self._checksums.update(buffers[-1])
        self._count += 1

    def _write(self, buffers: Buffers) -> None:
        for part in buffers:
            view = memoryview(part)
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self) -> None:
        """Complete the journal and bring it to the disk: from here on files may be written."""
        self._write(frame(TRAILER, [_END.pack(self._count, self._checksums.digest())]))
        os.fsync(self._fd)
        self._work.rename(self.path)
        try:
            sync(self.path.parent)
        except BaseException:
            self.path.unlink()
            raise
        self._close()

    def discard(self) -> None:
        """Remove a journal that was not committed."""
        self._close()
        with contextlib.suppress(OSError):
            self._work.unlink()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Journal(Closing):
    """A committed journal, open for reading from any thread.

    Args:
        path: The journal.

    Attributes:
        path: The journal.
        head: What it is about.

    Raises:
        UnfinishedError: It is damaged.
        CheckpointError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = InputFile(path)
        try:
            self.head = self._read_head()
        except BaseException:
            self.close()
            raise

    def _read_head(self) -> Head:
        try:
            magic = self._source.read(0, len(_MAGIC))
            kind, length = self._header(len(_MAGIC))
            if magic == _MAGIC and kind == HEAD and length <= MAX_INDEX_BYTES:
                return _parse_head(bytes(self.payload((len(_MAGIC), length))))
        except (ValueError, TypeError, KeyError, RecursionError, CheckpointError):
            pass
        raise self.damaged("its head")

    def _header(self, offset: int) -> tuple[int, int]:
        kind, length = FRAME.unpack(self._source.read(offset, FRAME.size))
        if offset + FRAME.size + length + CHECKSUM_BYTES > self._source.size:
            raise self.damaged("a length")
        return kind, length

    def frames(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Kind and place of each run and small file, in order.

        Raises:
            UnfinishedError: The journal is not whole: told at the latest at its end.
        """
        checksums = blake3()
        offset, count = len(_MAGIC), 0
        while True:
            try:
                kind, length = self._header(offset)
            except CheckpointError:
                raise self.damaged("its end is missing") from None
            end = offset + FRAME.size + length
            if kind == TRAILER:
                found = _END.pack(count, checksums.digest())
                if self.payload((offset, length)) != found:
                    raise self.damaged("its trailer")
                if end + CHECKSUM_BYTES != self._source.size:
                    raise self.damaged("bytes behind its end")
                return
            if kind in (RUN, SMALL_FILE):
                yield kind, (offset, length)
            elif count:
                raise self.damaged("a frame of an unknown kind")
            checksums.update(self._source.read(end, CHECKSUM_BYTES))
            offset, count = end + CHECKSUM_BYTES, count + 1

    def payload(self, place: tuple[int, int]) -> memoryview:
        """The payload of a frame, verified.

        Raises:
            UnfinishedError: The frame is damaged.
        """
        offset, length = place
        data = memoryview(self._source.read(offset, FRAME.size + length + CHECKSUM_BYTES))
        if blake3(data[:-CHECKSUM_BYTES]).digest(CHECKSUM_BYTES) != data[-CHECKSUM_BYTES:]:
            raise self.damaged(f"the frame at byte {offset}")
        return data[FRAME.size : -CHECKSUM_BYTES]

    def damaged(self, what: str) -> UnfinishedError:
        """The error of a journal that is not what was written."""
        return UnfinishedError(
            f"{self.path} is damaged ({what}): the files beside it may be half changed, and cannot "
            "be put right from it",
            hint="get the checkpoint again and remove the journal; if you know the files to be "
            f"whole: rm {shlex.quote(str(self.path))}, then sparsedelta fingerprint",
        )

    def foreign(self, found: str) -> UnfinishedError:
        """The error of a journal that is about other files than those that have their names."""
        names = ", ".join(shlex.quote(name) for name, _, _ in self.head.files)
        return UnfinishedError(
            f"{self.path} is not about the files beside it as they are now: {found}; nothing was "
            "written",
            hint=f"if you know what is there of {names} to be whole: rm "
            f"{shlex.quote(str(self.path))}, then sparsedelta fingerprint; if not, get the "
            "checkpoint again first",
        )

    def check_files(self) -> None:
        """Insist that the files are those that the run in place was changing.

        Raises:
            UnfinishedError: One is gone, or another has taken its name.
        """
        for name, _, inode in self.head.files:
            found = Inode.at(self.path.parent / name)
            if found is None:
                raise self.foreign(f"{name} is gone, or no regular file any more")
            self.check_inode(name, found, inode)

    def check_inode(self, name: str, found: Inode, expected: Inode) -> None:
        """Insist that a file is the one that the run in place was changing.

        Raises:
            UnfinishedError: It is another.
        """
        if not found.may_be(expected):
            raise self.foreign(
                f"{name} was replaced by another file (inode {found.number}, generation "
                f"{found.generation}, expected {expected.number}, {expected.generation})"
            )

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def _parse_head(text: bytes) -> Head:
    # Not our strict parser: names of files may be no text. The checksum has passed.
    document = json.loads(text)
    files = tuple((str(name), int(size), Inode(**inode)) for name, size, inode in document["files"])
    if any(Path(name).name != name for name, _, _ in files):
        raise ValueError("a name that is a path")
    lists = {key: tuple(document[key]) for key in ("others", "more") if key in document}
    return Head(**{**document, "files": files, **lists})


def journal_path(folder: Path, name: str) -> Path:
    """Name of the journal of a checkpoint whose first file is ``name``, once committed."""
    return folder / f".{name}{SUFFIX}"


def journals_about(path: Path) -> Iterator[Journal]:
    """Committed journals about a checkpoint: of a folder all in it, of a file those that name it.

    Yields:
        Each, open until the next is asked for.

    Raises:
        UnfinishedError: One is damaged, so that nobody knows what it is about.
    """
    try:
        is_folder = path.is_dir()
        entries = sorted((path if is_folder else path.parent).glob(f".*{SUFFIX}"))
    except (OSError, ValueError):  # no folder, or one that may not be listed: told elsewhere
        return
    for entry in entries:
        try:
            journal = Journal(entry)
        except CheckpointError:
            if entry.exists():
                raise
            continue  # the run has just ended
        with journal:
            if is_folder or path.name in journal.head.names:
                yield journal


def refuse_unfinished(path: Path) -> None:
    """Refuse a checkpoint that a run in place is changing, or was when it was interrupted.

    Also an output is refused that has the name of one: the journal would outlive it, and be
    carried out on what comes after it.

    Raises:
        UnfinishedError: It is; or a journal says so that is about other files.
    """
    for journal in journals_about(path):
        _refuse(journal, path)


def refuse_unfinished_links(files: Iterable[Path]) -> None:
    """Refuse links to files that a run in place is changing: its journal is beside these.

    Args:
        files: Files of a checkpoint; those that are no links are not looked at.

    Raises:
        UnfinishedError: As :func:`refuse_unfinished`.
    """
    names: dict[Path, set[str]] = {}
    for file in files:
        if file.is_symlink():
            real = file.resolve()
            names.setdefault(real.parent, set()).add(real.name)
    for folder, linked in names.items():
        for journal in journals_about(folder):
            if linked & journal.head.names:
                files_of = [name for name, _, _ in journal.head.files]
                _refuse(journal, folder / files_of[0] if len(files_of) == 1 else folder)


def _refuse(journal: Journal, checkpoint: Path) -> NoReturn:
    journal.check_files()
    head = journal.head
    command = shlex.join(["sparsedelta", head.verb, str(checkpoint), *head.deltas])
    raise UnfinishedError(
        f"{checkpoint} is half changed: sparsedelta {head.verb} --in-place is at work, or was "
        f"interrupted (its journal is {journal.path})",
        hint=f"to end it: {command} --in-place --resume; to undo it and begin again: "
        f"{command} --in-place",
    )
