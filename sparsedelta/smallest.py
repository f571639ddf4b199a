"""The smallest encoding of a part.

Candidates are compared by the bytes that they take, block table included. Those that cannot win, or
only by a few bytes a block, are left out beforehand:

- ``gap8-split`` above one entry in 16 words, where gaps have no low bits to part with;
- ``bitmask`` below one in 64, where even run lengths of its zeros lose to gaps;
- ``dense`` below one in 8, and ``range`` where its runs are as thin, or as good as whole blocks;
- ``raw`` indices above one in 765, where a byte of ``gap8`` per entry and one per 255 words are
  less than four bytes per entry.

Of the value codecs of many small differences, those are tried that an estimate of entropies puts
first; of few or of large ones all, since table rows and escapes decide there.

A part of up to 24 blocks with entries is measured whole, and the choice among its candidates is
exact. Of a larger one a sample is measured (see :class:`~sparsedelta.measure.Sample`), and a larger
sample of those that come near the smallest. What is misjudged then is nearly as small. The loss is
0 in all cases of benchmarks/density.py; the worst that a search found was 0.13 %, for rows of very
uneven densities in blocks an eighth as large as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.choice import VALUE_NAMES, CodecChoice
from sparsedelta.codecs import (
    INDEX_CODECS,
    AnyIndexCodec,
    AnyValueCodec,
    Bitmask,
    Dense,
    Encoding,
    Gap8,
    GapSplit,
    Range,
    RawIndices,
    UnfitError,
)
from sparsedelta.delta import DIFFERENCE
from sparsedelta.likely import likely_values, magnitudes
from sparsedelta.measure import PartBlocks, Sample, TriedBlock, measure
from sparsedelta.parallel import OrderedMap

_SPLIT_UP_TO: Final = 16
_BITMASK_FROM: Final = 64
_RUN_FROM: Final = 8
_RAW_UP_TO: Final = 765

_LOOKED_AT: Final = 1 << 12
"""Values of a block that are counted before any is coded."""

_NEAR: Final = 64
"""Sizes of a sample that differ by one part in so many say little about the whole."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The encoding of a part.

    Attributes:
        encoding: The encoding.
        sizes: Bytes of the whole part in those encodings of which all blocks have been measured.
        blocks: The blocks that have been coded in it on the way, by their numbers.
    """

    encoding: Encoding
    sizes: Mapping[Encoding, int]
    blocks: Mapping[int, TriedBlock]


def choose(
    blocks: PartBlocks, op: str, choice: CodecChoice | None, *, pool: OrderedMap, explain: bool
) -> Chosen:
    """The encoding of the fewest bytes, the first of equals, among those that are asked for.

    Args:
        blocks: The part; at least one entry.
        op: ``difference``, ``replace`` or ``add``.
        choice: Codecs that are asked for, or None.
        pool: Where blocks are encoded, many at a time.
        explain: Whether to measure all blocks in every encoding that can hold the part as well. The
            choice does not depend on it.

    Raises:
        UnfitError: The codecs that are asked for are not allowed for this op, or cannot hold these
            entries.
    """
    sample = Sample.draw(blocks.counts)
    candidates = _candidates(blocks, op, choice, sample, pool)
    encoding = candidates[0]
    if encoding.needs_base and blocks.base is None:
        raise UnfitError(f"{encoding.describe()} is of the profile 'compact' only")
    if not encoding.holds(blocks.changes.spec.dtype):
        raise UnfitError(f"{encoding.describe()} is not for {blocks.changes.spec.dtype}")
    sizes: dict[Encoding, int] = {}
    coded: Mapping[int, TriedBlock] = {}
    if len(candidates) > 1:
        is_exact = sample.scale == 1
        # Of one block, what was coded is kept; of more it would take several times the part.
        keep = len(sample.numbers) == 1
        measured = measure(blocks, sample, candidates, pool, keep=keep)
        if not measured.sizes:
            raise UnfitError(f"{encoding.index.id!r} would hold words that are no entries")
        near = _near(measured.sizes)
        if is_exact:
            sizes, coded = dict(measured.sizes), measured.blocks
        elif len(near) > 1:
            larger = Sample.draw(blocks.counts, times=4)
            near = _near(measure(blocks, larger, near, pool).sizes)
        encoding = near[0]
    if explain:
        rest = [e for e in _applicable(op) if e not in sizes]
        sizes |= measure(blocks, Sample.whole(blocks.counts), rest, pool).sizes
    return Chosen(encoding, sizes, coded)


def _near(sizes: Mapping[Encoding, int]) -> list[Encoding]:
    """The smallest, and those that a sample cannot tell from it; of exact equals the first."""
    distinct = {size: encoding for encoding, size in reversed(list(sizes.items()))}
    least = min(distinct)
    return [distinct[size] for size in sorted(distinct) if (size - least) * _NEAR <= least]


def _applicable(op: str) -> list[Encoding]:
    pairs = [_allowed(op, i(), v) for i in INDEX_CODECS.values() for v in VALUE_NAMES.values()]
    return [e for e in pairs if e is not None and not e.needs_base]


def _allowed(op: str, index: AnyIndexCodec, value: AnyValueCodec) -> Encoding | None:
    try:
        return Encoding(op, index, value)
    except ValueError:
        return None


def _candidates(
    blocks: PartBlocks, op: str, choice: CodecChoice | None, sample: Sample, pool: OrderedMap
) -> list[Encoding]:
    """Encodings that may win, at least one; what is asked for may turn out not to fit."""
    if choice is not None and choice.value is not None:
        try:
            return [Encoding(op, choice.index, choice.value)]
        except ValueError as error:
            raise UnfitError(str(error)) from None
    survey = _survey(blocks, sample, pool)
    indices = _indices(blocks, op, survey, pool) if choice is None else [choice.index]
    values = likely_values(survey.magnitudes) if op == DIFFERENCE else None
    pairs = [
        _allowed(op, index, value)
        for index in indices
        for value in VALUE_NAMES.values()
        if values is None or value in values
    ]
    return [encoding for encoding in pairs if encoding is not None]


def _indices(blocks: PartBlocks, op: str, survey: _Survey, pool: OrderedMap) -> list[AnyIndexCodec]:
    words, nnz = blocks.changes.spec.words, blocks.changes.nnz
    indices: list[AnyIndexCodec] = [Gap8()]
    if nnz * _SPLIT_UP_TO <= words:
        indices.append(GapSplit())
    if nnz * _BITMASK_FROM >= words:
        indices.append(Bitmask())
    if op == DIFFERENCE:
        if survey.runs <= min(survey.entries * _RUN_FROM, survey.words * 3 // 4):
            indices.append(Range())
        if nnz * _RUN_FROM >= words:
            indices.append(Dense())
    else:
        # Without padding, every word of a run is an entry, in all blocks.
        if survey.runs == survey.entries and _runs(blocks, pool) == nnz:
            indices.append(Range())
        if int(blocks.words[blocks.counts > 0].sum()) == nnz:
            indices.append(Dense())
    if nnz * _RAW_UP_TO <= words:
        indices.append(RawIndices())
    return indices


def _runs(blocks: PartBlocks, pool: OrderedMap) -> int:
    """Words from the first to the last entry of each block, added up."""

    def length(number: int) -> int:
        block, indices, _ = blocks.read(number, base=False)
        return Range().span(indices, block)[1]

    with pool.mapped(length, np.flatnonzero(blocks.counts).tolist()) as lengths:
        return sum(lengths)


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a look at the sample tells of the part.

    Attributes:
        entries: Number of entries.
        words: Words of the blocks with entries.
        runs: Words from the first to the last entry of each block, added up.
        magnitudes: int64 ``[256]``, how many of some of the values have each ``|d| - 1``, the last
            for all that are larger.
    """

    entries: int
    words: int
    runs: int
    magnitudes: NDArray[np.int64]


def _survey(blocks: PartBlocks, sample: Sample, pool: OrderedMap) -> _Survey:
    def look(number: int) -> tuple[int, int, int, NDArray[np.int64]]:
        block, indices, values = blocks.read(number, base=False)
        found = magnitudes(values[:_LOOKED_AT])
        return indices.size, block.words, Range().span(indices, block)[1], found

    with pool.mapped(look, sample.numbers) as looks:
        entries, words, runs, found = zip(*looks, strict=True)
    return _Survey(
        sample.total(entries), sample.total(words), sample.total(runs), np.sum(found, axis=0)
    )
