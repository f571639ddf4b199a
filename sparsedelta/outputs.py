"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from sparsedelta.errors import OutputError
from sparsedelta.file_names import DIGESTS_SUFFIX
from sparsedelta.files import OPEN_FILES, reason, sync
from sparsedelta.journal import refuse_unfinished
from sparsedelta.limits import MAX_COMPANION_BYTES

_FORCE: Final = "--force replaces it (force=True in Python)"


def refuse_overlap(path: Path, others: Iterable[Path]) -> None:
    """Refuse an output that is, holds or lies in something else.

    Args:
        path: The output; it may exist.
        others: Files and directories.

    Raises:
        OutputError: It does; the message says which.
    """
    for other in others:
        relation = _relation(path, other)
        if relation:
            raise OutputError(f"the output {path} {relation} the input {other}")


def check_output(
    path: Path, *, force: bool, inputs: Iterable[Path] = (), directory: bool = False
) -> None:
    """Refuse an output that cannot, or must not, be written.

    Args:
        path: The output.
        force: Whether an existing output may be replaced: a file by a file or a directory, a
            directory by a directory only, and only if it is empty or holds a checkpoint.
        inputs: Files and directories that are read: never overwritten, even with ``force``.
        directory: Whether the output is a directory.

    Raises:
        OutputError: It exists; it is, holds or lies in an input; its parent is no directory.
        UnfinishedError: A run in place that was interrupted has a journal about it.
    """
    try:
        refuse_unfinished(path)
        refuse_overlap(path, inputs)
        if not path.parent.is_dir():
            raise OutputError(
                f"the folder of the output {path} does not exist", hint=_mkdir_hint(path.parent)
            )
        if os.path.lexists(path):
            _check_replacement(path, force=force, directory=directory)
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise OutputError(f"cannot write {path}: {reason(error)}") from None


def _check_replacement(path: Path, *, force: bool, directory: bool) -> None:
    if not force:
        raise OutputError(f"the output {path} exists", hint=_FORCE)
    try:
        mode = path.stat().st_mode  # a link that leads to itself is an error
    except FileNotFoundError:  # a link that leads nowhere is replaced, and so is what just went
        return
    if not stat.S_ISDIR(mode):
        if not stat.S_ISREG(mode):
            raise OutputError(f"the output {path} is neither a file nor a directory")
    elif not directory and not path.is_symlink():
        raise OutputError(
            f"the output {path} is a directory: a file does not replace it",
            hint=f"name the file: -o {shlex.quote(str(path / 'NAME'))}",
        )
    elif not path.is_symlink() and any(path.iterdir()) and not any(path.glob("*.safetensors")):
        raise OutputError(
            f"the output {path} is a directory that holds something, but no checkpoint: it is not "
            "replaced",
            hint=f"name a new one: -o {shlex.quote(str(path / 'NAME'))}",
        )
    elif not path.is_symlink():
        kept = _not_ours(path)
        if kept is not None:
            raise OutputError(
                f"the output {path} is a directory that holds more than a checkpoint: {kept.name} "
                "would be lost, so it is not replaced",
                hint=f"name a new one: -o {shlex.quote(str(path / 'NAME'))}",
            )


def _not_ours(path: Path) -> Path | None:
    """An entry of a directory that no checkpoint written here would have, or None."""
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") and entry.name.endswith(DIGESTS_SUFFIX) and entry.is_file():
            continue
        if entry.name.startswith(".") or not entry.is_file():
            return entry
        if entry.suffix != ".safetensors" and entry.stat().st_size > MAX_COMPANION_BYTES:
            return entry
    return None


def _mkdir_hint(folder: Path) -> str | None:
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    return f"mkdir -p {shlex.quote(str(folder))}" if nearest.is_dir() else None


