"""Laws of chains of deltas, bit for bit: squash, invert, apply and revert (spec section 5.1)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, structured_chains

import sparsedelta
from sparsedelta import Part, StructureError, TensorDelta, TensorSpec
from sparsedelta.manifest import Manifest
from sparsedelta.records import TensorRecord

CHANGES: Final = ("changes", "goes", "grows", "shrinks", "changes its dtype", "changes its shape")
"""What may become of a tensor that is never looked for under another name."""

WITH_SEGMENTS: Final = (
    "operations.arrows",
    "operations.scanning",
    "operations.tracing",
    "operations.squash",
)
"""Modules of operations that know the size of a segment."""

options: Final = st.fixed_dictionaries(
    {}, optional={"lean": st.just(True), "layout": st.sampled_from(["always", "never"])}
)


class Chain:
    """Checkpoints in files, and the deltas between them."""

    def __init__(
        self, folder: Path, states: Sequence[Tensors], diffs: Sequence[dict[str, Any]]
    ) -> None:
        self.folder = folder
        self.states = []
        for number, tensors in enumerate(states):
            path = folder / f"state{number}"
            path.write_bytes(checkpoint_bytes(tensors))
            self.states.append(path)
        self.deltas = [
            self.diff(number, number + 1, f"d{number}", **each) for number, each in enumerate(diffs)
        ]

    def diff(self, base: int, target: int, name: str, **each: Any) -> Path:  # noqa: ANN401 (passed on)
        """The delta between two of the checkpoints."""
        out = self.folder / name
        sparsedelta.diff(self.states[base], self.states[target], out, unrelated=True, **each)
        return out

    def squash(self, name: str, *deltas: Path, **each: Any) -> Path:  # noqa: ANN401 (passed on)
        """One delta of several."""
        sparsedelta.squash(deltas, self.folder / name, **each)
        return self.folder / name


@contextmanager
def stored(
    states: Sequence[Tensors], diffs: Sequence[dict[str, Any]] | None = None
) -> Iterator[Chain]:
    with tempfile.TemporaryDirectory() as name:
        yield Chain(Path(name), states, diffs or [{}] * (len(states) - 1))


def manifest(path: Path) -> Manifest:
    with sparsedelta.DeltaReader(path) as reader:
        return reader.manifest


def content(path: Path) -> str:
    """The content digest, after every check of the specification."""
    with sparsedelta.DeltaReader(path) as reader:
        return reader.read().content


def come_back(states: Sequence[Tensors]) -> bool:
    """Whether a tensor goes and one of its name comes."""
    return any(
        name not in middle and any(name in late for late in states[number + 2 :])
        for number, (early, middle) in enumerate(pairwise(states))
        for name in early
    )


def is_copy_or_rename(record: TensorRecord) -> bool:
    """Whether a record concerns tensors of two names."""
    return record.renamed or any(part.reference is not None for part in record.parts)


def distinct(chain: Chain) -> bool:
    """Whether no checkpoint comes twice: a circle has no order but the one that is given."""
    ends = [manifest(path).base for path in chain.deltas]
    return len({*ends, manifest(chain.deltas[-1]).target}) == len(chain.states)


def tried(chain: Chain, name: str, *deltas: Path, **each: Any) -> Path:  # noqa: ANN401 (passed on)
    """A squash, or no example where words would be needed that no delta holds."""
    try:
        return chain.squash(name, *deltas, **each)
    except StructureError as error:
        assert "without the base" in error.message or "cannot be stored" in error.message  # noqa: PT017
        assume(False)
        raise


@given(states=structured_chains(), diffs=st.lists(options, min_size=3, max_size=3))
@settings(max_examples=20)
def test_a_squashed_chain_does_what_the_chain_does(
    states: list[Tensors], diffs: list[dict[str, Any]]
) -> None:
    """apply(base, squash(d1, d2, d3)) is the last target, revert of it the base."""
    with stored(states, diffs) as chain:
        out = tried(chain, "s", *chain.deltas)
        found = manifest(out)
        first, last = manifest(chain.deltas[0]), manifest(chain.deltas[-1])
        assert (found.base, found.target) == (first.base, last.target)
        assert sparsedelta.validate(out, base=chain.states[0]).problems == ()
        sparsedelta.apply(chain.states[0], out, chain.folder / "there")
        assert str(sparsedelta.fingerprint(chain.folder / "there")) == last.target
        assert found.invertible
        sparsedelta.revert(chain.states[-1], out, chain.folder / "back")
        assert str(sparsedelta.fingerprint(chain.folder / "back")) == first.base


@given(
    states=structured_chains(returning=False) | structured_chains(fates=CHANGES),
    lean=st.booleans(),
)
@settings(max_examples=20)
def test_squash_is_associative(states: list[Tensors], *, lean: bool) -> None:
    """squash(squash(a, b), c) = squash(a, squash(b, c)) = squash(a, b, c), as content digests.

    A tensor that goes and comes back as it was is none that was touched; what was copied from it
    meanwhile is a copy for who knows it, and words for who does not: this case is left out.
    """
    with stored(states, [{"lean": lean}] * 3) as chain:
        a, b, c = chain.deltas
        records = [record for path in chain.deltas for record in manifest(path).tensors]
        assume(not come_back(states) or not any(map(is_copy_or_rename, records)))
        left = tried(chain, "left", tried(chain, "ab", a, b), c)
        right = tried(chain, "right", a, tried(chain, "bc", b, c))
        assert content(left) == content(right) == content(tried(chain, "abc", a, b, c))


@given(states=structured_chains(), forms=st.lists(options, min_size=3, max_size=3), data=st.data())
@settings(max_examples=20)
def test_a_chain_is_applied_as_its_deltas_are_one_by_one(
    states: list[Tensors], forms: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Files byte for byte, whatever the order of arguments; and back; and from an inner link."""
    with stored(states, forms) as chain:
        assume(distinct(chain))
        shuffled = data.draw(st.permutations(chain.deltas))
        step = chain.states[0]
        for number, delta in enumerate(chain.deltas):
            sparsedelta.apply(step, delta, chain.folder / f"step{number}")
            step = chain.folder / f"step{number}"
        report = sparsedelta.apply(chain.states[0], shuffled, chain.folder / "there")
        assert (chain.folder / "there").read_bytes() == step.read_bytes()
        assert report.deltas == tuple(map(str, chain.deltas))
        inner = sparsedelta.apply(chain.folder / "step0", shuffled, chain.folder / "inner")
        assert (chain.folder / "inner").read_bytes() == step.read_bytes()
        assert inner.skipped == (str(chain.deltas[0]),)
        for number, delta in reversed(list(enumerate(chain.deltas))):
            sparsedelta.revert(step, delta, chain.folder / f"back{number}")
            step = chain.folder / f"back{number}"
        sparsedelta.revert(chain.folder / "there", shuffled, chain.folder / "back")
        assert (chain.folder / "back").read_bytes() == step.read_bytes()


