"""The rules of gap8-split, range and raw, one by one, and the worked examples of their pages."""

from __future__ import annotations

import numpy as np
import pytest

from sparsedelta.codecs import (
    Block,
    Encoding,
    GapSplit,
    Planes,
    Range,
    RawIndices,
    RawWords,
    StreamError,
    UnfitError,
    Zigzag,
)
from sparsedelta.codecs.gap8 import gaps_of
from sparsedelta.codecs.gap8_split import MAX_K, choose_k, write_split
from sparsedelta.words import Bytes


def stream(text: str) -> Bytes:
    """Bytes from hex."""
    return np.frombuffer(bytes.fromhex(text), np.uint8)


def words(*values: int, width: int = 2) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
    """Words of a width."""
    return np.array(values, f"<u{width}")


def test_gap8_split_worked_examples() -> None:
    quotients, low = write_split(gaps_of(np.array([100, 140, 990])), 4)
    assert quotients.tobytes().hex() == "060235"
    assert low.tobytes().hex() == "0406020300"
    decoded = GapSplit().decode([quotients, low], 3, Block(1024, 2))
    assert decoded.tolist() == [100, 140, 990]
    quotients, low = write_split(gaps_of(np.array([3, 4, 260])), 0)
    assert (quotients.tobytes().hex(), low.tobytes().hex()) == ("0300ff00", "00")


@pytest.mark.parametrize("k", range(MAX_K + 1))
def test_gap8_split_reads_every_k(k: int) -> None:
    """Which k a writer takes is its own affair."""
    rng = np.random.default_rng(k)
    indices = np.flatnonzero(rng.random(1 << 14) < 0.004)
    streams = write_split(gaps_of(indices), k)
    found = GapSplit().decode(streams, indices.size, Block(1 << 14, 2))
    assert found.tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("quotients", "low", "message"),
    [
        ("0000", "00", "3 gaps expected, 2 found"),
        ("000000ff", "00", "ends inside a gap"),
        ("000000", "19" + "00" * 25, "k = 25"),
        ("000000", "01", "1 bytes of bit planes expected, 0 found"),
        ("000000", "0000", "0 bytes of bit planes expected, 1 found"),
        ("000000", "0108", "a spare bit of plane 0"),
        ("000000", "020080", "a spare bit of plane 1"),
        ("0000fe", "00", "index 256 lies outside"),
        ("000001", "08" + "00" * 8, "index 258 lies outside"),
    ],
)
def test_rules_of_gap8_split(quotients: str, low: str, message: str) -> None:
    with pytest.raises(StreamError, match=message) as caught:
        GapSplit().decode([stream(quotients), stream(low)], 3, Block(256, 2))
    assert caught.value.rule == "SD411"


def test_quotients_of_lies_do_not_overflow() -> None:
    """The longest QUO that the bounds allow, with the greatest k, stays below 2^63."""
    count = 1 << 20
    (quotients, low) = GapSplit().bounds(np.array([count]), np.array([1 << 24]), 2)
    lies = np.full(quotients.high[0], 255, np.uint8)
    lies[-count:] = 254
    planes = np.full(low.high[0], 255, np.uint8)
    planes[0] = MAX_K
    with pytest.raises(StreamError, match=r"index \d{15,16} lies outside"):
        GapSplit().decode([lies, planes], count, Block(1 << 24, 2))


@pytest.mark.parametrize(("log2", "count"), [(24, 3), (24, 100), (24, 10_000), (20, 100_000)])
def test_the_chosen_k_is_near_the_best(log2: int, count: int) -> None:
    """By the bytes of the streams' entropy: within a few percent on a random support."""
    rng = np.random.default_rng(count)
    gaps = gaps_of(np.sort(rng.choice(1 << log2, count, replace=False)))

    def bits(k: int) -> float:
        quotients, low = write_split(gaps, k)
        _, held = np.unique(quotients, return_counts=True)
        return float(-(held * np.log2(held / held.sum())).sum()) + 8 * low.size + 5 * held.size

    assert bits(choose_k(gaps)) <= 1.1 * min(map(bits, range(MAX_K + 1))) + 200
    assert choose_k(np.empty(0, np.int64)) == 0


def test_range_worked_examples() -> None:
    encoding = Encoding("difference", Range(), Zigzag())
    streams = encoding.encode(np.array([64, 65, 67]), words(1, 0xFFFF, 2), Block(256, 2))
    assert [s.tobytes().hex() for s in streams] == ["4000000004000000", "02010004", ""]
    encoding = Encoding("replace", Range(), RawWords())
    streams = encoding.encode(np.array([254, 255]), words(0x3F80, 0), Block(256, 2))
    assert [s.tobytes().hex() for s in streams] == ["fe00000002000000", "803f0000"]


