"""Both profiles, as a user has them: what a compact delta does, and what it says it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import Stored, Tensors, call, failed, hint_of, succeeded, write_file
from ranked_decoders import DECODER, counting

import sparsedelta
from sparsedelta import DeltaReader, StructureError, VerificationError, WrongBaseError
from sparsedelta.words import Words

ROWS, WIDTH = 700, 64
STEPS = 3


def weights(seed: int) -> Words:
    """Words of bf16 weights."""
    normal = np.random.default_rng(seed).standard_normal(ROWS * WIDTH) * 0.02
    return np.ascontiguousarray(normal.astype("<f4").view("<u2")[1::2])


def stepped(words: Words, seed: int) -> Words:
    """What a step of an optimizer makes of them: small weights move, large ones do not."""
    values = (words.astype("<u4") << 16).view("<f4")
    moved = values + np.random.default_rng(seed).choice([-1e-5, 1e-5], values.size).astype("<f4")
    return np.ascontiguousarray((moved.view("<u4") + (1 << 15)) >> 16).astype("<u2")


def tensors(words: Words, single: int) -> Tensors:
    """A checkpoint with the words, a tensor of another dtype, and one that stays."""
    floats = np.arange(400, dtype="<f4")
    floats[single] += 1
    return {
        "layer.weight": Stored("BF16", (ROWS, WIDTH), words.tobytes()),
        "norm.scale": Stored("F32", (400,), floats.tobytes()),
        "stays": Stored("F16", (10,), bytes(20)),
    }


@dataclass(frozen=True)
class Chain:
    """Checkpoints one after the other, and the compact deltas between them."""

    folder: Path
    states: list[Path]
    deltas: list[Path]

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.folder / "out"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    words = weights(0)
    states = []
    for number in range(STEPS + 1):
        states.append(write_file(tmp_path / f"s{number}.safetensors", tensors(words, number)))
        words = stepped(words, number)
    deltas = []
    for number in range(STEPS):
        delta = tmp_path / f"d{number}"
        run = call("diff", states[number], states[number + 1], "-o", delta, "--profile", "compact")
        succeeded(run)
        deltas.append(delta)
    before = {path.name for path in tmp_path.iterdir()}
    yield Chain(tmp_path, states, deltas)
    # What operations lay down for a while is gone.
    after = {path.name for path in tmp_path.iterdir()}
    assert all(name.startswith(("out", "undo")) for name in after - before)


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return one.read_bytes() == other.read_bytes()


def portable(chain: Chain, number: int) -> Path:
    """The portable delta of a step."""
    out = chain.folder / "out-portable"
    sparsedelta.diff(chain.states[number], chain.states[number + 1], out, force=True)
    return out


def test_info_says_what_is_read_with_the_base(chain: Chain) -> None:
    found = sparsedelta.info(chain.deltas[0])
    assert (found.version, found.profile, found.invertible) == ("1.1", "compact", False)
    assert (found.needs_base, found.fallen_back) == (1, ("norm.scale",))
    run = succeeded(call("info", chain.deltas[0], "--tensors"))
    assert "1 tensors are read with the base at hand" in run.out
    assert "stored as in portable: 1 (norm.scale)" in run.out
    assert "difference: ranked, blocks of" in run.out
    assert found.size < sparsedelta.info(portable(chain, 0)).size


def test_a_compact_delta_tells_old_readers_what_they_miss(chain: Chain) -> None:
    with DeltaReader(chain.deltas[0]) as reader:
        assert reader.manifest.features == ("ranked@1.1",)
        assert reader.header.metadata["sd.version"] == "1.1"
    with DeltaReader(portable(chain, 0)) as reader:
        assert reader.manifest.features == ()
        assert reader.header.metadata["sd.version"] == "1.0"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_chain_is_followed(chain: Chain, threads: str) -> None:
    """Each delta is decoded with what those before it made, verified."""
    succeeded(call("apply", chain.states[0], *chain.deltas, "-o", chain.out, "--threads", threads))
    assert same(chain.out, chain.states[-1])


def test_what_a_delta_made_is_verified_before_the_next_is_decoded(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first delta that does not make what it promises: no garbage comes of the second."""
    counted = counting(monkeypatch, added=1)
    with pytest.raises(VerificationError, match="SD502") as caught:
        sparsedelta.apply(chain.states[0], chain.deltas, chain.out, threads=1)
    assert str(chain.deltas[0]) in str(caught.value)
    assert str(chain.deltas[1]) not in str(caught.value)
    entries = []
    for delta in chain.deltas[:2]:
        with sparsedelta.DeltaReader(delta) as reader:
            entries.append(reader.records["layer.weight"].nnz)
    assert set(counted) == {entries[0]} != {entries[1]}


