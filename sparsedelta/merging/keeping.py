"""Which entries of a task are kept: by magnitude, by chance, or by both.

Differences are float64 ``[n]``, those of the elements that any task changes; what is 0 is nobody's
entry here. ``total`` is the number that shares are of: the elements of the tensor, all others of
which are 0, or the task's entries. Ties are broken by the flat index: the first is the larger.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

import numpy as np

from sparsedelta.merging.aligned import Marks, Numbers
from sparsedelta.words import Indices, TensorSpec

Groups: TypeAlias = Indices
"""The number of the group that each element belongs to: a row, say."""


def largest(differences: Numbers, total: int, density: float) -> Marks:
    """The largest magnitudes (Yadav et al., TIES-Merging, arXiv:2306.01708, section 4: trim)."""
    if density >= 1:
        return np.ones(differences.size, np.bool_)
    if density <= 0:
        return np.zeros(differences.size, np.bool_)
    return top(np.abs(differences), max(1, int(density * total)))


def top(magnitudes: Numbers, count: int) -> Marks:
    """The ``count`` largest; of equal ones those with the lowest index."""
    if count >= magnitudes.size:
        return np.ones(magnitudes.size, np.bool_)
    if count <= 0:
        return np.zeros(magnitudes.size, np.bool_)
    bound = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    kept: Marks = magnitudes > bound
    equal = np.flatnonzero(magnitudes == bound)
    kept[equal[: count - int(kept.sum())]] = True
    return kept


def without_outliers(differences: Numbers, total: int, density: float, gamma: float) -> Marks:
    """The largest but for outliers (Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795)."""
    if density >= 1:
        return np.ones(differences.size, np.bool_)
    kept = int(density * total)
    first = max(0, total - kept - int(gamma * total))
    own = np.flatnonzero(differences)
    order = np.argsort(-np.abs(differences[own]), kind="stable")
    ranks = total - 1 - np.arange(own.size)
    marks = np.zeros(differences.size, np.bool_)
    marks[own[order]] = (ranks >= first) & (ranks < first + kept)
    return marks


def by_chance(chances: Numbers, density: float) -> Marks:
    """Each by the same chance (Yu et al., Language Models are Super Mario, arXiv:2311.03099: DARE).

    Args:
        chances: A number from [0, 1) for each.
        density: The chance.
    """
    if density >= 1:
        return np.ones(chances.size, np.bool_)
    marks: Marks = chances < density
    return marks


def by_rank(
    differences: Numbers,
    chances: Numbers,
    groups: tuple[Groups, int | Indices],
    density: float,
    epsilon: float,
) -> Marks:
    """Each by a chance that grows with its rank (Deep et al., DELLA-Merging, arXiv:2406.11617).

    Args:
        differences: The differences.
        chances: A number from [0, 1) for each.
        groups: The group in which each is ranked, and the number of members of the groups.
        density: The chance in the middle.
        epsilon: How far the lowest and the highest are from it.
    """
    if density >= 1:
        return np.ones(differences.size, np.bool_)
    marks = np.zeros(differences.size, np.bool_)
    if density <= 0:
        return marks
    own = np.flatnonzero(differences)
    if not own.size:
        return marks
    group, members = groups[0][own], groups[1]
    order = np.lexsort((own, np.abs(differences[own]), group))
    ordered = group[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    counts = np.searchsorted(ordered, ordered, side="right") - starts
    size = members if isinstance(members, int) else members[own][order]
    ranks = np.arange(own.size) - starts + (size - counts)
    last = np.asarray(size - 1, np.float64)
    share = np.where(last > 0, ranks / np.maximum(last, 1), 0.5)
    marks[own[order]] = chances[own[order]] < density - epsilon + 2 * epsilon * share
    return marks


def rescaled(differences: Numbers, kept: Marks) -> Numbers:
    """The kept ones, multiplied so that their magnitudes add up to those of all."""
    chosen = np.where(kept, differences, 0.0)
    before, after = float(np.abs(differences).sum()), float(np.abs(chosen).sum())
    return chosen if min(before, after) < _SMALL else chosen * (before / after)


_SMALL = 1e-7


def ranked_groups(spec: TensorSpec, indices: Indices) -> tuple[Groups, int]:
    """Groups along the second dimension, and their size; a vector is one group."""
    if len(spec.shape) <= 1:
        return np.zeros(indices.size, np.int64), spec.words
    rest = prod(spec.shape[2:])
    return indices // (spec.shape[1] * rest) * rest + indices % rest, spec.shape[1]


def rows(spec: TensorSpec, indices: Indices) -> Groups:
    """Groups along the last dimension; a vector is one group."""
    return indices // spec.shape[-1] if spec.shape else np.zeros_like(indices)


def columns(spec: TensorSpec, indices: Indices) -> Groups:
    """Groups along the first dimension."""
    return indices % max(1, prod(spec.shape[1:]))
