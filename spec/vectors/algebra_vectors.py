"""Vectors of the algebra: chains and what they are squashed to, tasks and their sums.

The result of each is stated by hand, or computed here with exact fractions: not by the reference.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dice import Dice
from expected_json import bases, expected, targets, tensors_of
from vector_encoder import build
from vector_records import CODES, P, R, X, bf16_word, changed, edited, number_of, whole

WIDTHS = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8}


@dataclass
class Case:
    """A vector: the deltas, what is done with them, and what comes out, or why nothing does."""

    name: str
    kind: str
    deltas: list[list[R]]
    result: list[R] | str
    weights: list[float] | None = None
    order: list[int] | None = None

    def files(self) -> dict[str, bytes]:
        """Name and bytes of each delta."""
        return {f"{n + 1}.safetensors": build(records) for n, records in enumerate(self.deltas)}

    def expected(self) -> dict[str, Any]:
        """The content of its expected.json."""
        order = self.order or list(range(len(self.deltas)))
        out: dict[str, Any] = {"kind": self.kind}
        out["deltas"] = [f"{n + 1}.safetensors" for n in order]
        if self.weights is not None:
            out["weights"] = [self.weights[n] for n in order]
        out["base_tensors"] = tensors_of(bases(self.deltas[0]))
        if isinstance(self.result, str):
            return out | {"refused": self.result}
        found = expected(self.result)
        keys = ("base", "target", "content", "nnz", "invertible", "tensors")
        leaves = {n: x.digest().hex() for n, x in sorted(targets(self.result).items())}
        return out | {"result": {k: found[k] for k in keys} | {"target_tensors": leaves}}


# --- Chains ---


def packed(dtype: str, *words: int) -> X:
    """A tensor of one dimension."""
    width = WIDTHS[dtype]
    return X(dtype, [len(words)], b"".join(w.to_bytes(width, "little") for w in words))


def diff(**entries: int) -> P:
    """A difference: `_3=7` adds 7 to word 3."""
    return P("difference", {int(key[1:]): value for key, value in entries.items()})


def put(**entries: int) -> P:
    """A replace."""
    return P("replace", {int(k[1:]): v for k, v in entries.items()}, value="planes")


STAYS = packed("F32", 0, 0x80000000, 0x3F800000)


def stays() -> R:
    """A tensor that no delta changes."""
    return edited("stays", STAYS.dtype, STAYS.shape, STAYS.data)


def step(x: X, *parts: P, name: str = "w", source: str | None = None) -> R:
    """A tensor that is changed, or gets another name."""
    return edited(name, x.dtype, x.shape, x.data, list(parts), source)


def steps(start: X, *edits: list[P]) -> tuple[list[list[R]], X]:
    """A chain over one tensor, and its end."""
    deltas = []
    for parts in edits:
        deltas.append([stays(), step(start, *parts)])
        start = changed(start, parts)
    return deltas, start


def entries(x: X, *edits: list[P], result: list[P]) -> tuple[list[list[R]], list[R]]:
    """A chain over one tensor, and what it comes to."""
    deltas, end = steps(x, *edits)
    made = step(x, *result)
    if made.target != end:
        raise ValueError(edits)
    return deltas, [stays(), made]


def chains() -> Iterator[Case]:
    """Chains of edits, and of tensors that come, go and are renamed."""
    x = packed("BF16", *range(0x3F80, 0x3F88))
    minus = 0xFFFF
    yield Case("squash-differences", "squash", *entries(
        x, [diff(_0=1, _1=minus)], [diff(_0=2, _2=1, _4=5)], [diff(_2=minus, _7=0x8000)],
        result=[diff(_0=3, _1=minus, _4=5, _7=0x8000)],
    ))  # fmt: skip
    yield Case("squash-replaces", "squash", *entries(
        x, [diff(_0=5, _1=7), put(_2=9, _3=0x7FC1)], [diff(_2=1), put(_0=100)],
        result=[diff(_1=7), put(_0=100, _2=10, _3=0x7FC1)],
    ))  # fmt: skip
    for dtype, width in (("U8", 1), ("F32", 4), ("I64", 8)):
        top = 256**width - 1
        yield Case(f"squash-wraps-{dtype.lower()}", "squash", *entries(
            packed(dtype, 0, 1, top), [diff(_0=200, _1=top, _2=1)], [diff(_0=100, _1=top, _2=top)],
            result=[diff(_0=300 % (top + 1), _1=top - 1)],
        ))  # fmt: skip
    deltas, end = steps(x, [diff(_0=1)], [diff(_0=1)], [diff(_0=1, _3=2)])
    made = [stays(), step(x, diff(_0=3, _3=2))]
    yield Case("squash-any-order", "squash", deltas, made, order=[2, 0, 1])
    yield Case("squash-of-one", "squash", deltas[:1], deltas[0])
    back = [stays(), step(end, diff(_0=0xFFFD, _3=0xFFFE))]
    yield Case("squash-to-nothing", "squash", [*deltas, back], [stays(), step(x)])
    yield Case("squash-gap", "squash", [deltas[0], deltas[2]], "chain")
    one = [stays(), step(x, diff(_5=1))]
    yield Case("squash-fork", "squash", [deltas[0], one], "chain")
    yield from names(x)
    yield from comings(x)


def names(x: X) -> Iterator[Case]:
    """Renames on the way."""
    moved = changed(x, [diff(_0=1)])
    yield Case(
        "squash-renames",
        "squash",
        [
            [stays(), step(x, diff(_0=1), name="b", source="a")],
            [stays(), step(moved, diff(_1=1), name="c", source="b")],
        ],
        [stays(), step(x, diff(_0=1, _1=1), name="c", source="a")],
    )
    other = packed("BF16", *range(8))
    swap = [step(x, name="b", source="a"), step(other, name="a", source="b")]
    again = [step(x, diff(_2=1), name="a", source="b"), step(other, name="b", source="a")]
    yield Case(
        "squash-swaps",
        "squash",
        [swap, again],
        [step(x, diff(_2=1), name="a"), step(other, name="b")],
    )


def comings(x: X) -> Iterator[Case]:
    """Tensors that come and go on the way."""
    later = changed(x, [diff(_0=1)])
    come, go = R("w", None, x, [whole("new")]), R("w", later, None, [whole("drop")])
    edit = [stays(), step(x, diff(_0=1))]
    last = changed(STAYS, [diff(_2=1)])
    end = step(STAYS, diff(_2=1), name="stays")
    yield Case(
        "squash-new-then-changed",
        "squash",
        [[stays(), come], edit],
        [stays(), R("w", None, later, [whole("new")])],
    )
    yield Case(
        "squash-changed-then-gone",
        "squash",
        [edit, [stays(), go]],
        [stays(), R("w", x, None, [whole("drop")])],
    )
    yield Case(
        "squash-come-and-gone",
        "squash",
        [[stays(), come], edit, [end, go]],
        [R("stays", STAYS, last, [diff(_2=1)])],
    )
    yield Case(
        "squash-gone-and-come",
        "squash",
        [
            [stays(), R("w", x, None, [whole("drop")])],
            [stays(), R("w", None, later, [whole("new")])],
        ],
        [stays(), step(x, diff(_0=1))],
    )
    wide = packed("F32", 1, 2)
    yield Case(
        "squash-gone-and-another",
        "squash",
        [
            [stays(), R("w", x, None, [whole("drop")])],
            [stays(), R("w", None, wide, [whole("new")])],
        ],
        [stays(), R("w", x, wide, [whole("drop"), whole("new")])],
    )
    replaced = changed(x, [put(_0=7)])
    yield Case(
        "squash-words-nowhere",
        "squash",
        [[stays(), step(x, put(_0=7))], [stays(), R("w", replaced, None, [whole("drop")])]],
        "words",
    )


# --- Sums ---


def word_of(dtype: str, number: float) -> int:
    """The nearest word, rounded once."""
    if dtype == "BF16":
        return bf16_word(number)
    return int.from_bytes(struct.pack(CODES[dtype], number), "little")


def sum_of(dtype: str, old: int, tasks: list[tuple[int, float]]) -> int:
    """The word of an element, of those that change it and their weights."""
    if len(tasks) == 1 and tasks[0][1] == 1.0:
        return tasks[0][0]
    start = number_of(dtype, old)
    found = [weight * (number_of(dtype, word) - start) for word, weight in tasks]
    # Of equal numbers only zeros differ in totalOrder: the negative one comes first.
    found.sort(key=lambda t: (t, math.copysign(1.0, t)))
    whole_sum = found[0]
    for term in found[1:]:
        whole_sum += term
    return word_of(dtype, whole_sum + start)


def task(x: X, words: dict[int, int]) -> list[R]:
    """A task: some words of one tensor are others."""
    full = 256 ** WIDTHS[x.dtype]
    given = {i: (word - x.words[i]) % full for i, word in words.items() if word != x.words[i]}
    return [stays(), step(x, P("difference", given))]


def sums(name: str, x: X, tasks: list[dict[int, int]], weights: list[float]) -> Case:
    """The sum of tasks over one tensor of numbers."""
    full, made = 256 ** WIDTHS[x.dtype], {}
    for i, old in enumerate(x.words):
        there = [
            (words[i], weight)
            for words, weight in zip(tasks, weights, strict=True)
            if words.get(i, old) != old and weight
        ]
        new = sum_of(x.dtype, old, there) if there else old
        if new != old:
            made[i] = (new - old) % full
    result = [stays(), step(x, *([P("difference", made)] if made else []))]
    deltas = [task(x, words) for words in tasks]
    return Case(f"sum-{name}", "sum", deltas, result, weights, list(reversed(range(len(tasks)))))


def finite(dice: Dice, dtype: str) -> int:
    """A word of a number of moderate size."""
    number = (dice.below(2001) - 1000) * 2.0 ** (dice.below(12) - 9)
    return word_of(dtype, number)


def compositions() -> Iterator[Case]:
    """Sums of tasks."""
    for seed, dtype in enumerate(("F64", "F32", "F16", "BF16")):
        dice = Dice(seed)
        x = packed(dtype, *(finite(dice, dtype) for _ in range(40)))
        tasks = [{i: finite(dice, dtype) for i in dice.some(40, 22)} for _ in range(3)]
        name = dtype.lower()
        yield sums(f"{name}-weighted", x, tasks, [1.0, 0.5, -0.3125])
        yield sums(f"{name}-plain", x, tasks, [1.0, 1.0, 1.0])
        yield sums(f"{name}-left-out", x, tasks, [1.0, 0.0, 1.0])
    word = {n: word_of("F64", n) for n in (0.0, 1.0, 1e16, -1e16, 3.0, 0.1, 0.2, 0.3)}
    zeros = packed("F64", *[word[0.0]] * 2)
    big = [{0: word[1e16]}, {0: word[1.0]}, {0: word[-1e16]}, {0: word[3.0]}]
    yield sums("by-value", zeros, big, [1.0] * 4)
    tenths = [{0: word[n], 1: word[n]} for n in (0.3, 0.1, 0.2)]
    yield sums("tenths", zeros, tenths, [1.0, 1.0, -1.0])
    # 1 + 2^-8 + 2^-40: by way of float32 it would be a tie, and go down.
    x = packed("BF16", 0x3F80, 0x8000, 0x3F80)
    yield sums("rounded-once", x, [{0: word_of("BF16", 2.0)}, {0: word_of("BF16", 1.5)}],
               [2.0**-8, 2.0**-39])  # fmt: skip
    yield sums("copies", x, [{0: 0x7FC1, 1: 0x0000}, {2: 0xFF80}], [1.0, 1.0])
    yield sums("comes-back", x, [{0: 0x4000}, {0: 0x4000}], [1.0, -1.0])
    ints = packed("I32", 1, 2, 3)
    yield Case("sum-agreed", "sum", [task(ints, {0: 9, 1: 5}), task(ints, {0: 9, 2: 7})],
               [stays(), step(ints, diff(_0=8, _1=3, _2=4))], [1.0, 1.0])  # fmt: skip
    yield Case(
        "sum-disagreed", "sum", [task(ints, {0: 9}), task(ints, {0: 8})], "tasks", [1.0, 1.0]
    )
    yield Case("sum-weighted-integers", "sum", [task(ints, {0: 9})], "tasks", [0.5])
    young = R("young", None, ints, [whole("new")])
    edit = step(x, diff(_0=1))
    yield Case("sum-new", "sum", [[stays(), step(x), young], task(x, {0: 0x3F81})],
               [stays(), edit, young], [1.0, 1.0])  # fmt: skip
    yield Case("sum-new-weighted", "sum", [[stays(), step(x), young]], "tasks", [0.5])
    old = R("w", x, None, [whole("drop")])
    yield Case(
        "sum-gone-and-changed", "sum", [[stays(), old], task(x, {0: 1})], "tasks", [1.0, 1.0]
    )
    not_finite = [task(x, {0: 0x7FC0}), task(x, {0: 0x4000})]
    yield Case("sum-not-finite", "sum", not_finite, "SD505", [1.0, 1.0])
    most = packed("F16", 0x7BFF, 0)
    large = [task(most, {0: 0}), task(most, {1: 0x7BFF})]
    yield Case("sum-too-large", "sum", large, "SD505", [1.0, 2.0])
    elsewhere = [stays(), step(packed("BF16", 1, 2, 3), diff(_0=1))]
    yield Case("sum-bases", "sum", [task(x, {0: 1}), elsewhere], "SD501", [1.0, 1.0])


def algebra_vectors() -> Iterator[Case]:
    """All of them."""
    yield from chains()
    yield from compositions()
