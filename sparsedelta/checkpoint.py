"""Checkpoints: named tensors in one file, in shards with an index, or in memory.

One reader hides where the tensors lie. It reads runs of words, never whole files, so that an
operation need not hold more of a checkpoint than it works on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from sparsedelta.digests import Digest, segment_digest
from sparsedelta.errors import CheckpointError, DeltaGivenError, printable
from sparsedelta.file_names import CHECKPOINT_SUFFIX, INDEX_SUFFIX
from sparsedelta.files import InputFile
from sparsedelta.limits import MAX_INDEX_BYTES, SEGMENT_WORDS
from sparsedelta.safetensors_header import FileLayout, StoredTensor, read_layout
from sparsedelta.strict_json import parse
from sparsedelta.words import Bytes, TensorSpec


class CheckpointReader(Protocol):
    """What operations need of a checkpoint, wherever its tensors lie.

    Attributes:
        location: What to call it in messages.
        specs: Every tensor by name.
        paths: Files and directories that it is read from: never overwritten.
    """

    location: str
    specs: Mapping[str, TensorSpec]
    paths: tuple[Path, ...]

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor, in an array the caller may change.

        Raises:
            CheckpointError: They cannot be read.
        """

    def close(self) -> None:
        """Release files; further calls do nothing."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One safetensors file of a checkpoint, open for reading."""

    source: InputFile
    layout: FileLayout

    @property
    def name(self) -> str:
        """Basename of the file."""
        return self.source.path.name


class FileCheckpoint:
    """A checkpoint in safetensors files.

    Args:
        path: A file; an index (``*.safetensors.index.json``); or a directory that holds one file,
            or shards and their index.

    Attributes:
        location: The path, as given.
        path: The path.
        files: Its files, in the order of their names.
        index: The index, or None.
        specs: Every tensor by name: every name stored in the files, whatever the index says.
        paths: The path, the index and the files.

    Raises:
        CheckpointError: Nothing there, or more than one reading of what is there; a malformed
            header; a tensor stored twice; an index and files that disagree.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.location = str(path)
        try:
            self.index, paths = _find_files(self.path)
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"cannot read {self.path}: {str(reason)!r}") from None
        self.files: list[CheckpointFile] = []
        self._places: dict[str, tuple[CheckpointFile, StoredTensor]] = {}
        try:
            for file_path in paths:
                self._open(file_path)
            if self.index is not None:
                self._check_index(self.index)
        except BaseException:
            self.close()
            raise
        self.specs: Mapping[str, TensorSpec] = {
            name: stored.spec for name, (_, stored) in self._places.items()
        }
        own = (self.path,) if self.index is None else (self.path, self.index)
        self.paths: tuple[Path, ...] = (*own, *paths)

    @property
    def is_directory(self) -> bool:
        """Whether the checkpoint is more than one file: a directory, or an index and its shards."""
        return self.path.is_dir() or self.index is not None

    @property
    def root(self) -> Path:
        """The directory that holds the files."""
        return self.path if self.path.is_dir() else self.path.parent

    def _open(self, path: Path) -> None:
        source = InputFile(path)
        try:
            layout = read_layout(source)
        except BaseException:
            source.close()
            raise
        file = CheckpointFile(source, layout)
        self.files.append(file)
        if layout.metadata.get("format") == "sparsedelta":
            raise DeltaGivenError(f"{path} is a delta, expected a checkpoint")
        for stored in layout.tensors:
            name = stored.spec.name
            if name in self._places:
                raise CheckpointError(
                    f"tensor {name!r:.200} is stored twice: in {self._places[name][0].source.path} "
                    f"and in {path}"
                )
            self._places[name] = (file, stored)

    def _check_index(self, index: Path) -> None:
        for name, shard in _weight_map(index).items():
            place = self._places.get(name)
            found = "no shard" if place is None else place[0].name
            if found != shard:
                raise CheckpointError(
                    f"{index}: tensor {name!r:.200} should be in {printable(shard)}, it is in "
                    f"{printable(found)}"
                )

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor."""
        file, stored = self._places[name]
        word_bytes = stored.spec.word_bytes
        data = np.empty((stop - start) * word_bytes, np.uint8)
        file.source.read_into(data.data, stored.offset + start * word_bytes)
        return data

    def copy_to(self, name: str, start: int, stop: int, descriptor: int, position: int) -> bool:
        """Let the kernel copy the words ``[start, stop)`` of a tensor into another file.

        Args:
            name: The tensor.
            start: First word.
            stop: Word behind the last.
            descriptor: A file open for writing.
            position: Where in it, in bytes.

        Returns:
            Whether it was done; if not, some of it may have been written.

        Raises:
            OSError: The output cannot be written.
        """
        file, stored = self._places[name]
        width = stored.spec.word_bytes
        return file.source.copy_to(
            descriptor, position, stored.offset + start * width, (stop - start) * width
        )

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(checkpoint: str | Path | CheckpointReader) -> CheckpointReader:
    """A reader of ``checkpoint``, or ``checkpoint`` itself if it is one.

    Raises:
        CheckpointError: It cannot be read.
    """
    if isinstance(checkpoint, str | Path):
        return FileCheckpoint(checkpoint)
    return checkpoint


