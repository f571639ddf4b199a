"""Task arithmetic and its kin: differences are thinned out, weighted, and added where signs agree.

Sums are float64 and rounded once, at the end. An element whose mixed difference is 0 keeps its
word. The steps, their order and the meaning of every parameter are those of mergekit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from sparsedelta.merging.aligned import Aligned, Marks, Numbers
from sparsedelta.merging.chance import uniform
from sparsedelta.merging.keeping import (
    by_chance,
    by_rank,
    largest,
    ranked_groups,
    rescaled,
    without_outliers,
)
from sparsedelta.merging.outcome import Outcome
from sparsedelta.merging.settings import Settings
from sparsedelta.merging.summing import finite_words, insist_finite, insist_finite_sums
from sparsedelta.rounding import from_float64, to_float64
from sparsedelta.words import Words

Thin = Callable[[Aligned, Settings, int, Numbers], Marks]
"""Which entries of a task are kept: of elements, settings, the task's number and differences."""

_NO_SUM: Final = 1e-8


def mixed_words(aligned: Aligned, mixed: Numbers, scale: float = 1.0) -> Outcome:
    """The base and what was mixed, each element rounded once; what is not moved keeps its word.

    Raises:
        NotFiniteError: A number that is met or made is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moved = aligned.base_numbers() * scale + mixed
    if scale != 1:
        return Outcome(finite_words(aligned, moved), partial(_scaled, scale, aligned.spec.dtype))
    stays = mixed == 0
    moved[stays] = 0.0
    words = finite_words(aligned, moved)
    words[stays] = aligned.base[stays]
    return Outcome(words)


def _scaled(scale: float, dtype: str, words: Words) -> Words:
    with np.errstate(invalid="ignore", over="ignore"):
        return from_float64(to_float64(words, dtype) * scale, dtype)


def total_of(aligned: Aligned, settings: Settings, task: int) -> int:
    """The number that shares of a task's differences are of."""
    if settings.density_of == "entries":
        return int(aligned.present[task].sum())
    return aligned.spec.words


def thin_by_magnitude(
    aligned: Aligned, settings: Settings, task: int, differences: Numbers
) -> Marks:
    """The largest ones: ``ties``."""
    total = total_of(aligned, settings, task)
    return largest(differences, total, settings.tasks[task].density)


def thin_outliers(aligned: Aligned, settings: Settings, task: int, differences: Numbers) -> Marks:
    """The largest ones but for outliers: ``breadcrumbs``."""
    own = settings.tasks[task]
    total = total_of(aligned, settings, task)
    return without_outliers(differences, total, own.density, own.gamma)


def thin_by_chance(aligned: Aligned, settings: Settings, task: int, _: Numbers) -> Marks:
    """By chance: ``dare``."""
    return by_chance(_chances(aligned, settings, task), settings.tasks[task].density)


def thin_by_rank(aligned: Aligned, settings: Settings, task: int, differences: Numbers) -> Marks:
    """By chance and magnitude: ``della``."""
    own = settings.tasks[task]
    groups, size = ranked_groups(aligned.spec, aligned.indices)
    members: int | np.ndarray[tuple[int, ...], np.dtype[np.int64]] = size
    if settings.density_of == "entries":
        present = aligned.present[task]
        _, inverse = np.unique(groups, return_inverse=True)
        members = np.bincount(inverse, present)[inverse].astype(np.int64)
        differences = np.where(present, differences, 0.0)
    chances = _chances(aligned, settings, task)
    return by_rank(differences, chances, (groups, members), own.density, own.epsilon)


def _chances(aligned: Aligned, settings: Settings, task: int) -> Numbers:
    return uniform(settings.seed, settings.identities[task], aligned.spec.name, aligned.indices)


def thinned(
    aligned: Aligned, settings: Settings, thin: Thin | None, keep: Sequence[Marks] | None = None
) -> list[Numbers]:
    """The differences of each task that are kept, not weighted yet.

    Args:
        aligned: The elements.
        settings: How tasks are put together.
        thin: Which are kept; None: all.
        keep: Which are kept, ``[n]`` for each task, whatever ``thin`` would say; for comparisons.

    Raises:
        NotFiniteError: A difference is not finite.
    """
    found = []
    for task in range(aligned.tasks):
        differences = aligned.differences(task)
        insist_finite(aligned, np.isfinite(differences))
        if thin is not None and (keep is not None or settings.tasks[task].density < 1):
            kept = thin(aligned, settings, task, differences) if keep is None else keep[task]
            if settings.rescale:
                differences = rescaled(differences, kept)
                insist_finite_sums(aligned, "the sum of magnitudes", differences)
            else:
                differences = np.where(kept, differences, 0.0)
        found.append(differences)
    return found


def combine(
    aligned: Aligned,
    settings: Settings,
    base_square: float = 0.0,  # noqa: ARG001 (as all methods are called)
    *,
    thin: Thin | None = None,
    consensus: bool = False,
    keep: Sequence[Marks] | None = None,
) -> Outcome:
    """Add what is kept of the weighted differences of all tasks.

    Args:
        aligned: The entries of the whole tensor.
        settings: How they are put together.
        base_square: Not needed.
        thin: Which differences are kept.
        consensus: Add only those with the sign that the sum of all has (TIES: elect, disjoint
            merge).
        keep: See :func:`thinned`.
    """
    own = thinned(aligned, settings, thin, keep)
    weights = settings.weights
    weighted = [numbers * weight for numbers, weight in zip(own, weights, strict=True)]
    divisor: Numbers | float
    if consensus:
        mixed, divisor = agreeing(weighted, weights)
    else:
        mixed = added(weighted, aligned.size)
        whole = sum(weights)
        divisor = 1.0 if abs(whole) < _NO_SUM else whole
    if settings.normalize:
        mixed = mixed / divisor
    return mixed_words(aligned, mixed * settings.lambda_)


def added(numbers: Sequence[Numbers], size: int) -> Numbers:
    """The sum, in the order of the tasks."""
    total = np.zeros(size)
    for each in numbers:
        total += each
    return total


def agreeing(numbers: Sequence[Numbers], weights: Sequence[float]) -> tuple[Numbers, Numbers]:
    """The sum of the numbers whose sign is that of the sum of all, and the sum of their weights.

    A sum of 0 counts as positive, a number of 0 as neither. Where no weight is left, theirs is 1.
    """
    total = added(numbers, numbers[0].size)
    sign = np.where(total >= 0, 1.0, -1.0)
    mixed, divisor = np.zeros_like(total), np.zeros_like(total)
    for each, weight in zip(numbers, weights, strict=True):
        agrees = np.sign(each) == sign
        mixed += np.where(agrees, each, 0.0)
        divisor += np.where(agrees, weight, 0.0)
    divisor[divisor == 0] = 1.0
    return mixed, divisor


ties: Final = partial(combine, thin=thin_by_magnitude, consensus=True)
dare_linear: Final = partial(combine, thin=thin_by_chance)
dare_ties: Final = partial(combine, thin=thin_by_chance, consensus=True)
della: Final = partial(combine, thin=thin_by_rank, consensus=True)
della_linear: Final = partial(combine, thin=thin_by_rank)
breadcrumbs: Final = partial(combine, thin=thin_outliers)
breadcrumbs_ties: Final = partial(combine, thin=thin_outliers, consensus=True)
