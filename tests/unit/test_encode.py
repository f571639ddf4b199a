"""Encoding parts: the smallest encoding, forced ones, samples, dense ops."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsedelta.changes import Changes
from sparsedelta.choice import VALUE_NAMES, CodecChoice, parse_choice
from sparsedelta.codecs import INDEX_CODECS, Block, Dense, Packed, Planes
from sparsedelta.codecs.frames import decode_frame
from sparsedelta.delta import EntryHasher
from sparsedelta.encode import EncodedPart, encode_part, encode_words
from sparsedelta.errors import UsageError
from sparsedelta.measure import EXACT_BLOCKS, PartBlocks, Sample
from sparsedelta.parallel import OrderedMap
from sparsedelta.tables import block_words
from sparsedelta.words import Indices, TensorSpec, Words

PORTABLE_INDEX = sorted(INDEX_CODECS.keys() - {"ranked"})
PORTABLE_VALUES = [name for name in VALUE_NAMES if name != "ranked"]

WIDTHS = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}


def decoded(part: EncodedPart, words: int, word_bytes: int) -> tuple[Indices, Words]:
    """The entries of a part, from its rows and frames, with the checks of its lengths."""
    record = part.coded
    streams = record.encoding.stream_count(word_bytes)
    sizes = block_words(words, record.block_log2)
    rows = np.frombuffer(part.rows, np.uint8).reshape(sizes.size, 4 + 16 * streams)
    counts = np.ascontiguousarray(rows[:, :4]).view("<u4")[:, 0].astype(np.int64)
    cells = rows[:, 4:].reshape(sizes.size, streams, 16)
    lengths = np.ascontiguousarray(cells[:, :, :8]).view("<u4").astype(np.int64)
    encoded, plain = lengths[:, :, 0], lengths[:, :, 1]
    assert not list(record.encoding.length_faults(counts, sizes, encoded, plain, word_bytes))
    assert encoded.sum() == sum(map(len, part.frames)) == record.nbytes
    found: list[tuple[Indices, Words]] = []
    for number, (count, size) in enumerate(zip(counts.tolist(), sizes.tolist(), strict=True)):
        frames = part.frames[number * streams : (number + 1) * streams]
        read = [decode_frame(f, n) for f, n in zip(frames, plain[number].tolist(), strict=True)]
        indices, values = record.encoding.decode(read, count, Block(size, word_bytes))
        found.append((indices + (number << record.block_log2), values))
    assert counts.sum() == record.nnz
    nothing: tuple[Indices, Words] = np.empty(0, np.int64), np.empty(0, f"<u{word_bytes}")
    pairs = [nothing, *found]
    return np.concatenate([i for i, _ in pairs]), np.concatenate([v for _, v in pairs])


def digests(indices: Indices, values: Words) -> tuple[bytes, bytes]:
    """What of entries enters the content digest."""
    entries = EntryHasher()
    entries.update(indices, values)
    return entries.digests()


def some_changes(
    words: int, density: float, *, dtype: str = "BF16", seed: int = 0
) -> tuple[Changes, Indices, Words]:
    """Scattered small differences."""
    rng = np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(words) < density)
    steps = rng.integers(1, 4, indices.size) * rng.choice([-1, 1], indices.size)
    values = steps.astype(f"<i{WIDTHS[dtype]}").view(f"<u{WIDTHS[dtype]}")
    spec = TensorSpec("layer.w", dtype, (words,))
    return Changes.from_entries(spec, indices, values), indices, values


def encode(changes: Changes, op: str = "difference", **options: Any) -> EncodedPart:  # noqa: ANN401
    """Encode with a pool."""
    with OrderedMap(options.pop("threads", 1)) as pool:
        return encode_part(changes, op, pool=pool, **options)


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("index", PORTABLE_INDEX)
@pytest.mark.parametrize("value", [None, *PORTABLE_VALUES])
def test_forced_codecs_of_a_difference(dtype: str, index: str, value: str | None) -> None:
    """Every allowed pair holds scattered changes; every other is refused by name."""
    changes, indices, values = some_changes(5000, 0.1, dtype=dtype)
    choice = parse_choice(index if value is None else f"{index}+{value}")
    if index in ("range", "dense") and str(value).startswith("packed"):
        with pytest.raises(UsageError, match=rf"'layer.w'.*difference.*packed.*{index}"):
            encode(changes, choice=choice)
        return
    part = encode(changes, choice=choice, block_log2=10)
    assert part.coded.encoding.index.id == index
    if value is not None:
        assert part.coded.encoding.value == VALUE_NAMES[value]
    found = decoded(part, 5000, WIDTHS[dtype])
    assert np.array_equal(found[0], indices)
    assert np.array_equal(found[1], values)
    assert (part.content.indices, part.content.words) == digests(indices, values)


@pytest.mark.parametrize("op", ["replace", "add"])
def test_forced_codecs_without_padding(op: str) -> None:
    """Runs hold a row, but not scattered entries; packed and zigzag hold none of these ops."""
    scattered, *_ = some_changes(4096, 0.1)
    row = np.arange(512, 1024)
    words = np.arange(512).astype("<u2")
    changes = Changes.from_entries(TensorSpec("layer.w", "BF16", (4096,)), row, words)
    for index in PORTABLE_INDEX:
        for value in ("", "+planes", "+raw"):
            choice = parse_choice(index + value)
            part = encode(changes, op, choice=choice, block_log2=8)
            found = decoded(part, 4096, 2)
            assert np.array_equal(found[0], row)
            assert np.array_equal(found[1], words)
            if index in ("range", "dense"):
                with pytest.raises(UsageError, match=rf"'layer.w'.*{op}: .*words"):
                    encode(scattered, op, choice=choice, block_log2=8)
        for value in ("packed2", "zigzag"):
            with pytest.raises(UsageError, match=rf"'layer.w'.*{op}: .*'{value.rstrip('2')}'"):
                encode(changes, op, choice=parse_choice(f"{index}+{value}"))


def test_runs_are_chosen_only_where_every_block_has_one() -> None:
    """One scattered block among many, that a sample may miss, rules `range` out of a `replace`."""
    words = 1 << 16
    marks = np.arange(words) % 256 < 100
    rng = np.random.default_rng(0)
    for block in (None, 17, 200):
        if block is not None:
            marks[block * 256 + 120] = True
        indices = np.flatnonzero(marks)
        values = rng.integers(0, 1 << 16, indices.size).astype("<u2")
        spec = TensorSpec("w", "BF16", (words,))
        part = encode(Changes.from_entries(spec, indices, values), "replace", block_log2=8)
        assert (part.coded.encoding.index.id == "range") == (block is None)
        assert np.array_equal(decoded(part, words, 2)[0], indices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown index codec ''.*bitmask, dense, gap8, gap8-split, range, ranked, raw"),
        ("gap9", "unknown index codec 'gap9'"),
        ("packed1", "unknown index codec 'packed1'"),
        ("gap8+", "unknown value codec ''.*packed0, .*planes, ranked, raw, zigzag"),
        ("gap8+packed", "unknown value codec 'packed'"),
        ("gap8+packed2+raw", "unknown value codec"),
        ("Gap8", "unknown index codec 'Gap8'"),
    ],
)
def test_unknown_codecs(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_choice(text)


def test_known_codecs() -> None:
    assert parse_choice("dense") == CodecChoice(Dense())
    assert parse_choice("dense+planes") == CodecChoice(Dense(), Planes())
    assert parse_choice("dense+packed2").value == Packed(2)


@pytest.mark.parametrize("density", [0.0005, 0.02, 0.3, 1.0])
def test_sizes_are_exact(density: float) -> None:
    """`sizes` says what each encoding takes if it is forced; the smallest candidate is taken."""
    changes, *_ = some_changes(40_000, density)
    explained = encode(changes, explain=True)
    plain = encode(changes)
    assert (plain.rows, plain.frames) == (explained.rows, explained.frames)
    assert plain.sizes.items() <= explained.sizes.items()
    assert len(explained.sizes) == 4 * 8 + 2 * 3
    for text, size in explained.sizes.items():
        choice = parse_choice(re.sub(r"\(width=(\d)\)", r"\1", text).replace(" ", ""))
        part = encode(changes, choice=choice)
        assert part.record.nbytes + len(part.rows) == size
        assert part.sizes[text] == size
    chosen = plain.coded.encoding.describe()
    assert plain.sizes[chosen] == min(plain.sizes.values())
    assert plain.sizes[chosen] <= min(explained.sizes.values()) * 1.01


def test_explaining_a_replace_leaves_out_what_cannot_hold_it() -> None:
    changes, *_ = some_changes(10_000, 0.05)
    sizes = encode(changes, "replace", explain=True, block_log2=10).sizes
    assert {text.split(" ")[0] for text in sizes} == {"gap8", "gap8-split", "bitmask", "raw"}


@pytest.mark.parametrize("density", [0.002, 0.2, 1.0])
def test_the_bytes_do_not_depend_on_threads(density: float) -> None:
    """With many blocks, so that a sample is drawn."""
    changes, *_ = some_changes(1 << 17, density)
    parts = [encode(changes, threads=threads, block_log2=9) for threads in (1, 2, 5)]
    assert all(part == parts[0] for part in parts)
    assert len(parts[0].sizes) == 1  # of a sample, no size but that of the winner is known


@pytest.mark.parametrize("density", [0.002, 0.05, 0.225, 0.6, 1.0])
def test_a_sample_costs_next_to_nothing(density: float) -> None:
    """Against measuring all blocks: below 0.1 %."""
    changes, *_ = some_changes(1 << 19, density)
    part = encode(changes, explain=True, block_log2=11)
    size = part.sizes[part.coded.encoding.describe()]
    assert size <= 1.001 * min(part.sizes.values())


def test_a_sample_stands_for_all_blocks() -> None:
    """Few blocks are all measured; of many, crowded and thin ones are drawn, and sums are near."""
    few = np.array([3, 0, 5] * (EXACT_BLOCKS // 2))
    sample = Sample.draw(few)
    assert (sample.numbers, sample.scale) == (np.flatnonzero(few).tolist(), 1)
    counts = np.where(np.arange(20_000) % 100 == 7, 10_000, 3)
    counts[::11] = 0
    sample = Sample.draw(counts)
    assert sample.scale > 1
    assert 50 < len(sample.numbers) < 400
    assert counts[sample.numbers].all()
    assert sample.total(counts[sample.numbers]) == pytest.approx(counts.sum(), rel=0.05)
    filled = int(np.count_nonzero(counts))
    assert sample.total([1] * len(sample.numbers)) == pytest.approx(filled, rel=0.15)
    assert set(counts[sample.numbers].tolist()) == {3, 10_000}


def test_changes_in_any_order() -> None:
    """Blocks one by one are the blocks in a row, thin and crowded."""
    for density in (0.0005, 0.01, 0.2, 1.0):
        changes, indices, values = some_changes(70_001, density, seed=3)
        for log2 in (8, 12, 17):
            blocks = PartBlocks(changes, log2)
            assert int(blocks.counts.sum()) == changes.nnz
            found = [blocks.read(n, base=False) for n in range(blocks.counts.size)]
            flat = [i + (n << log2) for n, (_, i, _) in enumerate(found)]
            assert np.array_equal(np.concatenate(flat), indices)
            assert np.array_equal(np.concatenate([v for *_, v in found]), values)
            assert [b.words for b, *_ in found] == block_words(70_001, log2).tolist()


Reader = Callable[[int, int], Words]


def reader(data: Words) -> Reader:
    """Reads words of an array."""
    return lambda start, stop: data[start:stop]


@pytest.mark.parametrize("op", ["new", "drop", "resize"])
@pytest.mark.parametrize("word_bytes", [1, 2, 4, 8])
@pytest.mark.parametrize("words", [0, 1, 255, 256, 1000, 3000])
def test_words_of_dense_ops(op: str, word_bytes: int, words: int) -> None:
    """Every word is carried, whatever the block size and the codec; indices are not digested."""
    rng = np.random.default_rng(words)
    data = rng.integers(0, 1 << (8 * word_bytes - 1), words).astype(f"<u{word_bytes}")
    data[::5] = 0
    nothing: Indices = np.empty(0, np.int64)
    for choice in (None, *map(parse_choice, ("raw+raw", "dense+planes", "gap8"))):
        for block_log2 in (None, 8, 11):
            with OrderedMap(2) as pool:
                part = encode_words(
                    words, word_bytes, op, reader(data), pool=pool, choice=choice,
                    block_log2=block_log2,
                )  # fmt: skip
            assert part.coded.encoding.op == part.content.op == op
            assert part.coded.encoding.index == Dense()
            assert part.coded.nnz == part.content.nnz == words
            assert (part.content.indices, part.content.words) == digests(nothing, data)
            indices, found = decoded(part, words, word_bytes)
            assert indices.tolist() == list(range(words))
            assert np.array_equal(found, data)
            size = part.record.nbytes + len(part.rows)
            assert part.sizes[part.coded.encoding.describe()] == size == min(part.sizes.values())


def test_words_that_compress_are_planes_and_others_raw() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 1 << 32, 5000).astype("<u4")
    weights = rng.normal(0, 0.02, 5000).astype("<f4").view("<u4")
    with OrderedMap(1) as pool:
        raw = encode_words(5000, 4, "new", reader(noise), pool=pool)
        planes = encode_words(5000, 4, "new", reader(weights), pool=pool)
    assert raw.coded.encoding.describe() == "dense + raw"
    assert planes.coded.encoding.describe() == "dense + planes"
    assert set(raw.sizes) == set(planes.sizes) == {"dense + raw", "dense + planes"}


def test_words_in_a_codec_of_differences() -> None:
    with OrderedMap(1) as pool, pytest.raises(UsageError, match=r"'w'.*new: .*'packed'"):
        encode_words(
            1, 2, "new", reader(np.zeros(1, "<u2")), pool=pool, name="w",
            choice=parse_choice("gap8+packed2"),
        )  # fmt: skip


def test_dense_blocks_are_segments() -> None:
    with OrderedMap(2) as pool:
        part = encode_words(
            (1 << 22) + 5, 1, "drop", lambda start, stop: np.zeros(stop - start, "<u1"), pool=pool
        )
    assert part.coded.block_log2 == 22
    assert len(part.rows) == 2 * (4 + 16)
