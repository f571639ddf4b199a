"""The words that the parts of a delta are applied to: read from a checkpoint, verified first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta import NEW
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import WrongBaseError
from sparsedelta.operations.arrows import Arrow, DiffersError, ReadRun, follow
from sparsedelta.operations.route import Route
from sparsedelta.records import TensorRecord
from sparsedelta.words import Bytes, ReadWords, TensorSpec, Words, as_words


class Origins:
    """The words that a delta's parts are applied to.

    Args:
        checkpoint: The base of the delta, or that of the deltas before it.
        reader: The delta.
        before: Deltas that lead from the checkpoint to its base, in order.
    """

    def __init__(
        self,
        checkpoint: CheckpointReader,
        reader: DeltaReader,
        before: Sequence[DeltaReader] = (),
    ) -> None:
        self._checkpoint = checkpoint
        self._reader = reader
        self._before = before
        self._kept = threading.local()

    @cached_property
    def _made(self) -> dict[str, Arrow]:
        """How the tensors of the base are made that the deltas before touch."""
        if not self._before:
            return {}
        arrows = Route(self._before, reverse=False).arrows
        return {arrow.result.name: arrow for arrow in arrows if arrow.result is not None}

    def words(self, record: TensorRecord, number: int) -> ReadWords:
        """Reads the words that a part is applied to, in any thread.

        The function raises WrongBaseError (SD501) for segments that are not those of the base.
        """
        arrow = self._arrow(record, number)

        def read(start: int, stop: int) -> Words:
            return as_words(self._read(arrow, start, stop), arrow.word_bytes)

        return read

    def _arrow(self, record: TensorRecord, number: int) -> Arrow:
        table = self._reader.tables.tensors[record.name]
        made = record.parts[record.split] if number >= record.split else None
        if made is not None and made.op == NEW and made.reference is not None:
            target = record.changed(number)
            spec = TensorSpec(made.reference, target.dtype, target.shape)
            segments = table.other_segments(record.split)
        else:
            assert record.base is not None  # noqa: S101 (a difference is added to something)
            spec, segments = record.base, table.base_segments
        found = self._made.get(spec.name)
        if found is None:
            if self._checkpoint.specs.get(spec.name) != spec:
                raise self._wrong(spec)
            return Arrow(spec, spec, before=segments, after=segments)
        if found.result != spec or found.after != segments:
            raise self._wrong(spec)
        return found

    def _read(self, arrow: Arrow, start: int, stop: int) -> Bytes:
        width = arrow.word_bytes
        pieces = []
        for begin, end in arrow.spans():
            if begin < stop and end > start:
                data = self._span(arrow, begin, end)
                pieces.append(data[max(0, start - begin) * width : (stop - begin) * width])
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])

    def _span(self, arrow: Arrow, begin: int, end: int) -> Bytes:
        # Blocks come in order, and several lie in a span: the last one is kept, with its arrow. Its
        # id alone would not do: another arrow may be given it when this one is gone.
        kept: tuple[Arrow, int, Bytes] | None = getattr(self._kept, "span", None)
        if kept is not None and kept[0] is arrow and kept[1] == begin:
            return kept[2]
        source = arrow.source
        data = np.empty(0, np.uint8)
        if source is not None:
            if self._checkpoint.specs.get(source.name) != source:
                raise self._wrong(source)
            if begin < source.words:
                data = self._checkpoint.read(source.name, begin, min(end, source.words))
        try:
            (made,) = follow([ReadRun(arrow, begin, end, data)])
        except DiffersError:
            assert source is not None  # noqa: S101 (only a source can differ)
            raise self._wrong(source) from None
        self._kept.span = arrow, begin, made
        return made

    def _wrong(self, spec: TensorSpec) -> WrongBaseError:
        first = self._before[0] if self._before else self._reader
        return wrong_base(self._checkpoint, first, spec)


def wrong_base(
    checkpoint: CheckpointReader, reader: DeltaReader, spec: TensorSpec
) -> WrongBaseError:
    """The error of a checkpoint that is not the base of a delta: in one tensor it is not."""
    found = checkpoint.specs.get(spec.name)
    what = "differs there" if found == spec else f"is {found or 'missing'}, expected {spec}"
    return WrongBaseError(
        f"{checkpoint.location} is not the base of {reader.path} (SD501): tensor {spec.name!r} "
        f"{what}",
        hint=f"compare: sparsedelta info {reader.path}, and sparsedelta fingerprint "
        f"{checkpoint.location}",
    )
