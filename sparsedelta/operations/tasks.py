"""Tasks: checkpoints made from one base, told of by deltas or by the checkpoints themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta import Part
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest
from sparsedelta.errors import StructureError
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import check_disjoint, new_words
from sparsedelta.words import Indices, TensorSpec, Words, as_words


class Task(Protocol):
    """A checkpoint made from a base, as far as it differs.

    Attributes:
        name: What to call it in messages.
        identity: What tells it from other tasks, whatever their order; seeds follow from it.
        paths: Local files that it is read from.
    """

    name: str
    identity: str
    paths: tuple[Path, ...]

    def changes(self, spec: TensorSpec) -> bool:
        """Whether words of a tensor of the base may differ."""

    def span(self, spec: TensorSpec) -> int:
        """Words of which whole runs are best asked for: a power of two."""

    def segments(self, spec: TensorSpec) -> tuple[Digest, ...] | None:
        """Segment digests of the base tensor that is changed, if they are known."""

    def entries(self, spec: TensorSpec, start: int, base: Words) -> tuple[Indices, Words]:
        """The words of a run that the task changes; called in any thread.

        Args:
            spec: The tensor.
            start: First word of the run.
            base: The words of the run in the base.

        Returns:
            Words of the run, ascending, from 0 on; what they become. Some may stay as they were.
        """


class DeltaTask:
    """A task that a delta tells of; implements :class:`Task`."""

    def __init__(self, reader: DeltaReader) -> None:
        refuse_part(reader)
        self.reader = reader
        self.name = str(reader.path)
        self.identity = reader.manifest.content
        self.paths = reader.paths
        self.changed: Mapping[str, TensorRecord] = {
            record.name: record for record in reader.manifest.tensors if record.is_plain
        }
        self.moved = [record for record in reader.manifest.tensors if not record.is_plain]

    def changes(self, spec: TensorSpec) -> bool:
        """Whether the delta has a record of the tensor."""
        return spec.name in self.changed

    def span(self, spec: TensorSpec) -> int:
        """The largest block of its parts."""
        record = self.changed.get(spec.name)
        return 1 if record is None else max(1 << part.block_log2 for _, part in record.coded)

    def segments(self, spec: TensorSpec) -> tuple[Digest, ...] | None:
        """Those that stand in the tables."""
        if spec.name not in self.changed:
            return None
        return self.reader.tables.tensors[spec.name].base_segments

    def entries(self, spec: TensorSpec, start: int, base: Words) -> tuple[Indices, Words]:
        """The entries of the blocks that meet the run."""
        record = self.changed.get(spec.name)
        if record is None:
            return np.empty(0, np.int64), np.empty(0, base.dtype)
        parts = [self._part(record, number, start, base) for number, _ in record.coded]
        if len(parts) > 1:
            check_disjoint(self.reader.path, spec.name, [part.entries[0] for part in parts])
        at = np.concatenate([part.entries[0] for part in parts]) - start
        made = [new_words(spec, base[part.entries[0] - start], part) for part in parts]
        words = np.concatenate(made)
        if len(parts) > 1:
            order = at.argsort()
            at, words = at[order], words[order]
        return at, words

    def _part(self, record: TensorRecord, number: int, start: int, base: Words) -> Part:
        described = record.parts[number]
        assert isinstance(described, PartRecord)  # noqa: S101 (a plain record has no bare part)
        size = 1 << described.block_log2
        stop = start + base.size
        indices: list[Indices] = []
        values: list[Words] = []
        for block in range(start // size, -(-stop // size)):
            first = block * size
            around = base[first - start : first - start + size] if first >= start else None
            found, words = self.reader.read_block(record, number, block, base=around)
            found = found + first
            if first < start or first + size > stop:
                low, high = np.searchsorted(found, [start, stop])
                found, words = found[low:high], words[low:high]
            indices.append(found)
            values.append(words)
        return Part(
            described.op,
            np.concatenate(indices),
            np.concatenate(values),
            None,
            described.dtype,
            described.scale,
        )


class CheckpointTask:
    """A task of which the checkpoint itself is at hand; implements :class:`Task`.

    Args:
        checkpoint: The checkpoint.
        base: The base.
        identity: What seeds follow from.

    Raises:
        StructureError: It has other tensors than the base.
    """

    def __init__(self, checkpoint: CheckpointReader, base: CheckpointReader, identity: str) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.location
        self.identity = identity
        self.paths = checkpoint.paths
        for name in sorted(base.specs.keys() | checkpoint.specs.keys()):
            expected, found = base.specs.get(name), checkpoint.specs.get(name)
            if expected != found:
                raise StructureError(
                    f"{checkpoint.location}: tensor {name!r} is {found or 'missing'}, in the base "
                    f"{base.location} it is {expected or 'missing'}",
                    hint="only checkpoints of the same tensors are merged; one task may bring "
                    "others as a delta: sparsedelta diff BASE TARGET -o DELTA",
                )

    def changes(self, spec: TensorSpec) -> bool:
        """Nobody knows before it is read."""
        return spec.words > 0

    def span(self, spec: TensorSpec) -> int:  # noqa: ARG002 (any will do)
        """Runs of any size do."""
        return 1

    def segments(self, spec: TensorSpec) -> tuple[Digest, ...] | None:  # noqa: ARG002
        """Nothing is known of the base."""
        return None

    def entries(self, spec: TensorSpec, start: int, base: Words) -> tuple[Indices, Words]:
        """The words of the run that differ."""
        data = self.checkpoint.read(spec.name, start, start + base.size)
        words = as_words(data, spec.word_bytes)
        at = np.flatnonzero(words != base)
        return at, words[at]
