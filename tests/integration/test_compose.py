"""``compose`` and ``apply --stack``: reports, structure, refusals, sets, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Stored,
    Tensors,
    call,
    failed,
    hint_of,
    load,
    succeeded,
    write_file,
    write_shards,
)
from many_ranks import all_well, run_ranks
from safetensors.torch import save_file

import sparsedelta
from sparsedelta import NotFiniteError, StructureError, UsageError, WrongBaseError
from sparsedelta.merging.overlap import module_kind


def small(seed: int = 0) -> Tensors:
    """Numbers of moderate size in bf16 and float32, an integer tensor, and one that stays."""
    rng = np.random.default_rng(seed)

    def bf16(*shape: int) -> Stored:
        numbers = rng.standard_normal(shape).astype(np.float32)
        return Stored("BF16", shape, (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())

    single = rng.standard_normal((50, 20)).astype(np.float32)
    return {
        FROZEN: bf16(40, 30),
        TUNED: Stored("F32", (50, 20), single.tobytes()),
        HALF: bf16(64, 65),
        BIAS: Stored("I32", (7,), np.arange(7, dtype=np.int32).tobytes()),
    }


def stepped(tensors: Tensors, where: range, step: int = 1) -> Tensors:
    """The same with some words of HALF a step further."""
    words = tensors[HALF].words
    words[where] += np.uint16(step)
    return tensors | {HALF: Stored("BF16", tensors[HALF].shape, words.tobytes())}


Deltas = Callable[..., list[Path]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base."""
    return write_file(tmp_path / "base.safetensors", small())


@pytest.fixture
def deltas(tmp_path: Path, base: Path) -> Deltas:
    """Makes deltas from the base to targets."""

    def make(*targets: Tensors) -> list[Path]:
        made = []
        for number, target in enumerate(targets):
            path = write_file(tmp_path / f"target{number}.safetensors", target)
            made.append(tmp_path / f"delta{number}.safetensors")
            sparsedelta.diff(base, path, made[-1], unrelated=True, force=True)
        return made

    return make


