"""Checkpoints: named tensors in one file, in shards with an index, or in memory.

One reader hides where the tensors lie. It reads runs of words, never whole files, so that an
operation need not hold more of a checkpoint than it works on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sparsedelta.checkpoint_files import CheckpointFiles, Index, find_files
from sparsedelta.closing import Closing
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.errors import CheckpointError, DeltaGivenError, printable
from sparsedelta.files import InputFile
from sparsedelta.hub.at_hand import bring, checkpoint_companions
from sparsedelta.hub.references import is_hub
from sparsedelta.journal import refuse_unfinished, refuse_unfinished_links
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locations import LocationLike, Url, as_location
from sparsedelta.safetensors_header import FileLayout, StoredTensor, read_layout
from sparsedelta.sources import Source, open_sources
from sparsedelta.words import Bytes, TensorSpec


class CheckpointReader(Protocol):
    """What operations need of a checkpoint, wherever its tensors lie.

    Attributes:
        location: What to call it in messages.
        specs: Every tensor by name.
        paths: Local files and directories that it is read from: never overwritten.
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

    source: Source
    layout: FileLayout

    @property
    def name(self) -> str:
        """Basename of the file."""
        return self.source.location.name


class FileCheckpoint(Closing):
    """A checkpoint in safetensors files.

    Args:
        path: A file; an index (``*.safetensors.index.json``); or a directory that holds one file,
            or shards and their index. Local, or a URL; or a repository on the Hub, whose files are
            brought into the client's cache unless the location says ``stream``.

    Attributes:
        location: The path or URL, as given but for secrets.
        path: The path or URL.
        root: The directory that holds the files.
        is_directory: Whether the checkpoint is more than one file: a directory, or an index and its
            shards.
        files: Its files, in the order of their names.
        index: Where the index lies, or None.
        index_content: The text of the index.
        specs: Every tensor by name: every name stored in the files, whatever the index says.
        paths: The path, the index and the files, as far as they are local.

    Raises:
        CheckpointError: Nothing there, or more than one reading of what is there; a malformed
            header; a tensor stored twice; an index and files that disagree.
        UnfinishedError: A run in place is changing it, or was when it was interrupted.
    """

    def __init__(self, path: LocationLike) -> None:
        self.path = as_location(path)
        self.location = str(self.path if isinstance(self.path, Url) else path)
        try:
            if isinstance(self.path, Path):
                refuse_unfinished(self.path)
            found = find_files(self.path)
            if is_hub(self.path):
                _bring(found)
            index = () if found.index is None else (found.index.location,)
            refuse_unfinished_links(
                file for file in (*found.files, *index) if isinstance(file, Path)
            )
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"cannot read {self.path}: {str(reason)!r}") from None
        self.root = found.root
        self.is_directory = found.is_directory
        self.index = None if found.index is None else found.index.location
        self.index_content = b"" if found.index is None else found.index.content
        self.files: list[CheckpointFile] = []
        self._places: dict[str, tuple[CheckpointFile, StoredTensor]] = {}
        self._sources = open_sources(found.files)
        try:
            for source in self._sources:
                self._add(source)
            if found.index is not None:
                self._check_index(found.index)
        except BaseException:
            self.close()
            raise
        self.specs: Mapping[str, TensorSpec] = {
            name: stored.spec for name, (_, stored) in self._places.items()
        }
        own = (self.path,) if self.index is None else (self.path, self.index)
        self.paths: tuple[Path, ...] = tuple(
            location for location in (*own, *found.files) if isinstance(location, Path)
        )

    def _add(self, source: Source) -> None:
        layout = read_layout(source)
        file = CheckpointFile(source, layout)
        self.files.append(file)
        if layout.metadata.get("format") == "sparsedelta":
            raise DeltaGivenError(f"{source.location} is a delta, expected a checkpoint")
        for stored in layout.tensors:
            name = stored.spec.name
            if name in self._places:
                raise CheckpointError(
                    f"tensor {name!r:.200} is stored twice: in "
                    f"{self._places[name][0].source.location} and in {source.location}"
                )
            self._places[name] = (file, stored)

    def _check_index(self, index: Index) -> None:
        for name, shard in index.weight_map.items():
            place = self._places.get(name)
            found = "no shard" if place is None else place[0].name
            if found != shard:
                raise CheckpointError(
                    f"{index.location}: tensor {name!r:.200} should be in {printable(shard)}, it "
                    f"is in {printable(found)}"
                )

    def read(self, name: str, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor, in ``out`` if that is given."""
        file, stored = self._places[name]
        word_bytes = stored.spec.word_bytes
        data = np.empty((stop - start) * word_bytes, np.uint8) if out is None else out
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
        source = file.source
        return isinstance(source, InputFile) and source.copy_to(
            descriptor, position, stored.offset + start * width, (stop - start) * width
        )

    def check_unchanged(self) -> None:
        """Insist that the files are those that were opened: two versions must not be mixed.

        Raises:
            CheckpointError: One was changed meanwhile, as far as can be told.
        """
        for source in self._sources:
            source.check_unchanged()

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()


def _bring(found: CheckpointFiles) -> None:
    """Bring files of the Hub into the client's cache, unless they are to be streamed."""
    index = () if found.index is None else (found.index.location,)
    own = (*index, *found.files)
    bring([*own, *(checkpoint_companions(found.root, own) if found.is_directory else ())])


def open_checkpoint(checkpoint: LocationLike | CheckpointReader) -> CheckpointReader:
    """A reader of ``checkpoint``, or ``checkpoint`` itself if it is one.

    Raises:
        CheckpointError: It cannot be read.
    """
    if isinstance(checkpoint, str | Path | Url):
        return FileCheckpoint(checkpoint)
    return checkpoint


def local_paths(checkpoint: LocationLike | CheckpointReader | None) -> tuple[Path, ...]:
    """The local files and folders of a checkpoint that is read: no output may overwrite them.

    Raises:
        CheckpointError: It cannot be read.
    """
    if isinstance(checkpoint, str | Path | Url):
        location = as_location(checkpoint)
        if not isinstance(location, Path):
            return ()
        with FileCheckpoint(location) as found:
            return found.paths
    return () if checkpoint is None else checkpoint.paths


def check_unchanged(*readers: CheckpointReader) -> None:
    """Insist that files are those that were opened, before a result of them is told.

    Raises:
        CheckpointError: One was changed meanwhile.
    """
    for reader in readers:
        if isinstance(reader, FileCheckpoint):
            reader.check_unchanged()


def segments(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """First and end word of each segment of a tensor (spec section 4)."""
    for start in range(0, spec.words, SEGMENT_WORDS):
        yield start, min(start + SEGMENT_WORDS, spec.words)


def segment_digests(reader: CheckpointReader, name: str) -> Iterator[Digest]:
    """Digests of the segments of a tensor, in order, each computed when it is asked for."""
    return (segment_digest(reader.read(name, *run).data) for run in segments(reader.specs[name]))
