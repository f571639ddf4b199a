"""Snapshots: the words of a model as they were, to be compared with what it has become."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from sparsedelta.boxes import Box
from sparsedelta.checkpoint import segments
from sparsedelta.closing import Closing
from sparsedelta.errors import CheckpointError, StructureError, UsageError
from sparsedelta.local_shards import LocalShards, is_sharded, local_tensors, shards_of
from sparsedelta.outputs import output_errors, write_all
from sparsedelta.state_dict import StateDictReader
from sparsedelta.words import Bytes, TensorSpec

if TYPE_CHECKING:
    import torch

_LOCATION: Final = "the snapshot"


class Snapshot(Closing):
    """The words of a model as they are now; a context manager.

    Of a sharded model each process keeps those of its own shards, and nothing else.

    Args:
        state_dict: The model's tensors by name, as ``model.state_dict()`` gives them: plain tensors
            or DTensors, on any device.
        directory: Keep the words in an unnamed file in this folder, which vanishes with the
            process; None for host memory.
        pin: Whether that memory is pinned, for fast copies from a GPU; None if a tensor is on one.

    Raises:
        CheckpointError: A tensor that safetensors cannot hold, or a placement that is not known.
        OutputError: The file cannot be written.
        UsageError: Both ``directory`` and ``pin``.

    Attributes:
        is_sharded: Whether there are DTensors among the tensors.
    """

    def __init__(
        self,
        state_dict: Mapping[str, torch.Tensor],
        *,
        directory: str | Path | None = None,
        pin: bool | None = None,
    ) -> None:
        if directory is not None and pin:
            raise UsageError("a snapshot in a folder is not in pinned memory: give one of the two")
        self.is_sharded = is_sharded(state_dict)
        shards = shards_of(state_dict, _LOCATION)
        self._specs, self._boxes = shards.specs, shards.boxes
        held, _ = local_tensors(state_dict)
        self._kept: _InMemory | _InFile
        if directory is None:
            if pin is None:
                pin = any(tensor.is_cuda for tensor in held.values())
            self._kept = _InMemory(pin=pin)
        else:
            self._kept = _InFile(shards, Path(directory))
        self._is_whole = False
        self.update(state_dict)

    def update(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Keep what the model is now in the place of what it was.

        Args:
            state_dict: The same tensors, of the same shapes, dtypes and placements.

        Raises:
            StructureError: They are others; the snapshot is as it was.
            OutputError: The file cannot be written; the snapshot is of no use any more.
        """
        shards = shards_of(state_dict, _LOCATION)
        for name in sorted(shards.specs.keys() | self._specs.keys()):
            found = shards.specs.get(name), shards.boxes.get(name)
            expected = self._specs.get(name), self._boxes.get(name)
            if found != expected:
                raise StructureError(
                    f"{_LOCATION}: tensor {name!r} was {_described(*expected)}, and is "
                    f"{_described(*found)}",
                    hint="make a new Snapshot of a model that has changed its form",
                )
        self._is_whole = False  # until all of it is new
        self._kept.update(local_tensors(state_dict)[0], shards)
        self._is_whole = True

    @property
    def nbytes(self) -> int:
        """Bytes that are kept, by this process."""
        return self._kept.nbytes

    def shards(self) -> LocalShards:
        """What is kept, as it can be compared.

        Raises:
            CheckpointError: It is closed, or an update of it failed.
        """
        if not self._is_whole:
            raise CheckpointError(f"{_LOCATION} is closed, or its last update did not end")
        return LocalShards(self._specs, self._boxes, self._kept.reader())

    def close(self) -> None:
        """Let go of what is kept; further calls do nothing."""
        self._is_whole = False
        self._kept.close()


def _described(spec: TensorSpec | None, box: Box | None) -> str:
    if spec is None:
        return "not there"
    if box is None or box == Box.whole(spec.shape):
        return f"{spec}"
    return f"{spec}, of it here {list(box.size)} from {list(box.offset)}"


class _InMemory:
    """Copies of tensors in host memory; names of one tensor share one copy."""

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._tensors: dict[str, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum({id(copy): copy.nbytes for copy in self._tensors.values()}.values())

    def update(self, held: Mapping[str, torch.Tensor], shards: LocalShards) -> None:  # noqa: ARG002
        import torch  # noqa: PLC0415 (torch is optional)

        copies: dict[object, torch.Tensor] = {}
        taken: set[int] = set()
        for name, tensor in held.items():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            key: object = place if tensor.numel() else name
            if key not in copies:
                copy = self._tensors.get(name)
                if copy is None or id(copy) in taken:  # new, or not tied any more
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
                copies[key] = copy.copy_(tensor)
                taken.add(id(copy))
            self._tensors[name] = copies[key]

    def reader(self) -> StateDictReader:
        return StateDictReader(self._tensors, location=_LOCATION)

    def close(self) -> None:
        self._tensors = {}


class _InFile:
    """Words in an unnamed file; a checkpoint that can be read like any other."""

    def __init__(self, shards: LocalShards, directory: Path) -> None:
        self.location = _LOCATION
        self.paths: tuple[Path, ...] = ()
        self.specs: Mapping[str, TensorSpec] = shards.reader.specs
        self._directory = directory
        self._places: dict[str, int] = {}
        self.nbytes = 0
        for name, spec in self.specs.items():
            self._places[name] = self.nbytes
            self.nbytes += spec.nbytes
        with output_errors(directory):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115

    def update(self, held: Mapping[str, torch.Tensor], shards: LocalShards) -> None:  # noqa: ARG002
        with output_errors(self._directory):
            for name, spec in self.specs.items():
                for start, stop in segments(spec):
                    data = shards.reader.read(name, start, stop)
                    position = self._places[name] + start * spec.word_bytes
                    write_all(self._file.fileno(), data.data, position)

    def reader(self) -> _InFile:
        return self

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)`` of a tensor."""
        width = self.specs[name].word_bytes
        data = np.empty((stop - start) * width, np.uint8)
        done, position = 0, self._places[name] + start * width
        while done < data.size:
            count = os.preadv(self._file.fileno(), [data.data[done:]], position + done)
            if not count:
                raise CheckpointError(f"{_LOCATION} of {name!r} in {self._directory} ends early")
            done += count
        return data

    def close(self) -> None:
        self._file.close()
