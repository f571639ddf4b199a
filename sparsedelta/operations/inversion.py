"""The inverse of a record, streamed from its blocks (spec section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import Planes, RawWords
from sparsedelta.delta import DIFFERENCE, DROP, NEW, RESIZE, bare_content
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part, encode_words
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import BarePart, PartRecord, TensorRecord
from sparsedelta.words import Words, negate

_OPPOSITE = {NEW: DROP, DROP: NEW, RESIZE: RESIZE}


@dataclass(frozen=True, slots=True)
class RecordInverter:
    """Makes the inverses of the records of a delta, all of which have one.

    Attributes:
        reader: The delta.
        pool: Where blocks are decoded and encoded, many at a time.
        choice: The codecs to use; None for the smallest.
    """

    reader: DeltaReader
    pool: OrderedMap
    choice: CodecChoice | None = None

    def __call__(self, record: TensorRecord) -> EncodedTensor:
        """The inverse of a record, ready to be written."""
        table = self.reader.tables.tensors[record.name]
        split, count = record.split, len(record.parts)
        if not split and record.base is not None:
            order = list(range(count))
        else:
            # What goes comes back as new, and the other way round: the sides change places.
            changes, bearer = range(split - 1), [split - 1] * (split > 0)
            made, follows = [split] * (count > split), range(split + 1, count)
            order = [*follows, *made, *bearer, *changes]
        return EncodedTensor(
            record.target,
            record.base,
            tuple(self._part(record, number) for number in order),
            table.target_segments,
            table.base_segments,
        )

    def _part(self, record: TensorRecord, number: int) -> EncodedPart:
        part = record.parts[number]
        if part.op == DIFFERENCE:
            return self._difference(record, number)
        op = _OPPOSITE[part.op]
        if not isinstance(part, PartRecord):
            table = self.reader.tables.tensors[record.name]
            rows = b"".join(table.other_segments(number))
            bare = BarePart(op, part.reference)
            return EncodedPart(bare, rows, [], bare_content(op, part.reference))

        def read(start: int, stop: int) -> Words:
            return self.reader.read_carried(record, number, start, stop)

        is_fit = self.choice is not None and isinstance(self.choice.value, (Planes, RawWords))
        return encode_words(
            part.nnz,
            record.word_bytes(number),
            op,
            read,
            pool=self.pool,
            choice=self.choice if is_fit else None,
            name=record.name,
        )

    def _difference(self, record: TensorRecord, number: int) -> EncodedPart:
        part = record.parts[number]
        assert isinstance(part, PartRecord)  # noqa: S101 (a difference is coded)
        domain = record.domain(number)
        size = 1 << part.block_log2

        def run(block: int) -> Run:
            indices, words = self.reader.read_block(record, number, block)
            start = block * size
            return make_run(start, min(size, domain - start), indices, negate(words))

        spec = record.changed(number)
        if spec.words != domain and record.base is not None:
            spec = replace(record.base, name=spec.name)
        changes = Changes(spec)
        with self.pool.mapped(run, range(part.block_count(domain))) as runs:
            for each in runs:
                changes.append(each)
        return encode_part(changes, DIFFERENCE, pool=self.pool, choice=self.choice)