def test_what_two_tasks_share_is_reported(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """Counts, shares, agreement and cosine; by kind of module; as text and as JSON."""
    one = stepped(small(), range(100), 1)
    other = stepped(small(), range(80, 280), 1)
    words = other[HALF].words
    words[90:100] = small()[HALF].words[90:100] - 1  # ten of the twenty go the other way
    other = other | {HALF: Stored("BF16", (64, 65), words.tobytes())}
    made = deltas(one, other)
    run = call("compose", "--base", base, *made, "-o", tmp_path / "out", "--json")
    document = succeeded(run).document
    order = [parent["name"] for parent in document["parents"]]
    first, second = (order.index(str(path)) for path in made)
    overlap = document["overlap"]
    assert overlap["counts"][first][first] == 100
    assert overlap["counts"][second][second] == 200
    assert overlap["counts"][first][second] == overlap["counts"][second][first] == 20
    assert overlap["share"][first][second] == 0.2
    assert overlap["share"][second][first] == 0.1
    assert overlap["agreement"][first][second] == 0.5
    assert -1 <= overlap["cosine"][first][second] <= 1
    assert document["overlap_by_kind"]["c.tuned"] == overlap
    text = succeeded(call("compose", "--base", base, *made, "-o", tmp_path / "out", "--force")).out
    assert ": 20 elements" in text
    assert "same sign 50.0%" in text
    with sparsedelta.DeltaReader(tmp_path / "out") as reader:
        parents = json.loads(reader.manifest.metadata["compose.parents"])
        assert [parent["weight"] for parent in parents] == [1.0, 1.0]
        assert {parent["content"] for parent in parents} == {
            sparsedelta.info(path).content for path in made
        }


def test_kinds_of_modules() -> None:
    """Numbers of layers and experts are left out of names."""
    assert (
        module_kind("model.layers.12.mlp.experts.3.up.weight") == "model.layers.*.mlp.experts.*.up"
    )
    assert module_kind("h.0.attn2.bias") == "h.*.attn2"


def test_one_task_may_bring_and_drop_tensors(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """new, drop, rename, resize and another dtype, by one of two deltas; the other trains."""
    start = small()
    grown = Stored("F32", (52, 20), start[TUNED].data + bytes(160))
    moved = start | {TUNED: grown, "fresh": Stored("F16", (3,), bytes(6))}
    moved["renamed"] = moved.pop(FROZEN)
    moved[BIAS] = Stored("I64", (7,), bytes(56))
    made = deltas(moved, stepped(start, range(50)))
    report = sparsedelta.compose(base, made, tmp_path / "out")
    expected = stepped(start, range(50))
    expected = {**moved, HALF: expected[HALF]}
    sparsedelta.apply(base, tmp_path / "out", tmp_path / "applied")
    assert load(tmp_path / "applied") == expected
    stacked = sparsedelta.apply_stack(base, made, tmp_path / "stacked")
    assert (tmp_path / "applied").read_bytes() == (tmp_path / "stacked").read_bytes()
    assert stacked.fingerprint == report.manifest.target
    # Both may do the same.
    again = deltas(moved, {**moved, HALF: stepped(start, range(9))[HALF]})
    sparsedelta.compose(base, again, tmp_path / "both")
    sparsedelta.apply(base, tmp_path / "both", tmp_path / "two")
    assert load(tmp_path / "two") == {**moved, HALF: stepped(start, range(9))[HALF]}
    with pytest.raises(StructureError, match=r"can only be done at weight 1, not 0\.5"):
        sparsedelta.compose(base, again, tmp_path / "no", weights=[0.5, 1])


def test_tasks_that_exclude_each_other(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """Two tensors of one name that differ; one dropped that the other trains; named."""
    start = small()
    one = start | {"fresh": Stored("F16", (3,), bytes(6))}
    other = start | {"fresh": Stored("F16", (3,), b"\x01" * 6)}
    made = deltas(one, other)
    with pytest.raises(StructureError, match=r"tensor 'fresh'.*comes new.*delta0.*delta1"):
        sparsedelta.compose(base, made, tmp_path / "out")
    gone = {name: stored for name, stored in start.items() if name != HALF}
    made = deltas(gone, stepped(start, range(5)))
    with pytest.raises(StructureError, match=rf"tensor '{HALF}'.*is dropped"):
        sparsedelta.compose(base, made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_take_a_word_only_if_all_agree(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """They are not computed with: other words, or another weight than 1, are refused by name."""

    def with_ids(value: int) -> Tensors:
        numbers = np.arange(7, dtype=np.int32)
        numbers[3] = value
        return small() | {BIAS: Stored("I32", (7,), numbers.tobytes())}

    same = deltas(with_ids(9), stepped(with_ids(9), range(3)))
    sparsedelta.compose(base, same, tmp_path / "out")
    with pytest.raises(StructureError, match=f"tensor '{BIAS}', index 3: a task with another"):
        sparsedelta.compose(base, same, tmp_path / "no", weights=[1, 0.5])
    with pytest.raises(StructureError, match=f"tensor '{BIAS}', index 3: tasks give different"):
        sparsedelta.compose(base, deltas(with_ids(9), with_ids(8)), tmp_path / "no")


def test_one_way_deltas_and_add_are_tasks_too(base: Path, tmp_path: Path) -> None:
    """The words that a delta leads to count, however it stores them; equal ones are no entries."""
    target = write_file(tmp_path / "t.safetensors", stepped(small(), range(40)))
    plain, one_way, added = (tmp_path / name for name in ("plain", "one_way", "added"))
    sparsedelta.diff(base, target, plain)
    sparsedelta.diff(base, target, one_way, one_way=True)
    spec = sparsedelta.TensorSpec(HALF, "BF16", (64, 65))
    part = sparsedelta.Part(
        "add", np.arange(40), np.full(40, 0x3F80, np.uint16), None, "BF16", 2.0**-9
    )
    sparsedelta.write_delta(base, [sparsedelta.TensorDelta(spec, spec, (part,))], added)
    reports = []
    for number, delta in enumerate((plain, one_way)):
        out = tmp_path / f"out{number}"
        reports.append(sparsedelta.compose(base, [delta, added], out, weights=[1, 0.5]))
        stacked = sparsedelta.apply_stack(
            base, [added, delta], tmp_path / f"stack{number}", weights=[0.5, 1]
        )
        assert stacked.fingerprint == reports[-1].manifest.target
    assert reports[0].manifest.content == reports[1].manifest.content
    assert reports[0].manifest.invertible


def test_what_is_asked_for_has_to_make_sense(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """Weights, methods, parameters, outputs: each refused with what to do."""
    made = deltas(stepped(small(), range(9)), stepped(small(), range(5)))
    out = tmp_path / "out"
    for weights, message in (([float("nan"), 1], "weight is nan"), ([1], "1 weights for 2 deltas")):
        with pytest.raises(UsageError, match=message):
            sparsedelta.compose(base, made, out, weights=weights)
    with pytest.raises(UsageError, match="no delta is named"):
        sparsedelta.compose(base, [], out)
    with pytest.raises(UsageError, match="'tis' is unknown") as caught:
        sparsedelta.compose(base, made, out, method="tis")
    assert "ties" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no parameter 'denisty'") as caught:
        sparsedelta.compose(base, made, out, method="ties", parameters={"denisty": 1})
    assert "density" in (caught.value.hint or "")
    for parameters in ({"density": 2}, {"density": [0.5]}, {"density_of": "x"}, {"normalize": 3}):
        with pytest.raises(UsageError):
            sparsedelta.compose(base, made, out, method="ties", parameters=parameters)
    with pytest.raises(UsageError, match="epsilon"):
        sparsedelta.compose(base, made, out, method="della", parameters={"density": 0.1})
    with pytest.raises(UsageError, match="nuslerp of 1 tasks, expected 2"):
        sparsedelta.compose(base, made, out, method="nuslerp", weights=[1, 0])
    message = failed(call("compose", "--base", base, *made, "-o", made[1], "--force"), 1)
    assert "delta1" in message
    assert not out.exists()


def test_with_no_task_left_the_base_stays(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """All weights are 0."""
    made = deltas(stepped(small(), range(50)))
    succeeded(call("apply", "--stack", base, f"{made[0]}:0", "-o", tmp_path / "out"))
    assert load(tmp_path / "out") == small()
    found = sparsedelta.load_state_dict(base, made, weights=[0])
    save_file(found, tmp_path / "found")
    assert load(tmp_path / "found") == small()


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_none_are_refused(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """Weights, parameters, and differences that are NaN; and no delta at all."""
    words = small()[HALF].words
    words[5] = 0x7FC0
    made = deltas(
        small() | {HALF: Stored("BF16", (64, 65), words.tobytes())}, stepped(small(), range(9))
    )
    for weights in (["x", 1], [10**400, 1], 0.5, "11"):
        with pytest.raises(UsageError, match="weight"):
            sparsedelta.compose(base, made, tmp_path / "out", weights=weights)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"lambda is 10000.* finite"):
        sparsedelta.compose(
            base, made, tmp_path / "out", method="ties", parameters={"lambda": 10**400}
        )
    for method in ("dare_ties", "della", "ties", "slerp", "nuslerp", "model_stock"):
        parameters = {"t": 0.5} if method == "slerp" else {}
        if method in ("dare_ties", "della", "ties"):
            parameters = {"density": 0.5}
        with pytest.raises(NotFiniteError, match=f"tensor '{HALF}', index"):
            sparsedelta.compose(base, made, tmp_path / "out", method=method, parameters=parameters)
    with pytest.raises(UsageError, match="no delta is named"):
        sparsedelta.squash([], tmp_path / "out")


def test_deltas_of_other_bases_are_refused(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """By name of both; a chain is told as one; another checkpoint is told by its tensor."""
    first, second = stepped(small(), range(9)), stepped(small(), range(30))
    made = deltas(first, second)
    targets = [tmp_path / f"target{n}.safetensors" for n in range(2)]
    sparsedelta.diff(targets[0], targets[1], tmp_path / "chained")
    with pytest.raises(WrongBaseError, match="start at different bases") as caught:
        sparsedelta.compose(base, [made[0], tmp_path / "chained"], tmp_path / "out")
    assert "squash" in (caught.value.hint or "")
    with pytest.raises(WrongBaseError, match=f"tensor '{HALF}' differs"):
        sparsedelta.compose(targets[0], made, tmp_path / "out")
    with pytest.raises(WrongBaseError, match=f"tensor '{HALF}' differs"):
        sparsedelta.apply_stack(targets[0], made, tmp_path / "out")
    wrong = write_file(
        tmp_path / "w.safetensors", small() | {FROZEN: Stored("BF16", (40, 30), bytes(2400))}
    )
    with pytest.raises(WrongBaseError, match=f"first tensor that differs is '{FROZEN}'"):
        sparsedelta.apply_stack(wrong, made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_compose_reads_only_what_the_deltas_touch(
    base: Path, deltas: Deltas, tmp_path: Path
) -> None:
    """A tensor that no delta touches may even be another one: its digest is known."""
    made = deltas(stepped(small(), range(9)), stepped(small(), range(5)))
    report = sparsedelta.compose(base, made, tmp_path / "one")
    wrong = write_file(
        tmp_path / "w.safetensors", small() | {FROZEN: Stored("BF16", (40, 30), bytes(2400))}
    )
    again = sparsedelta.compose(wrong, made, tmp_path / "two")
    assert again.manifest == report.manifest


def test_sharded_bases_and_sets_of_deltas(tmp_path: Path) -> None:
    """A folder of shards as base, sets as deltas, a set as output; threads change no byte."""
    start = small()
    names = sorted(start)
    halves = [{n: start[n] for n in names[:2]}, {n: start[n] for n in names[2:]}]
    base = write_shards(tmp_path / "base", *halves)
    made = []
    for number, target in enumerate((stepped(start, range(90)), stepped(start, range(60, 200), 3))):
        halves = [{n: target[n] for n in names[:2]}, {n: target[n] for n in names[2:]}]
        write_shards(tmp_path / f"t{number}", *halves)
        made.append(tmp_path / f"d{number}.safetensors")
        sparsedelta.diff(base, tmp_path / f"t{number}", made[-1], shards=1 + number)
    arguments = ("compose", "--base", base, f"{made[0]}:0.5", f"{made[1]}:-0.25")
    succeeded(
        call(*arguments, "-o", tmp_path / "one.safetensors", "--shards", "2", "--threads", "1")
    )
    succeeded(call(*arguments, "-o", tmp_path / "two.safetensors", "--threads", "3"))
    run = call("apply", base, f"{made[0]}:0.5", f"{made[1]}:-0.25", "--stack", "-o", tmp_path / "s")
    succeeded(run)
    for name in ("one", "two"):
        sparsedelta.apply(base, tmp_path / f"{name}.safetensors", tmp_path / name)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(
            p.name for p in (tmp_path / "s").iterdir()
        )
        for path in (tmp_path / name).iterdir():
            assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes()


def test_the_command_line_of_stacks(base: Path, deltas: Deltas, tmp_path: Path) -> None:
    """Dry runs, JSON, options that do not go together, and the hint without --stack."""
    made = deltas(stepped(small(), range(9)), stepped(small(), range(5)))
    out = tmp_path / "out.safetensors"
    run = succeeded(call("apply", "--stack", base, *made, "-o", out, "--dry-run", "--json"))
    assert run.document["nnz"] == 9
    assert not out.exists()
    succeeded(call("apply", "--stack", base, *made, "-o", out, "-q"))
    assert sparsedelta.fingerprint(out).fingerprint == run.document["fingerprint"]
    assert "--in-place does not go with --stack" in failed(
        call("apply", "--stack", base, *made, "--in-place"), 2
    )
    message = failed(call("apply", base, *made, "-o", tmp_path / "no"), 2)
    assert "compose" in hint_of(message)
    assert "--stack" in hint_of(message)
    weighty = tmp_path / "d:0.5"
    weighty.write_bytes(made[0].read_bytes())
    succeeded(call("compose", "--base", base, weighty, "-o", tmp_path / "whole", "-q"))
    assert sparsedelta.info(tmp_path / "whole").content == sparsedelta.info(made[0]).content


def test_many_ranks_put_together_what_one_does(tmp_path: Path) -> None:
    """The same content, and the same checkpoint to the byte; random methods, too."""
    start = small()
    names = sorted(start)
    halves = [{n: start[n] for n in names[:2]}, {n: start[n] for n in names[2:]}]
    base = write_shards(tmp_path / "base", *halves)
    wrong = [start | {FROZEN: Stored("BF16", (40, 30), bytes(2400))}]
    write_shards(tmp_path / "other", *wrong)
    for number, target in enumerate((stepped(start, range(900)), stepped(start, range(600, 2000)))):
        write_shards(tmp_path / f"t{number}", target)
        sparsedelta.diff(base, tmp_path / f"t{number}", tmp_path / f"d{number}", layout="never")
    (tmp_path / "many").mkdir()
    all_well(run_ranks(2, "composing", tmp_path))
    deltas = [tmp_path / "d0", tmp_path / "d1"]
    for method in ("sum", "dare_ties"):
        parameters = {} if method == "sum" else {"density": 0.5}
        one = sparsedelta.apply_stack(
            base,
            deltas,
            tmp_path / method,
            weights=[0.5, -0.75],
            method=method,
            parameters=parameters,
        )
        for path in (tmp_path / method).iterdir():
            assert path.read_bytes() == (tmp_path / "many" / method / path.name).read_bytes()
        found = sparsedelta.info(tmp_path / "many" / f"{method}.safetensors")
        assert found.target == one.fingerprint
        assert len(found.parts) >= 1


def test_fp8_is_computed_with_only_if_somebody_says_so(tmp_path: Path) -> None:
    """And never where a tensor beside it holds its scale."""
    one = Stored("F8_E4M3", (4,), bytes([0x38, 0x38, 0x7E, 0x00]))  # 1, 1, 448, 0
    scaled = {"a.weight": one, "b.weight": one, "b.weight_scale": Stored("F32", (1,), bytes(4))}
    base = write_file(tmp_path / "base.safetensors", scaled)
    made = []
    for number, words in enumerate(([0x39, 0x38, 0x7E, 0x00], [0x3A, 0x38, 0x7E, 0x01])):
        target = scaled | {"a.weight": Stored("F8_E4M3", (4,), bytes(words))}
        path = write_file(tmp_path / f"t{number}.safetensors", target)
        made.append(tmp_path / f"d{number}")
        sparsedelta.diff(base, path, made[-1])
    with pytest.raises(StructureError, match="F8_E4M3 are not computed with"):
        sparsedelta.compose(base, made, tmp_path / "out")
    sparsedelta.compose(base, made, tmp_path / "out", fp8_arithmetic=True)
    sparsedelta.apply(base, tmp_path / "out", tmp_path / "applied")
    # 1 + 0.125 + 0.25 = 1.375; the last one is a single task's word.
    assert load(tmp_path / "applied")["a.weight"].data == bytes([0x3B, 0x38, 0x7E, 0x01])
    for number, word in enumerate((0x39, 0x3A)):
        target = scaled | {"b.weight": Stored("F8_E4M3", (4,), bytes([word, 0x38, 0x7E, 0x00]))}
        path = write_file(tmp_path / f"s{number}.safetensors", target)
        sparsedelta.diff(base, path, made[number], force=True)
    with pytest.raises(StructureError, match=r"'b\.weight_scale' beside it scales it"):
        sparsedelta.compose(base, made, tmp_path / "no", fp8_arithmetic=True)
