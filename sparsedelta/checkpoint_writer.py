"""Writing the files of a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.closing import Closing
from sparsedelta.limits import MAX_COMPANION_BYTES
from sparsedelta.locations import Location
from sparsedelta.outputs import read_all, write_all
from sparsedelta.safetensors_header import FileLayout, StoredTensor
from sparsedelta.sources import read_file
from sparsedelta.words import Bytes


class CheckpointWriter(Closing):
    """Writes the tensors of checkpoint files below a temporary path.

    :meth:`write` may be called from any thread, in any order.

    Args:
        files: Name and layout of each file: the header is written as it is given.
        work: Where to write: a directory that exists, or the path of the only file.
        is_directory: Which of them.
        create: Whether to make the files, with their headers; else another rank has made them.

    Raises:
        OSError: The disk is full, or not writable.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, FileLayout]],
        work: Path,
        *,
        is_directory: bool,
        create: bool = True,
    ) -> None:
        self._work = work
        self._is_directory = is_directory
        self._descriptors: list[int] = []
        self._places: dict[str, tuple[int, StoredTensor]] = {}
        try:
            for name, layout in files:
                self._open(self._path(name), layout, create=create)
        except BaseException:
            self.close()
            raise

    def _path(self, name: str) -> Path:
        return self._work / name if self._is_directory else self._work

    def _open(self, path: Path, layout: FileLayout, *, create: bool) -> None:
        made = os.O_CREAT | os.O_EXCL if create else 0
        descriptor = os.open(path, os.O_RDWR | made, 0o666)
        self._descriptors.append(descriptor)
        if create:
            os.ftruncate(descriptor, layout.size)
            write_all(descriptor, layout.prefix, 0)
        for stored in layout.tensors:
            self._places[stored.spec.name] = (descriptor, stored)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Write the words of a tensor from word ``start`` on."""
        if data.size:
            descriptor, stored = self._places[name]
            write_all(descriptor, data.data, stored.offset + start * stored.spec.word_bytes)

    def copy(
        self, source: FileCheckpoint, from_name: str, name: str, start: int, stop: int
    ) -> bool:
        """Let the kernel copy the words ``[start, stop)`` of a tensor of a checkpoint.

        Args:
            source: The checkpoint.
            from_name: The tensor there.
            name: The tensor here, of the same words.
            start: First word.
            stop: Word behind the last.

        Returns:
            Whether it was done; if not, the words have to be written.
        """
        descriptor, stored = self._places[name]
        position = stored.offset + start * stored.spec.word_bytes
        return source.copy_to(from_name, start, stop, descriptor, position)

    def read(self, name: str, start: int, out: Bytes) -> None:
        """Fill ``out`` with the words of a tensor from word ``start`` on, as they were written.

        Raises:
            OSError: They cannot be read.
        """
        descriptor, stored = self._places[name]
        read_all(descriptor, out.data, stored.offset + start * stored.spec.word_bytes)

    def sync(self) -> None:
        """See to it that what was written has left this machine's memory."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def sha256(self, name: str) -> str:
        """SHA-256 of a file as it was written, hex."""
        with self._path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def copy_companions(self, root: Location, names: Iterable[Path]) -> None:
        """Copy what lies beside the weights, relative to ``root``.

        Raises:
            CheckpointError: One of the files cannot be read.
        """
        for relative in names:
            data = read_file(root / relative, MAX_COMPANION_BYTES)
            copy = self._work / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)

    def write_files(self, contents: Mapping[str, bytes]) -> None:
        """Write small files beside the weights; their names have passed the rule of names."""
        for name, content in contents.items():
            (self._work / name).write_bytes(content)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
