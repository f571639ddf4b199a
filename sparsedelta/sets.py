"""Sets: a root file and the part files beside it (spec section 3.8, rules SD601 to SD603)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from sparsedelta.container import DeltaFile
from sparsedelta.errors import CheckpointError, FormatError, HubError, NoAccessError
from sparsedelta.manifest import SetPart, are_invertible, clashes
from sparsedelta.records import TensorRecord
from sparsedelta.sources import Source, open_source, open_sources

_INCOMPLETE = "get all files of the set into one folder: the root lists them"
_MIXED = "files of two deltas got mixed: get all files of the set again"


def open_parts(root: DeltaFile, *, ahead: bool = True) -> Sequence[DeltaFile]:
    """Open the part files of a set.

    Args:
        root: The root file.
        ahead: Whether more of them will be read than some parts.

    Raises:
        FormatError: A part file is missing, breaks a rule or belongs to another set.
        CheckpointError: A part file cannot be read.
    """
    assert root.manifest.place is not None  # noqa: S101 (the caller has seen that it is a root)
    parts = root.manifest.place.parts
    with ExitStack() as stack, closing(_sources(root, parts, ahead=ahead)) as sources:
        files = []
        # One after the other: what is wrong with the first part is told first.
        for number, (listed, source) in enumerate(zip(parts, sources, strict=True), 1):
            stack.callback(source.close)
            _check_size(root, listed, source.size)
            file = DeltaFile(source)
            _check_part(root, number, listed, file)
            files.append(file)
        stack.pop_all()
    return files


def _sources(
    root: DeltaFile, parts: Sequence[SetPart], *, ahead: bool
) -> Generator[Source, None, None]:
    """The part files: local ones opened when they are asked for, remote ones all at once."""
    folder = root.path.parent
    if isinstance(folder, Path):
        for part in parts:
            _check_size(root, part, _regular_size(folder / part.name))
            yield open_source(folder / part.name)
        return
    try:
        sources = open_sources([folder / part.name for part in parts], ahead=ahead)
    except (NoAccessError, HubError) as error:
        if isinstance(error, HubError) and error.reason != "entry":
            raise
        raise FormatError("SD601", f"{root.path}: {error.message}", hint=_INCOMPLETE) from None
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        yield from sources
        stack.pop_all()


def _check_size(root: DeltaFile, part: SetPart, size: int | None) -> None:
    if size != part.size:
        found = "is not there as a regular file" if size is None else f"has {size} bytes"
        raise FormatError(
            "SD601",
            f"{root.path}: its part file {part.name} {found}, expected {part.size} bytes",
            hint=_INCOMPLETE,
        )


def _regular_size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _check_part(root: DeltaFile, number: int, listed: SetPart, file: DeltaFile) -> None:
    place, its = root.manifest.place, file.manifest.place
    manifest = file.header.metadata["sd.manifest"]
    if manifest != listed.manifest:
        problem = f"its manifest has the digest {manifest[:16]}…, expected {listed.manifest[:16]}…"
    elif its is None or place is None or (its.id, its.part) != (place.id, number):
        problem = f"it is not part file {number} of this set"
    else:
        keys = ("base", "target", "version", "profile", "lean")
        differing = [
            key for key in keys if getattr(root.manifest, key) != getattr(file.manifest, key)
        ]
        problem = f"{', '.join(differing)} differ" if differing else ""
    if problem:
        raise FormatError("SD602", f"{root.path}: part file {listed.name}: {problem}", hint=_MIXED)


def check_merged(root: DeltaFile, records: Sequence[TensorRecord]) -> None:
    """Rule SD603: the records of all part files fit together.

    Raises:
        FormatError: They do not.
    """
    manifest = root.manifest
    names = [record.name for record in records]
    bases = [(record.base or record.spec).name for record in records]
    problems = list(clashes(names, bases, manifest.untouched))
    nnz = sum(record.nnz for record in records)
    if nnz != manifest.nnz:
        problems.append(f"'nnz' is {manifest.nnz}, the part files add up to {nnz}")
    if manifest.invertible != are_invertible(records):
        problems.append(f"'invertible' is {manifest.invertible}, the part files say otherwise")
    found = [FormatError("SD603", f"{root.path}: {problem}", hint=_MIXED) for problem in problems]
    if found:
        found[0].others = tuple(found[1:])
        raise found[0]