@pytest.mark.parametrize(
    ("op", "run", "planes", "rule", "message"),
    [
        ("difference", "fe00000003000000", "010001", "SD412", "a run from 254 of 3"),
        ("difference", "ffffffffffffffff", "010001", "SD412", "a run from 4294967295"),
        ("difference", "0000000001000000", "01", "SD412", "a run of 1 words for 2 entries"),
        ("difference", "0000000003000000", "0101", "SD412", "do not hold 3 values"),
        ("difference", "0000000003000000", "01000101", "SD412", "do not hold 3 values"),
        ("replace", "0000000003000000", "010101", "SD412", "3 values for 2 entries"),
        ("difference", "0000000003000000", "010101", "SD405", "2 values other than 0 expected, 3"),
        ("difference", "0000000003000000", "010000", "SD405", "2 values other than 0 expected, 1"),
        ("difference", "0000000003000000", "010100", "SD405", "begin and end with an entry"),
        ("difference", "0000000003000000", "000101", "SD405", "begin and end with an entry"),
    ],
)
def test_rules_of_range(op: str, run: str, planes: str, rule: str, message: str) -> None:
    encoding = Encoding(op, Range(), Planes())
    with pytest.raises(StreamError, match=message) as caught:
        encoding.decode([stream(run), stream(planes), stream(planes)], 2, Block(256, 2))
    assert caught.value.rule == rule


def test_value_streams_of_a_range_have_the_lengths_of_one_number() -> None:
    """SD304: each length alone is allowed, but no number of values gives both."""
    encoding = Encoding("difference", Range(), Planes())
    decoded = np.array([[8, 3, 4]])
    faults = encoding.length_faults(np.array([2]), np.array([9]), decoded, decoded, 2)
    assert list(faults) == ["block 0, stream 2: decoded length 4, expected 3 to 3, a multiple of 1"]
    for low, high, step in encoding.bounds(np.array([2]), np.array([9]), 2)[1:]:
        assert (low.tolist(), high.tolist(), step) == ([2], [9], 1)
    encoding = Encoding("difference", Range(), RawWords())
    decoded = np.array([[8, 5]])
    faults = encoding.length_faults(np.array([2]), np.array([9]), decoded, decoded, 2)
    assert list(faults) == [
        "block 0, stream 1: decoded length 5, expected 4 to 18, a multiple of 2"
    ]


def test_raw_worked_examples() -> None:
    (indices,) = RawIndices().encode(np.array([0, 3, 1023]), Block(1024, 2))
    assert indices.tobytes().hex() == "0000000003000000ff030000"
    (raw,) = RawWords().encode(words(0x3F800000, 1, width=4), Block(1024, 4))
    assert raw.tobytes().hex() == "0000803f01000000"


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([3, 3], "do not ascend"),
        ([4, 3], "do not ascend"),
        ([0xFFFFFFFF, 0], "do not ascend"),
        ([0, 8], "index 8 lies outside"),
        ([0, 0xFFFFFFFF], "index 4294967295 lies outside"),
    ],
)
def test_rules_of_raw(indices: list[int], message: str) -> None:
    with pytest.raises(StreamError, match=message) as caught:
        RawIndices().decode([np.array(indices, "<u4").view(np.uint8)], 2, Block(8, 2))
    assert caught.value.rule == "SD413"


def test_raw_streams_must_be_stored() -> None:
    """SD304: encoded and decoded length are equal."""
    encoding = Encoding("difference", RawIndices(), RawWords())
    assert encoding.stored(8) == [True, True]
    assert Encoding("difference", RawIndices(), Planes()).stored(2) == [True, False, False]
    one, decoded = np.array([9]), np.array([[36, 18]])
    assert not list(encoding.length_faults(one, one, decoded, decoded, 2))
    for encoded in ([[35, 18]], [[36, 17]], [[37, 18]]):
        faults = encoding.length_faults(one, one, np.array(encoded), decoded, 2)
        assert len(list(faults)) == 1


def test_raw_words_at_an_odd_address() -> None:
    """A stream may begin anywhere in what was read of a file."""
    data = np.frombuffer(bytes(range(33)), np.uint8)[1:]
    assert RawWords().decode([data], 4, Block(9, 8)).tolist()[0] == 0x0807060504030201


@pytest.mark.parametrize("op", ["replace", "add"])
def test_a_word_that_is_no_entry_has_no_place(op: str) -> None:
    for index in ("range", "dense"):
        encoding = Encoding.from_json(op, {"id": index}, {"id": "raw"})
        with pytest.raises(UnfitError, match="every word"):
            encoding.encode(np.array([0, 2]), words(1, 1), Block(3, 2))
