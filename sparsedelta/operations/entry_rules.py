"""Rules about entries (SD401 to SD418): with the base at hand, or as far as goes without."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice

import numpy as np

from sparsedelta.budgets import WorkLeft
from sparsedelta.container import DeltaFile
from sparsedelta.delta import (
    SPARSE_OPS,
    EntryHasher,
    PartContent,
    bare_content,
    tensor_content,
)
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, WrongBaseError
from sparsedelta.limits import MAX_PROBLEMS
from sparsedelta.operations.origins import Origins
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import check_disjoint
from sparsedelta.words import Indices, ReadWords, Words


class EntryCheck:
    """Goes through the blocks of a delta once: what is wrong with them, and with all together.

    Args:
        reader: The delta, whose tables keep their rules.
        pool: Where blocks are decoded, many at a time.
        progress: Told how many bytes of streams were decoded, and of how many.
        origins: The base; None: what only the base decodes is checked as far as goes without.

    Attributes:
        unread: Names of tensors of which a part was not decoded: there is no base, or another.
        wrong: What is wrong with the base, if that is the reason.
    """

    def __init__(
        self,
        reader: DeltaReader,
        pool: OrderedMap,
        progress: Progress,
        *,
        origins: Origins | None = None,
    ) -> None:
        self._reader = reader
        self._pool = pool
        self._progress = progress
        self._origins = origins
        self._work: WorkLeft | None = None
        self._contents: dict[str, bytes] = {}
        self._total = sum(record.nbytes for record in reader.manifest.tensors)
        self._done = 0
        self.unread = {record.name for record in reader.manifest.tensors if record.needs_base}
        self.wrong: WrongBaseError | None = None

    def problems(self, work: WorkLeft | None = None) -> Iterator[FormatError]:
        """Every problem; of blocks up to MAX_PROBLEMS in each file.

        Args:
            work: What may be decoded; None: as much as it takes.
        """
        reader = self._reader
        self._work = work
        self.unread.clear()
        is_whole = True
        for file in reader.files:
            blocks = self._broken_blocks(file)
            found = list(islice(blocks, MAX_PROBLEMS))
            blocks.close()
            if not found:
                found = list(self._broken_whole(file))
            is_whole = is_whole and not found
            yield from found
            if any(error.rule == "SD504" for error in found):
                return
        if reader.is_set and is_whole and not self.unread:
            try:
                reader.check_content(reader.root, self._contents)
            except FormatError as error:
                yield error

    def _broken_whole(self, file: DeltaFile) -> Iterator[FormatError]:
        """What is broken though every block can be decoded."""
        records = file.manifest.tensors
        try:
            for record in records:
                if record.name not in self.unread:
                    self._check_disjoint(record)
            if not self.unread.intersection(record.name for record in records):
                self._reader.check_content(file, self._contents)
        except FormatError as error:
            yield error

    def _check_disjoint(self, record: TensorRecord) -> None:
        """Rule SD409 for a whole tensor, a block at a time.

        Raises:
            FormatError: Two parts hold an index, or a block breaks a rule.
            WrongBaseError: The base is not any more what it was.
        """
        numbers = [n for n, part in record.coded if part.op in SPARSE_OPS and n >= record.split]
        if len(numbers) == 1 or not numbers:
            return
        # Blocks are aligned powers of two: the largest holds whole blocks of every part.
        largest = max(1 << part.block_log2 for n, part in record.coded if n in numbers)
        domain = record.domain(numbers[0])
        bases = {number: self._base(record, number) for number in numbers}
        for start in range(0, domain, largest):
            stop = min(start + largest, domain)
            found = [
                np.concatenate(
                    [i for i, _ in self._reader.blocks(record, number, start, stop, bases[number])]
                )
                for number in numbers
            ]
            check_disjoint(self._reader.path, record.name, found)

    def _base(self, record: TensorRecord, number: int) -> ReadWords | None:
        """Reads the words that a part is decoded with; None if it needs none, or there are none."""
        part = record.parts[number]
        is_needed = isinstance(part, PartRecord) and part.encoding.needs_base
        if not is_needed or self._origins is None:
            return None
        try:
            return self._origins.words(record, number)
        except WrongBaseError as error:  # another dtype or shape
            self.wrong = self.wrong or error
            return None

    def _known(self, base: ReadWords | None, start: int, stop: int) -> Words | None:
        """Base words of a block, if they are those of the delta's base."""
        try:
            return None if base is None else base(start, stop)
        except WrongBaseError as error:
            self.wrong = self.wrong or error
            return None

    def _broken_blocks(self, file: DeltaFile) -> Generator[FormatError, None, None]:
        # One pass: what decodes enters the content digest, what does not is a problem.
        for record in file.manifest.tensors:
            parts = []
            for number, part in enumerate(record.parts):
                if not isinstance(part, PartRecord):
                    parts.append(bare_content(part.op, part.reference))
                    continue
                entries = EntryHasher()
                for found in self._blocks(file, record, number, part):
                    if isinstance(found, FormatError):
                        yield found
                        if found.rule == "SD504":
                            return
                    else:
                        entries.update(*found)
                parts.append(
                    PartContent(part.op, part.nnz, *entries.digests(), None, part.dtype, part.scale)
                )
                self._done += part.nbytes
                self._progress(self._done, self._total)
            self._contents[record.name] = tensor_content(record.base, record.target, parts)

    def _blocks(
        self, file: DeltaFile, record: TensorRecord, number: int, part: PartRecord
    ) -> Iterator[tuple[Indices, Words] | FormatError]:
        """For each block its entries, or its problem; nothing of one that could not be decoded."""
        base = self._base(record, number)
        size, domain = 1 << part.block_log2, record.domain(number)
        is_sparse = part.op in SPARSE_OPS

        def decode(block: int) -> tuple[Indices, Words] | FormatError | int:
            start = block * size
            try:
                words = None
                if part.encoding.needs_base:
                    words = self._known(base, start, min(start + size, domain))
                    if words is None:
                        return file.check_block(record, number, block)
                indices, values = self._reader.read_block(record, number, block, base=words)
            except FormatError as error:
                return error
            return indices + start if is_sparse else indices[:0], values

        with self._pool.mapped(decode, range(part.block_count(domain))) as decoded:
            for found in decoded:
                if not isinstance(found, int):
                    yield found
                    continue
                self.unread.add(record.name)
                try:
                    if self._work is not None:
                        self._work.take(found)
                except FormatError as error:
                    yield error


__all__ = ["EntryCheck"]
