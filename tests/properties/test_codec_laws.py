"""Laws of the codecs, compared bit for bit (spec section 6 and the pages of codecs/)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import WORD_BYTES, entries

from sparsedelta.codecs import (
    INDEX_CODECS,
    Bitmask,
    Block,
    Dense,
    Encoding,
    Gap8,
    IndexCodec,
    Packed,
    Planes,
    ValueCodec,
    Zigzag,
)
from sparsedelta.codecs.frames import decode_frame, encode_frame
from sparsedelta.codecs.packed import WIDTHS
from sparsedelta.words import Indices, Words

INDEX: tuple[IndexCodec, ...] = (Gap8(), Bitmask(), Dense())
VALUES: tuple[ValueCodec, ...] = (*(Packed(width) for width in WIDTHS), Zigzag(), Planes())


def encodings() -> list[Encoding]:
    """Every combination that the specification allows."""
    allowed = []
    for op in ("difference", "replace"):
        for index in INDEX:
            for value in VALUES:
                try:
                    allowed.append(Encoding(op, index, value))
                except ValueError:
                    continue
    return allowed


ENCODINGS = encodings()


def test_every_registered_codec_is_tried() -> None:
    assert {encoding.index.id for encoding in ENCODINGS} == set(INDEX_CODECS)
    assert len(ENCODINGS) == 2 * 7 + 2 + 3


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: f"{e.op}-{e.describe()}")
@given(case=entries())
@settings(max_examples=60)
def test_decode_undoes_encode(encoding: Encoding, case: tuple[int, int, Indices, Words]) -> None:
    """Section 6: the entries of a block survive, within the lengths that the page allows."""
    width, words, indices, values = case
    if encoding.op == "replace" and isinstance(encoding.index, Dense):
        indices = np.arange(words) if indices.size else indices
        values = np.resize(values, indices.size)
    block = Block(words, width)
    streams = encoding.encode(indices, values, block)
    bounds = encoding.bounds(np.array([indices.size]), np.array([words]), width)
    assert len(streams) == len(bounds) == encoding.stream_count(width)
    for stream, (low, high, step) in zip(streams, bounds, strict=True):
        assert low[0] <= stream.size <= high[0]
        assert stream.size % step == 0
    stored = [decode_frame(encode_frame(stream), stream.size) for stream in streams]
    found_indices, found_values = encoding.decode(stored, indices.size, block)
    assert np.array_equal(found_indices, indices)
    assert found_values.dtype == values.dtype
    assert np.array_equal(found_values, values)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: f"{e.op}-{e.describe()}")
@given(case=entries(max_words=600))
@settings(max_examples=40)
def test_streams_are_canonical(encoding: Encoding, case: tuple[int, int, Indices, Words]) -> None:
    """Section 6: what decodes to these entries is what encoding them gives."""
    width, words, indices, values = case
    if encoding.op == "replace" and isinstance(encoding.index, Dense):
        indices = np.arange(words) if indices.size else indices
        values = np.resize(values, indices.size)
    block = Block(words, width)
    streams = encoding.encode(indices, values, block)
    again = encoding.encode(*encoding.decode(streams, indices.size, block), block)
    assert [s.tobytes() for s in again] == [s.tobytes() for s in streams]


@given(data=st.binary(max_size=4000))
def test_frames_undo_themselves(data: bytes) -> None:
    """Section 3.1: stored or compressed, never longer than the stream."""
    frame = encode_frame(np.frombuffer(data, np.uint8))
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
