"""What a chain of deltas does to each word of a tensor, without its words.

Every element of what a chain makes is one of two things: an element of the source with a difference
added, or a word that does not depend on the source. On the way back some are lost: the word that a
``replace`` has replaced is nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsedelta.delta import DIFFERENCE, SPARSE_OPS, Part
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locations import Location
from sparsedelta.operations.arrows import Arrow
from sparsedelta.operations.hops import Hop
from sparsedelta.records import PartRecord
from sparsedelta.slices import check_disjoint
from sparsedelta.tables import PartTable
from sparsedelta.words import Words


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A run of what an arrow makes.

    Attributes:
        values: Words ``[count]``: of a fixed element its word, of others what is added to the
            source's, mod 2^w.
        fixed: bool ``[count]``: whether it does not depend on the source.
        lost: bool ``[count]``: whether it is not known at all.
    """

    values: Words
    fixed: NDArray[np.bool_]
    lost: NDArray[np.bool_]


def trace(arrow: Arrow, start: int, stop: int) -> Trace:
    """What an arrow makes of the words ``[start, stop)``, all of them within its result.

    Raises:
        FormatError: A block breaks a rule, or two parts hold an index (SD409).
    """
    assert arrow.result is not None  # noqa: S101 (the caller asks for words of it)
    count = stop - start
    values = np.zeros(count, arrow.result.word_dtype)
    fixed, lost = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    given = 0 if arrow.source is None else arrow.source.words
    for hop in arrow.hops:
        first, last = max(given, start), min(hop.result.words, stop)
        if first < last:  # behind the source's words; whatever was there before has been cut
            run = slice(first - start, last - start)
            fixed[run] = True
            lost[run] = not _is_coded(hop)
            values[run] = hop.carried_words(given, first, last) if _is_coded(hop) else 0
        for part in _entries(hop, start, min(stop, hop.domain)):
            indices, words = part.entries
            at = indices - start
            if part.op != DIFFERENCE:
                fixed[at], lost[at] = True, hop.reverse
                values[at] = words if not hop.reverse else 0
            elif hop.reverse:
                values[at] -= words
            else:
                values[at] += words
        given = hop.result.words
    return Trace(values, fixed, lost)


def _is_coded(hop: Hop) -> bool:
    return hop.carried is not None and isinstance(hop.record.parts[hop.carried], PartRecord)


def _entries(hop: Hop, start: int, stop: int) -> list[Part]:
    if start >= stop:
        return []
    parts = [hop.reader.entries_within(hop.record, number, start, stop) for number, _ in hop.parts]
    if len(parts) > 1:
        found = [part.entries[0] for part in parts]
        check_disjoint(hop.reader.path, hop.record.name, found)
    return parts


def is_idle(arrow: Arrow, start: int, stop: int) -> bool:
    """Whether an arrow surely leaves the words ``[start, stop)`` of its source as they are."""
    given = 0 if arrow.source is None else arrow.source.words
    for hop in arrow.hops:
        if min(given, hop.result.words) < stop:
            return False
        table = hop.reader.tables.tensors[hop.record.name]
        for number, part in hop.parts:
            blocks = table.parts[number]
            assert isinstance(blocks, PartTable)  # noqa: S101 (it is coded)
            first, last = start >> part.block_log2, -(-stop >> part.block_log2)
            if blocks.counts[first:last].any():
                return False
        given = hop.result.words
    return arrow.source is not None


def spans(arrows: Iterable[Arrow], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs that are worked on at a time: whole segments, and whole blocks of every change."""
    parts = (part for arrow in arrows for hop in arrow.hops for _, part in hop.parts)
    size = max(SEGMENT_WORDS, *(1 << part.block_log2 for part in parts), 0)
    for first in range(start // size * size, stop, size):
        yield max(first, start), min(first + size, stop)


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a word is not known on the way back.

    Attributes:
        op: The operation that does not hold it.
        path: The delta that it is in.
    """

    op: str
    path: Location

    @property
    def is_wanted(self) -> bool:
        """Whether the delta was told to forget it: nothing says what it was."""
        return self.op not in SPARSE_OPS


def possible_loss(arrow: Arrow) -> Loss | None:
    """What may have lost words of what an arrow makes on the way back; None: all are known."""
    for hop in arrow.hops:
        if hop.carried is not None and not _is_coded(hop):
            return Loss(hop.record.parts[hop.carried].op, hop.reader.path)
        for _, part in hop.parts:
            if part.op != DIFFERENCE:
                return Loss(part.op, hop.reader.path)
    return None


def find_loss(arrow: Arrow, start: int, stop: int) -> Loss | None:
    """What has lost one of the words ``[start, stop)`` on the way back; None: all are known."""
    loss = possible_loss(arrow)
    if loss is None or not any(
        trace(arrow, *run).lost.any() for run in spans([arrow], start, stop)
    ):
        return None
    return loss
