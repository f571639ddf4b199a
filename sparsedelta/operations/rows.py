"""``read_rows``: rows of a target tensor, verified, from a base and a delta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sparsedelta.checkpoint import CheckpointReader, open_checkpoint, segment_digests
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import tensor_digest
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.locations import LocationLike, Url, streamed
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.arrows import Arrow, DiffersError, ReadRun, arrows_of, follow, stays
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.words import Bytes, TensorSpec, Words, as_words


def read_rows(
    base: LocationLike | CheckpointReader,
    delta: LocationLike | DeltaReader,
    name: str,
    start: int,
    stop: int,
) -> Words:
    """Rows ``[start, stop)`` of a tensor of the target, without making the rest of it.

    The segments of the base that the rows lie in are verified before a block is decoded on top of
    them, and the segments of the result before a word is returned; a tensor that the delta does not
    touch is verified as a whole, or not at all if the delta is lean. The fingerprint of the whole
    base is not.

    Args:
        base: The base of the delta.
        delta: The delta.
        name: A tensor of the target.
        start: First row: index of the first dimension; a scalar has one row.
        stop: Row behind the last.

    Returns:
        Words ``[rows * words per row]``.

    Raises:
        UsageError: The target has no such rows.
        WrongBaseError: The base differs where the rows lie.
        VerificationError: The delta does not lead to what it promises.
        FormatError: The delta breaks a rule.
        CheckpointError: The base cannot be read.
    """
    # Some of either is read: what lies on the Hub is not brought here for that.
    given = streamed(base) if isinstance(base, str | Path | Url) else base
    checkpoint = open_checkpoint(at_named_commit(given, [delta]))
    try:
        reader = open_delta(delta, whole=False)
        try:
            refuse_part(reader)
            return _read(checkpoint, reader, name, start, stop)
        finally:
            if reader is not delta:
                reader.close()
    finally:
        if checkpoint is not base:
            checkpoint.close()


def _read(
    checkpoint: CheckpointReader, reader: DeltaReader, name: str, start: int, stop: int
) -> Words:
    arrow = _arrow(checkpoint, reader, name)
    spec = arrow.result
    assert spec is not None  # noqa: S101 (_arrow looks for a result)
    rows = spec.shape[0] if spec.shape else 1
    if not 0 <= start <= stop <= rows or (rows and spec.words % rows):
        raise UsageError(f"rows {start} to {stop} of tensor {name!r}, {spec}")
    width = spec.words // rows if rows else 0
    first, last = start * width, stop * width
    pieces = [np.empty(0, spec.word_dtype)]
    for begin, end in arrow.spans():
        if begin < last and end > first:
            result = as_words(_span(checkpoint, reader, arrow, begin, end), spec.word_bytes)
            pieces.append(result[max(0, first - begin) : last - begin])
    return np.concatenate(pieces)


def verified_spans(
    checkpoint: CheckpointReader, reader: DeltaReader, name: str
) -> Iterator[tuple[int, int, Bytes]]:
    """All of a tensor of the target, run by run, verified as :func:`read_rows` does.

    Yields:
        First word, word behind the last, the run's bytes.
    """
    refuse_part(reader)
    arrow = _arrow(checkpoint, reader, name)
    for begin, end in arrow.spans():
        yield begin, end, _span(checkpoint, reader, arrow, begin, end)


def _arrow(checkpoint: CheckpointReader, reader: DeltaReader, name: str) -> Arrow:
    record = reader.records.get(name)
    if record is not None:
        for arrow in arrows_of(reader, record, reverse=False):
            if arrow.result is not None:
                return arrow
    elif name in reader.tables.untouched:
        spec = checkpoint.specs.get(name)
        if spec is None:
            raise WrongBaseError(
                f"{checkpoint.location} is not the base of {reader.path} (SD501): it has no tensor "
                f"{name!r}"
            )
        # The delta holds one digest of all of the tensor: no part of it can be verified alone.
        if tensor_digest(spec, segment_digests(checkpoint, name)) != reader.tables.untouched[name]:
            raise _wrong(checkpoint, reader, spec)
        return stays(spec)
    elif name in checkpoint.specs and _may_stay(reader, name):
        return stays(checkpoint.specs[name])
    raise UsageError(f"the target of {reader.path} has no tensor {name!r}")


def _may_stay(reader: DeltaReader, name: str) -> bool:
    # What a lean delta does not list stays, but for what goes to another name.
    gone = (record.base for record in reader.manifest.tensors)
    return reader.manifest.lean and all(spec is None or spec.name != name for spec in gone)


def _span(
    checkpoint: CheckpointReader, reader: DeltaReader, arrow: Arrow, begin: int, end: int
) -> Bytes:
    source = arrow.source
    data = np.empty(0, np.uint8)
    if source is not None:
        if checkpoint.specs.get(source.name) != source:
            raise _wrong(checkpoint, reader, source)
        if begin < source.words:
            data = checkpoint.read(source.name, begin, min(end, source.words))
    try:
        (made,) = follow([ReadRun(arrow, begin, end, data)])
    except DiffersError:
        assert source is not None  # noqa: S101 (only a source can differ)
        raise _wrong(checkpoint, reader, source) from None
    return made


def _wrong(checkpoint: CheckpointReader, reader: DeltaReader, source: TensorSpec) -> WrongBaseError:
    found = checkpoint.specs.get(source.name)
    what = "differs there" if found == source else f"is {found}, expected {source}"
    return WrongBaseError(
        f"{checkpoint.location} is not the base of {reader.path} (SD501): tensor {source.name!r} "
        f"{what}"
    )
