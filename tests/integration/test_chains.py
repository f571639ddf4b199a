"""Chains of deltas on the command line and in Python: followed, squashed, drawn, and refused."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Stored,
    Tensors,
    base_tensors,
    call,
    failed,
    file_bytes,
    hint_of,
    split,
    succeeded,
    tree,
    tuned,
    write_file,
    write_shards,
)
from many_ranks import all_well, run_ranks
from stores_on_loopback import web_server

import sparsedelta
from sparsedelta import (
    NotInvertibleError,
    StructureError,
    UnfinishedError,
    UsageError,
    WrongBaseError,
)
from sparsedelta.journal import journal_path


def states() -> list[Tensors]:
    """A base and three steps: changed, renamed and new, changed again."""
    first = tuned(base_tensors(), seed=1)
    second = tuned(first, (TUNED, HALF), seed=2)
    second["renamed.bias"] = second.pop(BIAS)
    second["new.weight"] = Stored("BF16", (9, 3), bytes(range(54)))
    third = tuned(second, ("new.weight", FROZEN), seed=3)
    return [base_tensors(), first, second, third]


class History:
    """Checkpoints ``s0`` to ``s3`` in files, and the deltas ``d0`` to ``d2`` between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states = [
            write_file(folder / f"s{number}.safetensors", tensors)
            for number, tensors in enumerate(states())
        ]
        self.deltas = [self.diff(n, n + 1, f"d{n}") for n in range(3)]
        self.out = folder / "out.safetensors"

    def diff(self, base: int, target: int, name: str) -> Path:
        """The delta between two of the checkpoints."""
        sparsedelta.diff(self.states[base], self.states[target], self.folder / name)
        return self.folder / name

    def side(self) -> Path:
        """A delta that leads elsewhere from the first step."""
        other = write_file(self.folder / "side.safetensors", tuned(states()[1], (FROZEN,), seed=9))
        sparsedelta.diff(self.states[1], other, self.folder / "side")
        return self.folder / "side"

    def fingerprint(self, number: int) -> str:
        """Fingerprint of a checkpoint."""
        return sparsedelta.fingerprint(self.states[number]).fingerprint


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


# --- following ---


def test_a_chain_in_any_order_there_and_back(history: History) -> None:
    a, b, c = history.deltas
    run = succeeded(call("apply", history.states[0], c, a, b, "-o", history.out, "--json"))
    assert history.out.read_bytes() == history.states[3].read_bytes()
    assert run.document["deltas"] == [str(a), str(b), str(c)]
    assert run.document["fingerprint"] == history.fingerprint(3)
    back = history.folder / "back.safetensors"
    run = succeeded(call("revert", history.states[3], b, c, a, "-o", back))
    assert back.read_bytes() == history.states[0].read_bytes()
    assert "along a chain of 3 deltas" in run.out


