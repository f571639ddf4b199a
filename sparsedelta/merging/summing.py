"""``sum``: the words that several tasks together make of a base, by an exact rule.

An element that one task of weight 1 changes takes that task's word, whatever its dtype. Elsewhere
numbers are added: each step is one float64 operation, and the result is rounded once to the dtype
of the tensor. The terms are added in the order of their values, so that the order of the tasks, how
their deltas are encoded, and what else is in the checkpoint never matter. Task arithmetic:
Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089, equation (3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.errors import NotFiniteError, StructureError
from sparsedelta.merging.aligned import Aligned, Marks, Numbers
from sparsedelta.rounding import FLOATS, from_float64, is_finite, to_float64
from sparsedelta.words import Words

_LOW_BITS: Final = np.int64((1 << 63) - 1)
_LAST: Final = np.iinfo(np.int64).max


def summed(
    aligned: Aligned,
    weights: Sequence[float],
    *,
    computed: Collection[str] = FLOATS,
    note: str = "",
) -> Words:
    """The words that the sum of weighted tasks makes of a base.

    Args:
        aligned: The tasks' entries.
        weights: A weight per task, finite and not 0.
        computed: Dtypes that are computed with.
        note: What an error says of a tensor that is not.

    Returns:
        Words ``[n]``.

    Raises:
        NotFiniteError: A number that is met or made is not finite; names tensor and index.
        StructureError: A dtype that is not computed with, and tasks that do not agree.
    """
    result = aligned.base.copy()
    if 1 in weights:
        taken = np.zeros(aligned.size, np.bool_)
        lonely = aligned.counts() == 1
        for task, weight in enumerate(weights):
            if weight == 1:
                alone = np.flatnonzero(aligned.present[task] & lonely)
                result[alone] = aligned.words[task, alone]
                taken[alone] = True
        rest = np.flatnonzero(~taken)
        left = aligned.only(rest)
    else:
        rest, left = np.arange(aligned.size), aligned
    if not rest.size:
        return result
    if aligned.spec.dtype in computed:
        result[rest] = _added(left, weights)
    else:
        result[rest] = agreed(left, [weight == 1 for weight in weights], note)
    return result


def _added(aligned: Aligned, weights: Sequence[float]) -> Words:
    counts = aligned.counts()
    base = aligned.base_numbers()
    finite = np.isfinite(base)
    total = np.empty(aligned.size)
    lonely = counts == 1
    several = np.flatnonzero(~lonely)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        # Most elements are one task's, with nothing to be put in order.
        for task, weight in enumerate(weights):
            alone = np.flatnonzero(aligned.present[task] & lonely)
            terms = np.float64(weight) * aligned.differences_at(task, alone)
            finite[alone] &= np.isfinite(terms)
            total[alone] = terms + base[alone]
        if several.size:
            shared = aligned.only(several)
            sums, are_finite = _in_order(shared, weights)
            finite[several] &= are_finite
            total[several] = sums + base[several]
    return finite_words(aligned, total, finite)


def _in_order(aligned: Aligned, weights: Sequence[float]) -> tuple[Numbers, Marks]:
    """The sums of weighted differences, added in the order of their values; are they finite?"""
    finite = np.ones(aligned.size, np.bool_)
    keys = np.empty(aligned.present.shape, np.int64)
    for task, weight in enumerate(weights):
        terms = np.float64(weight) * aligned.differences(task)
        finite &= np.isfinite(terms)
        keys[task] = np.where(aligned.present[task], _ordered(terms.view(np.int64)), _LAST)
    keys.sort(axis=0)
    counts = aligned.counts()
    total = _ordered(keys[0]).view(np.float64)
    for place in range(1, len(weights)):
        more = total + _ordered(keys[place]).view(np.float64)
        total = np.where(place < counts, more, total)
    return total, finite


def _ordered(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers in IEEE 754's totalOrder of the float64 with these bits; its own inverse."""
    return bits ^ ((bits >> np.int64(63)) & _LOW_BITS)


def finite_words(aligned: Aligned, numbers: Numbers, finite: Marks | None = None) -> Words:
    """Numbers as words of the tensor's dtype, each rounded once.

    Args:
        aligned: The elements.
        numbers: float64 ``[n]``.
        finite: Whether what led to each of them was finite; None: it was.

    Raises:
        NotFiniteError: A number, or what led to it, is not finite, or too large for the dtype.
    """
    dtype = aligned.spec.dtype
    words = from_float64(numbers, dtype)
    whole = np.isfinite(numbers) & np.isfinite(to_float64(words, dtype))
    if finite is not None:
        whole &= finite
    insist_finite(aligned, whole)
    return words


def insist_numbers(aligned: Aligned) -> None:
    """Insist that what is to be computed with is finite: the base, and what tasks make of it.

    Raises:
        NotFiniteError: Something is not; names tensor and index.
    """
    dtype = aligned.spec.dtype
    insist_finite(aligned, is_finite(aligned.base, dtype))
    every: Marks = np.logical_and.reduce(is_finite(aligned.words, dtype), axis=0)
    insist_finite(aligned, every)


def insist_finite_sums(aligned: Aligned, what: str, *sums: Numbers | float) -> None:
    """Insist that numbers of a whole tensor are finite: norms, say.

    Raises:
        NotFiniteError: One is not.
    """
    if not all(np.isfinite(each).all() for each in sums):
        raise NotFiniteError(
            f"tensor {aligned.spec.name!r}: {what} is more than float64 holds (SD505)",
            hint="smaller weights, or another method: sum goes element by element",
        )


def insist_finite(aligned: Aligned, finite: Marks) -> None:
    """Insist that numbers of elements are finite.

    Raises:
        NotFiniteError: One is not; names tensor and index.
    """
    if finite.all():
        return
    index = int(aligned.indices[np.flatnonzero(~finite)[0]])
    raise NotFiniteError(
        f"tensor {aligned.spec.name!r}, index {index}: a number that is met or made is not "
        f"finite in {aligned.spec.dtype} (SD505)",
        hint="smaller weights, or look at what the tasks have there",
    )


def agreed(aligned: Aligned, allowed: Sequence[bool] | None = None, note: str = "") -> Words:
    """The words of a tensor that is not computed with: those that all tasks agree on.

    Args:
        aligned: Elements that at least one task changes each.
        allowed: Whether a task may be followed, for each: its weight is 1. None: all of them.
        note: What an error says beside.

    Raises:
        StructureError: A task that may not be followed changes an element, or two differ.
    """
    spec = aligned.spec
    first = aligned.words[aligned.present.argmax(axis=0), np.arange(aligned.size)]
    differs = (aligned.present & (aligned.words != first)).any(axis=0)
    weighted = np.zeros(aligned.size, np.bool_)
    for task, allows in enumerate(allowed or ()):
        if not allows:
            weighted |= aligned.present[task]
    for marks, what in (
        (differs, "tasks give different words"),
        (weighted, "a task with another weight than 1 changes it"),
    ):
        if marks.any():
            index = int(aligned.indices[np.flatnonzero(marks)[0]])
            raise StructureError(
                f"tensor {spec.name!r}, index {index}: {what}, and numbers of {spec.dtype} are not "
                f"computed with, only those of {', '.join(FLOATS)}{note}",
                hint="leave one of the tasks out of this tensor: diff it again without its change",
            )
    words: Words = first
    return words
