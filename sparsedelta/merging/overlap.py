"""How much tasks share: the elements that several change, and whether they pull the same way."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.merging.aligned import Aligned, Numbers
from sparsedelta.rounding import FLOATS

_NUMBER: Final = re.compile(r"(?<![^.])[0-9]+(?![^.])")


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """What ``k`` tasks have in common, pair by pair; the diagonal is each task by itself.

    Attributes:
        counts: int64 ``[k, k]``, elements that both change.
        compared: int64 ``[k, k]``, those of them that are numbers (F64, F32, F16, BF16).
        alike: int64 ``[k, k]``, those of which both differences have the same sign.
        dots: float64 ``[k, k]``, sum of the products of both differences, in elements both change.
        squares: float64 ``[k, k]``, sum of the squares of the first one's, there.
    """

    counts: NDArray[np.int64]
    compared: NDArray[np.int64]
    alike: NDArray[np.int64]
    dots: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def none(cls, tasks: int) -> Overlap:
        """Tasks of which nothing has been seen."""
        shape = (tasks, tasks)
        counts, compared, alike = (np.zeros(shape, np.int64) for _ in range(3))
        return cls(counts, compared, alike, np.zeros(shape), np.zeros(shape))

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.counts + other.counts,
            self.compared + other.compared,
            self.alike + other.alike,
            self.dots + other.dots,
            self.squares + other.squares,
        )

    def share(self, one: int, other: int) -> float | None:
        """Which share of the elements that one task changes the other changes, too."""
        return _ratio(self.counts[one, other], self.counts[one, one])

    def agreement(self, one: int, other: int) -> float | None:
        """In which share of the elements that both change, the differences have the same sign."""
        return _ratio(self.alike[one, other], self.compared[one, other])

    def cosine(self, one: int, other: int) -> float | None:
        """Cosine between both differences, in the elements that both change."""
        norm = np.sqrt(self.squares[one, other]) * np.sqrt(self.squares[other, one])
        return _ratio(self.dots[one, other], norm)

    def to_json(self) -> dict[str, list[list[int]] | list[list[float | None]]]:
        """Matrices as nested lists; None where nothing can be said."""
        tasks = range(len(self.counts))
        measures = {"share": self.share, "agreement": self.agreement, "cosine": self.cosine}
        rows = {
            name: [[measure(one, other) for other in tasks] for one in tasks]
            for name, measure in measures.items()
        }
        return {"counts": self.counts.tolist(), **rows}


def _ratio(part: float, whole: float) -> float | None:
    ratio = float(part) / float(whole) if whole else math.nan
    return ratio if math.isfinite(ratio) else None


def overlap_of(aligned: Aligned) -> Overlap:
    """The overlap of the entries of some elements of a tensor."""
    tasks = aligned.tasks
    found = Overlap.none(tasks)
    is_number = aligned.spec.dtype in FLOATS
    for task in range(tasks):
        here = np.flatnonzero(aligned.present[task])
        found.counts[task, task] = here.size
        if is_number:
            own = aligned.differences_at(task, here)
            _compare(found, (task, own), (task, own))
    shared = np.flatnonzero(aligned.counts() > 1)
    if not shared.size:
        return found
    both = aligned.only(shared)
    for one in range(tasks):
        for other in range(one + 1, tasks):
            here = np.flatnonzero(both.present[one] & both.present[other])
            found.counts[one, other] = found.counts[other, one] = here.size
            if is_number:
                _compare(
                    found,
                    (one, both.differences_at(one, here)),
                    (other, both.differences_at(other, here)),
                )
    return found


def _compare(found: Overlap, one: tuple[int, Numbers], other: tuple[int, Numbers]) -> None:
    """Compare what two tasks add in the elements that both change; the two may be the same."""
    (row, first), (column, second) = one, other
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all():
        first, second = first[finite], second[finite]
    alike = int(np.count_nonzero(np.sign(first) == np.sign(second)))
    found.compared[row, column] = found.compared[column, row] = first.size
    found.alike[row, column] = found.alike[column, row] = alike
    with np.errstate(over="ignore"):
        found.dots[row, column] = found.dots[column, row] = float((first * second).sum())
        found.squares[row, column] = float((first * first).sum())
        found.squares[column, row] = float((second * second).sum())


def total(overlaps: Iterable[Overlap], tasks: int) -> Overlap:
    """The overlap in all of several tensors."""
    whole = Overlap.none(tasks)
    for each in overlaps:
        whole = whole + each
    return whole


def by_kind(overlaps: Mapping[str, Overlap]) -> dict[str, Overlap]:
    """Overlaps by the kind of module, of overlaps by tensor."""
    kinds: dict[str, Overlap] = {}
    for name, overlap in overlaps.items():
        kind = module_kind(name)
        kinds[kind] = kinds[kind] + overlap if kind in kinds else overlap
    return dict(sorted(kinds.items()))


def module_kind(name: str) -> str:
    """The kind of module that a tensor belongs to: its name, with ``*`` for numbers of layers."""
    return _NUMBER.sub("*", name.removesuffix(".weight").removesuffix(".bias"))
