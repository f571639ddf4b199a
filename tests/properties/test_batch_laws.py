"""Laws of batches: what comes of small tensors, or fails, does not tell how many went together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, seeds
from thorough import examples

import sparsedelta
from sparsedelta import DeltaReader, FormatError, RemoteError, StructureError, WrongBaseError
from sparsedelta.batches import together
from sparsedelta.codecs import CodedBlock, Ranked, StreamError
from sparsedelta.container import BlockRequest
from sparsedelta.delta import DIFFERENCE
from sparsedelta.errors import SparseDeltaError
from sparsedelta.header import DATA
from sparsedelta.operations.arrows import stays
from sparsedelta.operations.batched_runs import batches
from sparsedelta.words import Indices, TensorSpec, Words

WIDTH: Final = 30

FATES: Final = ("changes", "changes", "changes", "stays", "grows", "shrinks", "goes", "is new")
"""What becomes of a tensor in the first step; in the others all that are there change."""

SIZES: Final = (1, 5000, 1 << 22)
"""Batches of a tensor each, of some, of all."""

WAYS: Final = tuple(product(SIZES, (1, 3)))

Outcome = dict[str, bytes] | tuple[type[Exception], str]


@contextmanager
def batches_of(size: int) -> Iterator[None]:
    """Let batches have this many bytes."""
    with (
        mock.patch("sparsedelta.operations.batched_runs.BATCH_BYTES", size),
        mock.patch("sparsedelta.operations.entry_rules.BATCH_BYTES", size),
    ):
        yield


def tensor(name: str, numbers: np.ndarray[Any, Any], dtype: str = "F16") -> Tensors:
    """A tensor of rows of WIDTH words."""
    return {name: (TensorSpec(name, dtype, (numbers.size // WIDTH, WIDTH)), numbers.tobytes())}


def trained(tensors: Tensors, chance: np.random.Generator) -> Tensors:
    """A few words of each a step further."""
    made = {}
    for name, (spec, data) in tensors.items():
        words = np.frombuffer(data, spec.word_dtype).copy()
        at = np.flatnonzero(chance.random(words.size) < 0.1)
        words[at] += chance.choice(np.array([1, 2], words.dtype), at.size)
        made[name] = (spec, words.tobytes())
    return made


def small_chain(seed: int, fates: Sequence[str], steps: int) -> list[Tensors]:
    """Checkpoints of small matrices, one after the other."""
    chance = np.random.default_rng(seed)
    first: Tensors = {}
    for number in range(len(fates)):
        rows = int(chance.integers(20, 60))
        numbers = chance.standard_normal(rows * WIDTH)
        wide = number % 4 == 3
        made = numbers.astype("<f4" if wide else "<f2")
        first |= tensor(f"t{number}", made, "F32" if wide else "F16")
    second = trained(first, chance)
    for (name, (spec, data)), fate in zip(first.items(), fates, strict=True):
        words = np.frombuffer(second[name][1], spec.word_dtype)
        if fate == "stays":
            second[name] = (spec, data)
        elif fate == "grows":
            second |= tensor(name, np.concatenate([words, words[:WIDTH]]), spec.dtype)
        elif fate == "shrinks":
            second |= tensor(name, words[:-WIDTH], spec.dtype)
        elif fate == "goes":
            del second[name]
        elif fate == "is new":
            second |= tensor(f"new-{name}", words[::-1], spec.dtype)
    states = [first, second]
    while len(states) <= steps:
        states.append(trained(states[-1], chance))
    return states


class Case:
    """A chain in files: its first checkpoint, its last, and the deltas between them."""

    def __init__(self, folder: Path, states: Sequence[Tensors], profiles: Sequence[str]) -> None:
        self.folder = folder
        self.states = [folder / f"s{number}" for number in range(len(states))]
        for path, state in zip(self.states, states, strict=True):
            path.write_bytes(checkpoint_bytes(state))
        self.base = self.states[0]
        self.deltas = []
        for number, (ends, profile) in enumerate(zip(pairwise(self.states), profiles, strict=True)):
            self.deltas.append(folder / f"d{number}")
            sparsedelta.diff(*ends, self.deltas[-1], profile=profile, unrelated=True)

    def outcomes(self, deed: Deed) -> Outcome:
        """What a deed leaves in a folder, or what it fails with: the same for every way."""
        found = [self._outcome(deed, *way) for way in WAYS]
        for way, outcome in zip(WAYS, found, strict=True):
            assert outcome == found[0], way
        return found[0]

    def _outcome(self, deed: Deed, size: int, threads: int) -> Outcome:
        place = self.folder / "place"
        place.mkdir()
        try:
            with batches_of(size):
                deed(self, place, threads)
            return {path.name: path.read_bytes() for path in place.iterdir()}
        except SparseDeltaError as error:
            assert not (place / "out").exists()
            return type(error), str(error)
        finally:
            shutil.rmtree(place)


Deed = Callable[[Case, Path, int], object]
"""Does something in a folder, with so many threads."""


def apply(case: Case, place: Path, threads: int) -> None:
    sparsedelta.apply(case.base, case.deltas, place / "out", threads=threads)


def apply_with_undo(case: Case, place: Path, threads: int) -> None:
    undo = place / "undo"
    sparsedelta.apply(case.base, case.deltas, place / "out", undo=undo, threads=threads)


def change_in_place(case: Case, place: Path, threads: int) -> None:
    shutil.copy(case.base, place / "changed")
    sparsedelta.apply(place / "changed", case.deltas[0], in_place=True, threads=threads)


def validate(case: Case, place: Path, threads: int) -> None:
    """Write down everything that is wrong, without the base and with it."""
    for number, base in enumerate((None, case.base)):
        report = sparsedelta.validate(case.deltas[0], base=base, threads=threads)
        (place / str(number)).write_text(str((report.problems, report.ok, report.unread)))


DEEDS: Final = (apply, apply_with_undo, change_in_place, validate)


def flip(path: Path, position: int) -> None:
    """Damage a bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def flip_block(delta: Path, record: int) -> str | None:
    """Damage a block of differences; return the name of its tensor, None if there is none."""
    with DeltaReader(delta) as reader:
        parts = [
            (each.name, number)
            for each in reader.manifest.tensors
            for number, part in each.coded
            if part.op == DIFFERENCE
        ]
        if not parts:
            return None
        name, number = parts[record % len(parts)]
        table = reader.tables.tensors[name].blocks(number)
        position = reader.header.ranges[DATA][0] + int(table.offsets[0])
    flip(delta, position)
    return name


