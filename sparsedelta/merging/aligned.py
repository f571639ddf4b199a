"""Entries of several tasks in one tensor, aligned: the elements that any of them changes.

A task is a checkpoint made from the base: by fine-tuning, say. Elements that no task changes are
not here, so that memory and time grow with the entries and not with the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsedelta.rounding import to_float64
from sparsedelta.words import Indices, TensorSpec, Words

Numbers = NDArray[np.float64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """What ``k`` tasks make of the ``n`` elements of a tensor that any of them changes.

    Attributes:
        spec: The tensor.
        indices: int64 ``[n]``, flat and ascending.
        base: Words ``[n]`` of the base.
        words: Words ``[k, n]`` of the tasks; the base's where a task changes nothing.
        present: ``[k, n]``, whether the task changes the element: its word is not the base's.
    """

    spec: TensorSpec
    indices: Indices
    base: Words
    words: Words
    present: Marks

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return int(self.words.shape[0])

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.indices.size)

    def base_numbers(self) -> Numbers:
        """The base as float64 ``[n]``; of F64, F32, F16 and BF16 only."""
        return to_float64(self.base, self.spec.dtype)

    def differences(self, task: int) -> Numbers:
        """What a task adds to the base: float64 ``[n]``, +0 where it changes nothing."""
        numbers = np.zeros(self.size)
        here = np.flatnonzero(self.present[task])
        numbers[here] = self.differences_at(task, here)
        return numbers

    def differences_at(self, task: int, chosen: Indices) -> Numbers:
        """What a task adds to the base: float64 ``[m]``, of ``m`` chosen elements."""
        numbers = to_float64(self.words[task, chosen], self.spec.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            numbers -= to_float64(self.base[chosen], self.spec.dtype)
        return numbers

    def counts(self) -> NDArray[np.uint16]:
        """How many tasks change each element: uint16 ``[n]``."""
        counts: NDArray[np.uint16] = self.present.sum(axis=0, dtype=np.uint16)
        return counts

    def only(self, chosen: Marks | Indices) -> Aligned:
        """The chosen elements."""
        return Aligned(
            self.spec,
            self.indices[chosen],
            self.base[chosen],
            self.words[:, chosen],
            self.present[:, chosen],
        )


def align(
    spec: TensorSpec, start: int, base: Words, tasks: Sequence[tuple[Indices, Words]]
) -> Aligned:
    """Align the entries of a run of words.

    Args:
        spec: The tensor.
        start: Flat index of the first word of the run.
        base: Words of the run.
        tasks: For each task the words of the run that it changes, ascending, from 0 on, and the
            words they become. Where these are the base's they are left out.
    """
    marks = np.zeros(base.size, np.bool_)
    changed = []
    for offsets, words in tasks:
        differs = words != base[offsets]
        if not differs.all():
            offsets, words = offsets[differs], words[differs]  # noqa: PLW2901
        marks[offsets] = True
        changed.append((offsets, words))
    union = np.flatnonzero(marks)
    old = base[union]
    aligned = np.repeat(old[None], len(changed), axis=0)
    present = np.zeros(aligned.shape, np.bool_)
    places = np.empty(base.size, np.int32)  # a run has fewer than 2^31 words
    places[union] = np.arange(union.size, dtype=np.int32)
    for task, (offsets, words) in enumerate(changed):
        at = places[offsets]
        aligned[task, at] = words
        present[task, at] = True
    return Aligned(spec, union + start, old, aligned, present)


def joined(runs: Sequence[Aligned]) -> Aligned:
    """The elements of runs of one tensor that follow each other."""
    if len(runs) == 1:
        return runs[0]
    return Aligned(
        runs[0].spec,
        np.concatenate([run.indices for run in runs]),
        np.concatenate([run.base for run in runs]),
        np.concatenate([run.words for run in runs], axis=1),
        np.concatenate([run.present for run in runs], axis=1),
    )
