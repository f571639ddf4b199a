"""Laws of what is done on an accelerator: bit for bit what the host does. The device is the host's.

What crosses between a device and the host is watched in tests/integration/test_device_stack.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from strategies import seeds
from test_ranked_laws import (
    BASES,
    BLOCK,
    BROKEN,
    RANKED,
    Case,
    base_words,
    block_bytes,
    cases,
    some_rows,
)
from test_stack_laws import StackMachine, model_of, run_machine, same, stored, write_deltas
from torch import nn

import sparsedelta
from sparsedelta import Stack
from sparsedelta.codecs import CodedBlock, StreamError
from sparsedelta.codecs.ranked_classes import EXPONENTS, exponents
from sparsedelta.codecs.ranked_rows import LiveRows
from sparsedelta.device_digests import CHUNK_BYTES, digest_segments, padded
from sparsedelta.device_ranked import (
    decode_on_device,
    exponents_on_device,
    live_elements,
    take_apart,
)
from sparsedelta.digests import segment_digest
from sparsedelta.operations.live_base import Candidate
from sparsedelta.words import Bytes, Indices, Words


def on_host(stream: Bytes, case: Case) -> tuple[Indices, Words]:
    """The entries of a block as the codec gives them."""
    block, indices, _ = case
    return RANKED.decode([stream], indices.size, block)


def on_device(stream: Bytes, case: Case) -> tuple[Indices, Words]:
    """The same as a device gives them, in order; the base words are shown to nobody else."""
    block, indices, _ = case
    assert block.base is not None
    coded = CodedBlock([stream], indices.size, block._replace(base=None))
    base = torch.from_numpy(block.base.view(np.int16).copy())
    apart = take_apart(coded)
    stored = apart.words.copy()
    at, words = decode_on_device(apart, base)
    assert (at.dtype, words.dtype) == (torch.int64, torch.int16)
    assert np.array_equal(apart.words, stored)
    assert np.array_equal(base.numpy().view("<u2"), block.base)
    order = at.argsort()
    found: Words = words.index_select(0, order).numpy().view("<u2")
    return at.index_select(0, order).numpy(), found


def agree(stream: Bytes, case: Case) -> str | None:
    """Insist that both give the same entries, or break the same rule; returns the rule."""
    found = [outcome(decode, stream, case) for decode in (on_host, on_device)]
    assert found[0] == found[1]
    return found[0] if isinstance(found[0], str) else None


def outcome(
    decode: Callable[[Bytes, Case], tuple[Indices, Words]], stream: Bytes, case: Case
) -> str | list[tuple[int, int]]:
    """The rule that a block breaks, or its entries."""
    try:
        indices, words = decode(stream, case)
    except StreamError as error:
        return error.rule
    return list(zip(indices.tolist(), words.tolist(), strict=True))


@settings(max_examples=150)
@given(case=cases())
def test_entries_are_those_of_the_codec(case: Case) -> None:
    """Whatever the base words are: live rows, strays, bitmasks, gaps, new words, escapes."""
    assert agree(block_bytes(case), case) is None


@settings(max_examples=200)
@given(case=cases(max_words=400), at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_damaged_block_is_refused_by_the_same_rule(case: Case, at: int, bit: int) -> None:
    """Or it is another valid one, and the same."""
    stream = block_bytes(case).copy()
    stream[at % stream.size] ^= 1 << bit
    assert agree(stream, case) in (None, "SD417", "SD418")


@settings(max_examples=100)
@given(case=cases(max_words=400), kind=st.sampled_from(BASES), seed=seeds)
def test_on_other_words_the_same_rule_is_broken(case: Case, kind: str, seed: int) -> None:
    """Or none is: which is why words are verified before."""
    block, indices, values = case
    other = base_words(np.random.default_rng(seed), block.words, kind, block.dtype)
    told = agree(block_bytes(case), (block._replace(base=other), indices, values))
    assert told in (None, "SD418")


@pytest.mark.parametrize(
    "name", [name for name, (_, stream) in BROKEN.items() if stream is not None]
)
def test_what_is_wrong_with_a_block_is_told_in_the_same_words(name: str) -> None:
    rule, stream = BROKEN[name]
    assert stream is not None
    case = (BLOCK, np.arange(4), np.empty(0, "<u2"))
    told = []
    for decode in (on_host, on_device):
        with pytest.raises(StreamError) as caught:
            decode(stream, case)
        told.append((caught.value.rule, str(caught.value)))
    assert told[0] == told[1]
    assert told[0][0] == rule


@settings(max_examples=100)
@given(some_rows())
def test_elements_are_the_words_of_live_rows(drawn: tuple[LiveRows, NDArray[np.bool_]]) -> None:
    """Of the first row and the last one a block may hold only a part."""
    rows, marks = drawn
    found = live_elements(rows, torch.device("cpu"))
    expected = np.flatnonzero(marks)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", EXPONENTS)
def test_exponents_of_all_words(dtype: str) -> None:
    words = np.arange(1 << 16, dtype="<u2")
    found = exponents_on_device(torch.from_numpy(words.view(np.int16)), dtype)
    assert np.array_equal(found.numpy(), exponents(words, dtype))


LENGTHS: Final = (
    st.integers(1, 9 * CHUNK_BYTES)
    | st.integers(1, 40).map(lambda count: count * CHUNK_BYTES)
    | st.integers(1, 9).map(lambda count: count * CHUNK_BYTES + 1)
    | st.integers(1, 40).map(lambda count: count * 64)
)


@settings(max_examples=15)
@given(lengths=st.lists(LENGTHS, max_size=6), seed=seeds)
def test_digests_are_those_of_the_segments(lengths: list[int], seed: int) -> None:
    """Of any lengths, next to each other."""
    data = np.random.default_rng(seed).bytes(sum(lengths))
    together = torch.zeros(sum(map(padded, lengths)), dtype=torch.uint8)
    expected, start, at = [], 0, 0
    for length in lengths:
        own = data[start : start + length]
        together[at : at + length] = torch.from_numpy(np.frombuffer(own, np.uint8).copy())
        expected.append(segment_digest(own))
        start, at = start + length, at + padded(length)
    assert digest_segments(together, lengths) == expected


def test_a_digest_of_a_whole_segment() -> None:
    """2^22 words of 16 bits: thirteen levels of pairs."""
    data = np.random.default_rng(0).integers(0, 256, 1 << 23, np.uint8)
    assert digest_segments(torch.from_numpy(data), [data.size]) == [segment_digest(data.data)]


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no tensor to the host."""

    def left(_: Candidate, __: object, name: str, *___: object) -> None:
        raise AssertionError(f"{name} was left to the host")

    monkeypatch.setattr(Candidate, "verify", left)


