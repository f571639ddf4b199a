"""What the profile ``compact`` would have made of a portable delta, told from a few blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sparsedelta.compact import RANKED
from sparsedelta.delta import DIFFERENCE
from sparsedelta.manifest import COMPACT, PORTABLE
from sparsedelta.operations.pairing import Pair
from sparsedelta.operations.scanning import ScannedTensor
from sparsedelta.records import PartRecord, TensorRecord

_SAMPLED: Final = 4
_WORTH_SHARE: Final = 4
"""It is told of if it saves more than one byte in so many."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Another profile that would have paid.

    Attributes:
        profile: The profile.
        size: About how many bytes the delta would have, from a sample of blocks.
    """

    profile: str
    size: int


def sampled(pairs: Sequence[Pair], profile: str) -> frozenset[str]:
    """Names of the pairs of which a block is looked at: a few, spread over the words of all."""
    if profile != PORTABLE:
        return frozenset()
    fit = [pair for pair in pairs if _is_fit(pair)]
    words = [0 if pair.target is None else pair.target.words for pair in fit]
    total, before, number = sum(words), 0, 0
    found = set()
    for pair, own in zip(fit, words, strict=True):
        before += own
        if before * 2 * _SAMPLED > total * (2 * number + 1):
            found.add(pair.name)
            number = before * _SAMPLED // total if total else 0
            number = max(number, len(found))
    return frozenset(found)


def _is_fit(pair: Pair) -> bool:
    spec = pair.target
    return spec is not None and pair.base is not None and RANKED.holds(spec.dtype)


class Adviser:
    """Adds up what a diff has found in its sample."""

    def __init__(self) -> None:
        self._portable = 0
        self._ranked = 0

    def add(self, tensor: ScannedTensor) -> None:
        """Take an encoded pair in."""
        if tensor.estimate is not None and tensor.encoded is not None:
            self._portable += _bytes([tensor.encoded.record])
            self._ranked += tensor.estimate

    def totals(self) -> tuple[int, int]:
        """Bytes of the sampled parts as they were written, and about those of ``ranked``."""
        return self._portable, self._ranked


def advise(
    totals: Iterable[tuple[int, int]], records: Iterable[TensorRecord], size: int
) -> Advice | None:
    """The other profile, if it would pay by more than a quarter.

    Args:
        totals: What the advisers of all ranks have found.
        records: All records.
        size: Bytes of the delta.
    """
    portable, ranked = (sum(each) for each in zip((0, 0), *totals, strict=True))
    if not portable or ranked >= portable:
        return None
    own = _bytes(records)
    other = size - own * (portable - ranked) // portable
    if (size - other) * _WORTH_SHARE <= size:
        return None
    return Advice(COMPACT, other)


def _bytes(records: Iterable[TensorRecord]) -> int:
    total = 0
    for record in records:
        for number, part in enumerate(record.parts):
            if isinstance(part, PartRecord) and part.op == DIFFERENCE:
                changed = record.changed(number)
                rows = part.block_count(record.domain(number)) * part.row_bytes(changed.word_bytes)
                total += (part.nbytes + rows) * RANKED.holds(changed.dtype)
    return total