def _relation(output: Path, source: Path) -> str | None:
    written, read = output.resolve(), source.resolve()
    if written == read or _is_same_file(written, read) or written in read.parents:
        return "would overwrite"
    if read in written.parents:
        return "lies inside"
    return None


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:  # also one that just goes: another writer replaces it
        return False


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the output."""
    try:
        yield
    except OSError as error:
        hint = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "nothing was left behind: free some space, or choose -o on another disk"
        elif error.errno == errno.EMFILE:
            hint = OPEN_FILES
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint=hint) from None


@contextlib.contextmanager
def staged(path: Path, *, force: bool, directory: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``path`` that takes its name at the end, or vanishes.

    A file is replaced in one step. A directory takes two: the old one is moved into the temporary
    folder, ``.sparsedelta.*.tmp/replaced``, where a power cut between them would leave it. Files
    that the caller makes beside it take their names first: part files of a set before their root.

    Args:
        path: The final name. :func:`check_output` has been called.
        force: Whether an output that has appeared meanwhile is replaced.
        directory: Whether the output is a directory (made here) or a file (made by the caller).

    Yields:
        Where to write.

    Raises:
        OutputError: The disk is full, the folder is read-only, the rename fails.
        UnfinishedError: Meanwhile a run in place was begun that has a journal about it.
    """
    with output_errors(path):
        stage = Path(tempfile.mkdtemp(prefix=".sparsedelta.", suffix=".tmp", dir=path.parent))
    work = stage / path.name
    try:
        with output_errors(path):
            if directory:
                work.mkdir()
            yield work
            others = [other for other in sorted(stage.iterdir()) if other != work]
            for each in (work, *others):
                _sync_tree(each)
            if others:
                _take_names(work, others, path, force=force)
            else:
                _take_name(work, path, stage, force=force)
            sync(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(work: Path, path: Path, aside: Path, *, force: bool) -> None:
    """Bring a finished output to the disk, and give it its name.

    Args:
        work: The output.
        path: Its final name. :func:`check_output` has been called.
        aside: A folder on the same file system, for what is replaced.
        force: Whether an output that has appeared meanwhile is replaced.

    Raises:
        OutputError: The output has appeared meanwhile.
        UnfinishedError: Meanwhile a run in place was begun that has a journal about it.
        OSError: The disk fails, or the rename.
    """
    _sync_tree(work)
    _take_name(work, path, aside, force=force)
    sync(path.parent)


def _take_names(work: Path, others: Sequence[Path], path: Path, *, force: bool) -> None:
    """Name the part files of a set, then their root: while a root is there, its parts are too."""
    stage = work.parent
    targets = [path.parent / other.name for other in others]
    moved: list[tuple[Path, Path]] = []
    with _locked(path.parent):
        try:
            for old in (path, *targets) if force else ():  # the old root goes first
                moved.append((stage / f"replaced-{len(moved)}", old))
                with contextlib.suppress(FileNotFoundError):
                    old.rename(moved[-1][0])
            for other, target in zip(others, targets, strict=True):
                _take_name(other, target, stage, force=force)
            sync(path.parent)
            _take_name(work, path, stage, force=force)
        finally:
            if not _has_taken(work, path):
                for other, target in zip(others, targets, strict=True):
                    if _has_taken(other, target):  # without the root it is of no use
                        target.unlink(missing_ok=True)
                for spare, old in reversed(moved):  # and comes back last
                    if os.path.lexists(spare) and not os.path.lexists(old):
                        spare.rename(old)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait while another process gives names to a set here: their files must not get mixed."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems that know no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _has_taken(work: Path, path: Path) -> bool:
    """Whether what was made at ``work`` has the name ``path``: moved there, or linked."""
    if not os.path.lexists(work):
        return os.path.lexists(path)
    return os.path.lexists(path) and os.path.samestat(work.lstat(), path.lstat())


def _take_name(work: Path, path: Path, stage: Path, *, force: bool) -> None:
    refuse_unfinished(path)  # it took time to make the output
    if force:
        _replace(work, path, aside=stage / "replaced")
    else:
        _place(work, path)


def _place(work: Path, path: Path) -> None:
    taken = OutputError(f"the output {path} exists: it appeared meanwhile", hint=_FORCE)
    if not work.is_dir():
        try:
            # A link, unlike a rename, is refused where something has the name.
            path.hardlink_to(work)
        except FileExistsError:
            raise taken from None
        except OSError:
            pass  # file systems refuse links in many ways; the rename below gives the real error
        else:
            return
    if os.path.lexists(path):
        raise taken
    work.rename(path)


def _replace(work: Path, path: Path, *, aside: Path) -> None:
    is_directory = path.is_dir() and not path.is_symlink()
    if not work.is_dir() and not is_directory:
        work.replace(path)
        return
    # With a directory at either end there is no single step: the old one steps aside first, and
    # comes back if the new one, for whatever reason, does not take its name.
    try:
        if os.path.lexists(path):
            path.rename(aside)
        work.rename(path)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(path):
            aside.rename(path)
        raise


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in sorted(path.rglob("*")):
            sync(child)
    sync(path)


def write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all of ``data`` at ``position``."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], position + done)


def read_all(fd: int, buffer: memoryview, position: int) -> None:
    """Fill ``buffer`` from ``position`` of a file that is being written.

    Raises:
        OSError: It cannot be read, or is shorter.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], position + done)
        if not count:
            raise OSError(errno.EIO, "a file that was just written is shorter")
        done += count