@given(states=structured_chains(length=1))
@settings(max_examples=20)
def test_a_delta_and_its_inverse_come_to_nothing(states: list[Tensors]) -> None:
    """squash(d, invert(d)) is empty, invert(invert(d)) is d, and the inverse is that in memory."""
    with stored(states) as chain:
        (there,) = chain.deltas
        sparsedelta.invert(there, chain.folder / "inverse")
        sparsedelta.invert(chain.folder / "inverse", chain.folder / "again")
        assert content(chain.folder / "again") == content(there)
        with sparsedelta.DeltaReader(there) as reader:
            assert content(chain.folder / "inverse") == reader.read().invert().content
        sparsedelta.apply(chain.states[1], chain.folder / "inverse", chain.folder / "back")
        assert str(sparsedelta.fingerprint(chain.folder / "back")) == manifest(there).base
        for one, other in ((there, "inverse"), (chain.folder / "inverse", "again")):
            nothing = manifest(tried(chain, f"{other}0", one, chain.folder / other))
            assert (nothing.tensors, nothing.base) == ((), nothing.target)


@given(states=structured_chains(fates=CHANGES), data=st.data())
@settings(max_examples=20)
def test_where_names_stay_a_squash_is_the_diff_of_the_ends(
    states: list[Tensors], data: st.DataObject
) -> None:
    """The content digest of diff(first, last), from deltas alone; the order changes no byte."""
    with stored(states) as chain:
        out = tried(chain, "s", *chain.deltas)
        direct = chain.diff(0, len(states) - 1, "direct")
        # Content may have come back under the name of another tensor: diff finds a copy there.
        assume(not any(map(is_copy_or_rename, manifest(direct).tensors)))
        assert content(out) == content(direct)
        if distinct(chain):
            other = chain.squash("other", *data.draw(st.permutations(chain.deltas)), threads=3)
            assert other.read_bytes() == out.read_bytes()


@given(
    states=structured_chains(),
    forms=st.lists(
        st.sampled_from([{}, {"one_way": True}, {"forget": True}]), min_size=3, max_size=3
    ),
)
@settings(max_examples=20)
def test_what_leads_one_way_is_squashed_with_forget(
    states: list[Tensors], forms: list[dict[str, Any]]
) -> None:
    """Words that are nowhere any more are not needed to go ahead."""
    with stored(states, forms) as chain:
        out = tried(chain, "s", *chain.deltas, forget=True)
        assert sparsedelta.validate(out, base=chain.states[0]).problems == ()
        sparsedelta.apply(chain.states[0], out, chain.folder / "there")
        assert str(sparsedelta.fingerprint(chain.folder / "there")) == manifest(out).target
        shorter = tried(chain, "ab", *chain.deltas[:2], forget=True)
        again = tried(chain, "again", shorter, chain.deltas[2], forget=True)
        sparsedelta.apply(chain.states[0], again, chain.folder / "too")
        assert (chain.folder / "too").read_bytes() == (chain.folder / "there").read_bytes()