chains = st.builds(
    small_chain,
    seeds,
    st.lists(st.sampled_from(FATES), min_size=3, max_size=7),
    st.integers(1, 3),
)


@given(
    states=chains,
    profiles=st.lists(st.sampled_from(["compact", "compact", "portable"]), min_size=3, max_size=3),
    deed=st.sampled_from(DEEDS),
    fault=st.sampled_from(["none", "none", "block", "two deltas", "base"]),
    at=st.integers(0, 20),
)
@examples(60)
def test_neither_result_nor_error_depends_on_the_batches(
    states: list[Tensors], profiles: list[str], deed: Deed, fault: str, at: int
) -> None:
    """For any number of threads; a damaged block and a wrong base in their midst included."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), states, profiles[: len(states) - 1])
        damaged: dict[Path, str] = {}
        for number in range({"block": 1, "two deltas": 2}.get(fault, 0)):
            delta = case.deltas[(at + number) % len(case.deltas)]
            name = None if delta in damaged else flip_block(delta, at)
            if name is not None:
                damaged[delta] = name
        if fault == "base":
            sizes = [len(data) for _, data in states[0].values()]
            flip(case.base, case.base.stat().st_size - 1 - sum(sizes[: at % len(sizes)]))
        found = case.outcomes(deed)
        is_well = fault != "base" and not damaged
        if is_well and deed is apply:
            assert isinstance(found, dict)
            reached = sparsedelta.fingerprint(case.states[-1])
            (case.folder / "out").write_bytes(found["out"])
            assert sparsedelta.fingerprint(case.folder / "out") == reached
        elif deed is apply:
            assert isinstance(found, tuple), fault
            assert fault == "base" or any(f"{name!r}" in found[1] for name in damaged.values())


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """One compact delta of many small tensors, whose blocks have entries of different numbers."""
    case = Case(tmp_path, small_chain(0, ["changes"] * 7, 1), ["compact"])
    with DeltaReader(case.deltas[0]) as reader:
        counts = [record.nnz for record in reader.manifest.tensors if record.needs_base]
        assert len(counts) == len(set(counts)) == 6
    return case


def counts_of(case: Case, *names: str) -> list[int]:
    with DeltaReader(case.deltas[0]) as reader:
        return [reader.records[name].nnz for name in names]


Decode = Callable[[Ranked, Sequence[CodedBlock]], list[tuple[Indices, Words]]]


def decoder(monkeypatch: pytest.MonkeyPatch, before: Callable[[CodedBlock], None]) -> list[int]:
    """Do something for each block that is decoded; return how many are so at a time."""
    decode_all: Decode = Ranked.decode_all
    calls: list[int] = []

    def decode(codec: Ranked, coded: Sequence[CodedBlock]) -> list[tuple[Indices, Words]]:
        calls.append(len(coded))
        for each in reversed(coded):  # a codec need not look at the first one first
            before(each)
        return decode_all(codec, coded)

    monkeypatch.setattr(Ranked, "decode_all", decode)
    return calls


def test_small_tensors_are_decoded_together(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call of the codec, whichever operation it is; of big ones each has its own."""
    calls = decoder(monkeypatch, lambda _: None)
    for number, (size, expected) in enumerate(((1 << 22, [6]), (1, [1] * 6))):
        place = tmp_path / str(number)
        place.mkdir()
        with batches_of(size):
            for deed in (apply, change_in_place):
                calls.clear()
                deed(case, place, 1)
                assert calls == expected
            calls.clear()
            assert sparsedelta.validate(case.deltas[0], base=case.base, threads=1).ok
            assert calls == expected * 2  # the proof, and the entries


