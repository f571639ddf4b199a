"""Laws of ``ranked``, compared bit for bit (spec/codecs/ranked.md)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import VALUE_KINDS, densities, random_values, seeds

from sparsedelta.codecs import Block, Encoding, Ranked, StreamError
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range, exponents, histogram, holds
from sparsedelta.codecs.ranked_layout import (
    FLAT,
    GAPS,
    MASK,
    ClassEntry,
    write_block,
)
from sparsedelta.codecs.ranked_plan import divide
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_select import GROUP_BITS, BitSets, groups
from sparsedelta.codecs.ranked_values import join_words, split_words
from sparsedelta.words import Bytes, Indices, Words

RANKED: Final = Encoding("difference", Ranked(), Ranked())
BASES: Final = ("any", "weights", "constant", "zeros", "few exponents", "not finite")

Case = tuple[Block, Indices, Words]


def base_words(rng: np.random.Generator, count: int, kind: str, dtype: str) -> Words:
    """Words of 16 bits of a kind that real and hostile checkpoints have."""
    shift, top = EXPONENTS[dtype]
    words = rng.integers(0, 1 << 16, count, "<u2")
    if kind == "weights":
        normal = rng.standard_normal(count) * 0.02
        is_half = dtype == "F16"
        words = (
            normal.astype("<f2").view("<u2") if is_half else normal.astype("<f4").view("<u2")[1::2]
        )
    elif kind == "constant":
        words = np.full(count, words[0])
    elif kind == "zeros":
        words &= 1 << 15
    elif kind == "few exponents":
        fields = rng.choice(rng.integers(0, top + 1, 3), count)
        words = fields << shift | words & ((1 << shift) - 1)
    elif kind == "not finite":
        words |= top << shift
    return np.ascontiguousarray(words, "<u2")


@st.composite
def cases(draw: st.DrawFn, *, max_words: int = 3000) -> Case:
    """A block with its base words, and at least one entry."""
    words = draw(st.integers(1, max_words))
    dtype = draw(st.sampled_from(sorted(EXPONENTS)))
    rng = np.random.default_rng(draw(seeds))
    base = base_words(rng, words, draw(st.sampled_from(BASES)), dtype)
    row = draw(st.integers(0, 80) | st.sampled_from([1, words, 1 << 40]))
    start = draw(st.integers(0, 50)) * 256
    marks = rng.random(words) < draw(densities)
    if row and draw(st.booleans()):  # few rows are live
        live = rng.random(row_count(row, words, start)) < draw(densities)
        marks &= live[(np.arange(words) + start % row) // row]
    if draw(st.booleans()):  # one exponent changes, the others hardly
        fields = exponents(base, dtype)
        marks = (fields == rng.choice(fields)) & (rng.random(words) < 0.7)
    marks[rng.integers(words)] = True
    indices: Indices = np.flatnonzero(marks)
    values = random_values(rng, indices.size, 2, draw(st.sampled_from(VALUE_KINDS)))
    return Block(words, 2, base, dtype, start, row), indices, values


def block_bytes(case: Case) -> Bytes:
    """The stream of a case."""
    block, indices, values = case
    (stream,) = RANKED.encode(indices, values, block)
    return stream


@settings(max_examples=250)
@given(case=cases())
def test_decode_undoes_encode(case: Case) -> None:
    """The entries of a block survive, whatever its base words are, within the allowed length."""
    block, indices, values = case
    stream = block_bytes(case)
    ((low, high, _),) = RANKED.bounds(np.array([indices.size]), np.array([block.words]), 2)
    assert low[0] <= stream.size <= high[0]
    RANKED.check([stream], indices.size, replace(block, base=None))
    for any_order in (False, True):
        told = replace(block, any_order=any_order)
        found, words = RANKED.decode([stream], indices.size, told)
        order = np.argsort(found, kind="stable") if any_order else slice(None)
        assert np.array_equal(found[order], indices)
        assert np.array_equal(words[order], values)


@settings(max_examples=100)
@given(case=cases(max_words=400), at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_damaged_block_is_refused_or_is_another_valid_one(case: Case, at: int, bit: int) -> None:
    """Whatever a block says, its indices lie within it and ascend, or a rule is broken."""
    block, indices, _ = case
    stream = block_bytes(case).copy()
    stream[at % stream.size] ^= 1 << bit
    rule = None
    try:
        found, words = RANKED.decode([stream], indices.size, block)
    except StreamError as error:
        rule = error.rule
    if rule is not None:
        assert rule in ("SD417", "SD418")
        return
    assert found.size == words.size == indices.size
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < block.words
    assert words.all()


@settings(max_examples=100)
@given(case=cases(max_words=400), cut=st.integers(0, 1 << 20))
def test_a_block_that_ends_early_is_refused(case: Case, cut: int) -> None:
    """SD417: no part of a block is a block."""
    block, indices, _ = case
    stream = block_bytes(case)
    with pytest.raises(StreamError) as caught:
        RANKED.check([stream[: cut % stream.size]], indices.size, block)
    assert caught.value.rule == "SD417"


@settings(max_examples=100)
@given(
    seed=seeds,
    words=st.integers(1, 500),
    length=st.integers(1, 90) | st.just(1 << 60),
    start=st.integers(0, 1000),
    share=densities,
)
def test_live_rows_map_both_ways(
    seed: int, words: int, length: int, start: int, share: float
) -> None:
    """Elements of live rows keep their order; others are not there."""
    rng = np.random.default_rng(seed)
    live = rng.random(row_count(length, words, start)) < share
    live[rng.integers(live.size)] = True
    rows = LiveRows.of(live, length, words, start)
    marks = live[(np.arange(words) + start % length) // length]
    expected = np.flatnonzero(marks)
    assert rows.elements == expected.size
    numbers = (np.arange(words) % 251).astype(np.uint8)
    assert np.array_equal(rows.pick(numbers), numbers[expected])
    assert np.array_equal(rows.indices(np.arange(expected.size)), expected)
    assert np.array_equal(rows.positions(expected), np.arange(expected.size))


@settings(max_examples=100)
@given(
    seed=seeds,
    size=st.integers(1, 9000),
    kind=st.sampled_from(BASES),
    cuts=st.integers(1, 40),
    asked=st.tuples(densities, st.sampled_from([1, 1 << 14, GROUP_BITS])),
)
def test_ranks_in_sets_are_those_of_lists(
    seed: int, size: int, kind: str, cuts: int, asked: tuple[float, int]
) -> None:
    """However many sets are looked up together, listed or not: the element of each rank."""
    share, bits = asked
    rng = np.random.default_rng(seed)
    fields = exponents(base_words(rng, size, kind, "BF16"), "BF16")
    edges = np.unique(rng.integers(0, 256, 2 * cuts))
    ranges = [Range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    listed = [np.flatnonzero(holds(fields, each)) for each in ranges]
    for each, found in zip(ranges, listed, strict=True):
        assert np.array_equal(found, np.flatnonzero((fields >= each.low) & (fields <= each.high)))
    ranks = [np.flatnonzero(rng.random(found.size) < share) for found in listed]
    counts = [each.size for each in ranks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsedelta.codecs.ranked_select.GROUP_BITS", bits)
        for sizes in (None, [found.size for found in listed]):
            taken = 0
            for group in groups(size, counts, sizes):
                own = group.ranges
                assert own.start == taken
                taken = own.stop
                sets = group.of(fields, ranges)
                assert sets.sizes == [each.size for each in listed[own]]
                places = [f[r] for f, r in zip(listed[own], ranks[own], strict=True)]
                together = np.concatenate(ranks[own])
                found = sets.positions(together, counts[own])
                assert np.array_equal(found, np.concatenate(places))
                if isinstance(sets, BitSets):
                    assert np.array_equal(sets.ranks(found, counts[own]), together)
            assert taken == len(ranges)


@settings(max_examples=60)
@given(seed=seeds, size=st.integers(1, 3000), kind=st.sampled_from(BASES))
def test_a_histogram_counts_every_exponent(seed: int, size: int, kind: str) -> None:
    """Two elements at a time, and the last of an odd number."""
    rng = np.random.default_rng(seed)
    fields = exponents(base_words(rng, size, kind, "BF16"), "BF16")
    assert np.array_equal(histogram(fields), np.bincount(fields, minlength=256))


@settings(max_examples=100)
@given(seed=seeds, size=st.integers(0, 30), share=densities, kinds=densities)
def test_any_division_has_a_class_for_every_entry_and_fits_a_byte(
    seed: int, size: int, share: float, kinds: float
) -> None:
    """Also where all exponents occur, and change, millions of times: at most 255 classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 1 << rng.integers(0, size + 1, 256), endpoint=True)
    sizes *= rng.random(256) < kinds
    changes = rng.binomial(sizes, share * rng.integers(0, 2, 256))
    changes[rng.integers(256)] += 1
    sizes = np.maximum(sizes, changes)
    division = divide(sizes, changes)
    ranges, listed = division.ranges, division.listed
    assert len(listed) < 256
    assert listed == ranges + [FLAT] * (len(listed) - len(ranges))
    assert all(a.high < b.low for a, b in pairwise(ranges))
    held = np.bincount(division.classes, weights=changes, minlength=len(listed))
    assert held.size == len(listed) or not held[len(listed) :].any()
    assert held[: len(listed)].all()
    for number, each in enumerate(ranges):
        assert (division.classes[each.low : each.high + 1] == number).all()


