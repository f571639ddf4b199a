"""The atheris harnesses, without atheris: over their seeds, and over what hypothesis makes."""

from __future__ import annotations

import json
import random

import fuzz_codecs
import fuzz_delta
import fuzz_header
import fuzz_manifest
import fuzz_ranked
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json
from sections import canonical
from thorough import examples


@pytest.mark.parametrize(
    "harness", [fuzz_header, fuzz_manifest, fuzz_codecs, fuzz_ranked, fuzz_delta]
)
def test_a_harness_runs_over_its_seeds(harness: object) -> None:
    seeds = list(harness.seeds())  # type: ignore[attr-defined]
    assert len(seeds) > 100
    for seed in seeds:
        harness.one_input(seed)  # type: ignore[attr-defined]


def test_the_seeds_of_the_codecs_are_true_blocks() -> None:
    """Every encoding of every width decodes what it has written."""
    reached = {seed[0] for seed in fuzz_codecs.seeds()}
    assert reached == set(range(len(fuzz_codecs.ENCODINGS)))


RANKED_SEEDS = list(fuzz_ranked.seeds())
CODEC_SEEDS = list(fuzz_codecs.seeds())
HEADER_SEEDS = list(fuzz_header.seeds())
MANIFEST_SEEDS = list(fuzz_manifest.seeds())


@examples(1500)
@given(st.binary(min_size=fuzz_codecs.HEAD.size, max_size=300))
def test_both_readers_decode_any_block_alike(data: bytes) -> None:
    fuzz_codecs.one_input(data)


@examples(1500)
@given(st.sampled_from(CODEC_SEEDS), st.randoms(use_true_random=False))
def test_both_readers_decode_a_changed_block_alike(seed: bytes, rng: random.Random) -> None:
    body = seed[fuzz_codecs.HEAD.size :]
    fuzz_codecs.one_input(seed[: fuzz_codecs.HEAD.size] + mutate_bytes(rng, body))


@examples(2500)
@given(st.sampled_from(RANKED_SEEDS), st.randoms(use_true_random=False), st.integers(0, 3))
def test_both_readers_read_a_changed_ranked_block_alike(
    seed: bytes, rng: random.Random, times: int
) -> None:
    """Without its base and with it: what numbers, codes and lengths say is changed most."""
    for _ in range(times):
        seed = fuzz_ranked.inflated(rng, seed)
    if not times:
        seed = seed[: fuzz_ranked.HEAD.size] + mutate_bytes(rng, seed[fuzz_ranked.HEAD.size :])
    fuzz_ranked.one_input(seed)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b'{"a":-0"b"}', "SD102"),
        (b'{"a":999999999999999999999,}', "SD102"),
        (b"999999999999999999999", "SD102"),
        (b'"\\ud800"', "SD102"),
        (b'{"a":"\\ud800"}\t', "SD102"),
        (b'{"a":-0,"a":1}', "SD102"),
        (b'{"a":-0}', "SD103"),
        (b'{"a":999999999999999999999}', "SD103"),
        (b'{"a":"\\ud800"}', "SD103"),
        (b'\t{"a":"b"}', "SD103"),
    ],
)
def test_what_is_no_json_is_told_before_what_is_not_canonical(text: bytes, rule: str) -> None:
    """Found by atheris: a number that is not canonical was told before a broken text behind it."""
    fuzz_header.one_input(b"\xff" + text)
    assert fuzz_header.of_package(fuzz_header.whole(text)) == rule


@examples(500)
@given(st.sampled_from(HEADER_SEEDS), st.randoms(use_true_random=False))
def test_both_readers_judge_a_changed_header_alike(seed: bytes, rng: random.Random) -> None:
    fuzz_header.one_input(seed[:1] + mutate_bytes(rng, seed[1:]))


@examples(500)
@given(st.sampled_from(MANIFEST_SEEDS), st.randoms(use_true_random=False))
def test_both_readers_judge_a_changed_manifest_alike(seed: bytes, rng: random.Random) -> None:
    manifest = json.loads(seed)
    for _ in range(rng.randint(1, 3)):
        mutate_json(rng, manifest)
    fuzz_manifest.one_input(canonical(manifest))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@examples(300)
@given(JSON, st.sampled_from(("base", "set", "layout", "tensors", "blobs", "files", "metadata")))
def test_both_readers_judge_any_value_in_a_manifest_alike(value: object, key: str) -> None:
    manifest = json.loads(MANIFEST_SEEDS[0])
    fuzz_manifest.one_input(canonical(manifest | {key: value}))
    fuzz_manifest.one_input(canonical(value))
