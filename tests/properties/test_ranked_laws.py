"""Laws of ``ranked``, compared bit for bit (spec/codecs/ranked.md)."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import VALUE_KINDS, densities, random_values, seeds

from sparsedelta.codecs import Block, CodedBlock, Encoding, Ranked, StreamError
from sparsedelta.codecs.frames import decode_frame, encode_frame
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range, exponents, histogram, holds
from sparsedelta.codecs.ranked_layout import (
    FLAT,
    GAPS,
    MASK,
    ClassEntry,
    write_block,
)
from sparsedelta.codecs.ranked_places import Elements, ElementSet, positions
from sparsedelta.codecs.ranked_plan import divide
from sparsedelta.codecs.ranked_rows import LiveRows, row_count
from sparsedelta.codecs.ranked_select import GROUP_BITS, SPAN, sets_of
from sparsedelta.codecs.ranked_values import WIDTHS, join_words, pack, split_words, unpack
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
    RANKED.check(CodedBlock([stream], indices.size, block._replace(base=None)))
    for any_order in (False, True):
        told = block._replace(any_order=any_order)
        found, words = RANKED.decode([stream], indices.size, told)
        order = np.argsort(found, kind="stable") if any_order else slice(None)
        assert np.array_equal(found[order], indices)
        assert np.array_equal(words[order], values)


@settings(max_examples=120)
@given(
    several=st.lists(cases(max_words=700), min_size=1, max_size=7),
    bits=st.sampled_from([1, 1 << 10, GROUP_BITS]),
    span=st.sampled_from([64, SPAN]),
    most=st.sampled_from([1, 500, 1 << 16]),
)
def test_blocks_decoded_together_are_those_decoded_alone(
    several: list[Case], bits: int, span: int, most: int
) -> None:
    """Blocks of any dtype, base and size have nothing to do with each other."""
    coded = [
        CodedBlock([block_bytes(case)], case[1].size, case[0]._replace(any_order=number % 2 > 0))
        for number, case in enumerate(several)
    ]
    empty = CodedBlock([np.empty(0, np.uint8)], 0, Block(5, 2, np.zeros(5, "<u2"), "BF16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsedelta.codecs.ranked_places.GROUP_BITS", bits)
        patch.setattr("sparsedelta.codecs.ranked_places.SPAN", span)
        patch.setattr("sparsedelta.codecs.ranked._TOGETHER", most)
        together = RANKED.decode_all([*coded, empty])
    assert together.pop()[0].size == 0
    for each, (found, words) in zip(coded, together, strict=True):
        alone = RANKED.decode(each.streams, each.count, each.block)
        assert np.array_equal(found, alone[0])
        assert np.array_equal(words, alone[1])


@settings(max_examples=150)
@given(
    several=st.lists(cases(max_words=300), min_size=2, max_size=4),
    which=st.integers(0, 3),
    at=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_blocks_together_are_refused_as_one_of_them_is(
    several: list[Case], which: int, at: int, bit: int
) -> None:
    """A damaged block is found between others, and no other takes what it lacks or leaves."""
    streams = [block_bytes(case).copy() for case in several]
    damaged = streams[which % len(streams)]
    damaged[at % damaged.size] ^= 1 << bit
    coded = [
        CodedBlock([stream], case[1].size, case[0])
        for stream, case in zip(streams, several, strict=True)
    ]
    rules = []
    for each in coded:
        try:
            RANKED.decode(each.streams, each.count, each.block)
        except StreamError as error:
            rules.append(error.rule)
    if rules:
        with pytest.raises(StreamError) as caught:
            RANKED.decode_all(coded)
        assert caught.value.rule in rules
    else:
        assert len(RANKED.decode_all(coded)) == len(coded)


def test_two_wrongs_of_two_blocks_do_not_make_a_right() -> None:
    """A block with an escape too few before one with an escape too many; so with bitmasks."""
    fewer = made(LOW, HIGH, STRAY, signs=[0, 1, 0], escapes=b"\0\0", contents=CONTENTS)
    more = made(LOW, HIGH, STRAY, signs=[0, 1, 0], escapes=b"\0\2\1\0\0\0", contents=CONTENTS)
    one = _with(0, LOW, ["01", "02"])
    three = _with(0, LOW, ["07", "02"])
    for pair in ((fewer, more), (one, three), (three, one)):
        with pytest.raises(StreamError) as caught:
            RANKED.decode_all([CodedBlock([stream], 4, BLOCK) for stream in pair])
        assert caught.value.rule == "SD417"


@settings(max_examples=60)
@given(case=cases())
def test_a_block_compressed_in_parts_is_one_frame(case: Case) -> None:
    """Parts end where they should, and the frame is an ordinary one."""
    block, indices, _ = case
    stream = block_bytes(case)
    cuts = RANKED.cuts(CodedBlock([stream], indices.size, block))
    assert cuts == sorted(set(cuts))
    assert all(0 < cut <= stream.size for cut in cuts)
    frame = encode_frame(stream.tobytes(), cuts)
    assert len(frame) <= stream.size
    assert np.array_equal(decode_frame(frame, stream.size), stream)


@settings(max_examples=60)
@given(seed=seeds, count=st.integers(1, 100), width=st.sampled_from(WIDTHS[1:]))
def test_symbols_are_packed_one_after_another(seed: int, count: int, width: int) -> None:
    """From the least significant bit of a byte on; what is left of the last byte is 0."""
    found = np.random.default_rng(seed).integers(0, 1 << width, count).astype(np.uint8)
    packed = pack(found, width)
    number = sum(int(each) << width * at for at, each in enumerate(found))
    assert packed.tobytes() == number.to_bytes(-(-count * width // 8), "little")
    assert np.array_equal(unpack(packed, width)[:count], found)


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
        RANKED.check(CodedBlock([stream[: cut % stream.size]], indices.size, block))
    assert caught.value.rule == "SD417"


@st.composite
def some_rows(draw: st.DrawFn) -> tuple[LiveRows, NDArray[np.bool_]]:
    """Live rows of a block, which may begin and end inside of one; is each word in one?"""
    words, start = draw(st.integers(1, 500)), draw(st.integers(0, 1000))
    length = draw(st.integers(1, 90) | st.just(1 << 60))
    rng = np.random.default_rng(draw(seeds))
    live = rng.random(row_count(length, words, start)) < draw(densities)
    live[rng.integers(live.size)] = True
    marks = live[(np.arange(words) + start % length) // length]
    return LiveRows.of(live, length, words, start), marks


@settings(max_examples=100)
@given(some_rows())
def test_live_rows_map_both_ways(drawn: tuple[LiveRows, NDArray[np.bool_]]) -> None:
    """Elements of live rows keep their order; others are not there."""
    rows, marks = drawn
    words = marks.size
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
    asked=st.tuples(st.integers(1, 40), densities),
    bounds=st.sampled_from([(1, 64), (1 << 14, 1024), (GROUP_BITS, SPAN)]),
)
def test_ranks_in_sets_are_those_of_lists(
    seed: int, size: int, kind: str, asked: tuple[int, float], bounds: tuple[int, int]
) -> None:
    """However many sets are looked up together, listed or not: the element of each rank."""
    (cuts, share), (bits, span) = asked, bounds
    rng = np.random.default_rng(seed)
    base = base_words(rng, size, kind, "BF16")
    fields = exponents(base, "BF16")
    edges = np.unique(rng.integers(0, 256, 2 * cuts))
    ranges = [Range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    listed = [np.flatnonzero(holds(fields, each)) for each in ranges]
    for each, found in zip(ranges, listed, strict=True):
        assert np.array_equal(found, np.flatnonzero((fields >= each.low) & (fields <= each.high)))
    ranks = [np.flatnonzero(rng.random(found.size) < share) for found in listed]
    asked_of = [number for number, each in enumerate(ranks) if each.size]
    counts = [ranks[number].size for number in asked_of]
    sets = [
        ElementSet(ranges[number], slice(stop - count, stop), int(ranks[number][-1]))
        for number, count, stop in zip(asked_of, counts, accumulate(counts), strict=True)
    ]
    none: Indices = np.empty(0, np.int64)
    together = np.concatenate([none, *ranks])
    places = np.concatenate([none, *(f[r] for f, r in zip(listed, ranks, strict=True))])
    for is_listed in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparsedelta.codecs.ranked_places.GROUP_BITS", bits)
            patch.setattr("sparsedelta.codecs.ranked_places.SPAN", span)
            patch.setattr("sparsedelta.codecs.ranked_select.SPAN", span)
            patch.setattr(ElementSet, "is_listed", lambda *_, listed=is_listed: listed)
            blocks = [Elements(base, "BF16", sets[::2]), Elements(base, "BF16", sets[1::2])]
            assert np.array_equal(positions(blocks, together), places)
            if asked_of:
                as_bits = sets_of(fields, [ranges[number] for number in asked_of])
                assert as_bits.count() == [listed[number].size for number in asked_of]
                assert np.array_equal(as_bits.ranks(places, counts), together)
    for asked_set, number in zip(sets, asked_of, strict=True):
        asked_set.check(listed[number].size)
        with pytest.raises(StreamError):
            asked_set.check(asked_set.last)


@settings(max_examples=60)
@given(
    seed=seeds,
    size=st.integers(1, 3000) | st.integers(65534, 66000),
    kind=st.sampled_from(BASES),
)
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
    parts = [[as_bytes(bytes.fromhex(each)) for each in content] for content in contents]
    return write_block(
        None,
        entries,
        negative=np.array(signs, np.bool_),
        ranks=[ranks for ranks, *_ in parts],
        values=[values for _, *values in parts],
        escapes=as_bytes(escapes),
    )


def as_bytes(data: bytes) -> Bytes:
    """The bytes of a string."""
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
    without = BLOCK._replace(base=None)
    if rule == "SD418":
        RANKED.check(CodedBlock([stream], 4, without))
    else:
        with pytest.raises(StreamError):
            RANKED.check(CodedBlock([stream], 4, without))


def test_only_16_bit_floats_have_exponents() -> None:
    assert [dtype for dtype in ("F16", "BF16", "F32", "I16", "U16") if RANKED.holds(dtype)] == [
        "F16",
        "BF16",
    ]