class DeviceStackMachine(StackMachine):
    """A stack that verifies where the tensors are."""

    on_device = True


@pytest.mark.usefixtures("nothing_left")
def test_any_sequence_of_calls_holds_what_composing_gives() -> None:
    """The law of the stack, with portable and compact deltas, and one way."""
    with tempfile.TemporaryDirectory() as place:
        deltas = write_deltas(Path(place), stored(model_of()))
        for number in (0, 1):
            compact = Path(place) / f"{number}.compact"
            start = Path(place) / "base.safetensors"
            sparsedelta.recode(deltas[number], start, compact, profile="compact")
            deltas[number] = compact
        run_machine(DeviceStackMachine, Path(place), deltas, examples=4, steps=8)


SMALL: Final = 1024


@pytest.mark.parametrize("batch", [1, 1 << 28])
@pytest.mark.usefixtures("nothing_left")
def test_segments_and_blocks_larger_and_smaller_than_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Runs of several blocks, some without an entry; runs one by one, and of several tensors."""
    for module in (
        "checkpoint",
        "changes",
        "digests",
        "rereading",
        "operations.scanning",
        "operations.live_device",
        "operations.device_runs",
    ):
        monkeypatch.setattr(f"sparsedelta.{module}.SEGMENT_WORDS", SMALL)
    monkeypatch.setattr("sparsedelta.operations.live_device.BATCH_BYTES", batch)
    rng = np.random.default_rng(0)
    kinds = {"a": (torch.bfloat16, 5000), "b": (torch.float16, 2048), "c": (torch.float32, 3001)}
    base = {name: torch.randn(size).to(dtype) for name, (dtype, size) in kinds.items()}
    for block_log2 in (8, 10, 12) if batch > 1 else (9,):
        target = {name: each.clone() for name, each in base.items()}
        for each in target.values():
            bits = torch.int16 if each.element_size() == 2 else torch.int32
            marks = torch.from_numpy(rng.random(each.numel()) < 0.1)
            marks[600:2300] = False
            each.view(bits)[marks] += 1
        save_file(base, tmp_path / "base")
        save_file(target, tmp_path / "target")
        monkeypatch.setattr("sparsedelta.encode.choose_block_log2", lambda *_, b=block_log2: b)
        delta = tmp_path / f"delta{block_log2}"
        sparsedelta.diff(tmp_path / "base", tmp_path / "target", delta, profile="compact")
        model = nn.ParameterDict(base)
        with Stack(model, threads=2, on_device=True) as stack:
            stack.add("delta", delta, verify="full")
            assert same(dict(model.state_dict()), target)
        assert same(dict(model.state_dict()), base)