def segments(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """First and end word of each segment of a tensor (spec section 4)."""
    for start in range(0, spec.words, SEGMENT_WORDS):
        yield start, min(start + SEGMENT_WORDS, spec.words)


def segment_digests(reader: CheckpointReader, name: str) -> Iterator[Digest]:
    """Digests of the segments of a tensor, in order, each computed when it is asked for."""
    return (segment_digest(reader.read(name, *run).data) for run in segments(reader.specs[name]))


def _find_files(path: Path) -> tuple[Path | None, list[Path]]:
    if not path.exists():
        raise CheckpointError(f"there is no file or directory {path}")
    if path.is_dir():
        return _find_in_directory(path)
    if path.name.endswith(INDEX_SUFFIX):
        return path, _shards(path)
    return None, [path]


def _find_in_directory(path: Path) -> tuple[Path | None, list[Path]]:
    # Hidden files are nobody's weights: some systems drop a "._model.safetensors" beside each file.
    visible = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    indexes = [item for item in visible if item.name.endswith(INDEX_SUFFIX)]
    files = [item for item in visible if item.name.endswith(CHECKPOINT_SUFFIX)]
    if len(indexes) == 1:
        shards = _shards(indexes[0])
        others = [file for file in files if file not in shards]
        if not others:
            return indexes[0], shards
    elif not indexes and len(files) == 1:
        return None, files
    found = [item.name for item in (*indexes, *files)]
    if not found:
        raise CheckpointError(
            f"{path} holds no {CHECKPOINT_SUFFIX} file",
            hint="save the model with save_pretrained(..., safe_serialization=True)",
        )
    raise CheckpointError(
        f"{path} holds more than one checkpoint: {', '.join(found[:6])}"
        f"{', …' if len(found) > 6 else ''}",  # noqa: PLR2004 (enough to see what is there)
        hint=f"name the one you mean: {path / found[0]}",
    )


def _weight_map(index: Path) -> dict[str, str]:
    with InputFile(index) as source:
        if source.size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{index}: {source.size} bytes, {MAX_INDEX_BYTES} are allowed")
        text = source.read(0, source.size)
    try:
        document = parse(text)
    except ValueError as error:
        raise CheckpointError(f"{index} is no strict JSON: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: tensor {name!r:.200} is said to be in {shard!r:.200}, expected the name "
                "of a file beside the index"
            )
    return weight_map


def _shards(index: Path) -> list[Path]:
    shards = [index.parent / shard for shard in sorted(set(_weight_map(index).values()))]
    for shard in shards:
        if not shard.exists():
            raise CheckpointError(
                f"{index} names the shard {printable(shard.name)}, which is not there",
                hint="the download is not complete: get it again",
            )
    return shards
