"""A chain recoded in one go: each tensor is taken along all deltas, its words in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sparsedelta.checkpoint import CheckpointReader, segments
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.operations.arrows import (
    Arrow,
    DiffersError,
    ReadRun,
    arrows_of,
    check_source,
    follow,
)
from sparsedelta.operations.origins import wrong_base
from sparsedelta.operations.recode import RecodedDelta
from sparsedelta.operations.route import misfit
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import TensorRecord
from sparsedelta.words import Bytes, ReadWords, TensorSpec, Words, as_words


def is_relayed(readers: Sequence[DeltaReader]) -> bool:
    """Whether each tensor that has to be read with the base has been there, under its name, so far.

    Args:
        readers: A chain, in order.
    """
    moved: set[str] = set()
    for reader in readers:
        for record in reader.manifest.tensors:
            if record.needs_base and (record.name in moved or not record.is_plain):
                return False
        for record in reader.manifest.tensors:
            if not record.is_plain:
                moved |= {end.name for end in (record.base, record.target) if end is not None}
    return True


class Relay:
    """The words of one tensor, as they are before one delta of a chain; implements ``BaseWords``.

    Args:
        checkpoint: Where the chain starts.
        pool: Where words are verified and changed, many at a time.
    """

    def __init__(self, checkpoint: CheckpointReader, pool: OrderedMap) -> None:
        self._checkpoint = checkpoint
        self._pool = pool
        self._data: Bytes = np.empty(0, np.uint8)
        self._word_bytes = 1

    def words(self, record: TensorRecord, number: int) -> ReadWords:  # noqa: ARG002 (the same for all)
        """Reads the words that the parts of the record at hand are applied to."""
        data, width = self._data, self._word_bytes

        def read(start: int, stop: int) -> Words:
            return as_words(data[start * width : stop * width], width)

        return read

    def run(
        self, readers: Sequence[DeltaReader], written: Mapping[DeltaReader, RecodedDelta]
    ) -> None:
        """Take every tensor along the chain, and write the records of some deltas.

        Args:
            readers: The chain, in order; see :func:`is_relayed`.
            written: What is written of it: those that need the base to be read.

        Raises:
            WrongBaseError: The checkpoint is not where the chain starts.
            VerificationError: A delta does not lead to what it promises (SD502).
            FormatError: A delta breaks a rule, or they do not fit each other (SD306).
        """
        for name in sorted({name for reader in readers for name in reader.records}):
            links = [(r, r.records[name]) for r in readers if name in r.records]
            last = max((n for n, (_, record) in enumerate(links) if record.needs_base), default=-1)
            arrows = [_arrow(*link) for link in links[: last + 1]]
            if arrows:
                self._load(readers[0], arrows[0])
            for number, (reader, record) in enumerate(links):
                if reader in written:
                    written[reader].add(record)
                if number < last:
                    self._advance(reader, arrows[number], arrows[number + 1])
        self._data = np.empty(0, np.uint8)

    def _load(self, first: DeltaReader, arrow: Arrow) -> None:
        spec = _source(arrow)
        if self._checkpoint.specs.get(spec.name) != spec:
            raise wrong_base(self._checkpoint, first, spec)
        self._word_bytes = spec.word_bytes
        self._data = np.empty(0, np.uint8)  # there is one at a time
        self._data = data = np.empty(spec.nbytes, np.uint8)

        def take(run: tuple[int, int]) -> None:
            start, stop = (at * spec.word_bytes for at in run)
            data[start:stop] = self._checkpoint.read(spec.name, *run)
            check_source(arrow, run[0], data[start:stop])

        try:
            self._each(take, segments(spec))
        except DiffersError:
            raise wrong_base(self._checkpoint, first, spec) from None

    def _advance(self, reader: DeltaReader, arrow: Arrow, following: Arrow) -> None:
        """Go on to behind a delta, where the next one starts that has the tensor."""
        data, width = self._data, self._word_bytes

        def take(run: tuple[int, int]) -> None:
            start, stop = (at * width for at in run)
            (data[start:stop],) = follow([ReadRun(arrow, *run, data[start:stop])])

        try:
            self._each(take, arrow.spans())
        except DiffersError:
            raise misfit(reader, _source(arrow)) from None
        if arrow.result != following.source or arrow.after != following.before:
            raise misfit(reader, _source(following))

    def _each(
        self, take: Callable[[tuple[int, int]], None], runs: Iterator[tuple[int, int]]
    ) -> None:
        with self._pool.mapped(take, runs) as taken:
            for _ in taken:
                pass


def _arrow(reader: DeltaReader, record: TensorRecord) -> Arrow:
    (arrow,) = arrows_of(reader, record, reverse=False)
    return arrow


def _source(arrow: Arrow) -> TensorSpec:
    assert arrow.source is not None  # noqa: S101 (the tensor has been there so far)
    return arrow.source
