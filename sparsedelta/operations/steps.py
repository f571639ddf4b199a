"""One pass over a checkpoint along a delta: the engine of ``apply`` and ``revert``.

Each run of words is read, digested, changed, digested again and written. Every segment is compared
with the delta's digests before a block is decoded on top of it, and every resulting segment before
the output takes its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.checkpoint_writer import CheckpointWriter, find_companions
from sparsedelta.container import DeltaReader, check_disjoint
from sparsedelta.delta import Part
from sparsedelta.digests import Digest, segment_digest, tensor_digest
from sparsedelta.errors import VerificationError
from sparsedelta.files import staged
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.manifest import TensorRecord
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.words import Bytes, TensorSpec, Words, as_words


@dataclass(frozen=True, slots=True)
class Step:
    """One step along a delta: which tensors change, what is expected before, what after."""

    reader: DeltaReader
    records: Mapping[str, TensorRecord]
    source_leaves: Mapping[str, Digest]
    result_leaves: Mapping[str, Digest]
    reverse: bool

    @classmethod
    def of(cls, reader: DeltaReader, *, reverse: bool) -> Step:
        """The step along a delta: from base to target, or in reverse."""
        ends = (reader.base_leaves, reader.target_leaves)
        source, result = reversed(ends) if reverse else ends
        return cls(reader, reader.records, source, result, reverse)

    @classmethod
    def copy(cls, reader: DeltaReader, step: Step) -> Step:
        """The step from the result of ``step`` to itself."""
        return cls(reader, {}, step.result_leaves, step.result_leaves, step.reverse)

    def segments(self, name: str) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Segment digests of a touched tensor: of the source, of the result."""
        table = self.reader.tables.tensors[name]
        ends = (table.base_segments, table.target_segments)
        return (ends[1], ends[0]) if self.reverse else ends

    def span_words(self, spec: TensorSpec) -> int:
        """Words that are worked on at a time: whole segments and whole blocks."""
        record = self.records.get(spec.name)
        blocks = (1 << part.block_log2 for part in record.parts) if record else ()
        return max(SEGMENT_WORDS, *blocks, 0)

    def change(self, spec: TensorSpec, start: int, data: Bytes) -> None:
        """Apply the blocks of ``[start, …)`` to ``data``, between the checks of both ends."""
        name, record = spec.name, self.records[spec.name]
        before, after = self.segments(name)
        first = start // SEGMENT_WORDS
        size = SEGMENT_WORDS * spec.word_bytes
        pieces = [data[at : at + size] for at in range(0, data.size, size)]
        if [segment_digest(piece.data) for piece in pieces] != list(
            before[first : first + len(pieces)]
        ):
            raise DiffersError
        words = as_words(data, spec.word_bytes)
        parts = [
            part
            for number in range(len(record.parts))
            for part in self._parts(record, number, start, words)
        ]
        if len(record.parts) > 1:
            check_disjoint(self.reader.path, name, [part.indices for part in parts])
        for part in parts:
            part.apply(words)
        for offset, piece in enumerate(pieces):
            if segment_digest(piece.data) != after[first + offset]:
                raise VerificationError(
                    f"{self.reader.path}: tensor {name!r}: the result has not the digest that the "
                    f"delta promises for segment {first + offset} (SD502)",
                    hint="the delta is damaged or was written by a faulty tool: get it again, then "
                    f"sparsedelta validate {self.reader.path}",
                )

    def _parts(self, record: TensorRecord, number: int, start: int, words: Words) -> Iterator[Part]:
        described = record.parts[number]
        size = 1 << described.block_log2
        for block in range(start // size, -(-(start + words.size) // size)):
            first = block * size - start
            # On the way back the words at hand are the target's: they cannot stand in for the base.
            base = None if self.reverse else words[first : first + size]
            indices, values = self.reader.read_block(record, number, block, base=base)
            part = Part(described.op, indices + first, values)
            yield part.invert() if self.reverse else part


class DiffersError(Exception):
    """A tensor of the checkpoint is not the one that the delta starts from."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Takes a checkpoint through a step, into an output that appears whole or not at all.

    Without an output everything is done and verified, and nothing written.
    """

    checkpoint: FileCheckpoint
    out: Path | None
    pool: OrderedMap
    progress: Progress
    force: bool

    def __call__(self, step: Step) -> Sequence[str]:
        """Take the step.

        Returns:
            Names of the files beside the weights that are not copied.

        Raises:
            DiffersError: A tensor is not what the step starts from; nothing was left behind.
            VerificationError: The result is not what the delta promises; nothing was left behind.
        """
        companions = find_companions(self.checkpoint)
        if self.out is None:
            self._through(step, None)
            return companions.left_behind
        with (
            staged(self.out, directory=self.checkpoint.is_directory, force=self.force) as work,
            CheckpointWriter(self.checkpoint, work) as writer,
        ):
            self._through(step, writer)
            writer.copy_companions(companions)
        return companions.left_behind

    def _through(self, step: Step, writer: CheckpointWriter | None) -> None:
        specs = [stored.spec for file in self.checkpoint.files for stored in file.layout.tensors]
        total = sum(spec.nbytes for spec in specs)
        done = 0

        def work(item: tuple[TensorSpec, int, int]) -> Digest | None:
            spec, start, stop = item
            data = self.checkpoint.read(spec.name, start, stop)
            digest = None
            if spec.name in step.records:
                step.change(spec, start, data)
            else:
                digest = segment_digest(data.data)
            if writer is not None:
                writer.write(spec.name, start, data)
            return digest

        items = (item for spec in specs for item in _spans(step, spec))
        with self.pool.mapped(work, items) as results:
            for spec in specs:
                digests = []
                for _, start, stop in _spans(step, spec):
                    digests.append(next(results))
                    done += (stop - start) * spec.word_bytes
                    self.progress(done, total)
                if spec.name not in step.records:
                    found = tensor_digest(spec, [d for d in digests if d is not None])
                    if found != step.source_leaves[spec.name]:
                        raise DiffersError


def _spans(step: Step, spec: TensorSpec) -> Iterator[tuple[TensorSpec, int, int]]:
    size = step.span_words(spec)
    for start in range(0, spec.words, size):
        yield spec, start, min(start + size, spec.words)
