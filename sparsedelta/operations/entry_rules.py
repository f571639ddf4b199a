"""Rules about entries (SD401 to SD418): with the base at hand, or as far as goes without."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, TypeAlias

import numpy as np

from sparsedelta.batches import BATCH_BYTES, batched
from sparsedelta.container import BlockRequest, DeltaFile
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
        self._contents: dict[str, bytes] = {}
        self._total = sum(record.nbytes for record in reader.manifest.tensors)
        self._done = 0
        self.unread = {record.name for record in reader.manifest.tensors if record.needs_base}
        self.wrong: WrongBaseError | None = None

    def problems(self) -> Iterator[FormatError]:
        """Every problem; of blocks up to MAX_PROBLEMS in each file."""
        reader = self._reader
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
        """Reads the words that a part is decoded with; None if it needs none, or there are none.

        Raises:
            WrongBaseError: The base has another dtype or shape.
        """
        part = record.parts[number]
        is_needed = isinstance(part, PartRecord) and part.encoding.needs_base
        if not is_needed or self._origins is None:
            return None
        return self._origins.words(record, number)

    def _broken_blocks(self, file: DeltaFile) -> Generator[FormatError, None, None]:
        # One pass: what decodes enters the content digest, what does not is a problem.
        batches = batched(self._blocks(file), lambda wanted: wanted.nbytes, BATCH_BYTES)
        with self._pool.mapped(self._decoded, batches) as decoded:
            blocks = chain.from_iterable(decoded)
            for record in file.manifest.tensors:
                parts = []
                for number, part in enumerate(record.parts):
                    if not isinstance(part, PartRecord):
                        parts.append(bare_content(part.op, part.reference))
                        continue
                    entries = EntryHasher()
                    for found in islice(blocks, part.block_count(record.domain(number))):
                        if isinstance(found, FormatError):
                            yield found
                        elif isinstance(found, _Unread):
                            self._leave(record, found.reason)
                        else:
                            entries.update(*found)
                    parts.append(
                        PartContent(
                            part.op, part.nnz, *entries.digests(), None, part.dtype, part.scale
                        )
                    )
                    self._done += part.nbytes
                    self._progress(self._done, self._total)
                self._contents[record.name] = tensor_content(record.base, record.target, parts)

    def _leave(self, record: TensorRecord, reason: WrongBaseError | None) -> None:
        """Take note of a block that was not decoded."""
        self.unread.add(record.name)
        self.wrong = self.wrong or reason

    def _blocks(self, file: DeltaFile) -> Iterator[_Wanted]:
        """All blocks of a file in their order."""
        for record in file.manifest.tensors:
            for number, part in record.coded:
                base: ReadWords | WrongBaseError | None
                try:
                    base = self._base(record, number)
                except WrongBaseError as error:
                    base = error
                for block in range(part.block_count(record.domain(number))):
                    yield _Wanted(file, record, number, part, block, base)

    def _decoded(self, batch: Sequence[_Wanted]) -> list[_Decoded]:
        """Of each block its entries, or what is wrong with it, or why it was not decoded."""
        found: dict[int, _Decoded] = {}
        requests: dict[int, BlockRequest] = {}
        for at, wanted in enumerate(batch):
            try:
                request = wanted.request()
                if isinstance(request, BlockRequest):
                    requests[at] = request
                else:
                    found[at] = request
            except FormatError as error:
                found[at] = error
        found.update(zip(requests, self._read(list(requests.values())), strict=True))
        return [wanted.placed(found[at]) for at, wanted in enumerate(batch)]

    def _read(self, requests: list[BlockRequest]) -> list[_Decoded]:
        """Entries of blocks, or what is wrong with them."""
        try:
            return list(self._reader.read_blocks(requests))
        except FormatError as error:
            if len(requests) == 1:
                return [error]
        return [found for request in requests for found in self._read([request])]


class _Unread(NamedTuple):
    """A block that only the base decodes, and what is wrong with the base, if there is one."""

    reason: WrongBaseError | None


_Decoded: TypeAlias = tuple[Indices, Words] | FormatError | _Unread


class _Wanted(NamedTuple):
    """A block that is to be decoded, if it can be.

    Attributes:
        file: Where it lies.
        record: Its tensor.
        number: Number of its part.
        part: Its part.
        block: Its number.
        base: Reads the words of the base; or what is wrong with that; or None.
    """

    file: DeltaFile
    record: TensorRecord
    number: int
    part: PartRecord
    block: int
    base: ReadWords | WrongBaseError | None

    @property
    def nbytes(self) -> int:
        """Bytes of the words of the block, or more."""
        words = min(1 << self.part.block_log2, self.record.domain(self.number))
        return words * self.record.word_bytes(self.number)

    def request(self) -> BlockRequest | _Unread:
        """The block with its base words; checked as far as it goes if they are not to be had.

        Raises:
            FormatError: It breaks a rule as far as it goes.
        """
        words = None
        if self.part.encoding.needs_base:
            start = self.block << self.part.block_log2
            size = 1 << self.part.block_log2
            try:
                if self.base is None or isinstance(self.base, WrongBaseError):
                    return self._unread(self.base)
                words = self.base(start, min(start + size, self.record.domain(self.number)))
            except WrongBaseError as error:
                return self._unread(error)
        return BlockRequest(self.record, self.number, self.block, words)

    def _unread(self, reason: WrongBaseError | None) -> _Unread:
        self.file.check_block(self.record, self.number, self.block)
        return _Unread(reason)

    def placed(self, found: _Decoded) -> _Decoded:
        """Entries with flat indices; none of a part that holds every word; all else as it is."""
        if isinstance(found, FormatError | _Unread):
            return found
        indices, words = found
        if self.part.op not in SPARSE_OPS:
            return indices[:0], words
        return indices + (self.block << self.part.block_log2), words
