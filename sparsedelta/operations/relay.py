"""A chain recoded in one go: each tensor is taken along all deltas, its words in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.encode import EncodedPart
from sparsedelta.operations.arrows import Arrow, DiffersError, ReadRun, follow
from sparsedelta.operations.lineages import Step, Use, Version, lineages
from sparsedelta.operations.origins import wrong_base
from sparsedelta.operations.recode import RecodedDelta
from sparsedelta.operations.route import misfit
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import TensorRecord
from sparsedelta.words import Bytes, ReadWords, Words, as_words

_NONE: Final[Bytes] = np.empty(0, np.uint8)

_ReadBytes: TypeAlias = Callable[[int, int], Bytes]


class Relay:
    """The words of one tensor, as they are before one delta of a chain; implements ``BaseWords``.

    A tensor is followed wherever it goes: to other names, to copies, to another number of rows.
    Where several tensors are made of one, the one with the shortest way ahead comes first, from a
    copy: with 2^n versions of a tensor on a chain there are n copies at most.

    Args:
        checkpoint: Where the chain starts.
        pool: Where words are verified and changed, many at a time.
    """

    def __init__(self, checkpoint: CheckpointReader, pool: OrderedMap) -> None:
        self._checkpoint = checkpoint
        self._pool = pool
        self._data = _NONE
        self._word_bytes = 1
        self._written: Mapping[DeltaReader, RecodedDelta] = {}
        self._parts: dict[tuple[DeltaReader, str], dict[int, EncodedPart]] = {}

    def words(self, record: TensorRecord, number: int) -> ReadWords:  # noqa: ARG002 (the same for all)
        """Reads the words that the part at hand is applied to."""
        data, width = self._data, self._word_bytes

        def read(start: int, stop: int) -> Words:
            return as_words(data[start * width : stop * width], width)

        return read

    def run(
        self, readers: Sequence[DeltaReader], written: Mapping[DeltaReader, RecodedDelta]
    ) -> None:
        """Take every tensor along the chain, and write the records of some deltas.

        Args:
            readers: The chain, in order.
            written: What is written of it: those that need the base to be read.

        Raises:
            WrongBaseError: The checkpoint is not where the chain starts.
            VerificationError: A delta does not lead to what it promises (SD502).
            FormatError: A delta breaks a rule, or they do not fit each other (SD306).
        """
        self._written, self._parts = written, {}
        for reader, made in written.items():
            for record in reader.manifest.tensors:
                if not record.needs_base:
                    made.add(record)
        for start in lineages(readers):
            self._walk(start.result, self._begin(readers[0], start))
            self._data = _NONE

    def _walk(self, version: Version, data: Bytes) -> None:
        """Use the words of a tensor, and of all that is made of it."""
        while True:
            self._data, self._word_bytes = data, version.spec.word_bytes
            for use in version.uses:
                self._use(use)
            ahead = [step for step in version.steps if step.result.length]
            ahead.sort(key=lambda step: step.result.length)
            if not ahead:
                return
            for step in ahead[:-1]:
                self._walk(step.result, self._advance(step, data, keep=True))
            data = self._advance(ahead[-1], data)
            version = ahead[-1].result

    def _use(self, use: Use) -> None:
        """Recode a part; its record is written with the last of those that need words."""
        record, written = use.record, self._written[use.reader]
        parts = self._parts.setdefault((use.reader, record.name), {})
        parts[use.number] = written.part(record, use.number)
        if all(n in parts for n, part in record.coded if part.encoding.needs_base):
            written.add(record, self._parts.pop((use.reader, record.name)))

    def _begin(self, first: DeltaReader, step: Step) -> Bytes:
        """A tensor that the chain starts from, verified, or one that a delta carries."""
        source = step.arrow.source
        if source is None:
            return self._made(step.arrow, lambda *_: _NONE, _NONE)
        if self._checkpoint.specs.get(source.name) != source:
            raise wrong_base(self._checkpoint, first, source)
        try:
            return self._made(
                step.arrow,
                lambda start, stop: self._checkpoint.read(source.name, start, stop),
                _NONE,
            )
        except DiffersError:
            raise wrong_base(self._checkpoint, first, source) from None

    def _advance(self, step: Step, data: Bytes, *, keep: bool = False) -> Bytes:
        """Go on to behind a delta; unless they are kept, words are changed where they are."""
        width = step.arrow.word_bytes

        def read(start: int, stop: int) -> Bytes:
            run = data[start * width : stop * width]
            return run.copy() if keep else run

        try:
            return self._made(step.arrow, read, _NONE if keep else data)
        except DiffersError:
            assert step.arrow.source is not None  # noqa: S101 (only a source can differ)
            raise misfit(step.reader, step.arrow.source) from None

    def _made(self, arrow: Arrow, read: _ReadBytes, room: Bytes) -> Bytes:
        """The result of an arrow, verified: in ``room`` if it has its size."""
        assert arrow.result is not None  # noqa: S101 (its words are needed)
        width, size = arrow.word_bytes, arrow.result.nbytes
        made = room if room.size == size else np.empty(size, np.uint8)

        def take(run: tuple[int, int]) -> None:
            start, stop = run
            (found,) = follow([ReadRun(arrow, start, stop, read(start, stop))])
            made[start * width : start * width + found.size] = found

        with self._pool.mapped(take, arrow.spans()) as taken:
            for _ in taken:
                pass
        return made
