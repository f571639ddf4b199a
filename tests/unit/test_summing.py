"""``sum`` against a scalar reference in exact fractions, element by element."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from thorough import examples

from sparsedelta.errors import NotFiniteError, StructureError
from sparsedelta.merging.aligned import align
from sparsedelta.merging.summing import summed
from sparsedelta.words import TensorSpec, Words, word_dtype

FORMS: Final = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23), "F64": (11, 52)}
"""Bits of exponent and fraction."""


def number(word: int, dtype: str) -> float:
    """The number that a finite word stands for, as a float64."""
    exponent, fraction = FORMS[dtype]
    sign = word >> (exponent + fraction)
    field = (word >> fraction) & ((1 << exponent) - 1)
    significand = word & ((1 << fraction) - 1)
    if field:
        significand |= 1 << fraction
    power = max(field, 1) - ((1 << (exponent - 1)) - 1) - fraction
    size = float(Fraction(significand) * Fraction(2) ** power)
    return -size if sign else size


def word(value: float, dtype: str) -> int:
    """The nearest word, ties to even, by exact fractions."""
    exponent, fraction = FORMS[dtype]
    sign = struct.unpack("<Q", struct.pack("<d", value))[0] >> 63
    wanted = abs(Fraction(value))
    low, high = 0, ((1 << exponent) - 1) << fraction
    top = Fraction(2) ** (1 << (exponent - 1))
    while high - low > 1:
        middle = (low + high) // 2
        if Fraction(number(middle, dtype)) <= wanted:
            low = middle
        else:
            high = middle
    infinity = ((1 << exponent) - 1) << fraction
    above = top if high == infinity else Fraction(number(high, dtype))
    left = (wanted - Fraction(number(low, dtype))) - (above - wanted)
    nearest = high if left > 0 or (left == 0 and low & 1) else low
    return int(nearest | (sign << (exponent + fraction)))


def total_order(value: float) -> int:
    """A key that ascends with IEEE 754's totalOrder."""
    bits = int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return bits ^ ((1 << 64) - 1) if bits >> 63 else bits | (1 << 63)


def reference(base: int, targets: list[int | None], weights: list[float], dtype: str) -> int:
    """One element by the rule, in plain Python: each float operation is one of IEEE 754."""
    held = [(t, w) for t, w in zip(targets, weights, strict=True) if t is not None and t != base]
    if not held:
        return base
    if len(held) == 1 and held[0][1] == 1:
        return int(held[0][0])
    old = number(base, dtype)
    terms = sorted((w * (number(t, dtype) - old) for t, w in held), key=total_order)
    total = terms[0]
    for term in terms[1:]:
        total += term
    total += old
    return word(total, dtype)


