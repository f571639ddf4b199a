"""Averages of tasks: on a line, on a sphere, or by how much they agree; and choices among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from sparsedelta.errors import UsageError
from sparsedelta.merging.aligned import Aligned, Marks, Numbers
from sparsedelta.merging.keeping import Groups, columns, rows, top
from sparsedelta.merging.outcome import Outcome
from sparsedelta.merging.settings import Settings
from sparsedelta.merging.summing import (
    agreed,
    finite_words,
    insist_finite_sums,
    insist_numbers,
)
from sparsedelta.merging.task_vectors import added, mixed_words
from sparsedelta.rounding import FLOATS, from_float64, to_float64
from sparsedelta.words import Words

_STRAIGHT: Final = 0.9995
"""Cosine from which two ends are joined by a line."""

_ONE: Final = 1e-12
"""What a sum of weights may be off by and still be 1."""


def linear(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """The weighted mean, or sum (Wortsman et al., Model soups, arXiv:2203.05482, section 2).

    Tensors of 16 bits are added up as mergekit does, whole numbers in float32 and in the order of
    the tasks, the base first. Means of them often lie half way between two numbers of 16 bits, and
    it is this arithmetic that decides which one is taken.

    Raises:
        UsageError: The mean is asked for, and the weights add up to 0.
    """
    whole = sum(settings.weights) + settings.base_weight
    if settings.normalize and whole == 0:
        raise UsageError("the weights add up to 0: there is no mean", hint="set normalize: false")
    divisor = whole if settings.normalize else 1.0
    if aligned.spec.dtype in _SHORT:
        return _short_mean(aligned, settings)
    parts = [aligned.differences(task) * w for task, w in enumerate(settings.weights)]
    scale = whole / divisor
    scale = 1.0 if abs(scale - 1) < _ONE else scale
    return mixed_words(aligned, added(parts, aligned.size) / divisor, scale)


_SHORT: Final = ("F16", "BF16")


def _short_mean(aligned: Aligned, settings: Settings) -> Outcome:
    dtype = aligned.spec.dtype
    weights = np.array([settings.base_weight, *settings.weights], np.float32)
    divisor = weights.sum() if settings.normalize else np.float32(1)

    def add(base: Words, tasks: Words) -> Numbers:
        total = np.zeros(base.size, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for words, weight in zip((base, *tasks), weights, strict=True):
                # A product of two float32 is exact in float64: this is a fused multiply-add.
                product = to_float64(words, dtype) * np.float64(weight)
                total = (total.astype(np.float64) + product).astype(np.float32)
            return (total / divisor).astype(np.float64)

    def elsewhere(words: Words) -> Words:
        return from_float64(add(words, np.repeat(words[None], aligned.tasks, axis=0)), dtype)

    numbers = add(aligned.base, aligned.words)
    words = finite_words(aligned, numbers)
    stays = numbers == aligned.base_numbers()  # the signs of zeros are those of the base
    words[stays] = aligned.base[stays]
    return Outcome(words, None if is_mean(settings) else elsewhere)


def is_mean(settings: Settings) -> bool:
    """Whether what all ends have in common stays."""
    whole = sum(settings.weights) + settings.base_weight
    return settings.normalize or abs(whole - 1) < _ONE


def slerp(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:
    """On the arc between two tensors (Shoemake, Animating rotation with quaternion curves, 1985).

    The ends are two tasks, or the base and one. Where they are almost parallel: on the line. Sines
    are applied to tensors that are not normalised, and so, where they are not, every element of the
    tensor is multiplied.
    """
    base = aligned.base_numbers()
    own = [aligned.differences(task) for task in range(aligned.tasks)]
    zero = np.zeros(aligned.size)
    one, two = own if len(own) > 1 else (zero, own[0])
    squares = [base_square + float((d * (2 * base + d)).sum()) for d in (one, two)]
    insist_finite_sums(aligned, "the norm of a task, or of the base,", *squares)
    norms = [norm if (norm := math.sqrt(max(s, 0.0))) > _NO_NORM else 1.0 for s in squares]
    dot = base_square + float((base * (one + two) + one * two).sum())
    cosine = min(1.0, max(-1.0, dot / norms[0] / norms[1]))
    t = _position(settings)
    first, second = 1 - t, t
    if abs(cosine) <= _STRAIGHT:
        angle = math.acos(cosine)
        first, second = (math.sin(part * angle) / math.sin(angle) for part in (first, second))
    scale = first + second
    scale = 1.0 if abs(scale - 1) < _ONE else scale
    return mixed_words(aligned, first * one + second * two, scale)


_NO_NORM: Final = 1e-8


def _position(settings: Settings) -> float:
    if settings.t is not None:
        return settings.t
    if len(settings.tasks) == 1:
        return settings.tasks[0].weight
    total = sum(settings.weights)
    return 0.5 if abs(total) < _NO_WEIGHT else settings.weights[1] / total


_NO_WEIGHT: Final = 1e-6


def nuslerp(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """On the arc between two differences, added to the base (mergekit's NuSLERP; no paper)."""
    one, two = (aligned.differences(task) for task in range(2))
    t = _position(settings)
    groups = _groups(
        aligned, by_row=not settings.nuslerp_flatten, by_column=settings.nuslerp_row_wise
    )
    norms = [np.maximum(np.sqrt(_sums(groups, d * d)), 1e-7) for d in (one, two)]
    insist_finite_sums(aligned, "the norm of a difference", *norms)
    cosine = np.clip(_sums(groups, (one / norms[0]) * (two / norms[1])), -1, 1)
    straight = 1 - cosine * cosine <= _NO_NORM**2
    angle = np.arccos(np.where(straight, 0.0, cosine))
    first = np.where(straight, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    second = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    return mixed_words(aligned, first * one + second * two)


def model_stock(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """From the base to the mean, as far as tasks agree (Jang et al., arXiv:2403.19522, eq. 4)."""
    own = [aligned.differences(task) for task in range(aligned.tasks)]
    count = len(own)
    groups = _groups(aligned, by_row=settings.filter_wise and len(aligned.spec.shape) > 1)
    norms = [np.sqrt(_sums(groups, d * d)) for d in own]
    insist_finite_sums(aligned, "the norm of a difference", *norms)
    cosines = [
        np.clip(_sums(groups, own[a] * own[b]) / np.maximum(norms[a] * norms[b], 1e-6), -1, 1)
        for a in range(count)
        for b in range(a + 1, count)
    ]
    cosine = added(cosines, aligned.size) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    singular = np.abs(denominator) < _NO_WEIGHT
    ratio = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return mixed_words(aligned, ratio * (added(own, aligned.size) / count))


def sce(
    aligned: Aligned,
    settings: Settings,
    base_square: float,  # noqa: ARG001
    *,
    keep: Sequence[Marks] | None = None,
) -> Outcome:
    """Select, calculate, erase (Wan et al., FuseChat, arXiv:2408.07990, section 3.3).

    Args:
        aligned: The entries of the whole tensor.
        settings: How they are put together.
        base_square: Not needed.
        keep: Which elements are selected, ``[n]``, whatever would be; for comparisons.
    """
    own = np.stack([aligned.differences(task) for task in range(aligned.tasks)])
    if settings.select_topk < 1:
        own = own * (_selected(own, settings.select_topk) if keep is None else keep[0])
    squares = [float((numbers * numbers).sum()) / aligned.spec.words for numbers in own]
    whole = sum(squares)
    insist_finite_sums(aligned, "the energy of a task", whole)
    # Below this, and small changes of few elements are always below it, tasks count alike.
    alike = whole < _NO_WEIGHT
    weights = [1 / len(squares) if alike else square / whole for square in squares]
    total = added(list(own), aligned.size)
    sign = np.where(total >= 0, 1.0, -1.0)
    mixed, divisor = np.zeros(aligned.size), np.zeros(aligned.size)
    for numbers, weight in zip(own, weights, strict=True):
        agrees = np.sign(numbers) == sign
        mixed += np.where(agrees, numbers * weight, 0.0)
        divisor += np.where(agrees, weight, 0.0)
    return mixed_words(aligned, mixed / np.maximum(divisor, _NO_WEIGHT))


def _selected(own: Numbers, share: float) -> Marks:
    variance = own.var(axis=0)
    return top(variance, int(np.count_nonzero(variance) * share)) if share > 0 else variance < 0


def last(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """What the last task makes of an element that several change."""
    places = np.arange(1, aligned.tasks + 1, dtype=np.int64)[:, None] * aligned.present
    return _chosen(aligned, settings, places.argmax(axis=0))


def first(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """What the first task makes of an element that several change."""
    return _chosen(aligned, settings, aligned.present.argmax(axis=0))


def max_magnitude(aligned: Aligned, settings: Settings, base_square: float) -> Outcome:  # noqa: ARG001
    """What the task makes of it that changes it most (Marczak et al., MagMax, arXiv:2407.06322).

    Of equal magnitudes the negative difference is taken: the order of tasks does not matter.

    Raises:
        NotFiniteError: A number that is compared with another is not finite.
    """
    if aligned.spec.dtype not in FLOATS:
        return Outcome(agreed(aligned, [weight == 1 for weight in settings.weights]))
    insist_numbers(aligned.only(aligned.present.sum(axis=0) > 1))
    best: Numbers = np.full(aligned.size, -1.0)
    chosen = aligned.present.argmax(axis=0)  # a task alone, whatever its word
    value = np.zeros(aligned.size)
    for task, weight in enumerate(settings.weights):
        numbers = aligned.differences(task) * weight
        size = np.abs(numbers)
        larger = (size > best) | ((size == best) & (numbers < value))
        larger &= aligned.present[task]
        best[larger], value[larger] = size[larger], numbers[larger]
        chosen[larger] = task
    return _chosen(aligned, settings, chosen)


def _chosen(
    aligned: Aligned, settings: Settings, chosen: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
) -> Outcome:
    words: Words = aligned.words[chosen, np.arange(aligned.size)]
    for task, weight in enumerate(settings.weights):
        here = chosen == task
        if weight == 1 or not here.any():
            continue
        some = aligned.only(here)
        if aligned.spec.dtype not in FLOATS:
            agreed(some, [each == 1 for each in settings.weights])
        words[here] = finite_words(some, some.base_numbers() + some.differences(task) * weight)
    return Outcome(words)


def _groups(aligned: Aligned, *, by_row: bool, by_column: bool = False) -> Groups:
    """Numbers from 0 on of the group of each element."""
    if not by_row:
        return np.zeros(aligned.size, np.int64)
    found = (columns if by_column else rows)(aligned.spec, aligned.indices)
    return np.unique(found, return_inverse=True)[1]


def _sums(groups: Groups, numbers: Numbers) -> Numbers:
    """The sum of the numbers of each element's group, for each element."""
    if not groups.size:
        return np.zeros(0)
    if not groups.any():
        return np.full(groups.size, numbers.sum())
    return np.bincount(groups, numbers)[groups].astype(np.float64)