@pytest.mark.parametrize("verb", ["apply", "validate", "recode", "squash", "rows", "in place"])
def test_a_wrong_base_is_exit_3_before_anything_is_decoded(
    chain: Chain, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a block was decoded on a base that is not the right one")

    monkeypatch.setattr(DECODER, never)
    words = weights(0)
    words[5] ^= 1
    wrong = write_file(chain.folder / "out-wrong.safetensors", tensors(words, 0))
    before = wrong.read_bytes()
    delta, out = chain.deltas[0], chain.out
    if verb == "rows":
        with pytest.raises(WrongBaseError):
            sparsedelta.read_rows(wrong, delta, "layer.weight", 0, 1)
        return
    arguments: dict[str, list[str | Path]] = {
        "apply": ["apply", wrong, delta, "-o", out],
        "validate": ["validate", delta, "--base", wrong],
        "recode": ["recode", delta, "--base", wrong, "--profile", "portable", "-o", out],
        "squash": ["squash", delta, "--base", wrong, "-o", out],
        "in place": ["apply", wrong, delta, "--in-place"],
    }
    run = call(*arguments[verb])
    assert run.code == WrongBaseError.exit_code
    assert "SD501" in run.err + run.out
    assert not out.exists()
    assert wrong.read_bytes() == before


def test_rows_are_read_with_the_base(chain: Chain) -> None:
    target = np.frombuffer(chain.states[1].read_bytes(), np.uint8)
    found = sparsedelta.read_rows(chain.states[0], chain.deltas[0], "layer.weight", 10, 13)
    assert found.tobytes() in target.tobytes()
    words = stepped(weights(0), 0)[10 * WIDTH : 13 * WIDTH]
    assert np.array_equal(found, words)
    old = weights(0)
    with DeltaReader(chain.deltas[0]) as reader:
        piece = reader.rows("layer.weight", 10, 13, lambda start, stop: old[start:stop])
    assert np.array_equal(piece.apply(old[10 * WIDTH : 13 * WIDTH]), words)


def test_the_way_back_is_written_beside_the_result(chain: Chain) -> None:
    undo = chain.folder / "undo"
    run = succeeded(call("apply", chain.states[0], *chain.deltas, "-o", chain.out, "--undo", undo))
    assert f"wrote {undo}: it leads back" in run.err
    assert sparsedelta.info(undo).profile == "portable"
    sparsedelta.apply(chain.out, undo, chain.folder / "out-back")
    assert same(chain.folder / "out-back", chain.states[0])


def test_in_place_and_back(chain: Chain) -> None:
    undo = chain.folder / "undo"
    here = chain.folder / "out-here.safetensors"
    here.write_bytes(chain.states[0].read_bytes())
    report = sparsedelta.apply(here, chain.deltas[0], in_place=True, undo=undo)
    assert report.undo == str(undo)
    assert same(here, chain.states[1])
    sparsedelta.apply(here, undo, in_place=True)
    assert same(here, chain.states[0])


def test_nothing_to_do_leaves_no_way_back(chain: Chain) -> None:
    undo = chain.folder / "undo"
    report = sparsedelta.apply(chain.states[1], chain.deltas[0], chain.out, undo=undo)
    assert (report.changed, report.undo) == (False, None)
    assert not undo.exists()


def test_a_failure_leaves_no_way_back(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise VerificationError("broken")

    monkeypatch.setattr("sparsedelta.operations.steps.follow", broken)
    with pytest.raises(VerificationError, match="broken"):
        sparsedelta.apply(chain.states[0], chain.deltas[0], chain.out, undo=chain.folder / "undo")
    assert not (chain.folder / "undo").exists()
    assert not chain.out.exists()


def test_a_chain_is_squashed_and_reverted_with_its_base(chain: Chain) -> None:
    direct = sparsedelta.diff(chain.states[0], chain.states[-1], chain.folder / "out-direct")
    run = call("squash", *chain.deltas, "-o", chain.out, "--base", chain.states[0])
    succeeded(run)
    assert same(chain.out, chain.folder / "out-direct")
    assert sparsedelta.info(chain.out).content == direct.manifest.content
    back = chain.folder / "out-back"
    succeeded(
        call("revert", chain.states[-1], *chain.deltas, "-o", back, "--base", chain.states[0])
    )
    assert same(back, chain.states[0])


NEEDING = {
    "revert": ["revert", "TARGET", "DELTA", "-o", "OUT"],
    "squash": ["squash", "DELTA", "-o", "OUT"],
    "invert": ["invert", "DELTA", "-o", "OUT"],
    "export": ["export", "--raw", "DELTA", "-o", "OUT"],
}


@pytest.mark.parametrize("verb", NEEDING)
def test_what_needs_the_base_says_how_to_do_without(chain: Chain, verb: str) -> None:
    places = {
        "TARGET": str(chain.states[1]),
        "DELTA": str(chain.deltas[0]),
        "OUT": str(chain.out),
    }
    message = failed(call(*(places.get(word, word) for word in NEEDING[verb])), 1)
    assert "sparsedelta recode" in hint_of(message)
    assert not chain.out.exists()
    with DeltaReader(chain.deltas[0]) as reader, pytest.raises(StructureError) as caught:
        list(reader.blocks(reader.records["layer.weight"], 0))
    assert "sparsedelta recode" in str(caught.value.hint)


def test_validate_without_the_base_checks_the_frames(chain: Chain) -> None:
    report = sparsedelta.validate(chain.deltas[0])
    assert (report.ok, report.unread, report.base_checked) == (True, 1, False)
    assert sparsedelta.validate(chain.deltas[0], base=chain.states[0]).base_checked
    run = succeeded(call("validate", chain.deltas[0]))
    assert "1 tensors are read in full with --base only" in run.out


def test_diff_says_what_the_other_profile_would_have_taken(chain: Chain) -> None:
    run = succeeded(call("diff", chain.states[0], chain.states[1], "-o", chain.out, "--json"))
    size = sparsedelta.info(chain.deltas[0]).size
    advice = run.document["advice"]
    assert advice["profile"] == "compact"
    assert abs(advice["size"] - size) < size // 8
    assert "--profile compact would take about" in run.err
    again = call("diff", chain.states[0], chain.states[1], "-o", chain.out, "--force", "--json")
    assert succeeded(again).document["advice"] == advice
    compact = call(
        "diff", chain.states[0], chain.states[1], "-o", chain.out, "--force", "--json",
        "--profile", "compact",
    )  # fmt: skip
    assert succeeded(compact).document["advice"] is None


def test_recode_there_and_back_gives_the_same_file(chain: Chain) -> None:
    there, back = chain.folder / "out-there", chain.folder / "out-back"
    base = str(chain.states[0])
    run = call(
        "recode", chain.deltas[0], "--base", base, "--profile", "portable", "-o", there, "--json"
    )
    document = succeeded(run).document
    assert document["content"] == sparsedelta.info(chain.deltas[0]).content
    assert document["invertible"]
    assert same(there, portable(chain, 0))
    succeeded(call("recode", there, "--base", base, "--profile", "compact", "-o", back))
    assert same(back, chain.deltas[0])
    message = failed(call("recode", there, "--base", base, "--profile", "compact", "-o", back), 1)
    assert "--force" in message


def test_tasks_of_one_base_are_composed(chain: Chain) -> None:
    """A compact delta is as good as a portable one: compose has the base at hand."""
    other = chain.folder / "out-other.safetensors"
    write_file(other, tensors(stepped(weights(0), 77), 9))
    made = {}
    for profile in ("portable", "compact"):
        names = []
        for number, target in enumerate((chain.states[1], other)):
            names.append(chain.folder / f"out-{profile}-{number}")
            sparsedelta.diff(chain.states[0], target, names[-1], profile=profile)
        out = chain.folder / f"out-{profile}"
        made[profile] = sparsedelta.compose(chain.states[0], names, out).manifest.content
    assert made["portable"] == made["compact"]
