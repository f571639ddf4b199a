"""Which files make up a checkpoint: one, or shards and their index, in a folder or a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.errors import CheckpointError, printable
from sparsedelta.file_names import CHECKPOINT_SUFFIX, INDEX_SUFFIX
from sparsedelta.limits import MAX_INDEX_BYTES
from sparsedelta.locations import Location, Url
from sparsedelta.sources import read_file
from sparsedelta.strict_json import parse


@dataclass(frozen=True, slots=True)
class Index:
    """The index of a checkpoint in shards.

    Attributes:
        location: Where it lies.
        content: Its text.
        weight_map: Name of each tensor to name of its shard, a file beside the index.
    """

    location: Location
    content: bytes
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of a checkpoint.

    Attributes:
        root: The folder that holds them.
        files: The checkpoint files, ascending.
        index: The index, or None.
        is_directory: Whether the checkpoint is more than one file: a folder, or an index and its
            shards.
    """

    root: Location
    files: tuple[Location, ...]
    index: Index | None
    is_directory: bool


def find_files(location: Location) -> CheckpointFiles:
    """The files of the checkpoint that a location leads to.

    Args:
        location: A file; an index; or a folder that holds one file, or shards and their index. The
            name of a remote file tells by itself that it is none.

    Raises:
        CheckpointError: Nothing there, or more than one reading of what is there; a malformed
            index.
        OSError: The operating system refuses to look.
    """
    if isinstance(location, Url):
        is_folder = _is_remote_folder(location)
    elif location.exists():
        is_folder = location.is_dir()
    else:
        raise CheckpointError(f"there is no file or directory {location}", hint=_url_hint(location))
    if is_folder:
        return _find_in_folder(location)
    if location.name.endswith(INDEX_SUFFIX):
        index = _read_index(location)
        files = tuple(location.parent / shard for shard in _shards(index))
        return CheckpointFiles(location.parent, files, index, is_directory=True)
    return CheckpointFiles(location.parent, (location,), None, is_directory=False)


def _is_remote_folder(url: Url) -> bool:
    if url.name.endswith((CHECKPOINT_SUFFIX, INDEX_SUFFIX)):
        return False  # a request less
    if not url.is_web:
        from sparsedelta.remote import is_remote_folder  # noqa: PLC0415 (see open_sources)

        return is_remote_folder(url)
    if url.text.partition("?")[0].endswith("/"):
        name = f"model{CHECKPOINT_SUFFIX}"
        raise CheckpointError(
            f"{url} is a folder of a web server, which does not tell its files",
            hint=f"name the file, such as {url / name}, or the index of the shards",
        )
    return False


def _url_hint(path: Path) -> str | None:
    # pathlib makes one slash of two.
    scheme, colon, _ = str(path).partition(":/")
    is_scheme = bool(colon) and "/" not in scheme
    return f"give a URL as text, not as a Path: {scheme}://…" if is_scheme else None


def _find_in_folder(folder: Location) -> CheckpointFiles:
    if isinstance(folder, Url):
        from sparsedelta.remote import list_remote  # noqa: PLC0415 (see open_sources)

        names = sorted(list_remote(folder, below=False))
    else:
        names = sorted(item.name for item in folder.iterdir())
    # Hidden files are nobody's weights: some systems drop a "._model.safetensors" beside each file.
    visible = [name for name in names if not name.startswith(".")]
    indexes = [name for name in visible if name.endswith(INDEX_SUFFIX)]
    files = [name for name in visible if name.endswith(CHECKPOINT_SUFFIX)]
    if len(indexes) == 1:
        index = _read_index(folder / indexes[0])
        shards = _shards(index, names)
        if set(files) <= set(shards):
            found = tuple(folder / shard for shard in shards)
            return CheckpointFiles(folder, found, index, is_directory=True)
    elif not indexes and len(files) == 1:
        return CheckpointFiles(folder, (folder / files[0],), None, is_directory=True)
    either = [*indexes, *files]
    if not either:
        raise CheckpointError(
            f"{folder} holds no {CHECKPOINT_SUFFIX} file",
            hint="save the model with save_pretrained(..., safe_serialization=True)",
        )
    raise CheckpointError(
        f"{folder} holds more than one checkpoint: {', '.join(either[:6])}"
        f"{', …' if len(either) > 6 else ''}",  # noqa: PLR2004 (enough to see what is there)
        hint=f"name the one you mean: {folder / either[0]}",
    )


def _read_index(location: Location) -> Index:
    content = read_file(location, MAX_INDEX_BYTES)
    try:
        document = parse(content)
    except ValueError as error:
        raise CheckpointError(f"{location} is no strict JSON: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{location} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard:
            raise CheckpointError(
                f"{location}: tensor {name!r:.200} is said to be in {shard!r:.200}, expected the "
                "name of a file beside the index"
            )
    return Index(location, content, weight_map)


def _shards(index: Index, names: Sequence[str] | None = None) -> list[str]:
    """The names of the shards, ascending; those of a store are looked up where it was listed."""
    shards = sorted(set(index.weight_map.values()))
    folder = index.location.parent
    for shard in shards:
        if isinstance(folder, Path):
            is_there = (folder / shard).exists()
        else:
            is_there = names is None or shard in names
        if not is_there:
            raise CheckpointError(
                f"{index.location} names the shard {printable(shard)}, which is not there",
                hint="the download is not complete: get it again",
            )
    return shards
