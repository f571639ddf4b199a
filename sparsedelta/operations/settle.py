"""Carrying out a journal: its new words onto the files, or its old ones back (docs/in-place.md)."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np

from sparsedelta.errors import UnfinishedError
from sparsedelta.files import sync
from sparsedelta.journal import Head, Journal, journals_about
from sparsedelta.journal_frames import RUN, Run, SmallFile, decode_run, decode_small
from sparsedelta.limits import MAX_INDEX_BYTES
from sparsedelta.locked_files import LockedFiles, read_small, replace_small
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Bytes, Indices, Words

Settled: TypeAlias = Literal["undone", "ended"]
"""What became of a run that was interrupted."""

_PAGE: Final = 1 << 12
_CHUNK: Final = 1 << 20
"""Bytes that are read and written at a time: they stay in the cache."""

_GAP_PAGES: Final = 16
"""Unchanged pages that are rather written again than jumped over."""


def settle(path: Path, pool: OrderedMap, is_continued: Callable[[Head], bool]) -> Settled | None:
    """Settle the journals of runs in place that were interrupted, if there are any.

    Args:
        path: The checkpoint.
        pool: Threads to use.
        is_continued: Tells whether a run is to be ended rather than undone.

    Returns:
        What was done.

    Raises:
        UnfinishedError: A journal is damaged, or is not about these files.
        OutputError: The files cannot be written, or another process is at work.
    """
    settled: Settled | None = None
    for journal in journals_about(path):
        journal.check_files()  # a file that is gone, or a link now, cannot be locked
        forward = is_continued(journal.head)
        names = [name for name, _, _ in journal.head.files]
        with LockedFiles(journal.path.parent, names) as files:
            if not journal.path.exists():
                continue  # whoever held the lock has settled it
            _check_state(journal, files, pool)
            try:
                carry_out(journal, files, pool, back=not forward)
            except OSError as error:
                raise UnfinishedError(
                    f"{path} is half changed, and could not be settled: {error.strerror or error}; "
                    f"its journal {journal.path} is kept",
                    hint="free some space or repair the disk, then give the same command again",
                ) from None
            remove(journal)
        settled = "ended" if forward else "undone"
    return settled


def carry_out(
    journal: Journal,
    files: LockedFiles,
    pool: OrderedMap,
    *,
    back: bool,
    rewrite: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the new words of a journal, or the old ones, and bring them to the disk.

    Args:
        journal: The journal.
        files: The files that it is about.
        pool: Threads to use.
        back: Write what was there.
        rewrite: Write also what is there already: it may not have reached the disk.
        progress: Told how many bytes of runs were gone through, each time.

    Raises:
        UnfinishedError: The journal is damaged, or not about these files.
        CheckpointError: A file became shorter.
        OSError: A file cannot be read or written, or does not reach the disk.
    """

    def work(place: tuple[int, int]) -> int:
        run = _run(journal, files, place)
        buffer = np.empty(_CHUNK + 2 * _PAGE, np.uint8)
        for first, stop, entries, at in _pieces(run):
            words = _read(files, run, first, stop, buffer)
            old, new = run.old[entries], run.new[entries]
            found, wanted = words[at], old if back else new
            _check_words(journal, files.paths[run.file], found, old, new)
            if rewrite or not np.array_equal(found, wanted):
                words[at] = wanted
                files.write(
                    run.file, words.view(np.uint8).data, run.offset + first * words.itemsize
                )
        return run.words * run.old.itemsize

    places = (place for kind, place in journal.frames() if kind == RUN)
    # The disk works while the words are scattered; what it has not got by then, it gets at the end.
    with ThreadPoolExecutor(1) as early, pool.mapped(work, places) as results:
        syncing = early.submit(files.sync)
        for nbytes in results:
            progress(nbytes)
            if syncing.done():
                syncing.result()
                syncing = early.submit(files.sync)
        syncing.result()  # a failure is told once: it must not be overheard
    for small in _small_files(journal):
        replace_small(journal.path.parent / small.name, small.old if back else small.new)
    files.sync()
    sync(journal.path.parent)


def remove(journal: Journal) -> None:
    """Remove a journal that was carried out.

    Raises:
        UnfinishedError: It cannot be removed.
    """
    try:
        journal.path.unlink()
    except OSError as error:
        raise UnfinishedError(
            f"all files are written, but their journal {journal.path} cannot be removed: "
            f"{error.strerror}",
            hint=f"rm {shlex.quote(str(journal.path))}",
        ) from None
    # Should a power cut bring it back: it is right, and is carried out once more.
    with contextlib.suppress(OSError):
        sync(journal.path.parent)


