"""Writing the files of a checkpoint, and finding what lies beside the weights of another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.errors import CheckpointError
from sparsedelta.file_names import CHECKPOINT_SUFFIX
from sparsedelta.limits import MAX_COMPANION_BYTES
from sparsedelta.outputs import read_all, write_all
from sparsedelta.safetensors_header import FileLayout, StoredTensor
from sparsedelta.words import Bytes

_WEIGHT_SUFFIXES: Final = frozenset(
    {
        CHECKPOINT_SUFFIX,
        ".bin",
        ".ckpt",
        ".gguf",
        ".h5",
        ".msgpack",
        ".npz",
        ".onnx",
        ".ot",
        ".pb",
        ".pt",
        ".pth",
        ".pickle",
        ".pkl",
        ".tflite",
    }
)
"""Files of these kinds hold the old weights: they would contradict the new ones."""


class CheckpointWriter:
    """Writes the tensors of checkpoint files below a temporary path.

    :meth:`write` may be called from any thread, in any order.

    Args:
        files: Name and layout of each file: the header is written as it is given.
        work: Where to write: a directory that exists, or the path of the only file.
        is_directory: Which of them.

    Raises:
        OSError: The disk is full, or not writable.
    """

    def __init__(
        self, files: Sequence[tuple[str, FileLayout]], work: Path, *, is_directory: bool
    ) -> None:
        self._work = work
        self._paths: dict[str, Path] = {}
        self._descriptors: list[int] = []
        self._places: dict[str, tuple[int, StoredTensor]] = {}
        try:
            for name, layout in files:
                self._paths[name] = work / name if is_directory else work
                self._create(self._paths[name], layout)
        except BaseException:
            self.close()
            raise

    def _create(self, path: Path, layout: FileLayout) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._descriptors.append(descriptor)
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

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor as they were written.

        Raises:
            OSError: They cannot be read.
        """
        descriptor, stored = self._places[name]
        width = stored.spec.word_bytes
        data = np.empty((stop - start) * width, np.uint8)
        read_all(descriptor, data.data, stored.offset + start * width)
        return data

    def sha256(self, name: str) -> str:
        """SHA-256 of a file as it was written, hex."""
        with self._paths[name].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def copy_companions(self, root: Path, names: Iterable[Path]) -> None:
        """Copy what lies beside the weights, relative to ``root``.

        Raises:
            CheckpointError: One of the files cannot be read.
        """
        for relative in names:
            original = root / relative
            try:
                data = original.read_bytes()  # small: see MAX_COMPANION_BYTES
            except OSError as error:
                raise CheckpointError(f"cannot read {original}: {error.strerror}") from None
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside the weights of a checkpoint, relative to its directory, ascending.

    Attributes:
        copied: Small files: configuration, tokenizer, generation settings.
        left_behind: What is not copied: other weights, large files, linked directories.
    """

    copied: tuple[Path, ...]
    left_behind: tuple[str, ...]


def find_companions(source: FileCheckpoint) -> Companions:
    """Files beside the weights of ``source``; none if it is a single file.

    Raises:
        CheckpointError: A folder cannot be read.
    """
    if not source.is_directory:
        return Companions((), ())
    own = {file.source.path for file in source.files}
    copied, left = [], []
    try:
        for path in sorted(_walk(source.root)):
            if path in own:
                continue
            relative = path.relative_to(source.root)
            if path.is_dir() or _is_foreign(path, source):
                left.append(str(relative))
            else:
                copied.append(relative)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None
    return Companions(tuple(copied), tuple(left))


def is_weights_file(path: Path) -> bool:
    """Whether a file holds weights, by its name."""
    return path.suffix.lower() in _WEIGHT_SUFFIXES


def _is_foreign(path: Path, source: FileCheckpoint) -> bool:
    if is_weights_file(path) or path.stat().st_size > MAX_COMPANION_BYTES:
        return True
    return path.name.endswith(".index.json") and path != source.index


def _walk(root: Path) -> Iterator[Path]:
    # Links to directories are told, not followed: they may lead anywhere, also back here.
    for path in root.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file() or path.is_dir():
            yield path