def test_a_block_that_breaks_a_rule_is_named_though_others_went_with_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them, by every operation; of validate both, once each."""
    bad = counts_of(case, "t1", "t4")

    def refuse(coded: CodedBlock) -> None:
        if coded.count in bad:
            raise StreamError("SD417", f"entries: {coded.count}")

    decoder(monkeypatch, refuse)
    expected = [
        f"SD417: {case.deltas[0]}: tensor {name!r}, difference, block 0: entries: {count}"
        for name, count in zip(("t1", "t4"), bad, strict=True)
    ]
    for deed in (apply, apply_with_undo, change_in_place):
        found = case.outcomes(deed)
        assert isinstance(found, tuple)
        assert found[0] is FormatError
        assert expected[0] in found[1]
    report = sparsedelta.validate(case.deltas[0], base=case.base, threads=1)
    assert [problem.message for problem in report.problems] == expected


@pytest.mark.parametrize("deed", [apply, apply_with_undo, change_in_place])
def test_no_block_is_decoded_on_a_wrong_base_in_the_midst_of_a_batch(
    deed: Deed, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = small_chain(0, ["changes"] * 7, 1)[0]
    spec, data = tensors["t4"]
    wrong = bytes([data[0] ^ 1]) + data[1:]
    case.base.write_bytes(checkpoint_bytes({**tensors, "t4": (spec, wrong)}))
    decoded: list[bytes] = []
    decoder(monkeypatch, lambda coded: decoded.append(np.asarray(coded.block.base).tobytes()))
    found = case.outcomes(deed)
    assert isinstance(found, tuple)
    assert found[0] is WrongBaseError
    assert "'t4'" in found[1]
    assert tensors["t0"][1] in decoded  # one by one, or in a batch of its own
    assert wrong not in decoded


@pytest.mark.parametrize("shard", [None, 1])
def test_blocks_are_read_together_as_one_by_one(
    shard: int | None, case: Case, tmp_path: Path
) -> None:
    """Whichever files of a set they lie in, and however they are encoded."""
    out = tmp_path / "delta"
    base, target = case.states
    sparsedelta.diff(base, target, out, profile="compact", max_shard_size=shard)
    tensors = small_chain(0, ["changes"] * 7, 1)[0]
    with DeltaReader(out) as reader:
        assert (len(reader.files) > 1) is (shard is not None)
        requests = [
            BlockRequest(record, 0, 0, np.frombuffer(tensors[name][1], tensors[name][0].word_dtype))
            for name, record in reader.records.items()
        ]
        assert {request.record.needs_base for request in requests} == {True, False}
        for found, request in zip(reader.read_blocks(requests), requests, strict=True):
            alone = reader.read_block(*request[:3], base=request.base)
            for one, other in zip(found, alone, strict=True):
                assert np.array_equal(one, other)
        assert reader.read_blocks([]) == []
        bare = requests[2]._replace(base=None)
        with pytest.raises(StructureError, match="'t2' is encoded with ranked"):
            reader.read_blocks([*requests[:2], bare, *requests[3:]])


def test_the_first_of_several_faults_is_told_of_whatever_kind(case: Case, tmp_path: Path) -> None:
    """A block without its base words behind one that is damaged, and the other way round."""
    name = flip_block(case.deltas[0], 1)
    assert name == "t1"
    tensors = small_chain(0, ["changes"] * 7, 1)[0]
    with DeltaReader(case.deltas[0]) as reader:
        damaged, bare = (
            BlockRequest(reader.records[name], 0, 0, base)
            for name, base in (("t1", np.frombuffer(tensors["t1"][1], "<u2")), ("t2", None))
        )
        with pytest.raises(FormatError, match=r"'t1'.*block 0"):
            reader.read_blocks([damaged, bare])
        with pytest.raises(StructureError, match="'t2'"):
            reader.read_blocks([bare, damaged])


def test_runs_keep_their_order_in_batches() -> None:
    arrows = [stays(TensorSpec(str(rows), "U8", (rows, 100))) for rows in (3, 0, 40, 5, 1, 2)]
    with batches_of(1000):
        found = list(batches(arrows))
    assert [[stop for _, _, stop in batch] for batch in found] == [[300, 4000], [500, 100, 200]]
    assert [run[0].result for batch in found for run in batch] == [
        arrow.result for arrow in arrows if arrow.words
    ]


def test_what_a_batch_cannot_do_is_tried_one_by_one() -> None:
    """But not where each attempt takes long."""
    tried: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(list(items))
        if 3 in items:
            raise RemoteError("out of reach") if 9 in items else ValueError(max(items))
        return [2 * item for item in items]

    assert together(work, [1, 2, 4]) == [2, 4, 8]
    assert tried == [[1, 2, 4]]
    tried.clear()
    with pytest.raises(ValueError, match=r"^3$"):
        together(work, [1, 3, 4])
    assert tried == [[1, 3, 4], [1], [3]]
    tried.clear()
    with pytest.raises(RemoteError):
        together(work, [1, 3, 9])
    assert tried == [[1, 3, 9]]
    assert together(work, []) == []
