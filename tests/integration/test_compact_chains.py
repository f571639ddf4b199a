"""Chains of compact deltas with their base at hand: one pass along them, whatever their length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from checkpoint_files import Stored, Tensors, tree, write_file, write_shards
from ranked_decoders import counting

import sparsedelta
from sparsedelta import UsageError, VerificationError
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.operations import undoing
from sparsedelta.operations.recode import RecodedDelta
from sparsedelta.operations.relay import Relay
from sparsedelta.parallel import OrderedMap

SHAPE: Final = (60, 50)
NAMES: Final = ("a", "b")
STEPS: Final = 5
STAYS: Final = Stored("F32", (3,), bytes(12))


def stepped(tensors: Tensors, seed: int) -> Tensors:
    """Some words of each other."""
    chance = np.random.default_rng(seed)
    made = dict(tensors)
    for name, each in tensors.items():
        words = each.words
        at = np.flatnonzero(chance.random(words.size) < 0.08)
        words[at] += chance.choice(np.array([1, 2, 65535], "<u2"), at.size)
        made[name] = Stored(each.dtype, each.shape, words.tobytes())
    return made


def first() -> Tensors:
    numbers = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype("<f2")
    return {
        name: Stored("F16", SHAPE, each.tobytes())
        for name, each in zip(NAMES, numbers, strict=True)
    }


Chain = tuple[list[Path], list[Path]]
"""Checkpoints one after the other, and the compact deltas between them."""


def chain_of(folder: Path, states: list[Tensors]) -> Chain:
    paths = [write_file(folder / f"s{n}", each) for n, each in enumerate(states)]
    deltas = []
    for number, (base, target) in enumerate(pairwise(paths)):
        deltas.append(folder / f"d{number}")
        sparsedelta.diff(base, target, deltas[-1], profile="compact", codec="ranked")
    return paths, deltas


def plain(folder: Path, steps: int = STEPS) -> Chain:
    states = [first()]
    for number in range(steps):
        states.append(stepped(states[-1], number))
        if number == 1:  # one of them rests
            states[-1]["b"] = states[-2]["b"]
    return chain_of(folder, states)


def with_moves(folder: Path, steps: int = STEPS) -> Chain:
    """One tensor gets another name, the other more rows; then both change on."""
    states = [first()]
    states.append(stepped(states[-1], 1))
    moved = stepped(states[-1], 2)
    moved["c"] = moved.pop("a")
    more = Stored("F16", (SHAPE[0] + 1, SHAPE[1]), moved["b"].data + bytes(2 * SHAPE[1]))
    moved["b"] = more
    states.append(moved)
    while len(states) <= steps:
        states.append(stepped(states[-1], len(states)))
    return chain_of(folder, states)


def with_copies(folder: Path, steps: int = STEPS) -> Chain:
    """Of one tensor two copies are made, one after the other, and all of them change on."""
    states = [first()]
    states.append(stepped(states[-1], 1))
    for number, name in enumerate(("0-first", "second"), 2):
        states.append({**stepped(states[-1], number), name: states[-1]["a"]})
    while len(states) <= steps:
        states.append(stepped(states[-1], len(states)))
    return chain_of(folder, states)


def going_and_coming(folder: Path) -> Chain:
    """One tensor goes, comes anew, loses rows; names are exchanged; what is new changes, too."""
    states = [stepped(first(), 1), stepped(first(), 2)]
    gone = stepped(states[-1], 3)
    a = gone.pop("a")
    states.append(gone)
    states.append({**stepped(gone, 4), "a": stepped({"a": a}, 44)["a"], "x": STAYS})
    states.append({**stepped(states[-1], 5), "x": STAYS})
    swapped = stepped(states[-1], 6)
    states.append({**swapped, "a": swapped["b"], "b": swapped["a"], "x": STAYS})
    fewer = stepped(states[-1], 7)
    cut = Stored("F16", (SHAPE[0] - 7, SHAPE[1]), fewer["b"].data[: -14 * SHAPE[1]])
    states.append({**fewer, "b": cut, "x": STAYS})
    states.append({**stepped(states[-1], 8), "x": STAYS})
    return chain_of(folder, states)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Entries of every ranked block that is decoded."""
    return counting(monkeypatch)


