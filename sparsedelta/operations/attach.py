"""What a diff records beside the tensors: files of the ends, and small files that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from sparsedelta.attachments import CarriedEnd, CarriedFile, Layout, LayoutEnd, LayoutFile
from sparsedelta.checkpoint import CheckpointFile, CheckpointReader, FileCheckpoint
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.companions import find_companions
from sparsedelta.digests import plain_digest
from sparsedelta.errors import UsageError
from sparsedelta.file_names import (
    CHECKPOINT_SUFFIX,
    INDEX_SUFFIX,
    file_name_problem,
    is_weights_name,
    same_ignoring_case,
)
from sparsedelta.limits import MAX_BLOBS_BYTES, MAX_COMPANION_BYTES, MAX_INDEX_BYTES
from sparsedelta.locations import Location, Url
from sparsedelta.sources import read_file
from sparsedelta.writer import DeltaWriter

_AUTO_SHARE: Final = 100
"""``auto`` records a layout that costs less than this part of the delta."""

_USUAL_NAME: Final = "model.safetensors"
"""Name to record for a checkpoint that is one file, not a folder."""

_ENTRY_BYTES: Final = 100
"""About what a file costs in the manifest."""


def record_layout(
    base: CheckpointReader,
    target: CheckpointReader,
    writer: DeltaWriter,
    *,
    mode: str,
    sha256: bool,
) -> tuple[Layout | None, tuple[str, ...]]:
    """Record names and headers of the checkpoints' files (spec section 3.6).

    Args:
        base: The base; a model in memory has no files.
        target: The target.
        writer: Where headers go, as blobs.
        mode: ``auto``, ``always`` or ``never``.
        sha256: Whether to digest the files, too.

    Returns:
        The layout, or None; and what the user should know.

    Raises:
        UsageError: ``always`` or SHA-256 was asked for, and an end cannot be recorded.
    """
    if mode == "never" and not sha256:
        return None, ()
    is_wanted = mode == "always" or sha256
    ends: dict[str, FileCheckpoint | None] = {}
    notes = []
    for key, reader in (("base", base), ("target", target)):
        problem = _problem(reader)
        if problem and is_wanted:
            raise UsageError(f"the layout of {reader.location} cannot be recorded: {problem}")
        if problem and isinstance(reader, FileCheckpoint):
            notes.append(f"the layout of {reader.location} is not recorded: {problem}")
        ends[key] = None if problem or not isinstance(reader, FileCheckpoint) else reader
    if not any(ends.values()):
        return None, tuple(notes)
    if not is_wanted and not writer.renames and not _pays(ends, writer.spooled):
        return None, tuple(notes)
    layout = {
        key: None if end is None else _end(end, writer, sha256=sha256) for key, end in ends.items()
    }
    return layout, tuple(notes)


def _problem(reader: CheckpointReader) -> str | None:
    if not isinstance(reader, FileCheckpoint):
        return "it has no files"
    if len(reader.files) == 1 and reader.index is None:
        return None  # its name is that of the output: see _file_name
    names = [(file.name, CHECKPOINT_SUFFIX) for file in reader.files]
    if reader.index is not None:
        names.append((reader.index.name, INDEX_SUFFIX))
    for name, suffix in names:
        problem = file_name_problem(name)
        if problem is None and not name.endswith(suffix):
            problem = f"does not end with {suffix}"
        if problem:
            return f"the file name {name!r} {problem}"
    if same_ignoring_case(name for name, _ in names):
        return "two of its file names differ in case only"
    headers = sum(len(file.layout.prefix) for file in reader.files) + MAX_INDEX_BYTES
    if 2 * headers > MAX_BLOBS_BYTES:
        return "its headers are too large"
    return None


def _pays(ends: Mapping[str, FileCheckpoint | None], spooled: int) -> bool:
    old, new = ends["base"], ends["target"]
    if old is not None and new is not None and _facts(old) != _facts(new):
        return True  # without it, apply or revert could not give the files back
    cost = sum(
        len(encode_frame(file.layout.prefix)) + 2 * _ENTRY_BYTES
        for end in (old or new,)
        if end is not None
        for file in end.files
    )
    return cost * _AUTO_SHARE < spooled


def _facts(end: FileCheckpoint) -> object:
    index = None if end.index is None else (end.index.name, end.index_content)
    names = [(file.name, file.layout.prefix) for file in end.files]
    return (names, index) if end.is_directory else [prefix for _, prefix in names]


def _end(end: FileCheckpoint, writer: DeltaWriter, *, sha256: bool) -> LayoutEnd:
    files = tuple(
        LayoutFile(
            _file_name(end, file.name),
            writer.blob(file.layout.prefix),
            _sha256(file) if sha256 else None,
        )
        for file in sorted(end.files, key=lambda file: file.name)
    )
    if end.index is None:
        return LayoutEnd(files, None)
    return LayoutEnd(files, (end.index.name, writer.blob(end.index_content)))


def _file_name(end: FileCheckpoint, name: str) -> str:
    # A checkpoint that was named as a file has the name its user gave it; in a folder it should
    # have the one that libraries look for.
    is_fit = file_name_problem(name) is None and name.endswith(CHECKPOINT_SUFFIX)
    return name if is_fit and end.is_directory else _USUAL_NAME


def _sha256(file: CheckpointFile) -> str:
    state = hashlib.sha256()
    size = 1 << 22
    for offset in range(0, file.layout.size, size):
        state.update(file.source.read(offset, min(size, file.layout.size - offset)))
    return state.hexdigest()


def find_carried(
    base: CheckpointReader, target: CheckpointReader, writer: DeltaWriter, *, forget: bool
) -> tuple[tuple[CarriedFile, ...], tuple[str, ...]]:
    """Small files beside the weights that differ between the ends (spec section 3.7).

    Args:
        base: The base: a directory.
        target: The target: a directory.
        writer: Where their contents go, as blobs.
        forget: Leave out the contents that revert would need.

    Returns:
        The files, and what the user should know.

    Raises:
        UsageError: An end is no directory, or lies on a web server, which does not tell its files.
        CheckpointError: A file cannot be read.
    """
    found: dict[str, dict[str, Location]] = {}
    notes: list[str] = []
    for key, reader in (("base", base), ("target", target)):
        if not isinstance(reader, FileCheckpoint) or not reader.is_directory:
            raise UsageError(
                f"{reader.location} is no directory: there are no files beside its weights",
                hint="leave out --with-files, or name the directory that holds the checkpoint",
            )
        if isinstance(reader.root, Url) and reader.root.is_web:
            raise UsageError(
                f"{reader.location} lies on a web server, which does not tell what lies beside it",
                hint="leave out --with-files, or download the checkpoint first",
            )
        found[key], large = _files_of(reader)
        notes += [
            f"{name} is not carried: it is larger than {MAX_COMPANION_BYTES} bytes"
            for name in large
        ]
    old, new = found["base"], found["target"]
    carried = []
    for name in sorted(old.keys() | new.keys()):
        # A pair at a time: a folder may hold many files.
        before, after = _content(old.get(name)), _content(new.get(name))
        if before == after:
            continue
        problem = file_name_problem(name)
        if problem is None and is_weights_name(name):
            problem = "is one of weights"
        if problem:
            notes.append(f"{name} is not carried: its name {problem}")
            continue
        carried.append(
            CarriedFile(
                name,
                None if before is None else _carried_end(before, writer, is_kept=not forget),
                None if after is None else _carried_end(after, writer, is_kept=True),
            )
        )
    twice = same_ignoring_case(file.name for file in carried)
    if twice is not None:
        raise UsageError(f"two files beside the weights are both {twice!r}, if case is ignored")
    return tuple(carried), tuple(dict.fromkeys(notes))


def _files_of(reader: FileCheckpoint) -> tuple[dict[str, Location], tuple[str, ...]]:
    """Small files by name (those in sub-folders by their relative path); large ones."""
    companions = find_companions(reader)
    files = {str(relative): reader.root / relative for relative in companions.copied}
    if reader.index is not None:
        files.pop(reader.index.name, None)  # it belongs to the layout
    return files, companions.large


def _content(location: Location | None) -> bytes | None:
    return None if location is None else read_file(location, MAX_COMPANION_BYTES)


def _carried_end(content: bytes, writer: DeltaWriter, *, is_kept: bool) -> CarriedEnd:
    blob = writer.blob(content) if is_kept else None
    return CarriedEnd(blob, plain_digest(content).hex(), len(content))
