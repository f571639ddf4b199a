"""``add`` against an oracle of exact fractions: one rounding each, to nearest, ties to even."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from thorough import examples

from sparsedelta.delta import ADD, Part
from sparsedelta.errors import NotFiniteError
from sparsedelta.rounding import add_scaled, from_float64, to_float64
from sparsedelta.words import TensorSpec, Words


@dataclass(frozen=True)
class Float:
    """A binary floating-point format: sign, exponent, fraction.

    Attributes:
        exponent: Bits of the exponent.
        fraction: Bits of the fraction.
    """

    exponent: int
    fraction: int

    @property
    def bits(self) -> int:
        """Bits of a word."""
        return 1 + self.exponent + self.fraction

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field."""
        return (1 << (self.exponent - 1)) - 1

    @property
    def infinity(self) -> int:
        """The word of +infinity; all magnitudes below it are finite."""
        return ((1 << self.exponent) - 1) << self.fraction

    def value(self, word: int) -> Fraction:
        """The number that a finite word stands for."""
        sign, magnitude = word >> (self.bits - 1), word & ((1 << (self.bits - 1)) - 1)
        assert magnitude < self.infinity
        field, fraction = magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1)
        if field:
            fraction |= 1 << self.fraction
        power = max(field, 1) - self.bias - self.fraction
        scaled = Fraction(fraction) * Fraction(2) ** power
        return -scaled if sign else scaled

    def round(self, number: Fraction, *, negative: bool) -> int:
        """The word of a number, to nearest, ties to even; ``negative`` is the sign of a zero.

        Magnitudes of words ascend with the numbers they stand for, so that the nearest is found by
        bisection, without a thought about exponents.
        """
        wanted = abs(number)
        low, high = 0, self.infinity
        # What infinity would be if it were a number: the round-off limit is halfway to it.
        top = Fraction(2) ** (self.bias + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.value(middle) <= wanted:
                low = middle
            else:
                high = middle
        below, above = self.value(low), top if high == self.infinity else self.value(high)
        nearer = (wanted - below) - (above - wanted)
        magnitude = high if nearer > 0 or (nearer == 0 and low & 1) else low
        is_negative = number < 0 or (number == 0 and negative)
        return magnitude | (is_negative << (self.bits - 1))


FLOATS: Final = {
    "F16": Float(5, 10),
    "BF16": Float(8, 7),
    "F32": Float(8, 23),
    "F64": Float(11, 52),
}
DOUBLE: Final = FLOATS["F64"]

each_dtype = pytest.mark.parametrize("dtype", sorted(FLOATS))


def words_of(dtype: str, *words: int) -> Words:
    """Words as an array of the dtype's width."""
    return np.array(words, f"<u{FLOATS[dtype].bits // 8}")


def finite_words(dtype: str) -> st.SearchStrategy[int]:
    """Finite words: any, and those at the edges, where rounding goes wrong."""
    form = FLOATS[dtype]
    sign = 1 << (form.bits - 1)
    one = 1 << form.fraction
    edges = [0, 1, 2, one - 1, one, one + 1, form.infinity - 1, form.infinity - 2]
    edges += [form.bias << form.fraction, (form.bias << form.fraction) + 1]
    edges += [word | sign for word in edges]
    anything = st.integers(0, form.infinity - 1).flatmap(lambda w: st.sampled_from([w, w | sign]))
    return st.one_of(st.sampled_from(edges), anything)


def double(number: Fraction, *, negative: bool = False) -> float:
    """A fraction as the double that is nearest."""
    word = DOUBLE.round(number, negative=negative)
    return float(struct.unpack("<d", struct.pack("<Q", word))[0])


def part(dtype: str, scale: float, *words: int) -> Part:
    """An ``add`` of these values at indices from 0 on."""
    return Part(ADD, np.arange(len(words)), words_of(dtype, *words), None, dtype, scale)


def add(dtype: str, old: int, value_dtype: str, value: int, scale: float = 1.0) -> int:
    """What the package makes of one word."""
    spec = TensorSpec("w", dtype, (1,))
    return int(add_scaled(spec, words_of(dtype, old), part(value_dtype, scale, value))[0])


def exact_add(dtype: str, old: int, value_dtype: str, value: int, scale: float) -> int | None:
    """What section 5 asks for, in fractions; None where it is not finite."""
    form, values = FLOATS[dtype], FLOATS[value_dtype]
    minus = [bool(word >> (f.bits - 1)) for word, f in ((value, values), (old, form))]
    negative = minus[0] != (math.copysign(1.0, scale) < 0)
    product = DOUBLE.round(Fraction(scale) * values.value(value), negative=negative)
    if product & (DOUBLE.infinity) == DOUBLE.infinity:
        return None
    total = form.value(old) + DOUBLE.value(product)
    # A sum that is 0 is -0 only if both are: IEEE 754, section 6.3.
    both = minus[1] and bool(product >> 63)
    rounded = DOUBLE.round(total, negative=both)
    if rounded & DOUBLE.infinity == DOUBLE.infinity:
        return None
    result = form.round(DOUBLE.value(rounded), negative=bool(rounded >> 63))
    return None if result & form.infinity == form.infinity else result


# --- words and numbers ---


@each_dtype
@given(data=st.data())
@examples(150)
def test_words_are_read_exactly(dtype: str, data: st.DataObject) -> None:
    word = data.draw(finite_words(dtype))
    (number,) = to_float64(words_of(dtype, word), dtype).tolist()
    assert Fraction(number) == FLOATS[dtype].value(word)
    assert from_float64(np.array([number]), dtype).tolist() == [word], "there and back"


@each_dtype
@given(word=finite_words("F64"))
@examples(250)
def test_doubles_are_rounded_once(dtype: str, word: int) -> None:
    """Any double, subnormal results and results that overflow included."""
    form = FLOATS[dtype]
    number = struct.unpack("<d", struct.pack("<Q", word))[0]
    expected = form.round(Fraction(number), negative=bool(word >> 63))
    assert from_float64(np.array([number]), dtype).tolist() == [expected]


@each_dtype
@given(data=st.data(), off=st.integers(-3, 3), shift=st.integers(20, 60))
@examples(250)
def test_doubles_near_ties_are_rounded_once(
    dtype: str, data: st.DataObject, off: int, shift: int
) -> None:
    """Halfway between two neighbours, and a little to either side: double rounding fails here."""
    form = FLOATS[dtype]
    low = data.draw(st.integers(0, form.infinity - 2))
    below, above = form.value(low), form.value(low + 1)
    tie = (below + above) / 2 + (above - below) * off / 2**shift
    number = double(tie)
    expected = form.round(Fraction(number), negative=False)
    assert from_float64(np.array([number, -number]), dtype).tolist() == [
        expected,
        expected | 1 << (form.bits - 1),
    ]


@each_dtype
def test_the_boundary_of_overflow_is_halfway_to_the_next_power(dtype: str) -> None:
    form = FLOATS[dtype]
    if dtype == "F64":
        return  # no double lies beyond the largest one
    largest = float(form.value(form.infinity - 1))
    limit = double(form.value(form.infinity - 1) + Fraction(2) ** (form.bias - form.fraction - 1))
    below = np.nextafter(limit, 0)
    found = from_float64(np.array([largest, below, limit, -below, -limit]), dtype).tolist()
    sign = 1 << (form.bits - 1)
    assert found == [
        form.infinity - 1,
        form.infinity - 1,
        form.infinity,
        form.infinity - 1 | sign,
        form.infinity | sign,
    ]


@each_dtype
def test_subnormals_are_kept_and_half_of_the_least_is_zero(dtype: str) -> None:
    form = FLOATS[dtype]
    if dtype == "F64":
        assert from_float64(np.array([5e-324, -5e-324]), dtype).tolist() == [1, 1 | 1 << 63]
        return
    least = float(form.value(1))
    numbers = np.array([least, least / 2, np.nextafter(least / 2, 1), least * 1.5, -least / 2])
    sign = 1 << (form.bits - 1)
    assert from_float64(numbers, dtype).tolist() == [1, 0, 1, 2, sign]


def test_every_bfloat16_and_half_survives_there_and_back() -> None:
    """All words but those of NaN: 65,536 each, zeros and infinities included."""
    for dtype in ("BF16", "F16"):
        magnitudes = np.arange(FLOATS[dtype].infinity + 1, dtype="<u2")
        words = np.concatenate([magnitudes, magnitudes | np.uint16(1 << 15)])
        assert np.array_equal(from_float64(to_float64(words, dtype), dtype), words)


def test_many_doubles_at_once_are_rounded_as_one_by_one() -> None:
    """The arithmetic is on arrays: no element may depend on its neighbours."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(500) * np.exp2(rng.integers(-160, 140, 500))
    for dtype in FLOATS:
        together = from_float64(numbers, dtype)
        alone = [int(from_float64(numbers[i : i + 1], dtype)[0]) for i in range(numbers.size)]
        assert together.tolist() == alone


# --- adding ---


pairs = st.tuples(st.sampled_from(sorted(FLOATS)), st.sampled_from(sorted(FLOATS)))
scales = st.one_of(
    st.sampled_from([1.0, -1.0, 0.5, 0.1, 1e-3, 2.0**-40, 3.0, 1e300, 5e-324, 0.0, -0.0]),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(dtypes=pairs, data=st.data(), scale=scales)
@examples(500)
def test_adding_is_two_double_operations_and_one_rounding(
    dtypes: tuple[str, str], data: st.DataObject, scale: float
) -> None:
    """Section 5: product and sum each rounded to float64, the sum then once to the dtype."""
    dtype, value_dtype = dtypes
    old, value = data.draw(finite_words(dtype)), data.draw(finite_words(value_dtype))
    expected = exact_add(dtype, old, value_dtype, value, scale)
    if expected is None:
        with pytest.raises(NotFiniteError, match="SD505"):
            add(dtype, old, value_dtype, value, scale)
    else:
        assert add(dtype, old, value_dtype, value, scale) == expected


@given(data=st.data(), dtype=st.sampled_from(["BF16", "F16"]))
@examples(200)
@example(data=None, dtype="BF16")
def test_small_sums_beside_a_tie_go_the_right_way(data: st.DataObject | None, dtype: str) -> None:
    """A value far below the last bit decides a tie: rounding by way of float32 forgets it."""
    form = FLOATS[dtype]
    one = form.bias << form.fraction
    low = one if data is None else data.draw(st.integers(one, one + (1 << form.fraction) - 2))
    power = 40 if data is None else data.draw(st.integers(form.fraction + 2, 50))
    half = Fraction(1, 2 ** (form.fraction + 1))
    for tiny, expected in ((1, low + 1), (-1, low), (0, low + (low & 1))):
        value = double(half + Fraction(tiny, 2**power))
        (word,) = struct.unpack("<Q", struct.pack("<d", value))
        assert add(dtype, low, "F64", word) == expected


def test_the_worked_example_of_double_rounding() -> None:
    """1 + 2^-8 + 2^-40 is 0x3f81; by way of float32 it would be the tie, and 0x3f80."""
    assert from_float64(np.array([1 + 2**-8 + 2**-40]), "BF16").tolist() == [0x3F81]
    assert from_float64(np.array([1 + 2**-8]), "BF16").tolist() == [0x3F80]
    assert from_float64(np.array([1 + 3 * 2**-8]), "BF16").tolist() == [0x3F82]
    assert from_float64(np.array([1 + 2**-8 - 2**-40]), "BF16").tolist() == [0x3F80]


def test_zeros_keep_their_sign() -> None:
    minus = {"BF16": 0x8000, "F16": 0x8000, "F32": 1 << 31, "F64": 1 << 63}
    for dtype, word in minus.items():
        assert add(dtype, word, dtype, word) == word
        assert add(dtype, word, dtype, 0) == 0
        assert add(dtype, 0, dtype, word) == 0
        assert add(dtype, word, dtype, 0, -1.0) == word


@pytest.mark.parametrize(
    ("dtype", "old", "value_dtype", "value", "scale"),
    [
        ("F16", 0x7BFF, "F16", 0x7BFF, 1.0),  # the result overflows
        ("BF16", 0x7F7F, "BF16", 0x7F7F, 1.0),
        ("F16", 0x7C00, "F16", 0, 1.0),  # the old word is infinite
        ("F16", 0x7E01, "F16", 0, 1.0),  # or no number
        ("BF16", 0, "BF16", 0x7F80, 1.0),  # the value is infinite
        ("BF16", 0, "BF16", 0x7FC0, 0.0),  # or no number, even times 0
        ("F32", 0, "F64", 0x7FEFFFFFFFFFFFFF, 2.0),  # the product overflows
        ("F64", 0x7FEFFFFFFFFFFFFF, "F64", 0x7FEFFFFFFFFFFFFF, 1.0),  # the sum overflows
        ("F16", 0, "F64", 0x7FEFFFFFFFFFFFFF, 1.0),  # finite, but not in the dtype
    ],
)
def test_what_is_not_finite_is_refused(
    dtype: str, old: int, value_dtype: str, value: int, scale: float
) -> None:
    with pytest.raises(NotFiniteError, match=r"tensor 'w', index 0: .* \(SD505\)"):
        add(dtype, old, value_dtype, value, scale)


def test_the_error_names_the_first_index_that_is_not_finite() -> None:
    spec = TensorSpec("layer.weight", "F16", (9,))
    change = Part(ADD, np.array([2, 5, 7]), words_of("F16", 0, 0x7BFF, 0x7BFF), None, "F16", 1.0)
    with pytest.raises(NotFiniteError, match=r"tensor 'layer\.weight', index 5"):
        add_scaled(spec, words_of("F16", 0x7BFF, 0x7BFF, 0x7BFF), change)


def test_nothing_warns_where_floats_overflow() -> None:
    """Warnings of numpy are for who computes by hand; the error says it better."""
    with np.errstate(all="raise"):
        assert from_float64(np.array([1e300, 1e-300]), "F16").tolist() == [0x7C00, 0]
        assert from_float64(np.array([1e300, 1e-300]), "F32").tolist() == [0x7F800000, 0]
        assert from_float64(np.array([1e300, 1e-300]), "BF16").tolist() == [0x7F80, 0]


def test_other_operations_add_nothing() -> None:
    other = Part("difference", np.array([0]), words_of("F16", 1))
    with pytest.raises(ValueError, match="difference"):
        add_scaled(TensorSpec("w", "F16", (1,)), words_of("F16", 0), other)
