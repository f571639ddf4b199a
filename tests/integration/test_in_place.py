"""Runs in place: the bits of ``-o``, or the bits that were there, whatever interrupts them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pytest
from checkpoint_files import (
    FROZEN,
    HALF,
    TUNED,
    Pair,
    Stored,
    Tensors,
    base_tensors,
    call,
    failed,
    file_bytes,
    hint_of,
    shard_names,
    split,
    succeeded,
    tree,
    tuned,
    write_file,
    write_shards,
)

import sparsedelta
from sparsedelta import (
    CheckpointError,
    OutputError,
    UnfinishedError,
    UsageError,
    VerificationError,
    WrongBaseError,
)
from sparsedelta.inodes import Inode
from sparsedelta.journal import JournalWriter, journal_path
from sparsedelta.operations.settle import settle
from sparsedelta.parallel import OrderedMap

NAMES: Final = shard_names(2)

CRASHED: Final = 77
"""What a process exits with that was made to die."""


@dataclass(frozen=True)
class Case:
    """A folder that is to be changed in place, and what it shall become."""

    folder: Path
    delta: Path
    before: dict[str, bytes | str]
    after: dict[str, bytes | str]

    def apply(self, **options: Any) -> sparsedelta.ApplyReport:  # noqa: ANN401 (passed on)
        """Follow the delta in place."""
        return sparsedelta.apply(self.folder, self.delta, in_place=True, threads=1, **options)

    @property
    def found(self) -> dict[str, bytes | str]:
        """What the folder holds at present."""
        return tree(self.folder)

    def restore(self, state: dict[str, bytes | str]) -> None:
        """Give the folder another content; files that stay are the same ones to a journal."""
        for name in self.found.keys() - state.keys():
            (self.folder / name).unlink()
        for name, content in state.items():
            assert isinstance(content, bytes)
            (self.folder / name).write_bytes(content)


def renamed(tensors: Tensors) -> Tensors:
    """The same with one tensor under a name of the same length: another header, as long."""
    return {("z" + name[1:] if name == HALF else name): item for name, item in tensors.items()}


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """Two shards: words, a header and the index change; of three small files each otherwise."""
    old, new = base_tensors(), tuned(base_tensors())
    groups = [(FROZEN, TUNED), (HALF, "d.frozen.bias")]
    base = write_shards(tmp_path / "base", *split(old, *groups))
    target = write_shards(tmp_path / "target", *map(renamed, split(new, *groups)))
    for folder, names in ((base, "ab"), (target, "bc")):
        for name in names:
            (folder / f"{name}.json").write_text(json.dumps([folder.name, name]))
        (folder / "README").write_text("stays")
    delta = tmp_path / "delta"
    sparsedelta.diff(
        base, target, delta, with_files=True, profile=getattr(request, "param", "portable")
    )
    before = tree(base)
    sparsedelta.apply(base, delta, tmp_path / "out")
    after = tree(tmp_path / "out")
    assert after == tree(target)
    return Case(base, delta, before, after)


@pytest.mark.parametrize("case", ["portable", "compact"], indirect=True)
def test_in_place_is_what_an_output_is(case: Case) -> None:
    report = case.apply()
    assert case.found == case.after
    assert (report.changed, report.verified, report.settled) == (True, "full", None)
    assert report.files == ("b.json", "c.json")
    again = case.apply(verify="touched")
    assert (again.changed, again.verified) == (False, "touched")
    if sparsedelta.info(case.delta).invertible:
        sparsedelta.revert(case.folder, case.delta, in_place=True, verify="touched")
        assert case.found == case.before


def test_a_dry_run_changes_nothing(case: Case) -> None:
    times = {path: path.stat().st_mtime_ns for path in (case.folder, *case.folder.iterdir())}
    assert case.apply(dry_run=True).changed
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("name", ["index", "first", "second"])
def test_any_name_of_a_checkpoint_will_do(case: Case, name: str) -> None:
    """An index leads to its shards; a shard by itself is another checkpoint."""
    path = case.folder / "model.safetensors.index.json"
    if name == "index":
        assert sparsedelta.apply(path, case.delta, in_place=True).changed
        assert case.found == case.after
    else:
        number = ("first", "second").index(name) + 1
        with pytest.raises(WrongBaseError):
            sparsedelta.apply(
                case.folder / f"model-0000{number}-of-00002.safetensors", case.delta, in_place=True
            )
        assert case.found == case.before


# --- a process that dies ---


CALLS: Final = ("pwrite", "write", "fsync", "rename", "replace", "unlink", "open")


def dying(after: int, operation: Callable[[], object]) -> int:
    """Run in a process that dies at a system call that writes; the exit code.

    Args:
        after: Number of such calls that it survives. The next one is done by half.
        operation: What to run.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = after

    def patched(name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def counting(*arguments: Any, **options: Any) -> object:  # noqa: ANN401 (passed on)
            nonlocal left
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
                return original(*arguments, **options)
            left -= 1
            if left < 0:
                if name in ("pwrite", "write"):
                    half = memoryview(arguments[1])[: len(arguments[1]) // 2]
                    original(arguments[0], half, *arguments[2:])
                os._exit(CRASHED)
            return original(*arguments, **options)

        return counting

    try:
        for name in CALLS:
            setattr(os, name, patched(name))
        operation()
        os._exit(0)
    except BaseException:  # noqa: BLE001 (a forked process must never come back)
        os._exit(1)


def crashes(case: Case, operation: Callable[[], object]) -> Iterator[dict[str, bytes | str]]:
    """The state that every possible death leaves, the folder being in it."""
    states: list[dict[str, bytes | str]] = []
    for after in range(10_000):
        case.restore(case.before)
        code = dying(after, operation)
        if code == 0:
            assert after > 15, "hardly anything was counted"
            return
        assert code == CRASHED
        if case.found not in states:
            states.append(case.found)
            yield states[-1]
    pytest.fail("it does not end")


def journals(case: Case) -> list[str]:
    return [name for name in case.found if name.endswith("-journal")]


def undo(case: Case) -> None:
    """Settle what is there to be settled, and nothing else."""
    with OrderedMap(1) as pool:
        settle(case.folder, pool, lambda _: False)


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before a process died is there: nobody need wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("fast_disk")
def test_a_death_at_any_moment_is_undone_or_ended(case: Case) -> None:
    settled = set()
    for state in crashes(case, case.apply):
        if journals(case):
            with pytest.raises(UnfinishedError, match="half changed"):
                sparsedelta.fingerprint(case.folder)
        else:
            sparsedelta.fingerprint(case.folder)
        undo(case)
        visible = {name: case.found[name] for name in case.found if not name.startswith(".")}
        assert visible in (case.before, case.after)
        for resume in (False, True):
            case.restore(state)
            report = case.apply(resume=resume)
            assert case.found == case.after
            settled.add((resume, report.settled, report.changed))
    assert {(False, "undone", True), (True, "ended", True), (True, None, True)} <= settled


@pytest.mark.usefixtures("fast_disk")
def test_a_death_while_another_is_settled(case: Case) -> None:
    """Both ways of settling may die, too, and the next may go the other way."""
    halves = [state for state in crashes(case, case.apply) if journals(case)]
    assert len(halves) > 8
    for number, state in enumerate(halves[::3]):
        for resume in (False, True):
            case.restore(state)
            code = dying(2 * number + 1, lambda: case.apply(resume=resume))  # noqa: B023 (forked)
            assert code == CRASHED
            half = case.found
            undo(case)
            visible = {name: case.found[name] for name in case.found if not name.startswith(".")}
            assert visible in (case.before, case.after)
            case.restore(half)
            case.apply(resume=not resume)
            assert case.found == case.after


def test_a_power_cut_tears_any_page(case: Case) -> None:
    """Whatever bytes of the new words reached the disk, the journal leads both ways."""
    original = JournalWriter.commit
    name = ".model-00001-of-00002.safetensors.sparsedelta-journal"

    def operation() -> None:
        def commit(writer: JournalWriter) -> None:
            original(writer)
            os._exit(CRASHED)

        setattr(JournalWriter, "commit", commit)  # noqa: B010 (in a process of its own)
        case.apply()

    assert dying(10_000, operation) == CRASHED
    journal = case.found[name]
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        torn: dict[str, bytes | str] = dict(case.before)
        for file in (path for path in case.before if path.endswith(".safetensors")):
            old, new = (
                np.frombuffer(bytes(state[file]), np.uint8)  # type: ignore[arg-type]
                for state in (case.before, case.after)
            )
            torn[file] = np.where(rng.random(old.size) < share, new, old).tobytes()
        case.restore({**torn, name: journal})
        undo(case)
        assert case.found == case.before
        case.restore({**torn, name: journal})
        assert case.apply(resume=True).settled == "ended"
        assert case.found == case.after


@pytest.mark.usefixtures("fast_disk")
def test_a_damaged_journal_is_refused(pair: Pair) -> None:
    """Any flipped bit: nothing is written from it, and nobody takes the file for whole."""
    small = {TUNED: Stored("BF16", (40,), bytes(80))}
    write_file(pair.base, small)
    write_file(pair.target, {TUNED: small[TUNED].with_word(3, 1).with_word(30, 0x8000)})
    sparsedelta.diff(pair.base, pair.target, pair.delta, force=True)
    journal = journal_path(pair.folder, pair.base.name)
    committed = interrupted(pair)
    half = pair.base.read_bytes()
    for at, byte in enumerate(committed):
        journal.write_bytes(committed[:at] + bytes([byte ^ 4]) + committed[at + 1 :])
        with pytest.raises(UnfinishedError, match="damaged"):
            sparsedelta.apply(pair.base, pair.delta, in_place=True, resume=bool(at % 2))
        assert pair.base.read_bytes() == half
    journal.write_bytes(committed)
    assert sparsedelta.apply(pair.base, pair.delta, in_place=True).settled == "undone"
    assert pair.base.read_bytes() == pair.target.read_bytes()


def interrupted(pair: Pair) -> bytes:
    """Let a run die in the midst of its last write; return its journal."""

    def commit_then_die() -> None:
        write = os.pwrite

        def half(descriptor: int, data: memoryview, offset: int) -> int:
            write(descriptor, data[: len(data) // 2], offset)
            os._exit(CRASHED)

        setattr(os, "pwrite", half)  # noqa: B010 (in a process of its own)
        sparsedelta.apply(pair.base, pair.delta, in_place=True, threads=1)

    assert dying(10_000, commit_then_die) == CRASHED
    return journal_path(pair.folder, pair.base.name).read_bytes()


# --- who is refused before a journal is settled ---


def test_readers_refuse_what_is_half_changed(pair: Pair) -> None:
    interrupted(pair)
    half = pair.base.read_bytes()
    assert half not in (file_bytes(base_tensors()), pair.target.read_bytes())
    words: list[tuple[str | Path, ...]] = [
        ("fingerprint", pair.base),
        ("info", pair.base),
        ("diff", pair.base, pair.target, "-o", pair.out),
        ("diff", pair.target, pair.base, "-o", pair.out),
        ("validate", pair.delta, "--base", pair.base),
        ("export", "--raw", pair.delta, "--base", pair.base, "-o", pair.out),
        ("apply", pair.base, pair.delta, "-o", pair.out, "--dry-run"),
        ("apply", pair.base, pair.delta, "--in-place", "--dry-run"),
    ]
    for each in words:
        message = failed(call(*each), 1)
        assert f"{pair.base} is half changed" in message
        assert f"sparsedelta apply {pair.base} {pair.delta} --in-place" in hint_of(message)
    with pytest.raises(UnfinishedError):
        sparsedelta.read_rows(pair.base, pair.delta, TUNED, 0, 1)
    assert pair.base.read_bytes() == half
    sparsedelta.fingerprint(pair.target)  # in the same folder, and nobody's business


def test_links_to_what_is_half_changed_are_refused_too(pair: Pair) -> None:
    """The journal lies beside the file, not beside the link to it; nothing is settled by a link."""
    interrupted(pair)
    half = pair.base.read_bytes()
    view, twice = pair.folder / "view", pair.folder / "twice"
    for folder, target in ((view, pair.base), (twice, view / "m.safetensors")):
        folder.mkdir()
        (folder / "m.safetensors").symlink_to(target)
    other = pair.folder / "m.safetensors"  # also in the same folder, under another name
    other.symlink_to(pair.base.name)
    for path in (view, view / "m.safetensors", twice, other):
        for words in (("fingerprint", path), ("apply", path, pair.delta, "-o", pair.out)):
            message = failed(call(*words), 1)
            assert f"{pair.base} is half changed" in message
            assert f"sparsedelta apply {pair.base} {pair.delta} --in-place" in hint_of(message)
    assert pair.base.read_bytes() == half
    sparsedelta.apply(pair.base, pair.delta, in_place=True)
    assert sparsedelta.fingerprint(twice).fingerprint == (
        sparsedelta.fingerprint(pair.target).fingerprint
    )


@pytest.mark.usefixtures("fast_disk")
def test_a_folder_of_links_to_shards(case: Case, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    for name in (*NAMES, "model.safetensors.index.json"):
        (view / name).symlink_to(case.folder / name)
    states = (state for state in crashes(case, case.apply) if journals(case))
    next(states)
    for path in (view, view / "model.safetensors.index.json", view / NAMES[1]):
        with pytest.raises(UnfinishedError, match="half changed") as caught:
            sparsedelta.fingerprint(path)
        assert caught.value.hint is not None
        assert f"apply {case.folder} " in caught.value.hint


def test_an_output_is_made_after_the_base_was_put_back(pair: Pair) -> None:
    interrupted(pair)
    run = succeeded(call("apply", pair.base, pair.delta, "-o", pair.out))
    assert run.err == "note: the run that was interrupted has been undone\n"
    assert pair.base.read_bytes() == file_bytes(base_tensors())
    assert pair.out.read_bytes() == pair.target.read_bytes()


def test_the_note_is_told_when_the_run_fails(pair: Pair) -> None:
    interrupted(pair)
    run = call("revert", pair.base, pair.delta, "--in-place", "--resume")
    assert "the run that was interrupted is another one" in failed(run, 2)
    other = pair.folder / "other.delta"
    sparsedelta.diff(pair.target, pair.base.with_name("target.safetensors"), other)
    run = call("apply", pair.base, other, "--in-place")
    assert "note: the run that was interrupted has been undone" in failed(run, 3)
    assert pair.base.read_bytes() == file_bytes(base_tensors())


def test_a_file_that_was_replaced_is_not_written_to(pair: Pair) -> None:
    """A journal about words that are neither its old nor its new ones is about another file."""
    interrupted(pair)
    write_file(pair.base, base_tensors(seed=7))
    fresh = pair.base.read_bytes()
    for resume in (False, True):
        with pytest.raises(UnfinishedError, match="neither the old nor the new") as caught:
            sparsedelta.apply(pair.base, pair.delta, in_place=True, resume=resume)
        assert caught.value.hint is not None
        assert pair.base.read_bytes() == fresh
    pair.base.write_bytes(fresh[:-1])
    with pytest.raises(UnfinishedError, match="bytes, expected"):
        sparsedelta.apply(pair.base, pair.delta, in_place=True)


def test_an_output_does_not_take_the_name_of_a_half_changed_file(pair: Pair) -> None:
    """Its journal would stay, and be carried out on the words of the new file."""
    committed = interrupted(pair)
    half = pair.base.read_bytes()
    back = pair.folder / "back.delta"
    sparsedelta.diff(pair.target, pair.target, back)
    words: list[tuple[str | Path, ...]] = [
        ("apply", pair.target, back, "-o", pair.base),
        ("apply", pair.target, back, "-o", pair.folder),
        ("diff", pair.target, pair.target, "-o", pair.base),
        ("export", "--raw", back, "-o", pair.base),
    ]
    for each in words:
        for force in ((), ("--force",)):
            message = failed(call(*each, *force), 1)
            assert "is half changed" in message
            assert f"{pair.delta} --in-place --resume" in hint_of(message)
    assert pair.base.read_bytes() == half
    assert journal_path(pair.folder, pair.base.name).read_bytes() == committed
    sparsedelta.apply(pair.target, back, pair.out)  # in the same folder, and nobody's business


def test_a_run_that_dies_while_an_output_is_made(pair: Pair) -> None:
    """The output is checked again before it takes its name."""
    back = pair.folder / "back.delta"
    sparsedelta.diff(pair.target, pair.target, back)
    left: list[bytes] = []

    def interrupt(done: int, total: int) -> None:
        if not left:
            interrupted(pair)
            left.append(pair.base.read_bytes())

    with pytest.raises(UnfinishedError, match="half changed"):
        sparsedelta.apply(pair.target, back, pair.base, force=True, progress=interrupt)
    assert [pair.base.read_bytes()] == left


@pytest.mark.parametrize("how", ["renamed", "anew", "gone", "link"])
def test_a_journal_is_not_carried_out_on_another_file(pair: Pair, how: str) -> None:
    """Even if all of its words are there: these are new or old ones by chance."""
    interrupted(pair)
    journal = journal_path(pair.folder, pair.base.name)
    fresh = pair.folder / "fresh"
    write_file(fresh, base_tensors())
    if how == "renamed":
        fresh.replace(pair.base)
    else:
        pair.base.unlink()
        if how == "link":
            pair.base.symlink_to(fresh)
        elif how == "anew":
            shutil.copyfile(fresh, pair.base)
            found = Inode.at(pair.base)
            if found is not None and not found.generation:
                pytest.skip("this file system does not tell the generation of an inode")
    for resume in (False, True):
        with pytest.raises(UnfinishedError, match="is not about the files") as caught:
            sparsedelta.apply(pair.base, pair.delta, in_place=True, resume=resume)
        assert caught.value.hint is not None
        assert f"rm {journal}" in caught.value.hint
    with pytest.raises(UnfinishedError, match="is not about the files"):
        sparsedelta.fingerprint(pair.base)
    with pytest.raises(UnfinishedError, match="is not about the files"):
        sparsedelta.apply(pair.target, pair.delta, pair.base, force=True)
    if how in ("renamed", "anew"):
        assert pair.base.read_bytes() == file_bytes(base_tensors())
        journal.unlink()
        sparsedelta.apply(pair.base, pair.delta, in_place=True)
        assert pair.base.read_bytes() == pair.target.read_bytes()


# --- two at once ---


@contextmanager
def paused(case: Case, name: str) -> Iterator[None]:
    """Another process at work in place, which waits when it first calls a function of ``os``."""
    reached, reaches = os.pipe()
    resumed, resumes = os.pipe()
    child = os.fork()
    if not child:
        original = getattr(os, name)

        def wait(*arguments: Any) -> object:  # noqa: ANN401 (passed on)
            setattr(os, name, original)
            os.write(reaches, b".")
            os.read(resumed, 1)
            return original(*arguments)

        setattr(os, name, wait)
        try:
            case.apply()
        finally:
            os._exit(0)
    try:
        assert os.read(reached, 1) == b"."
        yield
    finally:
        os.write(resumes, b".")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for descriptor in (reached, reaches, resumed, resumes):
            os.close(descriptor)


@pytest.mark.parametrize("moment", ["fsync", "pwrite"])
def test_two_processes_do_not_meet(case: Case, moment: str) -> None:
    with paused(case, moment):
        for resume in (False, True):
            with pytest.raises(OutputError, match="by another process"):
                case.apply(resume=resume)
        if moment == "fsync":  # nothing has been written yet
            sparsedelta.fingerprint(case.folder)
        else:
            with pytest.raises(UnfinishedError, match="is at work"):
                sparsedelta.fingerprint(case.folder)
    assert case.found == case.after


# --- what is wrong before anything is written ---


def test_a_wrong_base_is_left_alone(case: Case) -> None:
    path = case.folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found, time = case.found, path.stat().st_mtime_ns
    for verify in ("full", "touched"):
        with pytest.raises(WrongBaseError, match=r"b\.tuned\.weight"):
            case.apply(verify=verify)
        assert case.found == found
        assert path.stat().st_mtime_ns == time


def test_what_is_not_touched_is_not_verified_if_so_asked(case: Case) -> None:
    path = case.folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    at = data.index(base_tensors()[FROZEN].data)
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(WrongBaseError):
        case.apply()
    run = succeeded(
        call("apply", case.folder, case.delta, "--in-place", "--verify", "touched", "--json")
    )
    assert run.document["verified"] == "touched"
    expected = bytearray(case.after[path.name])  # type: ignore[arg-type]
    expected[at] ^= 1
    assert case.found == case.after | {path.name: bytes(expected)}
    run = succeeded(call("apply", case.folder, case.delta, "--in-place", "--verify", "touched"))
    assert "nothing to do" in run.out
    assert "touched tensors match, fingerprint not verified" in run.out


def test_touching_nothing_verifies_nothing(pair: Pair) -> None:
    sparsedelta.diff(pair.base, pair.base, pair.out)
    with pytest.raises(UsageError, match="nothing would be verified"):
        sparsedelta.apply(pair.base, pair.out, in_place=True, verify="touched")


@pytest.mark.parametrize("what", ["link", "hard link", "read-only", "linked folder"])
def test_files_that_are_not_ours_to_change(case: Case, what: str) -> None:
    path = case.folder / "model-00002-of-00002.safetensors"
    if what == "link":
        path.rename(case.delta.with_name("blob"))
        path.symlink_to(case.delta.with_name("blob"))
    elif what == "hard link":
        case.delta.with_name("twin").hardlink_to(path)
    elif what == "read-only":
        path.chmod(0o444)
    else:  # the folder may be a link: its files are in one place only
        case.folder.rename(case.delta.with_name("elsewhere"))
        case.folder.symlink_to("elsewhere")
        case.apply()
        assert tree(case.delta.with_name("elsewhere")) == case.after
        return
    found = case.found
    message = failed(call("apply", case.folder, case.delta, "--in-place"), 1)
    assert str(path) in message
    assert "-o OUT" in hint_of(message)
    assert case.found == found


def test_a_url_is_not_changed_in_place(pair: Pair) -> None:
    message = failed(call("apply", "s3://bucket/base.safetensors", pair.delta, "--in-place"), 1)
    assert "is a URL" in message


def test_a_small_file_of_ones_own_is_not_lost(case: Case) -> None:
    (case.folder / "b.json").write_text("mine")
    found = case.found
    with pytest.raises(OutputError, match=r"b\.json is not the file that the delta replaces"):
        case.apply()
    assert case.found == found
    case.apply(with_files=False)
    assert case.found["b.json"] == b"mine"


@pytest.mark.parametrize("kind", ["size", "offset", "name", "files"])
def test_other_files_are_refused(pair: Pair, kind: str) -> None:
    old = base_tensors()
    new, base = tuned(old), pair.base
    if kind == "size":
        new["e"] = Stored("F32", (3,), bytes(12))
    elif kind == "offset":  # tensors that change places
        new = {name: new[name] for name in (TUNED, FROZEN, HALF, "d.frozen.bias")}
        assert len(file_bytes(new)) == len(file_bytes(old))
    target = pair.target
    if kind in ("name", "files"):
        base = write_file(pair.folder / "b" / "model.safetensors", old).parent
        if kind == "name":
            target = write_file(pair.folder / "t" / "other.safetensors", new).parent
        else:
            target = write_shards(pair.folder / "t", *split(new, (FROZEN, TUNED), (HALF,)))
    else:
        write_file(target, new)
    sparsedelta.diff(base, target, pair.delta, force=True)
    before = tree(pair.folder)
    with pytest.raises(OutputError, match="cannot be changed in place") as caught:
        sparsedelta.apply(base, pair.delta, in_place=True)
    assert caught.value.hint == "write the result elsewhere: -o OUT"
    assert tree(pair.folder) == before


def test_a_file_that_shrinks_meanwhile(pair: Pair) -> None:
    size = pair.base.stat().st_size

    def shrink(done: int, total: int) -> None:
        os.truncate(pair.base, size - 1)

    with pytest.raises(CheckpointError):
        sparsedelta.apply(pair.base, pair.delta, in_place=True, threads=1, progress=shrink)
    assert not journal_path(pair.folder, pair.base.name).exists()
    assert {path.name[0] for path in pair.folder.iterdir()} == {"b", "t"}


def test_a_file_that_is_written_to_meanwhile(pair: Pair) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(pair.base, ns=(1, 1))

    before = pair.base.read_bytes()
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        sparsedelta.apply(pair.base, pair.delta, in_place=True, progress=touch)
    assert pair.base.read_bytes() == before


# --- what goes wrong later ---


def test_a_full_disk_leaves_the_checkpoint_alone(case: Case) -> None:
    """The journal does not fit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OutputError, match=os.strerror(errno.EFBIG)) as caught:
            case.apply()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint
    assert case.found == case.before


class Failing:
    """``os.pwrite`` that fails from a call on, for a number of calls."""

    def __init__(self, number: int, good: int, bad: int) -> None:
        self.number, self.good, self.bad = number, good, bad
        self.original = os.pwrite

    def __call__(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write, or fail."""
        self.good -= 1
        if self.good < 0 and self.bad > 0:
            self.bad -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.original(descriptor, data, offset)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("good", range(3))
def test_a_write_that_fails_is_put_back(
    case: Case, monkeypatch: pytest.MonkeyPatch, number: int, good: int
) -> None:
    monkeypatch.setattr(os, "pwrite", Failing(number, good, 1))
    with pytest.raises(OutputError, match=os.strerror(number)):
        case.apply()
    assert case.found == case.before


def test_a_disk_that_fails_for_good_keeps_the_journal(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", Failing(errno.EIO, 2, 1000))
        with pytest.raises(UnfinishedError, match="could not be put back") as caught:
            case.apply()
    assert caught.value.hint is not None
    assert "--in-place --resume" in caught.value.hint
    half = case.found
    for resume, settled in ((True, "ended"), (False, "undone")):
        case.restore(half)
        assert case.apply(resume=resume).settled == settled
        assert case.found == case.after


def test_a_disk_that_loses_what_it_was_given_is_heard(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call to bring something to the disk fails, and however early it was made."""
    original = os.fsync
    failed_calls = 0
    for good in range(100):
        case.restore(case.before)
        left = good

        def failing(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            original(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            if good < 6:  # journal, folder, and the files at least twice
                with pytest.raises(OutputError, match="Input/output error"):
                    case.apply()
                assert case.found == case.before
                continue
            try:
                case.apply()
            except OutputError:
                failed_calls += 1
                assert case.found == case.before
            else:
                assert case.found == case.after
            if left >= 0:
                break
    assert failed_calls


def test_a_journal_that_cannot_be_removed_is_told(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.unlink

    def unlink(path: Path, **options: Any) -> None:  # noqa: ANN401 (passed on)
        if str(path).endswith("-journal"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        original(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(UnfinishedError, match="cannot be removed"):
            case.apply()
    assert case.apply(resume=True).settled == "ended"
    assert case.found == case.after


def test_nothing_is_written_through_a_planted_link(case: Case) -> None:
    victim = case.folder.with_name("victim")
    victim.write_text("precious")
    for name in (".b.json.sparsedelta-new", ".c.json.sparsedelta-new"):
        (case.folder / name).symlink_to(victim)
    case.apply()
    assert victim.read_text() == "precious"
    assert case.found == case.after


def test_a_journal_is_as_private_as_its_files(case: Case) -> None:
    path = case.folder / NAMES[1]
    path.chmod(0o600)
    with paused(case, "pwrite"):
        (journal,) = (path for path in case.folder.iterdir() if path.name.startswith("."))
        assert journal.stat().st_mode & 0o777 == 0o600


def test_an_interrupt_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = os.pwrite, 2

    def interrupting(*arguments: Any) -> int:  # noqa: ANN401 (passed on)
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(os, "pwrite", interrupting)
    with pytest.raises(KeyboardInterrupt):
        case.apply()
    assert case.found == case.before


def test_a_sha256_that_lies_is_put_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one promise that can only be checked when the words are in their place."""
    sparsedelta.diff(pair.base, pair.target, pair.delta, force=True, layout="always", sha256=True)
    before = pair.base.read_bytes()
    read = hashlib.file_digest

    def lying(file: IO[bytes], name: str) -> object:
        return read(io.BytesIO(b"another" + file.read()), name)

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lying)
        with pytest.raises(VerificationError, match="it was put back"):
            sparsedelta.apply(pair.base, pair.delta, in_place=True)
    assert pair.base.read_bytes() == before
    sparsedelta.apply(pair.base, pair.delta, in_place=True)
    assert pair.base.read_bytes() == pair.target.read_bytes()