def test_the_base_is_read_once(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass, however many deltas; without the kernel's copies, which would read it unseen."""
    from sparsedelta.checkpoint import FileCheckpoint  # noqa: PLC0415

    read: list[int] = []
    original = FileCheckpoint.read

    def counted(self: FileCheckpoint, *arguments: object) -> object:
        found = original(self, *arguments)  # type: ignore[arg-type]
        read.append(found.size)
        return found

    monkeypatch.setattr(FileCheckpoint, "read", counted)
    monkeypatch.setattr("sparsedelta.checkpoint_writer.CheckpointWriter.copy", lambda *_: False)
    sparsedelta.apply(history.states[0], history.deltas[::-1], history.out)
    assert sum(read) == sum(len(tensor.data) for tensor in states()[0].values())
    assert history.out.read_bytes() == history.states[3].read_bytes()


def test_from_an_inner_link_what_is_behind_is_skipped(history: History) -> None:
    a, b, c = history.deltas
    run = succeeded(call("apply", history.states[1], a, b, c, "-o", history.out))
    assert run.err == f"note: the checkpoint is on the way already; skipped: {a}\n"
    assert history.out.read_bytes() == history.states[3].read_bytes()
    report = sparsedelta.revert(history.states[2], [a, b, c], history.out.with_name("back"))
    assert report.skipped == (str(c),)
    assert history.out.with_name("back").read_bytes() == history.states[0].read_bytes()
    report = sparsedelta.apply(history.states[3], [a, b, c], history.out, force=True)
    assert not report.changed
    assert report.deltas == ()
    assert history.out.read_bytes() == history.states[3].read_bytes()


def test_to_an_inner_link(history: History) -> None:
    a, b, c = history.deltas
    wanted = history.fingerprint(2)
    report = sparsedelta.apply(history.states[0], [c, b, a], history.out, to=wanted[:10].upper())
    assert report.fingerprint == wanted
    assert history.out.read_bytes() == history.states[2].read_bytes()
    with pytest.raises(UsageError, match="is the fingerprint of 0 checkpoints"):
        sparsedelta.apply(history.states[0], [c, b, a], history.out, to="0" * 64)
    with pytest.raises(UsageError, match="expected one"):
        sparsedelta.apply(history.states[0], [c, b, a], history.out, to=wanted[:3])
    with pytest.raises(UsageError, match="it is where they start"):
        sparsedelta.apply(history.states[0], [a], history.out, to=history.fingerprint(0))


def test_a_duplicate_is_dropped_and_told(history: History) -> None:
    """The same file twice, and the same content in another encoding."""
    a, b, _ = history.deltas
    other = history.folder / "other"
    sparsedelta.diff(history.states[0], history.states[1], other, codec="raw+raw")
    run = succeeded(call("apply", history.states[0], a, b, a, other, "-o", history.out))
    note = "is left out: another delta has the same content"
    assert run.err == f"note: {a} {note}\nnote: {other} {note}\n"
    assert history.out.read_bytes() == history.states[2].read_bytes()


def test_a_fork_needs_an_end(history: History) -> None:
    a, b, c = history.deltas
    side = history.side()
    tip = sparsedelta.fingerprint(history.folder / "side.safetensors").fingerprint
    words = ("apply", history.states[0], a, b, c, side, "-o", history.out)
    before = tree(history.folder)
    message = failed(call(*words), 2)
    assert "there is a fork" in message
    assert str(b) in message
    assert str(side) in message
    assert "--to" in hint_of(message)
    assert tip[:16] in hint_of(message)
    assert tree(history.folder) == before
    succeeded(call(*words, "--to", tip[:12]))
    assert history.out.read_bytes() == (history.folder / "side.safetensors").read_bytes()
    back = history.folder / "back"
    sparsedelta.revert(history.out, [a, b, c, side], back, to=history.fingerprint(0))
    assert back.read_bytes() == history.states[0].read_bytes()


def test_a_circle_needs_an_end(history: History) -> None:
    a, b, _ = history.deltas
    back = history.diff(2, 0, "circle")
    with pytest.raises(UsageError, match="lead in a circle"):
        sparsedelta.apply(history.states[0], [a, b, back], history.out)
    other = write_file(history.folder / "other.safetensors", base_tensors(seed=5))
    with pytest.raises(WrongBaseError, match="none of the deltas starts from it"):
        sparsedelta.apply(other, [a, b, back], history.out, to=history.fingerprint(2))
    for start, end in ((0, 2), (2, 1), (1, 0)):
        sparsedelta.apply(
            history.states[start],
            [back, b, a],
            history.out,
            to=history.fingerprint(end),
            force=True,
        )
        assert history.out.read_bytes() == history.states[end].read_bytes()


def test_deltas_of_one_base_are_never_added_up(history: History) -> None:
    a = history.deltas[0]
    direct = history.diff(0, 2, "direct")
    message = failed(call("apply", history.states[0], a, direct, "-o", history.out), 2)
    assert "nothing is guessed into a sum" in message
    for word in (str(a), str(direct), "compose", "apply --stack"):
        assert word in message
    assert not history.out.exists()


def test_the_same_ends_by_other_content(history: History) -> None:
    a = history.deltas[0]
    one_way = history.folder / "one_way"
    sparsedelta.diff(history.states[0], history.states[1], one_way, one_way=True)
    with pytest.raises(UsageError, match="to the same one, by other content") as caught:
        sparsedelta.apply(history.states[0], [a, one_way], history.out)
    assert str(one_way) in str(caught.value)
    with pytest.raises(UsageError, match=r"by other content|both lead"):
        sparsedelta.apply(history.states[0], [a, one_way], history.out, to=history.fingerprint(1))


def test_a_gap_names_both_sides(history: History) -> None:
    a, _, c = history.deltas
    message = failed(call("squash", c, a, "-o", history.out), 2)
    for word in (str(a), str(c), history.fingerprint(3), history.fingerprint(0)):
        assert word in message
    message = failed(call("apply", history.states[0], a, c, "-o", history.out), 2)
    assert f"the target of {a} is {history.fingerprint(1)}" in message
    assert f"the base of {c} is {history.fingerprint(2)}" in message
    assert not history.out.exists()


def test_another_checkpoint_is_refused(history: History) -> None:
    other = write_file(history.folder / "other.safetensors", base_tensors(seed=5))
    before = tree(history.folder)
    with pytest.raises(WrongBaseError, match=r"d0, .*d1, .*d2 \(SD501\)") as caught:
        sparsedelta.apply(other, history.deltas, history.out)
    assert repr(FROZEN) in caught.value.message
    assert tree(history.folder) == before


def test_lean_deltas_that_only_say_that_they_fit(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a lean delta shows that its fingerprints are true; a chain of them does."""
    from sparsedelta.writer import DeltaWriter  # noqa: PLC0415

    first, lie = history.folder / "first", history.folder / "lie"
    sparsedelta.diff(history.states[0], history.states[1], first, lean=True)
    ends = (history.fingerprint(1), "ab" * 32)
    monkeypatch.setattr(
        "sparsedelta.operations.diff.DeltaWriter", functools.partial(DeltaWriter, ends=ends)
    )
    other = tuned(base_tensors(seed=4), seed=2)
    sparsedelta.diff(
        write_file(history.folder / "a", base_tensors(seed=4)),
        write_file(history.folder / "b", other),
        lie,
        lean=True,
    )
    for words in (("apply", history.states[0]), ("squash",)):
        message = failed(call(*words, first, lie, "-o", history.out), 3)
        assert "SD306" in message
        assert str(lie) in message
    assert not history.out.exists()


def test_a_damaged_link_is_named_and_nothing_is_written(history: History) -> None:
    a, b, c = history.deltas
    sparsedelta.diff(history.states[1], history.states[2], b, layout="never", force=True)
    whole = b.read_bytes()
    for at in range(len(whole) - 400, len(whole), 37):
        b.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        before = tree(history.folder)
        for words in (("apply", history.states[0], a, b, c), ("squash", a, b, c)):
            message = failed(call(*words, "-o", history.out), 3)
            assert str(b) in message
            assert tree(history.folder) == before


def test_one_way_is_not_reverted(history: History) -> None:
    a, _, c = history.deltas
    one_way = history.folder / "one_way"
    sparsedelta.diff(history.states[1], history.states[2], one_way, one_way=True)
    chain = [a, one_way, c]
    sparsedelta.apply(history.states[0], chain, history.out)
    assert history.out.read_bytes() == history.states[3].read_bytes()
    with pytest.raises(NotInvertibleError, match="one_way does not lead back"):
        sparsedelta.revert(history.out, chain, history.folder / "back")
    with pytest.raises(NotInvertibleError, match="one_way has no inverse") as caught:
        sparsedelta.invert(one_way, history.folder / "inverse")
    assert "sparsedelta diff TARGET BASE" in str(caught.value)


# --- in place, and going on ---


def chain_in_place(history: History) -> list[Path]:
    """A chain that changes words only, so that it can be followed in place."""
    third = write_file(history.states[2], tuned(states()[1], seed=5))
    sparsedelta.diff(history.states[1], third, history.deltas[1], force=True)
    return history.deltas[:2]


def test_a_chain_in_place(history: History) -> None:
    chain = chain_in_place(history)
    report = sparsedelta.apply(history.states[0], chain[::-1], in_place=True)
    assert report.changed
    assert history.states[0].read_bytes() == history.states[2].read_bytes()
    report = sparsedelta.apply(history.states[0], chain, in_place=True, verify="touched")
    assert not report.changed
    report = sparsedelta.revert(history.states[0], chain, in_place=True)
    assert history.states[0].read_bytes() == file_bytes(base_tensors())
    with pytest.raises(sparsedelta.OutputError, match="cannot be changed in place"):
        sparsedelta.apply(history.states[0], [chain[0], history.diff(1, 3, "d13")], in_place=True)


def interrupted(history: History, chain: list[Path], start: int) -> None:
    """Let a run in place end in the midst of its writes, in a process of its own."""
    child = os.fork()
    if child == 0:
        write = os.pwrite

        def half(descriptor: int, data: memoryview, offset: int) -> int:
            write(descriptor, data[: len(data) // 2], offset)
            os._exit(7)

        os.pwrite = half  # type: ignore[assignment]  # in a process of its own
        sparsedelta.apply(history.states[start], chain, in_place=True, threads=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("start", [0, 1])
def test_an_interrupted_chain_is_ended_or_undone(history: History, start: int) -> None:
    """Also one that began at an inner link, and whatever the order of arguments."""
    chain = chain_in_place(history)
    original = history.states[start].read_bytes()
    another = history.diff(start, 3, "another")
    interrupted(history, chain, start)
    assert journal_path(history.folder, history.states[start].name).exists()
    with pytest.raises(UnfinishedError) as caught:
        sparsedelta.fingerprint(history.states[start])
    followed = " ".join(map(str, chain[start:]))
    assert f"apply {history.states[start]} {followed} --in-place --resume" in str(caught.value)
    with pytest.raises(UsageError, match="is another one"):
        sparsedelta.apply(history.states[start], [another], in_place=True, resume=True)
    report = sparsedelta.apply(history.states[start], chain[::-1], in_place=True, resume=True)
    assert report.settled == "ended"
    assert history.states[start].read_bytes() == history.states[2].read_bytes()
    history.states[start].write_bytes(original)
    interrupted(history, chain, start)
    report = sparsedelta.apply(history.states[start], chain, history.out)
    assert report.settled == "undone"
    assert history.states[start].read_bytes() == original
    assert history.out.read_bytes() == history.states[2].read_bytes()


def folders(history: History) -> tuple[list[Path], list[Path]]:
    """The checkpoints as folders of shards with a configuration, and deltas that carry it."""
    places = []
    for number, tensors in enumerate(states()):
        names = list(tensors)
        place = write_shards(history.folder / f"f{number}", *split(tensors, names[:2], names[2:]))
        (place / "config.json").write_text(json.dumps({"step": number % 3}))
        if number == 2:
            (place / "extra.json").write_text("{}")
        places.append(place)
    deltas = []
    for number in range(3):
        deltas.append(history.folder / f"fd{number}")
        sparsedelta.diff(places[number], places[number + 1], deltas[-1], with_files=True)
    return places, deltas


def test_files_of_a_chain(history: History) -> None:
    """Shards, index and carried files are those of the last target, by chain and by squash."""
    places, deltas = folders(history)
    sparsedelta.apply(places[0], deltas[::-1], history.folder / "there")
    assert tree(history.folder / "there") == tree(places[3])
    sparsedelta.revert(places[3], deltas, history.folder / "back")
    assert tree(history.folder / "back") == tree(places[0])
    sparsedelta.squash(deltas, history.folder / "one")
    sparsedelta.invert(history.folder / "one", history.folder / "inverse")
    # The configuration is at the end what it was, and the file that came has gone again.
    assert sparsedelta.info(history.folder / "one").files == ()
    assert sparsedelta.info(deltas[1]).files == ("config.json", "extra.json")
    for base, delta, end in ((0, "one", 3), (3, "inverse", 0)):
        out = history.folder / f"by-{delta}"
        sparsedelta.apply(places[base], history.folder / delta, out)
        assert tree(out) == tree(places[end])
    inverse = history.folder / "inverse1"
    sparsedelta.invert(deltas[1], inverse)
    sparsedelta.apply(places[2], inverse, history.folder / "back1")
    assert tree(history.folder / "back1") == tree(places[1])
    resumed = sparsedelta.apply(places[0], deltas, history.folder / "again", resume=True)
    assert resumed.changed
    assert tree(history.folder / "again") == tree(places[3])


# --- squash ---


def test_squash_by_the_command_line(history: History) -> None:
    a, b, c = history.deltas
    one = history.folder / "one"
    run = succeeded(call("squash", c, a, b, "-o", one, "--meta", "run=7", "--json"))
    assert run.document["deltas"] == [str(a), str(b), str(c)]
    assert run.document["base"] == history.fingerprint(0)
    assert run.document["target"] == history.fingerprint(3)
    assert sparsedelta.info(one).metadata == {"run": "7"}
    dry = succeeded(call("squash", a, b, c, "-o", history.folder / "no", "--dry-run"))
    assert dry.out.startswith(f"would write {history.folder / 'no'}: ")
    assert not (history.folder / "no").exists()
    assert "exists" in failed(call("squash", a, b, c, "-o", one), 1)
    assert failed(call("squash", a, b, c, "-o", a, "--force"), 1)
    succeeded(call("squash", a, b, c, "-o", one, "--force", "-q"))
    parts = succeeded(call("squash", a, b, c, "-o", history.folder / "set", "--shards", "3"))
    assert parts.out.startswith("wrote")
    assert sparsedelta.info(history.folder / "set").content == sparsedelta.info(one).content
    assert len(sparsedelta.info(history.folder / "set").parts) > 1
    back = history.folder / "inverse"
    succeeded(call("invert", one, "-o", back))
    succeeded(call("apply", history.states[3], back, "-o", history.out))
    assert history.out.read_bytes() == history.states[0].read_bytes()


def test_a_set_in_a_chain(history: History) -> None:
    a, b, c = history.deltas
    sparsedelta.squash([a, b], history.folder / "set", max_shard_size=1)
    assert sparsedelta.info(history.folder / "set").parts
    sparsedelta.apply(history.states[0], [c, history.folder / "set"], history.out)
    assert history.out.read_bytes() == history.states[3].read_bytes()
    with pytest.raises(StructureError, match=r"part file \d of a set"):
        sparsedelta.squash([a, next(iter(history.folder.glob("set-*")))], history.folder / "no")


def test_words_that_are_nowhere_are_refused_by_name(history: History) -> None:
    """A tensor is replaced, and then dropped with the words it had: the base's are lost."""
    one_way, gone = history.folder / "one_way", history.folder / "gone"
    sparsedelta.diff(history.states[0], history.states[1], one_way, one_way=True)
    less = {name: tensor for name, tensor in states()[1].items() if name != TUNED}
    sparsedelta.diff(history.states[1], write_file(history.folder / "less", less), gone)
    message = failed(call("squash", one_way, gone, "-o", history.out), 1)
    assert repr(TUNED) in message
    assert str(one_way) in message
    assert "--forget" in hint_of(message)
    report = sparsedelta.squash([one_way, gone], history.out, forget=True)
    assert not report.manifest.invertible
    sparsedelta.apply(history.states[0], history.out, history.folder / "there")
    assert (history.folder / "there").read_bytes() == (history.folder / "less").read_bytes()


def test_an_add_is_refused_by_name(history: History) -> None:
    import numpy as np  # noqa: PLC0415

    spec = sparsedelta.TensorSpec(FROZEN, "BF16", (40, 30))
    value = np.array([0x3F80], np.uint16)
    part = sparsedelta.Part("add", np.array([3]), value, None, "BF16", 0.0)
    zero = base_tensors()
    zero[FROZEN] = Stored("BF16", (40, 30), bytes(2400))
    base = write_file(history.folder / "zero", zero)
    added = history.folder / "added"
    part = sparsedelta.Part("add", np.array([3]), value, None, "BF16", 1.0)
    sparsedelta.write_delta(base, [sparsedelta.TensorDelta(spec, spec, (part,))], added)
    message = failed(call("squash", added, "-o", history.out), 1)
    assert repr(FROZEN) in message
    assert "add" in message
    assert "no inverse" in failed(call("invert", added, "-o", history.out), 1)


# --- log and which ---


def test_log_draws_chains_and_forks(history: History) -> None:
    a, b, c = history.deltas
    side = history.side()
    lines = succeeded(call("log", c, side, b, a)).out.splitlines()
    marks = [line for line in lines if "o " in line.split("  ")[0]]
    assert f"o {history.fingerprint(0)[:16]}  (base)" == lines[0]
    assert f"o {history.fingerprint(1)[:16]}  (fork: 2 deltas)" in marks
    assert f"o {history.fingerprint(3)[:16]}  (tip)" in " ".join(marks)
    for delta in (a, b, c, side):
        assert sum(f"│ {delta}: " in line for line in lines) == 1
    document = succeeded(call("log", c, side, b, a, "--json")).document
    assert document["roots"] == [history.fingerprint(0)]
    assert document["forks"] == [history.fingerprint(1)]
    assert not document["is_chain"]
    assert len(document["edges"]) == 4
    assert sparsedelta.log([c, a, b]).is_chain
    lines = succeeded(call("log", a, c)).out.splitlines()
    assert sum("(base)" in line for line in lines) == 2


def test_log_of_a_circle_and_of_nothing_new(history: History) -> None:
    a, b, _ = history.deltas
    same = history.diff(1, 1, "same")
    lines = succeeded(call("log", a, b, history.diff(2, 0, "circle"), same)).out.splitlines()
    assert "(drawn above)" in lines[-1]
    assert sum("changes nothing" in line for line in lines) == 1
    sparsedelta.apply(history.states[0], [same, b, a], history.out)
    assert history.out.read_bytes() == history.states[2].read_bytes()
    run = succeeded(call("log", a, a))
    assert run.err == f"note: {a} has the same content as {a}\n"


def test_which_says_where_a_checkpoint_stands(history: History) -> None:
    a, b, c = history.deltas
    run = succeeded(call("which", history.states[2], c, a, b))
    assert "between the ends" in run.out
    assert f"behind {b}" in run.out
    assert f"before {c}" in run.out
    document = succeeded(call("which", history.states[0], c, a, b, "--json")).document
    assert document["is_base"]
    assert document["leaving"] == [str(a)]
    found = sparsedelta.which(history.states[3], history.deltas)
    assert found.is_tip
    assert found.from_base == tuple(map(str, history.deltas))
    other = write_file(history.folder / "other", base_tensors(seed=5))
    run = call("which", other, a, b)
    assert run.code == 3
    assert "none of these deltas" in run.out


# --- from elsewhere, and by many ---


def test_a_chain_from_a_web_server(history: History) -> None:
    with web_server() as server:
        urls = [server.put(path.name, path.read_bytes()) for path in history.deltas]
        base = server.put("s0.safetensors", history.states[0].read_bytes())
        sparsedelta.apply(base, urls[::-1], history.out)
        assert history.out.read_bytes() == history.states[3].read_bytes()
        sparsedelta.squash([urls[2], history.deltas[0], urls[1]], history.folder / "one")
    assert sparsedelta.info(history.folder / "one").target == history.fingerprint(3)


def test_ranks_squash_and_follow_together(history: History) -> None:
    """Two processes write the files that one writes."""
    (history.folder / "many").mkdir()
    all_well(run_ranks(2, "chains", history.folder))
    one = history.folder / "one"
    one.mkdir()
    sparsedelta.squash(history.deltas, one / "one.safetensors", shards=2)
    sparsedelta.invert(history.deltas[1], one / "inverse.safetensors", shards=2)
    for path in one.iterdir():
        assert path.read_bytes() == (history.folder / "many" / path.name).read_bytes()
    assert (history.folder / "many" / "out").read_bytes() == history.states[3].read_bytes()