def _check_state(journal: Journal, files: LockedFiles, pool: OrderedMap) -> None:
    """Insist that every changed word is the old or the new one, before anything is written."""
    for number, (name, size, inode) in enumerate(journal.head.files):
        journal.check_inode(name, files.inode(number), inode)
        if files.size(number) != size:
            raise journal.foreign(f"{name} has {files.size(number)} bytes, expected {size}")

    def work(place: tuple[int, int]) -> None:
        run = _run(journal, files, place)
        buffer = np.empty(_CHUNK + 2 * _PAGE, np.uint8)
        for first, stop, entries, at in _pieces(run):
            found = _read(files, run, first, stop, buffer)[at]
            path = files.paths[run.file]
            _check_words(journal, path, found, run.old[entries], run.new[entries])

    places = (place for kind, place in journal.frames() if kind == RUN)
    with pool.mapped(work, places) as results:
        for _ in results:
            pass
    for small in _small_files(journal):
        if read_small(journal.path.parent / small.name, MAX_INDEX_BYTES) not in (
            small.old,
            small.new,
        ):
            raise journal.foreign(f"{small.name} has neither its old nor its new content")


def _run(journal: Journal, files: LockedFiles, place: tuple[int, int]) -> Run:
    try:
        run = decode_run(journal.payload(place))
    except (ValueError, KeyError, struct.error):
        raise journal.damaged(f"the run at byte {place[0]}") from None
    if run.file >= len(files.paths):
        raise journal.damaged(f"the run at byte {place[0]}")
    return run


def _small_files(journal: Journal) -> Iterator[SmallFile]:
    for kind, place in journal.frames():
        if kind != RUN:
            try:
                small = decode_small(journal.payload(place))
            except (ValueError, struct.error):
                raise journal.damaged(f"the file at byte {place[0]}") from None
            if small.name not in journal.head.others:
                raise journal.damaged(f"the file at byte {place[0]}")
            yield small


_Piece: TypeAlias = tuple[int, int, slice, Indices | slice]
"""First word and end word of what is read at once, its entries, and where in it they are."""


def _pieces(run: Run) -> Iterator[_Piece]:
    """What of a run is read and written: whole pages around its entries, within the run.

    Pages that two runs share are never written by both: threads work on them at the same time.
    """
    width, at = run.old.itemsize, run.positions
    size = _CHUNK // width
    if at is None:
        for first in range(0, run.words, size):
            stop = min(first + size, run.words)
            yield first, stop, slice(first, stop), slice(None)
        return
    cuts = np.searchsorted(at, np.arange(0, run.words + size, size))
    for low, high in itertools.pairwise(cuts.tolist()):
        if low == high:
            continue
        near = at[low:high]
        begins = [0]
        if near.size < _CHUNK // _PAGE:  # more entries than pages hardly leave gaps
            pages = (run.offset + near * width) // _PAGE
            begins += (np.flatnonzero(np.diff(pages) > _GAP_PAGES) + 1).tolist()
        for begin, end in itertools.pairwise((*begins, near.size)):
            first, stop = _page_bounds(run, int(near[begin]), int(near[end - 1]), width)
            yield first, stop, slice(low + begin, low + end), near[begin:end] - first


def _page_bounds(run: Run, first: int, last: int, width: int) -> tuple[int, int]:
    """The words of the run in the pages from that of ``first`` to that of ``last``."""
    down = (run.offset + first * width) // _PAGE * _PAGE - run.offset
    up = -(-(run.offset + (last + 1) * width) // _PAGE) * _PAGE - run.offset
    return max(0, min(first, -(-down // width))), min(run.words, max(last + 1, up // width))


def _read(files: LockedFiles, run: Run, first: int, stop: int, buffer: Bytes) -> Words:
    width = run.old.itemsize
    data = buffer[: (stop - first) * width]
    files.read_into(run.file, data.data, run.offset + first * width)
    return data.view(run.old.dtype)


def _check_words(journal: Journal, path: Path, found: Words, old: Words, new: Words) -> None:
    if bool(np.all((found == old) | (found == new))):
        return
    # A power cut can tear a word that lies on the border of two sectors.
    each, before, after = (words.view(np.uint8) for words in (found, old, new))
    if not bool(np.all((each == before) | (each == after))):
        raise journal.foreign(f"{path.name} holds words that are neither the old nor the new")
