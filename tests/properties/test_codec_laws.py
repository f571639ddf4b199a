"""Laws of the codecs, compared bit for bit (spec section 6 and the pages of codecs/)."""

from __future__ import annotations

import itertools
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import WORD_BYTES, entries, some_bytes
from thorough import examples

from sparsedelta.codecs import (
    DENSE_OPS,
    ENTRY_OPS,
    INDEX_CODECS,
    VALUE_CODECS,
    Block,
    Dense,
    Encoding,
    Gap8,
    IndexCodec,
    Packed,
    Planes,
    Range,
    Ranked,
    StreamError,
    ValueCodec,
    Zigzag,
)
from sparsedelta.codecs.frames import decode_frame, encode_frame
from sparsedelta.codecs.gap8_split import choose_k
from sparsedelta.codecs.packed import WIDTHS
from sparsedelta.words import Bytes, Indices, Words

INDEX: tuple[IndexCodec, ...] = tuple(
    cast("IndexCodec", kind()) for kind in INDEX_CODECS.values() if kind is not Ranked
)
"""But for ``ranked``, which has laws of its own: test_ranked_laws.py."""

VALUES: tuple[ValueCodec, ...] = (
    *(Packed(width) for width in WIDTHS),
    *(cast("ValueCodec", kind()) for kind in VALUE_CODECS.values() if kind not in (Packed, Ranked)),
)
ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "difference": {
        **dict.fromkeys(
            ("gap8", "gap8-split", "bitmask", "raw"), ("packed", "zigzag", "planes", "raw")
        ),
        **dict.fromkeys(("range", "dense"), ("zigzag", "planes", "raw")),
    },
    **{
        op: dict.fromkeys((codec.id for codec in INDEX), ("planes", "raw"))
        for op in ("replace", "add")
    },
    **{op: {"dense": ("planes", "raw")} for op in ("new", "drop", "resize")},
}
"""The table of section 6, written out."""

ENCODINGS = [
    Encoding(op, index, value)
    for op, index, value in itertools.product(ALLOWED, INDEX, VALUES)
    if value.id in ALLOWED[op].get(index.id, ())
]
Case = tuple[int, int, Indices, Words]


def named(encoding: Encoding) -> str:
    """A name for a test."""
    return f"{encoding.op}-{encoding.describe()}"


def fitting(encoding: Encoding, case: Case) -> Case:
    """The case, or what an op without padding can hold of it."""
    width, words, indices, values = case
    if encoding.op != "difference":
        if indices.size:
            if isinstance(encoding.index, Dense) or encoding.op in DENSE_OPS:
                indices = np.arange(words)
            elif isinstance(encoding.index, Range):
                indices = np.arange(indices[0], indices[0] + min(indices.size, words - indices[0]))
        values = np.resize(values, indices.size)
        values[::3] = 0  # a value of 0 is an entry there
    return width, words, indices, values


def test_the_table_of_allowed_combinations() -> None:
    assert tuple(ALLOWED) == ENTRY_OPS + DENSE_OPS
    for op, index, value in itertools.product((*ALLOWED, "rename"), INDEX, VALUES):
        if value.id in ALLOWED.get(op, {}).get(index.id, ()):
            assert Encoding(op, index, value).op == op
        else:
            with pytest.raises(ValueError, match=r"allows|cannot hold|unknown op"):
                Encoding(op, index, value)
    assert len(ENCODINGS) == 4 * 8 + 2 * 3 + 2 * 6 * 2 + 3 * 2


@pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
@given(case=entries())
@examples(30)
def test_decode_undoes_encode(encoding: Encoding, case: Case) -> None:
    """Section 6: the entries of a block survive, within the lengths that the page allows."""
    width, words, indices, values = fitting(encoding, case)
    block = Block(words, width)
    streams = encoding.encode(indices, values, block)
    bounds = encoding.bounds(np.array([indices.size]), np.array([words]), width)
    assert len(streams) == len(bounds) == encoding.stream_count(width)
    for stream, (low, high, step) in zip(streams, bounds, strict=True):
        assert low[0] <= stream.size <= high[0]
        assert stream.size % step == 0
    stored = encoding.stored(width)
    plain = [stream.tobytes() for stream in streams]
    frames = [s if kept else encode_frame(s) for s, kept in zip(plain, stored, strict=True)]
    assert not list(faults(encoding, indices.size, block, frames, streams))
    read = [decode_frame(f, s.size) for f, s in zip(frames, streams, strict=True)]
    found_indices, found_values = encoding.decode(read, indices.size, block)
    assert found_indices.dtype == np.int64
    assert np.array_equal(found_indices, indices)
    assert found_values.dtype == values.dtype
    assert np.array_equal(found_values, values)


def faults(
    encoding: Encoding, count: int, block: Block, frames: list[bytes], streams: list[Bytes]
) -> list[str]:
    """Faults in the lengths of one block."""
    encoded = np.array([[len(frame) for frame in frames]])
    decoded = np.array([[stream.size for stream in streams]])
    told = np.array([count]), np.array([block.words])
    return list(encoding.length_faults(*told, encoded, decoded, block.word_bytes))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
