"""Records of a delta in another profile: decoded with the words that their parts are applied to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.compact import encode_difference
from sparsedelta.delta import (
    DIFFERENCE,
    SPARSE_OPS,
    EntryHasher,
    PartContent,
    bare_content,
)
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part
from sparsedelta.manifest import COMPACT
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.words import Indices, ReadWords, Words


class BaseWords(Protocol):
    """Where the words are read that the parts of a delta are applied to, verified."""

    def words(self, record: TensorRecord, number: int) -> ReadWords:
        """Reads the words that a part is applied to, in any thread."""


@dataclass(frozen=True, slots=True)
class RecordRecoder:
    """Makes the records of a delta in a profile.

    Attributes:
        reader: The delta.
        origins: The words that its parts are applied to.
        pool: Where blocks are decoded and encoded, many at a time.
        profile: The profile.
    """

    reader: DeltaReader
    origins: BaseWords
    pool: OrderedMap
    profile: str

    def __call__(self, record: TensorRecord, made: Mapping[int, EncodedPart]) -> EncodedTensor:
        """A record, ready to be written.

        Args:
            record: The record.
            made: Those of its parts that have been made already, by their numbers.
        """
        table = self.reader.tables.tensors[record.name]
        return EncodedTensor(
            record.base,
            record.target,
            tuple(made.get(n) or self.part(record, n) for n in range(len(record.parts))),
            table.base_segments,
            table.target_segments,
        )

    def part(self, record: TensorRecord, number: int) -> EncodedPart:
        """A part, ready to be written."""
        part = record.parts[number]
        if not isinstance(part, PartRecord):
            table = self.reader.tables.tensors[record.name]
            rows = b"" if part.reference is None else b"".join(table.other_segments(number))
            return EncodedPart(part, rows, [], bare_content(part.op, part.reference))
        needs_base = part.encoding.needs_base
        if part.op != DIFFERENCE or needs_base == (self.profile == COMPACT):
            return self._copied(record, number, part)
        base = self.origins.words(record, number)
        changes = self._changes(record, number, part, base if needs_base else None)
        if self.profile != COMPACT:
            return encode_part(changes, DIFFERENCE, pool=self.pool)
        made = encode_difference(changes, base, pool=self.pool)
        own = part.nbytes + part.block_count(record.domain(number)) * part.row_bytes(
            record.word_bytes(number)
        )
        return made if min(made.tried.values()) < own else self._copied(record, number, part)

    def _changes(
        self, record: TensorRecord, number: int, part: PartRecord, base: ReadWords | None
    ) -> Changes:
        domain, size = record.domain(number), 1 << part.block_log2

        def run(block: int) -> Run:
            start = block * size
            stop = min(start + size, domain)
            known = None if base is None else base(start, stop)
            indices, words = self.reader.read_block(record, number, block, base=known)
            return make_run(start, stop - start, indices, words)

        ends = [end for end in (record.base, record.target) if end is not None]
        spec = record.changed(number)
        if not record.split and len(ends) > 1:
            spec = min(ends, key=lambda end: end.words)
        changes = Changes(replace(spec, name=record.name))
        with self.pool.mapped(run, range(part.block_count(domain))) as runs:
            for each in runs:
                changes.append(each)
        return changes

    def _copied(self, record: TensorRecord, number: int, part: PartRecord) -> EncodedPart:
        """A part as it is stored; its blocks are decoded all the same, for the content digest."""
        size = 1 << part.block_log2
        base = self.origins.words(record, number) if part.encoding.needs_base else None
        is_sparse = part.op in SPARSE_OPS

        def take(block: int) -> tuple[bytes, list[bytes], Indices, Words]:
            start = block * size
            stop = min(start + size, record.domain(number))
            known = None if base is None else base(start, stop)
            indices, words = self.reader.read_block(record, number, block, base=known)
            row, frames = self.reader.home(record).read_stored(record, number, block)
            return row, frames, indices + start if is_sparse else indices[:0], words

        entries = EntryHasher()
        rows: list[bytes] = []
        frames: list[bytes] = []
        with self.pool.mapped(take, range(part.block_count(record.domain(number)))) as blocks:
            for row, found, indices, words in blocks:
                rows.append(row)
                frames += found
                entries.update(indices, words)
        content = PartContent(part.op, part.nnz, *entries.digests(), None, part.dtype, part.scale)
        return EncodedPart(part, b"".join(rows), frames, content)
