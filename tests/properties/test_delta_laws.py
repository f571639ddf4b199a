"""Laws of deltas on files, compared bit for bit (spec sections 4 to 8)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, checkpoint_pairs, profiles, random_values
from thorough import examples

import sparsedelta
from sparsedelta.changes import Changes
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import Bitmask, Dense, Encoding, Gap8, Packed, Planes, ValueCodec, Zigzag
from sparsedelta.digests import segment_digest
from sparsedelta.encode import EncodedTensor, encode_part
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Indices, TensorSpec, Words, as_words
from sparsedelta.writer import DeltaWriter

Pair = tuple[Tensors, Tensors]


@contextmanager
def files(pair: Pair) -> Iterator[tuple[Path, Path, Path]]:
    """A folder, and base and target in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, target = folder / "base.safetensors", folder / "target.safetensors"
        base.write_bytes(checkpoint_bytes(pair[0]))
        target.write_bytes(checkpoint_bytes(pair[1]))
        yield folder, base, target


def dense_support(pair: Pair) -> dict[str, tuple[Indices, Words, Words]]:
    """What changed, found the naive way: indices, old words, new words."""
    found = {}
    for name, (spec, data) in pair[0].items():
        old = np.frombuffer(data, spec.word_dtype)
        new = np.frombuffer(pair[1][name][1], spec.word_dtype)
        indices = np.array([i for i in range(spec.words) if old[i] != new[i]], np.int64)
        if indices.size:
            found[name] = (indices, old[indices], new[indices])
    return found


@given(pair=checkpoint_pairs(), one_way=st.booleans(), profile=profiles)
@examples(120)
def test_apply_leads_from_base_to_target(pair: Pair, *, one_way: bool, profile: str) -> None:
    """apply(base, diff(base, t)) = t, file for file, and no temporary file stays."""
    with files(pair) as (folder, base, target):
        delta, out = folder / "d", folder / "out"
        report = sparsedelta.diff(base, target, delta, one_way=one_way, profile=profile)
        applied = sparsedelta.apply(base, delta, out)
        assert out.read_bytes() == target.read_bytes()
        assert applied.fingerprint == sparsedelta.fingerprint(target).fingerprint
        assert report.size == delta.stat().st_size
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            ["base.safetensors", "target.safetensors", "d", "out"]
        )


@given(pair=checkpoint_pairs())
@examples(60)
def test_revert_leads_back(pair: Pair) -> None:
    """revert(t, diff(base, t)) = base."""
    with files(pair) as (folder, base, target):
        sparsedelta.diff(base, target, folder / "d")
        sparsedelta.revert(target, folder / "d", folder / "back")
        assert (folder / "back").read_bytes() == base.read_bytes()


@given(pair=checkpoint_pairs())
@examples(40)
def test_the_delta_of_equals_is_empty(pair: Pair) -> None:
    """diff(a, a) touches nothing."""
    with files(pair) as (folder, base, _):
        manifest = sparsedelta.diff(base, base, folder / "d").manifest
        assert (manifest.nnz, manifest.tensors) == (0, ())
        assert manifest.base == manifest.target
        assert not sparsedelta.apply(base, folder / "d", folder / "out").changed


@given(pair=checkpoint_pairs(), one_way=st.booleans())
@examples(80)
def test_a_delta_holds_exactly_the_support(pair: Pair, one_way: bool) -> None:  # noqa: FBT001
    """Section 1: entries are the words that differ, compared as words."""
    expected = dense_support(pair)
    with files(pair) as (folder, base, target):
        sparsedelta.diff(base, target, folder / "d", one_way=one_way)
        with sparsedelta.DeltaReader(folder / "d") as reader:
            delta = reader.read()
    assert set(delta.tensors) == set(expected)
    for name, (indices, old, new) in expected.items():
        (part,) = delta.tensors[name].parts
        assert np.array_equal(part.entries[0], indices)
        assert np.array_equal(part.entries[1], new if one_way else new - old)


@given(pair=checkpoint_pairs())
@examples(60)
def test_inverting_twice_changes_nothing(pair: Pair) -> None:
    """invert(invert(d)) = d, and one inversion leads back."""
    with files(pair) as (folder, base, target):
        sparsedelta.diff(base, target, folder / "d")
        sparsedelta.diff(target, base, folder / "r")
        with (
            sparsedelta.DeltaReader(folder / "d") as there,
            sparsedelta.DeltaReader(folder / "r") as back,
        ):
            delta = there.read()
            assert delta.invert().invert() == delta
            assert delta.invert() == back.read()
            assert delta.invert().content == back.manifest.content


@given(pair=checkpoint_pairs(), threads=st.integers(2, 6))
@examples(30)
def test_any_number_of_threads_writes_the_same_bytes(pair: Pair, threads: int) -> None:
    """Section 2 of the format's promises: same inputs, same bytes."""
    with files(pair) as (folder, base, target):
        sparsedelta.diff(base, target, folder / "one", threads=1)
        sparsedelta.diff(base, target, folder / "many", threads=threads)
        assert (folder / "one").read_bytes() == (folder / "many").read_bytes()