def words_of(dtype: str, values: list[int]) -> Words:
    """Words as an array."""
    exponent, fraction = FORMS[dtype]
    return np.array(values, word_dtype((1 + exponent + fraction) // 8))


def together(
    dtype: str, base: list[int], tasks: list[list[int | None]], weights: list[float]
) -> list[int]:
    """What the code under test makes of a few elements."""
    spec = TensorSpec("w", dtype, (len(base),))
    old = words_of(dtype, base)
    entries = []
    for task in tasks:
        at = [n for n, value in enumerate(task) if value is not None]
        values = words_of(dtype, [value for value in task if value is not None])
        entries.append((np.array(at, np.int64), values))
    aligned = align(spec, 0, old, entries)
    old[aligned.indices] = summed(aligned, weights)
    return [int(value) for value in old]


def finite(dtype: str) -> st.SearchStrategy[int]:
    """Words of numbers that are not near the largest: sums of a few stay finite."""
    exponent, fraction = FORMS[dtype]
    limit = ((1 << exponent) - 4) << fraction
    sign = 1 << (exponent + fraction)
    edges = [0, 1, 2, (1 << fraction) - 1, 1 << fraction, ((1 << (exponent - 1)) - 1) << fraction]
    sizes = st.one_of(st.sampled_from(edges), st.integers(0, limit))
    near = st.integers(0, 40).map(lambda n: (((1 << (exponent - 1)) - 1) << fraction) + n)
    return st.one_of(sizes, near).flatmap(lambda size: st.sampled_from([size, size | sign]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[int], list[list[int | None]], list[float]]:
    """Elements of a base, what tasks make of them, and weights."""
    dtype = draw(st.sampled_from(sorted(FORMS)))
    elements = draw(st.integers(1, 6))
    tasks = draw(st.integers(1, 4))
    base = draw(st.lists(finite(dtype), min_size=elements, max_size=elements))
    one = st.one_of(st.none(), finite(dtype))
    made = [draw(st.lists(one, min_size=elements, max_size=elements)) for _ in range(tasks)]
    weight = st.sampled_from([1.0, 1.0, 0.5, -1.0, 0.3, 1 / 3, 1e-3, -0.25])
    return dtype, base, made, draw(st.lists(weight, min_size=tasks, max_size=tasks))


@examples(300)
@given(cases())
@example(("BF16", [0x3F80], [[0x3F81], [0x3F81]], [0.5, 0.5]))
@example(("BF16", [0x8000], [[0x0000], [0x0000]], [1.0, 1.0]))
@example(("F16", [0x8000], [[0x0000], [None]], [1.0, 1.0]))
def test_each_element_is_what_the_rule_says(
    case: tuple[str, list[int], list[list[int | None]], list[float]],
) -> None:
    """Spec of compose: exact words of a single task, else float64 steps in the order of values."""
    dtype, base, tasks, weights = case
    expected = [
        reference(old, [task[n] for task in tasks], weights, dtype) for n, old in enumerate(base)
    ]
    assert together(dtype, base, tasks, weights) == expected


@examples(100)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(
    case: tuple[str, list[int], list[list[int | None]], list[float]],
    random: st.randoms,  # type: ignore[valid-type]
) -> None:
    """Terms are ordered by their values, not by their tasks."""
    dtype, base, tasks, weights = case
    order = list(range(len(tasks)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = together(dtype, base, [tasks[n] for n in order], [weights[n] for n in order])
    assert shuffled == together(dtype, base, tasks, weights)


def test_the_order_of_float_additions_would_matter() -> None:
    """The law above is no triviality: by position, these terms would add up differently."""
    one, tiny = 0x3FF0000000000000, 0x3CA0000000000000  # 1, 2^-53
    base, minus = 0, 0xBFF0000000000000
    values = [one, tiny, minus]
    left = (number(one, "F64") + number(tiny, "F64")) + number(minus, "F64")
    assert left != number(tiny, "F64")
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        found = together("F64", [base], [[values[n]] for n in order], [1.0] * 3)
        assert found == [word(-1.0 + 2.0**-53 + 1.0, "F64")]


def test_a_sum_is_rounded_once() -> None:
    """1 + 2^-8 + 2^-40 is 0x3F81 in bf16; by way of float32 it would be 0x3F80."""
    # 2^-8 is half of the last place of 1: a task that adds 2^-7 at weight 1/2, and one of 2^-40.
    tiny = word(2.0**-40, "BF16")
    assert together("BF16", [0], [[0x3F80], [word(2.0**-8, "BF16")], [tiny]], [1.0] * 3) == [0x3F81]


def test_single_tasks_of_weight_one_give_their_words_whatever_they_are() -> None:
    """NaN payloads and infinities are copied: nothing is computed."""
    nan, infinity = 0x7FC1, 0xFF80
    assert together(
        "BF16", [0, 0x7F80, 5], [[nan, None, None], [None, infinity, None]], [1, 1]
    ) == [
        nan,
        infinity,
        5,
    ]


@pytest.mark.parametrize(
    ("base", "task", "weight"),
    [(0x7F80, 0x3F80, 0.5), (0x3F80, 0x7FC0, 0.5), (0x7F7F, 0xFF7F, -1.0), (0x3F80, 0x3F81, 1e300)],
)
def test_what_is_not_finite_is_refused_by_name(base: int, task: int, weight: float) -> None:
    """Operands and results, with tensor and index."""
    with pytest.raises(NotFiniteError, match=r"tensor 'w', index 1: .*\(SD505\)"):
        together("BF16", [0, base], [[None, task]], [weight])


@pytest.mark.parametrize("dtype", ["I32", "U8", "BOOL", "F8_E4M3", "C64"])
def test_what_is_not_computed_with(dtype: str) -> None:
    """Words of other dtypes are taken where all tasks of weight 1 agree, and only there."""
    spec = TensorSpec("n", dtype, (3,))
    base = np.array([1, 0, 1], spec.word_dtype)

    def both(one: int, other: int, weights: list[float]) -> list[int]:
        at = np.array([1])
        made = [(at, np.array([value], spec.word_dtype)) for value in (one, other)]
        aligned = align(spec, 0, base, made)
        return [int(value) for value in summed(aligned, weights)]

    assert both(1, 1, [1.0, 1.0]) == [1]
    assert both(1, 0, [1.0, 0.5]) == [1]  # the second one changes nothing: 0 is the base's
    with pytest.raises(StructureError, match="tensor 'n', index 1: tasks give different words"):
        both(1, 2, [1.0, 1.0])
    with pytest.raises(StructureError, match="another weight than 1"):
        both(1, 1, [1.0, 0.5])
    with pytest.raises(StructureError, match="another weight than 1"):
        both(0, 1, [1.0, 2.0])