Deed = Callable[[list[Path], list[Path], Path], object]
DEEDS: Final[dict[str, Deed]] = {
    "squash": lambda states, deltas, out: sparsedelta.squash(deltas, out, base=states[0]),
    "revert": lambda states, deltas, out: sparsedelta.revert(
        states[-1], deltas, out, base=states[0]
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("make", [plain, with_moves, with_copies])
def test_work_grows_with_the_length_of_a_chain(
    make: Callable[[Path, int], Chain], deed: str, decoded: list[int], tmp_path: Path
) -> None:
    """Each block at most twice: for what is written of it, and for where the next one starts."""
    counts = {}
    for steps in (4, 8):
        folder = tmp_path / str(steps)
        folder.mkdir()
        states, deltas = make(folder, steps)
        decoded.clear()
        DEEDS[deed](states, deltas, folder / "out")
        counts[steps] = len(decoded)
        with ExitStack() as stack:
            readers = [stack.enter_context(sparsedelta.DeltaReader(each)) for each in deltas]
            blocks = sum(record.needs_base for r in readers for record in r.manifest.tensors)
        assert 0 < counts[steps] <= 2 * blocks
    tensors = len(sparsedelta.fingerprint(states[-1]).tensors)
    assert counts[8] - counts[4] == 2 * tensors * 4


@pytest.mark.parametrize("make", [plain, with_moves, with_copies, going_and_coming])
def test_a_chain_is_recoded_as_its_links_are(make: Callable[[Path], Chain], tmp_path: Path) -> None:
    """Each by itself, from the checkpoint that it starts from: the same entries and bytes."""
    states, deltas = make(tmp_path)
    direct = sparsedelta.squash(deltas, tmp_path / "one", base=states[0], threads=1)
    sparsedelta.apply(states[0], tmp_path / "one", tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == states[-1].read_bytes()
    sparsedelta.revert(states[-1], deltas, tmp_path / "back", base=states[0], threads=3)
    assert (tmp_path / "back").read_bytes() == states[0].read_bytes()
    alone = []
    for number, delta in enumerate(deltas):
        alone.append(tmp_path / f"alone-{number}")
        sparsedelta.recode(delta, states[number], alone[-1], profile="portable")
    again = sparsedelta.squash(alone, tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert again.manifest.content == direct.manifest.content
    with OrderedMap(2) as pool, ExitStack() as stack:
        readers = [stack.enter_context(sparsedelta.DeltaReader(each)) for each in deltas]
        base = stack.enter_context(FileCheckpoint(states[0]))
        relay = Relay(base, pool)
        written = {
            reader: stack.enter_context(
                RecodedDelta(reader, relay, tmp_path / f"relay-{n}", profile="portable", pool=pool)
            )
            for n, reader in enumerate(readers)
        }
        relay.run(readers, written)
        for number, each in enumerate(written.values()):
            each.finish()
            assert (tmp_path / f"relay-{number}").read_bytes() == alone[number].read_bytes()


def test_portable_deltas_between_compact_ones_are_followed(tmp_path: Path) -> None:
    states, deltas = plain(tmp_path)
    sparsedelta.squash(deltas, tmp_path / "one", base=states[0])
    for number in (0, 2, 4):
        sparsedelta.diff(states[number], states[number + 1], deltas[number], force=True)
    sparsedelta.squash(deltas, tmp_path / "two", base=states[0])
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_a_delta_that_lies_is_told_before_the_next_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, deltas = plain(tmp_path)
    made = counting(monkeypatch, added=1)
    with pytest.raises(VerificationError, match="SD502") as caught:
        sparsedelta.squash(deltas, tmp_path / "out", base=states[0], threads=1)
    assert str(deltas[0]) in str(caught.value)
    assert len(made) == 2
    assert not (tmp_path / "out").exists()


# --- The way back, in the pass that makes the result ---


def sharded(folder: Path, profile: str, *, lean: bool = False) -> Chain:
    """Folders of two shards whose names are in no order, with files beside, and a set of deltas."""
    states = []
    deltas = []
    tensors = first()
    for number in range(4):
        place = folder / f"s{number}"
        place.mkdir()
        write_shards(place, {"b": tensors["b"]}, {"a": tensors["a"], "stays": STAYS})
        (place / "config.json").write_text(json.dumps({"step": number // 2}))
        states.append(place)
        tensors = stepped(tensors, number)
        if number == 2:  # one of them comes back to what it was
            tensors["b"] = first()["b"]
    for number in range(3):
        deltas.append(folder / f"d{number}.safetensors")
        sparsedelta.diff(
            states[number],
            states[number + 1],
            deltas[-1],
            profile=profile,
            lean=lean,
            with_files=True,
            shards=2 if number == 1 else None,
        )
    return states, deltas


@pytest.mark.parametrize("profile", ["compact", "portable"])
@pytest.mark.parametrize("kind", ["lean", "full"])
def test_the_way_back_is_the_same_file_however_it_is_written(
    profile: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pass, from threads, in place; or beforehand, by recoding and inverting."""
    states, deltas = sharded(tmp_path, profile, lean=kind == "lean")
    ways = {"one": (deltas[:1], 0), "two": (deltas[:2], 0), "all": (deltas, 0), "last": (deltas, 1)}
    written: dict[str, bytes] = {}
    for name, (way, start) in ways.items():
        for how in ("pass", "threads", "in place", "touched", "beforehand"):
            out, undo = tmp_path / f"{name}-{how}", tmp_path / f"undo-{name}-{how}"
            with monkeypatch.context() as patch:
                if how == "beforehand":
                    patch.setattr(undoing, "leads_back", lambda _: False)
                if how == "in place":
                    shutil.copytree(states[start], out)
                    report = sparsedelta.apply(out, way, in_place=True, undo=undo)
                else:
                    report = sparsedelta.apply(
                        states[start],
                        way,
                        out,
                        undo=undo,
                        threads=3 if how == "threads" else 1,
                        verify="touched" if how == "touched" else "full",
                    )
            assert report.undo == str(undo)
            assert undo.read_bytes() == written.setdefault(name, undo.read_bytes()), how
        assert sparsedelta.info(undo).profile == "portable"
        sparsedelta.apply(out, undo, tmp_path / f"{name}-back")
        assert tree(tmp_path / f"{name}-back") == tree(states[start])


def test_the_way_back_takes_no_pass_of_its_own(decoded: list[int], tmp_path: Path) -> None:
    states, deltas = plain(tmp_path)
    sparsedelta.apply(states[0], deltas, tmp_path / "alone")
    alone = sorted(decoded)
    decoded.clear()
    sparsedelta.apply(states[0], deltas, tmp_path / "out", undo=tmp_path / "undo")
    assert sorted(decoded) == alone


@pytest.mark.parametrize("profile", ["compact", "portable"])
def test_the_way_back_leads_to_the_link_that_was_given(profile: str, tmp_path: Path) -> None:
    """Not to where the chain starts: what was there was an inner link of it."""
    states, deltas = sharded(tmp_path, profile)
    report = sparsedelta.apply(states[1], deltas[:2], tmp_path / "out", undo=tmp_path / "undo")
    assert (len(report.skipped), report.undo) == (1, str(tmp_path / "undo"))
    sparsedelta.apply(tmp_path / "out", tmp_path / "undo", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(states[1])


def test_where_tensors_come_and_go_it_is_written_beforehand(tmp_path: Path) -> None:
    states, deltas = with_moves(tmp_path)
    sparsedelta.apply(states[0], deltas, tmp_path / "out", undo=tmp_path / "undo")
    sparsedelta.apply(tmp_path / "out", tmp_path / "undo", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == states[0].read_bytes()


def test_it_is_there_before_files_are_changed_and_stays_when_the_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, deltas = plain(tmp_path)
    undo, before, kept = tmp_path / "undo", tmp_path / "before", tmp_path / "kept"
    before.write_bytes(states[0].read_bytes())

    def killed(*_: object, **__: object) -> None:
        undo.rename(kept)  # nobody is there any more who would remove it
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("sparsedelta.operations.in_place.Journal", killed)
        with pytest.raises(sparsedelta.OutputError):
            sparsedelta.apply(states[0], deltas, in_place=True, undo=undo)
    kept.rename(undo)
    report = sparsedelta.apply(states[0], deltas, in_place=True, undo=undo, resume=True)
    assert (report.settled, report.undo) == ("ended", None)
    assert states[0].read_bytes() == states[-1].read_bytes()
    sparsedelta.apply(states[0], undo, in_place=True)
    assert states[0].read_bytes() == before.read_bytes()


def test_a_result_cannot_be_its_own_way_back(tmp_path: Path) -> None:
    states, deltas = plain(tmp_path)
    with pytest.raises(UsageError, match="lead back"):
        sparsedelta.apply(states[0], deltas, tmp_path / "out", undo=tmp_path / "out")
    assert not (tmp_path / "out").exists()