@given(case=entries(max_words=600))
@examples(20)
def test_streams_are_canonical(encoding: Encoding, case: Case) -> None:
    """Section 6: what decodes to these entries is what encoding them gives."""
    width, words, indices, values = fitting(encoding, case)
    block = Block(words, width)
    streams = encoding.encode(indices, values, block)
    again = encoding.encode(*encoding.decode(streams, indices.size, block), block)
    assert [s.tobytes() for s in again] == [s.tobytes() for s in streams]


RULES = {
    "gap8": "SD403",
    "gap8-split": "SD411",
    "bitmask": "SD404",
    "range": "SD412",
    "dense": "SD405",
    "raw": "SD413",
}
VALUE_RULES = {"packed": "SD406", "zigzag": "SD407", "planes": None, "raw": None}


@pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
@given(data=st.data())
@examples(40)
def test_any_streams_decode_or_break_a_rule(encoding: Encoding, data: st.DataObject) -> None:
    """Section 9: streams of allowed lengths give ascending indices of the block, or a rule.

    Streams are noise, or those of entries with some bytes changed: noise alone breaks the first
    rule nearly always.
    """
    width, words, indices, values = fitting(encoding, data.draw(entries(max_words=300)))
    block = Block(words, width)
    count = max(1, indices.size)
    if encoding.op in DENSE_OPS:
        count = words
    told = np.array([count]), np.array([words])
    bounds = encoding.bounds(*told, width)
    if indices.size and data.draw(st.booleans()):
        streams = [stream.copy() for stream in encoding.encode(indices, values, block)]
        for stream in streams:
            if stream.size and data.draw(st.booleans()):
                place = data.draw(st.integers(0, stream.size - 1))
                stream[place] = data.draw(st.integers(0, 255))
    else:
        streams = [
            data.draw(some_bytes(int(low[0]), int(high[0]), step)) for low, high, step in bounds
        ]
    if faults(encoding, count, block, [bytes(s.size) for s in streams], streams):
        assert isinstance(encoding.index, Range)  # the only one whose streams depend on each other
    rules = {RULES[encoding.index.id], VALUE_RULES[encoding.value.id]}
    if encoding.op == "difference":
        rules |= {"SD405"} if isinstance(encoding.index, (Dense, Range)) else {"SD408"}
    broken = None
    try:
        found, found_values = encoding.decode(streams, count, block)
    except StreamError as error:
        broken = error.rule
    if broken is not None:
        assert broken in rules
        return
    assert found.size == found_values.size == count
    assert found.dtype == np.int64
    assert found[0] >= 0
    assert found[-1] < words
    assert (np.diff(found) > 0).all()
    assert found_values.dtype.itemsize == width
    if encoding.op == "difference":
        assert found_values.all()


@given(data=st.binary(max_size=4000))
def test_frames_undo_themselves(data: bytes) -> None:
    """Section 3.1: stored or compressed, never longer than the stream."""
    frame = encode_frame(data)
    assert len(frame) <= len(data)
    assert decode_frame(frame, len(data)).tobytes() == data


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 1019, 1020])
def test_gap8_at_the_edges_of_its_escape(gap: int) -> None:
    """A gap is floor(g / 255) bytes of 255 and one byte g mod 255."""
    indices = np.array([gap, 2 * gap + 1])
    block = Block(2 * gap + 2, 2)
    (stream,) = Gap8().encode(indices, block)
    assert stream.tobytes() == (b"\xff" * (gap // 255) + bytes([gap % 255])) * 2
    assert Gap8().decode([stream], 2, block).tolist() == indices.tolist()


@pytest.mark.parametrize("width", WORD_BYTES)
def test_the_most_negative_difference_has_one_encoding(width: int) -> None:
    """-2^(w-1) has sign 1; a positive magnitude of that size is refused by rule SD406."""
    block = Block(1, width)
    value = np.array([1 << (8 * width - 1)], f"<u{width}")
    for codec in (Packed(0), Packed(8), Zigzag(), Planes()):
        assert codec.decode(codec.encode(value, block), 1, block).tolist() == value.tolist()


@given(
    density=st.sampled_from([0.4, 0.1, 0.01, 1e-3, 1e-5]),
    count=st.integers(1, 3000),
    far=st.sampled_from([0, 300, 1 << 23]),
    seed=st.integers(0, 99),
)
def test_the_k_of_gap8_split_is_near_the_best(
    density: float, count: int, far: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gaps = np.minimum(rng.geometric(density, count) - 1, (1 << 24) - 1)
    gaps[0] += far * (gaps[0] + far < 1 << 24)

    def size(k: int) -> float:
        quotients = gaps >> k
        counts = np.bincount(np.append(quotients % 255, 255), minlength=256)
        counts[255] = int((quotients // 255).sum())
        used = counts[counts > 0].astype(float)
        entropy = float(-(used * np.log2(used / used.sum())).sum())
        return float(min(entropy + 5 * used.size + 200, 8 * used.sum())) + 8 * k * -(-count // 8)

    best = min(map(size, range(25)))
    assert size(choose_k(gaps)) <= 1.02 * best + 64