MAPS: Final = [("difference", value) for value in range(4)] + [("replace", v) for v in range(4)]
"""Every map of a word of two bits: add a difference, or become a word."""


def test_single_words_are_squashed_associatively_exhaustively(tmp_path: Path) -> None:
    """Every three maps of a word, in one tensor of an element for each: both ways agree."""
    triples = list(product(MAPS, repeat=3))
    spec = TensorSpec("w", "U8", (len(triples),))
    start = np.arange(len(triples), dtype=np.uint8)
    words, deltas = start.copy(), []
    for number in range(3):
        base, out = tmp_path / f"base{number}", tmp_path / f"d{number}"
        base.write_bytes(checkpoint_bytes({"w": (spec, words.tobytes())}))
        parts = []
        for op in ("difference", "replace"):
            chosen = [
                (n, maps[number][1]) for n, maps in enumerate(triples) if maps[number][0] == op
            ]
            # A difference is of two bits within the byte: the upper ones, which wrap.
            chosen = [(n, value * 64) for n, value in chosen if value or op == "replace"]
            indices, values = (np.array(each) for each in zip(*chosen, strict=True))
            parts.append(Part(op, indices, values.astype(np.uint8)))
        sparsedelta.write_delta(base, [TensorDelta(spec, spec, tuple(parts))], out)
        sparsedelta.apply(base, out, tmp_path / f"next{number}")
        words = np.frombuffer((tmp_path / f"next{number}").read_bytes()[-len(triples) :], np.uint8)
        deltas.append(out)
    a, b, c = deltas
    sparsedelta.squash([a, b], tmp_path / "ab")
    sparsedelta.squash([b, c], tmp_path / "bc")
    sparsedelta.squash([tmp_path / "ab", c], tmp_path / "left")
    sparsedelta.squash([a, tmp_path / "bc"], tmp_path / "right")
    assert content(tmp_path / "left") == content(tmp_path / "right")
    with sparsedelta.DeltaReader(tmp_path / "left") as reader:
        found = {part.op: part.entries for part in reader.read().tensors["w"].parts}
    indices, _ = found["replace"]
    # A word is replaced exactly if any of the three maps replaced it, and is what they make of it.
    assert indices.tolist() == [
        n for n, maps in enumerate(triples) if any(op == "replace" for op, _ in maps)
    ]
    assert np.array_equal(found["replace"][1], words[indices])
    indices, differences = found["difference"]
    assert np.array_equal(differences, words[indices] - start[indices])
    assert np.all(differences)
    sparsedelta.apply(tmp_path / "base0", tmp_path / "left", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "next2").read_bytes()


def test_segments_and_blocks_of_any_size_in_a_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of the deltas differ in size from each other and from segments; all are small."""
    for module in ("checkpoint", "changes", "digests", "rereading", *WITH_SEGMENTS):
        monkeypatch.setattr(f"sparsedelta.{module}.SEGMENT_WORDS", 512)
    rng = np.random.default_rng(0)
    rows = [5000, 4100, 4700, 4700]
    states: list[Tensors] = []
    words = rng.integers(0, 1 << 16, 5000).astype(np.uint16)
    for count in rows:
        spec = TensorSpec("w", "BF16", (count, 1))
        words = np.concatenate([words, rng.integers(0, 9, 5000).astype(np.uint16)])[:count]
        words[rng.random(count) < 0.1] += 1
        states.append({"w": (spec, words.tobytes())})
    chain = Chain(tmp_path, states, [])
    blocks = iter((8, 13, 10))
    for number in range(3):
        size = next(blocks)
        monkeypatch.setattr("sparsedelta.encode.choose_block_log2", lambda *_, b=size: b)
        chain.deltas.append(chain.diff(number, number + 1, f"d{number}"))
    for threads in (1, 3):
        one = tmp_path / f"one{threads}"
        sparsedelta.squash(chain.deltas, one, threads=threads)
        sparsedelta.invert(one, tmp_path / f"inverse{threads}", threads=threads)
        assert content(one) == content(chain.diff(0, 3, f"direct{threads}"))
        for base, deltas, target in ((0, [one], 3), (0, chain.deltas, 3)):
            out = tmp_path / "out"
            sparsedelta.apply(chain.states[base], deltas, out, threads=threads, force=True)
            assert out.read_bytes() == chain.states[target].read_bytes()
            sparsedelta.revert(chain.states[target], deltas, out, threads=threads, force=True)
            assert out.read_bytes() == chain.states[base].read_bytes()
        inverse = tmp_path / f"inverse{threads}"
        sparsedelta.apply(chain.states[3], inverse, tmp_path / "out", force=True)
        assert (tmp_path / "out").read_bytes() == chain.states[0].read_bytes()
    assert (tmp_path / "one1").read_bytes() == (tmp_path / "one3").read_bytes()
    assert (tmp_path / "inverse1").read_bytes() == (tmp_path / "inverse3").read_bytes()