@given(pair=checkpoint_pairs(), data=st.data())
@examples(40)
def test_identity_ignores_order_and_files(pair: Pair, data: st.DataObject) -> None:
    """Section 4: neither the order of tensors nor their division into files is part of it."""
    names = data.draw(st.permutations(sorted(pair[0])))
    cut = data.draw(st.integers(0, len(names)))
    with files(pair) as (folder, base, _):
        shards = folder / "shards"
        shards.mkdir()
        weight_map: dict[str, str] = {}
        for number, group in enumerate((names[:cut], names[cut:])):
            shard = f"part-{number}.safetensors"
            (shards / shard).write_bytes(checkpoint_bytes({n: pair[0][n] for n in group}))
            weight_map |= dict.fromkeys(group, shard)
        if len(set(weight_map.values())) != 2:
            return
        (shards / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": weight_map}), encoding="utf-8"
        )
        assert sparsedelta.fingerprint(shards) == sparsedelta.fingerprint(base)


def encodings_of(changes: Changes) -> list[Encoding]:
    """A spread of encodings that can hold any difference."""
    values: list[ValueCodec] = [Packed(0), Packed(1), Packed(4), Zigzag(), Planes()]
    sparse = [Encoding("difference", index, v) for index in (Gap8(), Bitmask()) for v in values]
    dense: list[ValueCodec] = [Zigzag(), Planes()]
    return [*sparse, *(Encoding("difference", Dense(), v) for v in dense)]


def write_single(path: Path, changes: Changes, encoding: Encoding, block_log2: int) -> str:
    """Write a delta of one tensor in a given encoding; returns its content digest."""
    spec = changes.spec
    base = np.zeros(spec.nbytes, np.uint8)
    words = as_words(base.copy(), spec.word_bytes)
    for start, indices, values in block_starts(changes, block_log2):
        words[indices + start] += values
    with OrderedMap(1) as pool, DeltaWriter(path) as writer:
        part = encode_part(
            changes,
            "difference",
            pool=pool,
            choice=CodecChoice(encoding.index, encoding.value),
            block_log2=block_log2,
        )
        writer.add(
            EncodedTensor(
                spec,
                spec,
                (part,),
                (segment_digest(base.data),),
                (segment_digest(words.view(np.uint8).data),),
            )
        )
        return writer.finish().content


def block_starts(changes: Changes, block_log2: int) -> Iterator[tuple[int, Indices, Words]]:
    """Blocks of changes with their first word."""
    start = 0
    for words, indices, values in changes.blocks(block_log2):
        yield start, indices, values
        start += words


@given(
    width=st.sampled_from([("U8", 1), ("BF16", 2), ("F32", 4), ("F64", 8)]),
    words=st.integers(1, 5000),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.001, 0.05, 0.5, 1.0]),
)
@examples(25)
def test_content_is_independent_of_codec_and_block_size(
    width: tuple[str, int], words: int, seed: int, density: float
) -> None:
    """Section 8: the identity of a delta is what it says, not how it is written."""
    dtype, word_bytes = width
    rng = np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(words) < density)
    if not indices.size:
        indices = np.array([words - 1])
    values = random_values(rng, indices.size, word_bytes, "small")
    changes = Changes.from_entries(TensorSpec("w", dtype, (words,)), indices, values)
    contents = set()
    with tempfile.TemporaryDirectory() as folder:
        for number, encoding in enumerate(encodings_of(changes)):
            for block_log2 in (8, 10, 24):
                path = Path(folder) / f"{number}-{block_log2}"
                contents.add(write_single(path, changes, encoding, block_log2))
                with sparsedelta.DeltaReader(path) as reader:
                    delta = reader.read()
                assert np.array_equal(delta.tensors["w"].parts[0].entries[0], indices)
                assert np.array_equal(delta.tensors["w"].parts[0].entries[1], values)
    assert len(contents) == 1


def test_segments_and_blocks_larger_and_smaller_than_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans are whole segments and whole blocks, whichever is larger; here with small segments."""
    for module in (
        "sparsedelta.checkpoint",
        "sparsedelta.changes",
        "sparsedelta.digests",
        "sparsedelta.rereading",
        "sparsedelta.operations.arrows",
        "sparsedelta.operations.scanning",
    ):
        monkeypatch.setattr(f"{module}.SEGMENT_WORDS", 512)
    rng = np.random.default_rng(0)
    spec = TensorSpec("w", "BF16", (5000,))
    old = rng.integers(0, 256, spec.nbytes, np.uint8)
    for block_log2 in (8, 9, 11, 13):
        new = old.copy()
        new.view("<u2")[rng.random(5000) < 0.1] += 1
        base, target = tmp_path / "base", tmp_path / "target"
        base.write_bytes(checkpoint_bytes({"w": (spec, old.tobytes())}))
        target.write_bytes(checkpoint_bytes({"w": (spec, new.tobytes())}))
        monkeypatch.setattr("sparsedelta.encode.choose_block_log2", lambda *_, b=block_log2: b)
        for threads in (1, 3):
            sparsedelta.diff(base, target, tmp_path / "d", threads=threads, force=True)
            sparsedelta.apply(base, tmp_path / "d", tmp_path / "o", threads=threads, force=True)
            assert (tmp_path / "o").read_bytes() == target.read_bytes()
            with sparsedelta.DeltaReader(tmp_path / "d") as reader:
                (record,) = reader.manifest.tensors
                assert [part.block_log2 for _, part in record.coded] == [block_log2]
                assert len(reader.tables.tensors["w"].base_segments) == 10
