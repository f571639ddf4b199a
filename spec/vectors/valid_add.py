"""Valid vectors: `add` for each pair of dtypes, where rounding is hard and results stay finite."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from dice import Dice
from expected_json import Vector, case
from terms import word_bytes
from vector_records import CODES, P, R, bf16_word, edited, number_of, sum_of

FLOATS = ("F16", "BF16", "F32", "F64")
FRACTION = {"F16": 10, "BF16": 7, "F32": 23, "F64": 52}
LEAST = {"F16": -14, "BF16": -126, "F32": -126, "F64": -1022}
GREATEST = {"F16": 15, "BF16": 127, "F32": 127, "F64": 1023}
SCALES = {"one": 1.0, "third": 1 / 3, "minus": -2.0, "tiny": 2.0**-40, "odd": 1 + 2.0**-52}
SCALES |= {"zero": 0.0, "minus-zero": -0.0, "least": 5e-324, "large": 2.0**100}


def word_of(dtype: str, number: float) -> int:
    """The word nearest to a number."""
    if dtype == "BF16":
        return bf16_word(number)
    return int.from_bytes(struct.pack(CODES[dtype], number), "little")


def hard(dtype: str) -> Iterator[tuple[float, float]]:
    """Pairs of an old number and a step whose sum is hard to round to a dtype."""
    m, least, top = FRACTION[dtype], LEAST[dtype], GREATEST[dtype]
    half, tiny = (
        2.0 ** (-m - 1),
        2.0 ** max(least - m, -1074),
    )  # of the place of 1; the least number
    last = math.ldexp(2 - 2.0**-m, top)
    yield from ((1.0, half), (1 + 2 * half, half))  # ties: down to even, up to even
    for fine in (2.0**-30, 2.0**-45):  # just above and below a tie: two roundings would miss it
        yield from ((1.0, half + fine * half), (1 + 2 * half, half - fine * half))
    yield from ((2 * half * 3, -half * half), (-1.0, -half), (-1.0, half / 2), (1.0, -half / 2))
    yield from ((0.0, tiny), (tiny, -tiny), (tiny, tiny), (0.0, tiny / 2), (0.0, tiny * 1.5))
    yield from ((2 * tiny, tiny / 2), (2.0**least, -tiny), (2.0**least, -tiny / 2))
    yield from ((0.0, -0.0), (-0.0, 0.0), (-0.0, -0.0), (1.0, -1.0), (1.0, 0.0), (-0.0, tiny / 4))
    ulp = math.ldexp(1.0, top - m)
    yield from (
        (last, 0.0),
        (last, ulp / 4),
        (last - ulp, ulp),
        (-last, -ulp / 4),
        (last, -2 * ulp),
    )
    yield (last, ulp / 2 * (1 - 2.0**-20))  # just below the tie with infinity


def finite(dtype: str, word: int, part: P, value: int) -> bool:
    """Whether an entry may be applied."""
    try:
        result = number_of(dtype, sum_of(dtype, word, part, value))
    except (OverflowError, ValueError):
        return False
    (scale,) = struct.unpack(">d", bytes.fromhex(part.scale))
    parts = (number_of(dtype, word), number_of(part.dtype, value))
    return all(map(math.isfinite, (result, *parts, scale * parts[1])))


def added(name: str, dtype: str, values: str, scale: float) -> R:
    """A tensor of hard cases and of random words, as far as the results are finite."""
    part = P("add", {}, "gap8", "planes", dtype=values, scale=struct.pack(">d", scale).hex())
    dice, pairs = Dice(len(name)), []
    for old, step in hard(dtype):
        try:
            pairs.append((word_of(dtype, old), word_of(values, step / scale if scale else step)))
        except OverflowError:
            continue
    for _ in range(12):  # any bits: mostly far apart, often subnormal
        word, value = (
            sum(dice.below(256) << 8 * k for k in range(word_bytes(d))) for d in (dtype, values)
        )
        pairs.append((word, value))
        try:  # one that is near enough to matter
            pairs.append((word, word_of(values, number_of(dtype, word) / 300)))
        except (OverflowError, ValueError):  # not finite
            continue
    pairs = [(w, v) for w, v in pairs if finite(dtype, w, part, v)]
    data = b"".join(w.to_bytes(word_bytes(dtype), "little") for w, _ in pairs)
    part.given = {i: v for i, (_, v) in enumerate(pairs)}
    return edited(name, dtype, [len(pairs)], data, [part])


def valid_add() -> Iterator[Vector]:
    """Each pair of dtypes, with several scales."""
    for dtype in FLOATS:
        for values in FLOATS:
            records = [added(name, dtype, values, scale) for name, scale in SCALES.items()]
            records = [r for r in records if r.base != r.target]
            yield case(f"add-{dtype.lower()}-{values.lower()}", records)
    # 1 - (1 + 2^-52)^2: with a fused operation the result would be another.
    part = P("add", {0: 0x3FF0000000000001}, value="raw", dtype="F64", scale="3ff0000000000001")
    yield case("add-not-fused", [edited("w", "F64", [1], struct.pack("<d", -1.0), [part])])
    entries = {i: word_of("F16", i / 8) for i in range(300)}
    part = P("add", entries, "dense", "planes", dtype="F16", scale="bff0000000000000")
    data = b"".join(struct.pack("<f", i / 3) for i in range(300))
    yield case("add-every-word", [edited("w", "F32", [300], data, [part])])
