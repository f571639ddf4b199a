"""What lies beside the weights of a checkpoint: configuration, tokenizer, generation settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.errors import CheckpointError
from sparsedelta.file_names import is_weights_file
from sparsedelta.limits import MAX_COMPANION_BYTES
from sparsedelta.locations import Url


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside the weights of a checkpoint, relative to its directory, ascending.

    Attributes:
        copied: Small files: configuration, tokenizer, generation settings.
        left_behind: What is not copied: other weights, large files, linked directories; of a web
            server, which does not tell its files, one line for all of them.
        large: Those left behind for their size alone.
    """

    copied: tuple[Path, ...]
    left_behind: tuple[str, ...]
    large: tuple[str, ...] = ()


def find_companions(source: FileCheckpoint) -> Companions:
    """Files beside the weights of ``source``; none if it is a single file.

    Raises:
        CheckpointError: A folder cannot be read.
    """
    root = source.root
    if not source.is_directory:
        return Companions((), ())
    if isinstance(root, Url):
        if root.is_web:
            index = () if source.index is None else (Path(source.index.name),)
            return Companions(index, (f"what lies beside {source.location}",))
        return _sorted_out(source, _remote(root))
    try:
        return _sorted_out(source, _local(root, root))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None


def _sorted_out(source: FileCheckpoint, found: Iterable[tuple[str, int | None]]) -> Companions:
    own = {file.name for file in source.files}
    index = None if source.index is None else source.index.name
    copied, left, large = [], [], []
    for name, size in sorted(found, key=lambda item: PurePath(item[0])):
        is_other_index = name.endswith(".index.json") and name != index
        if name in own:
            continue
        if size is None or is_weights_file(PurePath(name)) or is_other_index:
            left.append(name)
        elif size > MAX_COMPANION_BYTES:
            left.append(name)
            large.append(name)
        else:
            copied.append(Path(name))
    return Companions(tuple(copied), tuple(left), tuple(large))


def _local(root: Path, folder: Path) -> Iterator[tuple[str, int | None]]:
    # Links to directories are told, not followed: they may lead anywhere, also back here.
    for path in folder.iterdir():
        name = str(path.relative_to(root))
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _local(root, path)
        elif path.is_dir():
            yield name, None
        elif path.is_file():
            yield name, path.stat().st_size


def _remote(root: Url) -> Iterator[tuple[str, int | None]]:
    from sparsedelta.remote import list_remote  # noqa: PLC0415 (see open_sources)

    for name, size in list_remote(root, below=True).items():
        parts = name.split("/")
        if "" in parts or ".." in parts or "\0" in name:
            yield name, None  # a store takes any name; a folder here must not
        elif not any(part.startswith(".") for part in parts):
            yield name, size