def test_a_block_with_every_exponent_is_written() -> None:
    """Words that are no weights: random bits, of which half change."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 1 << 16, 1 << 21, "<u2")
    indices: Indices = np.flatnonzero(rng.random(base.size) < 0.9)
    values = random_values(rng, indices.size, 2, "any")
    block = Block(base.size, 2, base, "BF16")
    (stream,) = RANKED.encode(indices, values, block)
    found, words = RANKED.decode([stream], indices.size, block)
    assert np.array_equal(found, indices)
    assert np.array_equal(words, values)


def test_split_words_are_joined_again() -> None:
    words = np.arange(1 << 16, dtype="<u2")
    assert np.array_equal(join_words(*split_words(words)), words)


# --- one block by hand, and what breaks it ---

BASE: Final = np.array([0x3F80, 0x0080, 0x3F80, 0x0080, 0x3F80, 0x4000, 0x3F81, 0x0080], "<u2")
"""Exponents 127, 1, 127, 1, 127, 128, 127, 1."""

BLOCK: Final = Block(8, 2, BASE, "BF16")
NONE: Final = np.empty(0, np.bool_)


def made(
    *entries: ClassEntry, signs: list[int], escapes: bytes, contents: list[list[str]]
) -> Bytes:
    """A block from what it says."""
    data = write_block(
        None,
        entries,
        np.array(signs, np.bool_),
        escapes,
        [[bytes.fromhex(each) for each in content] for content in contents],
    )
    return np.frombuffer(data, np.uint8)


LOW: Final = ClassEntry(Range(1, 1), MASK, 1, 2)
HIGH: Final = ClassEntry(Range(127, 127), GAPS, 5, 1)
STRAY: Final = ClassEntry(FLAT, GAPS, 0, 1)
CONTENTS: Final = [["05", "02"], ["01", "7f", "05"], ["05"]]
"""Ranks 0 and 2 of exponent 1, +1 and -2; rank 1 of 127 becomes 0x3f85; element 5, +3."""


def test_a_block_by_hand() -> None:
    stream = made(LOW, HIGH, STRAY, signs=[0, 1, 0], escapes=b"\0\2\0\0", contents=CONTENTS)
    found, words = RANKED.decode([stream], 4, BLOCK)
    assert found.tolist() == [1, 2, 5, 7]
    assert words.tolist() == [1, 5, 3, (1 << 16) - 2]


def _with(number: int, entry: ClassEntry, content: list[str]) -> Bytes:
    entries, contents = [LOW, HIGH, STRAY], list(CONTENTS)
    entries[number], contents[number] = entry, content
    return made(*entries, signs=[0, 1, 0], escapes=b"\0\2\0\0", contents=contents)


BROKEN: Final = {
    "a spare bit of a bitmask": ("SD418", _with(0, LOW, ["11", "02"])),
    "a bitmask of two bytes": ("SD418", None),
    "a rank behind the class": ("SD418", _with(1, HIGH, ["04", "7f", "05"])),
    "a new word that is the old one": ("SD418", _with(1, HIGH, ["01", "7f", "00"])),
    "a stray of a listed class": ("SD418", _with(2, STRAY, ["01"])),
    "a bitmask of three bits": ("SD417", _with(0, LOW, ["07", "02"])),
    "spare bits of magnitudes": ("SD417", _with(0, LOW, ["05", "06"])),
    "a gap that stays open": ("SD417", _with(1, HIGH, ["ff", "7f", "05"])),
    "a stray outside the block": ("SD417", _with(2, STRAY, ["08"])),
    "an index code of 2": ("SD417", _with(1, replace(HIGH, index=2), ["01", "7f", "05"])),
    "a value code of 6": ("SD417", _with(1, replace(HIGH, value=6), ["01", "7f", "05"])),
    "a class without entries": ("SD417", _with(1, replace(HIGH, count=0), ["", "", ""])),
    "classes out of order": ("SD417", _with(0, replace(LOW, range=Range(128, 128)), ["05", "02"])),
    "strays in a bitmask": ("SD417", _with(2, replace(STRAY, index=MASK), ["20"])),
    "another number of signs": (
        "SD417",
        made(LOW, HIGH, STRAY, signs=[0] * 9, escapes=b"\0\2\0\0", contents=CONTENTS),
    ),
    "a spare sign": (
        "SD417",
        made(LOW, HIGH, STRAY, signs=[0, 1, 0, 1], escapes=b"\0\2\0\0", contents=CONTENTS),
    ),
    "too few escapes": (
        "SD417",
        made(LOW, HIGH, STRAY, signs=[0, 1, 0], escapes=b"\0\0", contents=CONTENTS),
    ),
    "a magnitude out of range": (
        "SD417",
        made(LOW, HIGH, STRAY, signs=[0, 1, 0], escapes=b"\0\xff\0\x7f", contents=CONTENTS),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_of_a_block_is_checked(name: str) -> None:
    rule, stream = BROKEN[name]
    if stream is None:
        wide = Block(17, 2, np.resize(BASE, 17), "BF16")
        stream = made(replace(LOW, count=1), signs=[0], escapes=b"", contents=[["0100", "00"]])
        with pytest.raises(StreamError) as caught:
            RANKED.decode([stream], 1, wide)
        assert caught.value.rule == rule
        return
    with pytest.raises(StreamError) as caught:
        RANKED.decode([stream], 4, BLOCK)
    assert caught.value.rule == rule
    without = replace(BLOCK, base=None)
    if rule == "SD418":
        RANKED.check([stream], 4, without)
    else:
        with pytest.raises(StreamError):
            RANKED.check([stream], 4, without)


def test_only_16_bit_floats_have_exponents() -> None:
    assert [dtype for dtype in ("F16", "BF16", "F32", "I16", "U16") if RANKED.holds(dtype)] == [
        "F16",
        "BF16",
    ]
