"""Signals, kills, full disks, failing renames, changing inputs: an output is whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from checkpoint_files import (
    TIMEOUT,
    Pair,
    Run,
    Stored,
    Tensors,
    base_tensors,
    call,
    environment,
    failed,
    hint_of,
    split,
    tree,
    tuned,
    without_progress,
    write_file,
    write_shards,
)
from forked_commands import MODULE, ForkedCode, run_code
from thorough import THOROUGH

import sparsedelta
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.digests import segment_digest, tensor_digest
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.outputs import write_all
from sparsedelta.progress import Progress
from sparsedelta.words import TensorSpec
from sparsedelta.writer import DeltaWriter

HUGE: Final = 8 << 30
"""Bytes of a tensor of zeros that takes seconds to read and no room on the disk."""

MAIN: Final = "import sys; from sparsedelta.cli import main; main(sys.argv[1:])"


def names(folder: Path) -> set[str]:
    """Everything below a folder, by name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def zeros(path: Path, size: int, count: int = 1) -> bytes:
    """Make a checkpoint of tensors of zeros, in a sparse file; return all before its data."""
    entries = {
        f"w{number:02}": {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(count)
    }
    text = json.dumps(entries).encode()
    header = len(text).to_bytes(8, "little") + text
    path.write_bytes(header)
    os.truncate(path, len(header) + count * size)
    return header


# --- signals ---


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Pair]:
    """Two checkpoints of zeros in sparse files, and the delta of nothing between them."""
    for name in ("base", "target"):
        zeros(tmp_path / name, HUGE)
    spec = TensorSpec("w00", "U8", (HUGE,))
    digest = segment_digest(bytes(SEGMENT_WORDS))
    with DeltaWriter(tmp_path / "delta") as writer:
        writer.add_untouched(spec.name, tensor_digest(spec, [digest] * (HUGE // SEGMENT_WORDS)))
        writer.finish()
    yield Pair(tmp_path, tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    shutil.rmtree(tmp_path)


@contextmanager
def running(pair: Pair, command: str, *options: str) -> Iterator[ForkedCode]:
    """The command at work: it has read something, and made what it writes to."""
    other = pair.target if command == "diff" else pair.delta
    words = (command, pair.base, other, "-o", pair.out, "--threads", "2", *options)
    with ForkedCode(MAIN, *words, env=environment()) as process:
        line = process.first_line(TIMEOUT)  # progress, which comes while it works
        assert line.startswith(f"{command}: "), line
        yield process


def ended(process: ForkedCode) -> Run:
    out, err = process.communicate(timeout=TIMEOUT)
    return Run(process.wait(), out, err)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_a_signal_leaves_nothing(huge: Pair, command: str, number: signal.Signals) -> None:
    before = names(huge.folder)
    with running(huge, command) as process:
        process.send_signal(number)
        run = ended(process)
    assert run.code == 130, run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    assert run.err.splitlines()[-1] == "interrupted; nothing was left behind"
    assert names(huge.folder) == before


def test_an_impatient_user_leaves_nothing(huge: Pair) -> None:
    """Ctrl-C again and again, while the first one is still being cleaned up after."""
    before = names(huge.folder)
    with running(huge, "apply") as process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        run = ended(process)
    assert "Traceback" not in run.err
    assert run.code == 130, run.err
    assert names(huge.folder) == before


def test_a_signal_leaves_an_existing_output_alone(huge: Pair) -> None:
    huge.out.write_bytes(b"precious")
    before = names(huge.folder)
    with running(huge, "apply", "--force") as process:
        assert names(huge.folder) > before, "nothing is being written"
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 130
    assert names(huge.folder) == before
    assert huge.out.read_bytes() == b"precious"


@pytest.mark.parametrize("command", ["diff", "apply"])
def test_a_kill_leaves_nothing_under_the_final_name(huge: Pair, command: str) -> None:
    """What remains has a name that no program takes for a checkpoint."""
    before = names(huge.folder)
    with running(huge, command) as process:
        process.kill()
        assert ended(process).code == -signal.SIGKILL
    left = names(huge.folder) - before
    assert not huge.out.exists()
    assert {name for name in left if not name.startswith(".")} == set()


def test_what_a_kill_left_is_no_obstacle(pair: Pair) -> None:
    stale = pair.folder / ".sparsedelta.abcdefgh.tmp"
    stale.mkdir()
    (stale / pair.out.name).write_bytes(b"half")
    sparsedelta.apply(pair.base, pair.delta, pair.out)
    assert pair.out.read_bytes() == pair.target.read_bytes()


# --- full disks ---


def limited(limit: int, *arguments: str | Path) -> Run:
    """Run a command that cannot write a file beyond a size, as on a disk that is full."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    done = run_code(code + MAIN, *arguments, env=environment(), timeout=TIMEOUT)
    return Run(done.returncode, done.stdout, without_progress(done.stderr))


def full(run: Run, out: Path) -> None:
    """The run failed for lack of room, said so, and said what to do."""
    message = failed(run, 1)
    assert f"cannot write {out}: {os.strerror(errno.EFBIG)}" in message
    assert "free some space" in hint_of(message)


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A delta of about a megabyte: far more than any buffer holds."""
    folder = tmp_path_factory.mktemp("random")
    rng = np.random.default_rng(0)
    size = 1 << 20
    base = write_file(folder / "base", {"a": Stored("U8", (size,), rng.bytes(size))})
    target = write_file(folder / "target", {"a": Stored("U8", (size,), rng.bytes(size))})
    sparsedelta.diff(base, target, folder / "delta")
    return Pair(folder, base, target, folder / "delta")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("room", [0, 100, 1000, -1])
def test_a_small_delta_on_a_full_disk(pair: Pair, room: int, *, force: bool) -> None:
    """Smaller than a buffer, so that the disk is found full only at the end."""
    limit = room if room >= 0 else pair.delta.stat().st_size + room
    if force:
        pair.out.write_bytes(b"old")
    before = tree(pair.folder)
    options = ["--force"] if force else []
    full(limited(limit, "diff", pair.base, pair.target, "-o", pair.out, *options), pair.out)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("room", [100, 200_000, -1000, -1])
def test_a_large_delta_on_a_full_disk(random_pair: Pair, room: int) -> None:
    """Full while frames are spooled; full when header and tables come before them."""
    limit = room if room >= 0 else random_pair.delta.stat().st_size + room
    before = names(random_pair.folder)
    run = limited(limit, "diff", random_pair.base, random_pair.target, "-o", random_pair.out)
    full(run, random_pair.out)
    assert names(random_pair.folder) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_file_on_a_full_disk(pair: Pair, command: str, *, force: bool) -> None:
    if force:
        pair.out.write_bytes(b"old")
    before = tree(pair.folder)
    source = pair.base if command == "apply" else pair.target
    options = ["--force"] if force else []
    full(limited(5000, command, source, pair.delta, "-o", pair.out, *options), pair.out)
    assert tree(pair.folder) == before


@pytest.fixture
def shards(pair: Pair) -> Pair:
    """The pair with its base in shards of unequal size, beside a config."""
    folder = pair.folder / "shards"
    tensors = base_tensors()
    write_shards(folder, *split(tensors, *([name] for name in tensors)))
    (folder / "config.json").write_bytes(b" " * 20_000)
    return Pair(pair.folder, folder, pair.target, pair.delta)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("room", [100, 4500, 15_000])
def test_shards_on_a_full_disk(shards: Pair, room: int, *, force: bool) -> None:
    """Full at the first shard, at a later one, and at what is copied along."""
    if force:
        write_file(shards.out / "old.safetensors", base_tensors())
    before = tree(shards.folder)
    options = ["--force"] if force else []
    full(limited(room, "apply", shards.base, shards.delta, "-o", shards.out, *options), shards.out)
    assert tree(shards.folder) == before


def test_the_limit_of_these_tests_is_no_obstacle_to_enough_room(pair: Pair) -> None:
    run = limited(1 << 20, "apply", pair.base, pair.delta, "-o", pair.out)
    assert run.code == 0, run.err


# --- system calls that fail, in this process ---


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, *, after: int = 0
) -> list[int]:
    """Let a function of ``os`` raise, once it has been called so many times."""
    real: Callable[..., Any] = getattr(os, name)
    calls = [0]

    def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 (any function of os)
        calls[0] += 1
        if calls[0] > after:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_disk_that_fills_up_while_words_are_written(
    shards: Pair, monkeypatch: pytest.MonkeyPatch, threads: int, after: int
) -> None:
    """Room that was there when the files were made may be gone when their words come."""
    before = tree(shards.folder)
    calls = failing(monkeypatch, "pwrite", OSError(errno.ENOSPC, "No space left"), after=after)
    with pytest.raises(sparsedelta.OutputError, match="No space left") as error:
        sparsedelta.apply(shards.base, shards.delta, shards.out, threads=threads)
    assert error.value.hint
    assert calls[0] > after
    monkeypatch.undo()
    assert tree(shards.folder) == before


@pytest.mark.parametrize("calls", ["fsync", "mkdir", "link rename replace"])
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_a_disk_that_refuses(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, command: str, calls: str
) -> None:
    """A read-only folder, a failing disk: one error that names the output and the reason."""
    before = tree(pair.folder)
    for name in calls.split():
        failing(monkeypatch, name, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    with pytest.raises(sparsedelta.OutputError, match="Read-only file system") as error:
        run_in_process(pair, command)
    assert str(pair.out) in error.value.message
    monkeypatch.undo()
    assert tree(pair.folder) == before


def run_in_process(pair: Pair, command: str, **options: Any) -> None:  # noqa: ANN401 (passed on)
    if command == "diff":
        sparsedelta.diff(pair.base, pair.target, pair.out, **options)
    else:
        sparsedelta.apply(pair.base, pair.delta, pair.out, **options)


def old_file(out: Path) -> None:
    out.write_bytes(b"precious")


def old_folder(out: Path) -> None:
    write_file(out / "old.safetensors", base_tensors())


def old_link_to_a_file(out: Path) -> None:
    old_file(out.with_name("elsewhere"))
    out.symlink_to(out.with_name("elsewhere"))


def old_link_to_a_folder(out: Path) -> None:
    old_folder(out.with_name("elsewhere"))
    out.symlink_to(out.with_name("elsewhere"))


OLD = (old_file, old_folder, old_link_to_a_file, old_link_to_a_folder)


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_force_puts_a_new_output_in_the_place_of_any_old_one(
    shards: Pair, pair: Pair, kind: str, old: Callable[[Path], None]
) -> None:
    """The counterpart of the tests below: without a fault, the replacement takes place."""
    old(pair.out)
    if kind == "file" and old is old_folder:
        with suppress(sparsedelta.OutputError):  # may be refused: see test_cli_outputs
            sparsedelta.apply(pair.base, pair.delta, pair.out, force=True)
        assert pair.out.exists()
        return
    source = pair.base if kind == "file" else shards.base
    sparsedelta.apply(source, pair.delta, pair.out, force=True)
    assert str(sparsedelta.fingerprint(pair.out)) == str(sparsedelta.fingerprint(pair.target))
    assert not pair.out.is_symlink()


def interrupt_first(real: Callable[[], None]) -> None:
    raise KeyboardInterrupt


def interrupt_then(real: Callable[[], None]) -> None:
    real()
    raise KeyboardInterrupt


def break_down(real: Callable[[], None]) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("fault", [interrupt_first, interrupt_then, break_down])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", ["rename", "replace"])
@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_replacement_keeps_an_output(  # noqa: PLR0917 (a table of cases)
    shards: Pair,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    old: Callable[[Path], None],
    name: str,
    step: int,
    fault: Callable[[Callable[[], None]], None],
) -> None:
    """Whichever step of putting the new in the old one's place fails, one of them is there."""
    source = shards.base if kind == "folder" else shards.folder / "base.safetensors"
    old(shards.out)
    before = tree(shards.folder)
    real: Callable[..., None] = getattr(os, name)
    calls = [0]

    def faulty(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == step + 1:
            fault(lambda: real(source, target))
        else:
            real(source, target)

    monkeypatch.setattr(os, name, faulty)
    with suppress(sparsedelta.OutputError, KeyboardInterrupt):
        sparsedelta.apply(source, shards.delta, shards.out, force=True)
    monkeypatch.undo()
    found = tree(shards.folder)
    others = {key: value for key, value in found.items() if not key.startswith(shards.out.name)}
    assert others == {k: v for k, v in before.items() if not k.startswith(shards.out.name)}
    if found != before:
        new = sparsedelta.fingerprint(shards.out)
        assert str(new) == str(sparsedelta.fingerprint(shards.target))


# --- inputs that change ---


@pytest.fixture
def segments(tmp_path: Path) -> Pair:
    """Checkpoints of more pieces of work than two threads have in flight, in sparse files."""
    count = 16
    paths = [tmp_path / "base", tmp_path / "target"]
    for path in paths:
        start = len(zeros(path, SEGMENT_WORDS, count))
        with path.open("r+b") as file:
            for offset in range(start + 1000, start + count * SEGMENT_WORDS, SEGMENT_WORDS):
                file.seek(offset)
                file.write(path.name.encode())
    sparsedelta.diff(paths[0], paths[1], tmp_path / "delta")
    return Pair(tmp_path, paths[0], paths[1], tmp_path / "delta")


def truncate_at_once(path: Path) -> Progress:
    def progress(done: int, total: int) -> None:
        os.truncate(path, path.stat().st_size // 2)

    return progress


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("command", "end"), [("diff", "base"), ("diff", "target"), ("apply", "base")]
)
def test_an_input_that_shrinks_is_an_error(
    segments: Pair, command: str, end: str, threads: int
) -> None:
    """Neither a crash nor zeros in place of what is gone."""
    path = getattr(segments, end)
    before = names(segments.folder)
    with pytest.raises(sparsedelta.CheckpointError, match="early") as error:
        run_in_process(segments, command, threads=threads, progress=truncate_at_once(path))
    assert str(path) in error.value.message
    assert names(segments.folder) == before


def test_a_delta_that_shrinks_is_an_error(segments: Pair) -> None:
    before = names(segments.folder)
    with pytest.raises(sparsedelta.SparseDeltaError, match="early") as error:
        run_in_process(segments, "apply", threads=1, progress=truncate_at_once(segments.delta))
    assert str(segments.delta) in error.value.message
    assert names(segments.folder) == before


def test_a_checkpoint_that_shrinks_has_no_fingerprint(tmp_path: Path) -> None:
    tensors = {name: Stored("U8", (1000,), bytes(1000)) for name in "abcdef"}
    path = write_file(tmp_path / "base", tensors)
    with pytest.raises(sparsedelta.CheckpointError, match="early"):
        sparsedelta.fingerprint(path, threads=1, progress=truncate_at_once(path))


def test_a_base_that_is_wrong_only_for_a_moment_is_an_error(tmp_path: Path) -> None:
    """Someone writes to it meanwhile: no digest differs in the end, and still it is no base."""
    right: Tensors = {name: Stored("U8", (8,), bytes(8)) for name in "abc"}
    base = write_file(tmp_path / "base", right)
    target = write_file(tmp_path / "target", right | {"a": Stored("U8", (8,), b"\1" * 8)})
    sparsedelta.diff(base, target, tmp_path / "delta")
    write_file(base, right | {"c": Stored("U8", (8,), b"\2" * 8)})
    before = names(tmp_path)

    def put_right(done: int, total: int) -> None:
        if done == total:
            write_file(base, right)

    with pytest.raises(sparsedelta.SparseDeltaError) as error:
        sparsedelta.apply(base, tmp_path / "delta", tmp_path / "out", threads=1, progress=put_right)
    assert str(base) in error.value.message
    assert names(tmp_path) == before


def test_a_base_that_changes_after_it_was_read_does_no_harm(segments: Pair) -> None:
    """What was verified is what is written: every word is read once."""
    expected = segments.target.read_bytes()

    def scribble(done: int, total: int) -> None:
        with segments.base.open("r+b") as file:
            file.seek(done - 1000)
            file.write(b"\xff" * 500)

    sparsedelta.apply(segments.base, segments.delta, segments.out, threads=1, progress=scribble)
    assert segments.out.read_bytes() == expected


# --- exceptions from a progress function ---


class StopError(Exception):
    """Raised by a progress function."""


STOPS = (StopError, KeyboardInterrupt, SystemExit, MemoryError)


def stop_with(kind: type[BaseException]) -> Progress:
    def progress(done: int, total: int) -> None:
        raise kind

    return progress


def open_files() -> int:
    """Number of this process's open files."""
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 (needs no Path of each)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_an_exception_from_progress_passes_and_leaves_nothing(
    segments: Pair, command: str, kind: type[BaseException], threads: int
) -> None:
    """No file, no open descriptor, no thread."""
    before = names(segments.folder), open_files(), threading.active_count()
    with pytest.raises(kind):
        run_in_process(segments, command, threads=threads, progress=stop_with(kind))
    assert (names(segments.folder), open_files(), threading.active_count()) == before


@pytest.mark.parametrize("dry_run", [False, True])
def test_success_leaves_no_open_files(segments: Pair, *, dry_run: bool) -> None:
    before = open_files(), threading.active_count()
    for command in ("diff", "apply"):
        run_in_process(segments, command, threads=2, force=True, dry_run=dry_run)
    assert (open_files(), threading.active_count()) == before


def wrong_base(pair: Pair) -> None:
    write_file(pair.base, base_tensors(seed=7))


def broken_base(pair: Pair) -> None:
    pair.base.write_bytes(b"broken")


def broken_target(pair: Pair) -> None:
    pair.target.write_bytes(b"broken")


def other_target(pair: Pair) -> None:
    write_file(pair.target, {"x": Stored("U8", (1,), b"\0")})


def broken_delta(pair: Pair) -> None:
    data = bytearray(pair.delta.read_bytes())
    data[-1] ^= 1
    pair.delta.write_bytes(data)


def delta_of_text(pair: Pair) -> None:
    pair.delta.write_text("no delta at all")


def existing_output(pair: Pair) -> None:
    pair.out.touch()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("diff", broken_base),
        ("diff", broken_target),
        ("diff", other_target),
        ("diff", existing_output),
        ("apply", broken_base),
        ("apply", wrong_base),
        ("apply", broken_delta),
        ("apply", delta_of_text),
        ("apply", existing_output),
    ],
)
def test_a_failure_leaves_no_open_files(
    pair: Pair, command: str, fault: Callable[[Pair], None]
) -> None:
    fault(pair)
    before = open_files(), threading.active_count()
    with pytest.raises(sparsedelta.SparseDeltaError):
        run_in_process(pair, command, threads=2)
    assert (open_files(), threading.active_count()) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_appears_meanwhile_is_not_replaced(
    shards: Pair, pair: Pair, kind: str
) -> None:
    """Two runs with one output: without ``--force`` the second to end finds that it exists."""

    def appear(done: int, total: int) -> None:
        if kind == "file":
            pair.out.write_bytes(b"precious")
        else:
            write_file(pair.out / "precious.safetensors", base_tensors())

    source = pair.base if kind == "file" else shards.base
    with pytest.raises(sparsedelta.OutputError, match="exists"):
        sparsedelta.apply(source, pair.delta, pair.out, progress=appear)
    name = pair.out.name if kind == "file" else f"{pair.out.name}/precious.safetensors"
    assert name in tree(pair.folder)
    assert kind == "folder" or pair.out.read_bytes() == b"precious"


def test_a_wrong_large_base_leaves_no_open_files(segments: Pair) -> None:
    write_file(segments.base, tuned(base_tensors()))
    before = open_files(), threading.active_count()
    with pytest.raises(sparsedelta.WrongBaseError):
        sparsedelta.apply(segments.base, segments.delta, segments.out)
    assert (open_files(), threading.active_count()) == before


def test_no_worker_writes_to_a_file_that_was_closed(
    segments: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that is closed may be another file's when a straggler writes to it."""
    closed = threading.Event()
    late: list[str] = []
    real_close = CheckpointWriter.close
    waiting = threading.Event()

    def write(descriptor: int, data: memoryview, position: int) -> None:
        if threading.current_thread() is not threading.main_thread() and position > SEGMENT_WORDS:
            waiting.set()
            closed.wait(1)  # the straggler: it ends this wait early only if the file is closed
            if closed.is_set():
                late.append(f"a write at {position}")
                return
        write_all(descriptor, data, position)

    def close(writer: CheckpointWriter) -> None:
        real_close(writer)
        closed.set()

    def stop(done: int, total: int) -> None:
        waiting.wait(TIMEOUT)
        raise StopError

    monkeypatch.setattr("sparsedelta.checkpoint_writer.write_all", write)
    monkeypatch.setattr(CheckpointWriter, "close", close)
    with pytest.raises(StopError):
        sparsedelta.apply(segments.base, segments.delta, segments.out, threads=2, progress=stop)
    assert late == []


def test_the_limit_on_file_sizes_is_not_ours() -> None:
    """The tests above limit their children only."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- kill -9 at any moment ---

MOMENTS: Final = 50 if THOROUGH else 25
"""Kills per scenario, spread over what the command takes."""

ZYGOTE: Final = """
import json, os, signal, sys, time
import sparsedelta
from sparsedelta import apply, diff
sys.stdout.write("ready\\n")
sys.stdout.flush()
for line in sys.stdin:
    name, arguments, options, delay = json.loads(line)
    begin = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            {"apply": apply, "diff": diff}[name](*arguments, **options)
            code = 0
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.monotonic() - begin]), flush=True)
"""


class Killer:
    """Runs operations in processes that it kills; the imports are done once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready\n"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self, delay: float | None, name: str, *paths: Path, **options: object) -> list[Any]:
        """Exit status and seconds of an operation that is killed after a delay."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, [*map(str, paths)], options, delay]) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._read())
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=TIMEOUT)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ends in shards, one file of the base, a delta and a set: as large as takes a moment."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    base: Tensors = {}
    for number in range(12):
        words = rng.integers(0, 1 << 16, 100_000, np.uint16)
        base[f"w{number:02}"] = Stored("BF16", (100_000,), words.tobytes())
    groups = [list(base)[start : start + 4] for start in (0, 4, 8)]
    target = tuned(base, tuple(base))
    write_shards(folder / "base", *split(base, *groups))
    write_shards(folder / "target", *split(target, *groups))
    (folder / "base" / "config.json").write_text("{}")
    write_file(folder / "base.safetensors", base)
    write_file(folder / "target.safetensors", target)
    base_path, target_path = folder / "base", folder / "target"
    sparsedelta.diff(base_path, target_path, folder / "delta.safetensors")
    (folder / "set").mkdir()
    out = folder / "set" / "d.safetensors"
    sparsedelta.diff(base_path, target_path, out, max_shard_size=20_000)
    assert len(list((folder / "set").iterdir())) > 4
    return folder


def visible(folder: Path) -> Tree:
    """What is there under names that a program would take for a result."""
    return {name: data for name, data in tree(folder).items() if not name.startswith(".")}


Tree = dict[str, bytes | str]


def leave_empty(folder: Path) -> None:
    """What is there before a command, unless something else is said."""


def kill_at_moments(
    killer: Killer,
    name: str,
    inputs: tuple[Path, ...],
    out: Path,
    *,
    check: Callable[[Tree, Tree], None],
    prepare: Callable[[Path], None] = leave_empty,
    **options: object,
) -> None:
    """Kill an operation at moments spread over its whole duration, and look at what is there.

    Args:
        killer: What kills.
        name: The operation.
        inputs: Its inputs.
        out: Its output, in a folder of its own.
        check: Given what is there and what the whole result is.
        prepare: Puts there what is there before.
        options: Options of the operation.
    """
    before = {path: tree(path) if path.is_dir() else path.read_bytes() for path in inputs}

    def anew() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        prepare(out.parent)

    durations = []
    for _ in range(3):
        anew()
        status, seconds = killer.run(None, name, *inputs, out, **options)
        assert status == 0
        durations.append(seconds)
    whole = visible(out.parent)
    rng = np.random.default_rng(len(name))
    outcomes = set()
    for number in range(MOMENTS):
        anew()
        delay = 1.1 * sorted(durations)[1] * (number + rng.random()) / MOMENTS
        status, _ = killer.run(delay, name, *inputs, out, **options)
        assert status in (0, -signal.SIGKILL)
        outcomes.add(status)
        check(visible(out.parent), whole)
    assert -signal.SIGKILL in outcomes, "no moment was early enough"
    after = {path: tree(path) if path.is_dir() else path.read_bytes() for path in inputs}
    assert after == before
    # What they left is no obstacle.
    status, _ = killer.run(None, name, *inputs, out, **options | {"force": True})
    assert status == 0
    assert visible(out.parent) == whole
    shutil.rmtree(out.parent)


def whole_or_nothing(found: Tree, whole: Tree) -> None:
    assert found in ({}, whole)


def no_root_before_its_parts(found: Tree, whole: Tree) -> None:
    """Each file is whole, and the root comes last."""
    assert found.items() <= whole.items()
    assert "d.safetensors" not in found or found == whole


@pytest.mark.parametrize("source", ["file", "shards"])
def test_a_kill_during_diff_leaves_a_whole_delta_or_none(
    killer: Killer, wide: Path, tmp_path: Path, source: str
) -> None:
    suffix = ".safetensors" if source == "file" else ""
    ends = (wide / f"base{suffix}", wide / f"target{suffix}")
    kill_at_moments(
        killer, "diff", ends, tmp_path / "new" / "d.safetensors", check=whole_or_nothing
    )


def test_a_kill_during_diff_leaves_no_root_without_its_parts(
    killer: Killer, wide: Path, tmp_path: Path
) -> None:
    ends, out = (wide / "base", wide / "target"), tmp_path / "new" / "d.safetensors"
    kill_at_moments(
        killer, "diff", ends, out, check=no_root_before_its_parts, max_shard_size=20_000
    )


def test_a_kill_while_a_set_is_replaced_leaves_no_root_with_parts_of_another(
    killer: Killer, wide: Path, tmp_path: Path
) -> None:
    """Old and new part files have the same names: the old root goes before they do."""
    ends, out = (wide / "base", wide / "target"), tmp_path / "new" / "d.safetensors"
    old = tmp_path / "old"
    old.mkdir()
    sparsedelta.diff(ends[1], ends[0], old / "d.safetensors", max_shard_size=20_000)
    before = visible(old)

    def prepare(folder: Path) -> None:
        for path in old.iterdir():
            shutil.copy(path, folder)

    def check(found: Tree, whole: Tree) -> None:
        assert found.keys() <= whole.keys()
        assert "d.safetensors" not in found or found in (before, whole)
        assert all(data in (before[name], whole[name]) for name, data in found.items())

    kill_at_moments(
        killer,
        "diff",
        ends,
        out,
        check=check,
        prepare=prepare,
        max_shard_size=20_000,
        force=True,
    )


@pytest.mark.parametrize("delta", ["delta.safetensors", "set/d.safetensors"])
@pytest.mark.parametrize("base", ["base", "base.safetensors"])
def test_a_kill_during_apply_leaves_a_whole_checkpoint_or_none(
    killer: Killer, wide: Path, tmp_path: Path, base: str, delta: str
) -> None:
    inputs = (wide / base, wide / delta)
    out = tmp_path / "new" / "out.safetensors"
    kill_at_moments(killer, "apply", inputs, out, check=whole_or_nothing)


def test_a_kill_while_a_file_is_replaced_leaves_the_old_or_the_new(
    killer: Killer, wide: Path, tmp_path: Path
) -> None:
    def prepare(folder: Path) -> None:
        (folder / "out.safetensors").write_bytes(b"old")

    def check(found: Tree, whole: Tree) -> None:
        assert found in ({"out.safetensors": b"old"}, whole)

    kill_at_moments(
        killer,
        "apply",
        (wide / "base.safetensors", wide / "delta.safetensors"),
        tmp_path / "new" / "out.safetensors",
        check=check,
        prepare=prepare,
        force=True,
    )


# --- a set that is being written ---


def sets_of(pair: Pair, out: Path, **options: Any) -> None:  # noqa: ANN401 (passed on)
    sparsedelta.diff(pair.base, pair.target, out, max_shard_size=1, **options)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("fault", [interrupt_first, interrupt_then, break_down])
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("name", ["link", "rename", "replace"])
def test_a_failing_step_of_a_set_leaves_the_old_or_the_new(
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: int,
    fault: Callable[[Callable[[], None]], None],
    *,
    old: bool,
) -> None:
    """Whichever step fails, there is a whole set with its root, or as before."""
    folder = pair.folder / "new"
    folder.mkdir()
    out = folder / "d.safetensors"
    if old:
        sets_of(Pair(pair.folder, pair.target, pair.base, pair.delta), out)
    before = tree(folder)
    real: Callable[..., None] = getattr(os, name)
    calls = [0]

    def faulty(source: Path, target: Path, **options: Any) -> None:  # noqa: ANN401 (passed on)
        calls[0] += 1
        if calls[0] == step + 1:
            fault(lambda: real(source, target, **options))
        else:
            real(source, target, **options)

    monkeypatch.setattr(os, name, faulty)
    with suppress(sparsedelta.OutputError, KeyboardInterrupt):
        sets_of(pair, out, force=old)
    monkeypatch.undo()
    found = tree(folder)
    if found != before:
        assert sparsedelta.validate(out).ok
        with sparsedelta.DeltaReader(out) as reader:
            assert reader.manifest.target == sparsedelta.fingerprint(pair.target).fingerprint


# --- two processes, one output ---


def race(*commands: list[str | Path]) -> list[Run]:
    """Run commands at the same time."""
    processes = [ForkedCode(MODULE, *command, env=environment()) for command in commands]
    runs = [ended(process) for process in processes]
    return [Run(run.code, run.out, without_progress(run.err)) for run in runs]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["delta", "set", "file", "folder"])
def test_two_processes_with_one_output_leave_a_whole_one(
    wide: Path, tmp_path: Path, kind: str, *, force: bool
) -> None:
    """One of them wins, whole; without ``--force`` the other says that it exists."""
    out = tmp_path / "out.safetensors"
    base, target = (wide / name for name in ("base", "target"))
    options: list[str | Path] = ["-o", out, *(["--force"] if force else [])]
    commands: list[list[str | Path]]
    if kind in ("delta", "set"):
        options += ["--max-shard-size", "20000"] if kind == "set" else []
        commands = [["diff", base, target, *options], ["diff", target, base, *options]]
    else:
        suffix = ".safetensors" if kind == "file" else ""
        delta = wide / "delta.safetensors"
        commands = [
            ["apply", wide / f"base{suffix}", delta, *options],
            ["revert", wide / f"target{suffix}", delta, *options],
        ]
    runs = race(*commands)
    assert [run.code for run in runs].count(0) >= 1
    for run in runs:
        if run.code:
            assert "exists" in failed(run, 1) or force, run.err
    assert {name for name in names(tmp_path) if name.startswith(".")} == set()
    if kind in ("delta", "set"):
        assert sparsedelta.validate(out).ok
    else:
        ends = {sparsedelta.fingerprint(end).fingerprint for end in (base, target)}
        assert sparsedelta.fingerprint(out).fingerprint in ends


def test_sets_that_replace_each_other_again_and_again_are_never_mixed(
    pair: Pair, tmp_path: Path
) -> None:
    """Their part files have the same names, and each root lists the digests of its own."""
    out = pair.folder / "d.safetensors"
    back = Pair(pair.folder, pair.target, pair.base, pair.delta)
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(sets_of, each, out, force=True) for each in (pair, back)]:
                done.result()
        assert sparsedelta.validate(out).ok


# --- folders and files that refuse ---

UNPRIVILEGED: Final = "import os; os.getuid() or (os.setgid(65534), os.setuid(65534)); "


def as_nobody(*arguments: str | Path) -> Run:
    """Run a command without the rights of root, to whom nothing is unreadable.

    A fork: Python itself may lie where nobody else can read it.
    """
    done = run_code(UNPRIVILEGED + MAIN, *arguments, env=environment(), timeout=TIMEOUT)
    return Run(done.returncode, done.stdout, without_progress(done.stderr))


@pytest.fixture
def shared(pair: Pair) -> Iterator[Pair]:
    """The pair where anyone can read it: folders of pytest are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for path in pair.folder.iterdir():
        shutil.copy(path, folder)
    found = [folder / path.name for path in (pair.base, pair.target, pair.delta)]
    yield Pair(folder, *found)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["diff", "apply"])
def test_a_read_only_folder_is_an_error_of_the_output(shared: Pair, command: str) -> None:
    shared.folder.chmod(0o555)
    other = shared.target if command == "diff" else shared.delta
    run = as_nobody(command, shared.base, other, "-o", shared.out)
    assert f"cannot write {shared.out}: Permission denied" in failed(run, 1)
    assert not shared.out.exists()


@pytest.mark.parametrize("command", ["diff", "apply", "validate"])
def test_an_unreadable_input_is_an_error_that_names_it(shared: Pair, command: str) -> None:
    shared.folder.chmod(0o777)
    path = shared.target if command == "diff" else shared.delta
    path.chmod(0)
    words = [path] if command == "validate" else [shared.base, path, "-o", shared.out]
    run = as_nobody(command, *words)
    assert run.code in (1, 2), run.err
    assert "Traceback" not in run.err
    assert str(path) in run.err
    assert "Permission denied" in run.err or "not readable" in run.err
    assert not shared.out.exists()


def test_an_unreadable_folder_is_an_error_that_names_it(shared: Pair) -> None:
    closed = shared.folder / "closed"
    closed.mkdir()
    closed.chmod(0)
    cases: list[list[str | Path]] = [
        ["apply", closed, shared.delta, "-o", shared.out],
        ["apply", shared.base, closed / "delta", "-o", shared.out],
        ["validate", closed / "delta"],
        ["diff", shared.base, closed / "target", "-o", shared.out],
        ["diff", shared.base, shared.target, "-o", closed / "out"],
    ]
    for words in cases:
        run = as_nobody(*words)
        assert run.code in (1, 2), run.err
        assert "Traceback" not in run.err
        assert str(closed) in run.err
        assert "Permission denied" in run.err or "not readable" in run.err
    closed.chmod(0o755)


UNSHARE: Final = shutil.which("unshare")


def mountable() -> bool:
    """Whether a file system of one's own can be mounted here, out of sight of all others."""
    if UNSHARE is None:
        return False
    command = [UNSHARE, "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


ON_A_DISK: Final = """
import atexit, ctypes, os, sys
size, disk = sys.argv.pop(1), sys.argv.pop(1)
libc = ctypes.CDLL(None)
NEW, PRIVATE = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
assert libc.unshare(NEW) == 0
assert libc.mount(b"none", b"/", None, PRIVATE, None) == 0
options = f"size={size},nr_inodes=64".encode()
assert libc.mount(b"none", os.fsencode(disk), b"tmpfs", 0, options) == 0
atexit.register(lambda: print("left: " + " ".join(os.listdir(disk))))
"""
"""Mounts a file system of a few pages, which is gone with the process; tells what is left in it."""


@pytest.mark.skipif(not mountable(), reason="no right to mount: RLIMIT_FSIZE above has to do")
@pytest.mark.parametrize("size", ["16k", "200k", "600k", "1500k", "2000k"])
@pytest.mark.parametrize("kind", ["diff", "set", "file", "folder"])
def test_a_disk_that_is_really_full_is_left_empty(
    wide: Path, tmp_path: Path, kind: str, size: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "out.safetensors"
    if kind in ("diff", "set"):
        words = ["diff", wide / "base", wide / "target", "-o", out]
        words += ["--max-shard-size", "20000"] if kind == "set" else []
    else:
        base = wide / ("base.safetensors" if kind == "file" else "base")
        words = ["apply", base, wide / "delta.safetensors", "-o", out]
    run = run_code(ON_A_DISK + MAIN, size, disk, *words, env=environment(), timeout=TIMEOUT)
    if run.returncode == 0:
        assert kind in ("diff", "set"), "a checkpoint does not fit"
        return
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert f"cannot write {out}: No space left on device" in run.stderr
    assert run.stdout.splitlines()[-1] == "left: "


# --- inputs that are no files ---


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def nothing(path: Path) -> None:
    """Leave the name free."""


KINDS: Final = (fifo, folder, loop, device, terminal, dangling, socket_file, nothing)
ODD: Final = ("plain", "a\nb", "\x1b[31mred", "-x", "a b'\"$;", "\udcff", "n" * 300)


def words_of(pair: Pair, place: str, odd: Path) -> list[list[str | Path]]:
    """Commands in which a path stands in some place."""
    base, target, delta, out = pair.base, pair.target, pair.delta, pair.out
    if place == "delta":
        return [
            ["apply", base, odd, "-o", out],
            ["revert", target, odd, "-o", out],
            ["validate", odd],
            ["info", odd],
        ]
    if place == "base":
        return [
            ["apply", odd, delta, "-o", out],
            ["diff", odd, target, "-o", out],
            ["diff", base, odd, "-o", out],
            ["fingerprint", odd],
            ["validate", delta, "--base", odd],
        ]
    return [["apply", base, delta, "-o", odd], ["diff", base, target, "-o", odd]]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["delta", "base"])
def test_an_input_that_is_no_file_is_an_error(
    pair: Pair, place: str, kind: Callable[[Path], None], name: str
) -> None:
    """Neither a traceback nor a reader that waits for a pipe to speak."""
    odd = pair.folder / "odd" / name
    odd.parent.mkdir()
    with suppress(OSError):  # some systems refuse some names: then there is nothing
        kind(odd)
    before = tree(pair.folder)
    for words in words_of(pair, place, odd):
        run = call(*words)
        assert run.code in (1, 2, 3), (words, run)
        message = failed(run, run.code)
        assert "\x1b" not in message
        assert "\n\n" not in message
    assert tree(pair.folder) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["plain", "a\nb", "\x1b[31mred", "a b'\"$;"])
@pytest.mark.parametrize("kind", [fifo, device, loop, socket_file])
def test_an_output_that_is_no_file_is_never_written_to(
    pair: Pair, kind: Callable[[Path], None], name: str, *, force: bool
) -> None:
    odd = pair.folder / "odd" / name
    odd.parent.mkdir()
    kind(odd)
    before = tree(pair.folder)
    for words in words_of(pair, "out", odd):
        run = call(*words, *(["--force"] if force else []))
        failed(run, 1)
        assert tree(pair.folder) == before


def test_part_files_that_are_links_are_no_part_files(wide: Path, tmp_path: Path) -> None:
    """Section 11: a delta from a stranger does not lead a reader elsewhere."""
    copy = tmp_path / "set"
    shutil.copytree(wide / "set", copy)
    part = min(copy.glob("d-*.safetensors"))
    for place in (fifo, folder, loop, dangling, device, socket_file, nothing):
        part.unlink()
        place(part)
        report = sparsedelta.validate(copy / "d.safetensors")
        assert [problem.rule for problem in report.problems] == ["SD601"]
        with pytest.raises(sparsedelta.FormatError, match="SD601"):
            sparsedelta.apply(wide / "base", copy / "d.safetensors", tmp_path / "out")
        with suppress(FileNotFoundError):
            part.rmdir() if part.is_dir() and not part.is_symlink() else part.unlink()
        part.touch()


def test_a_set_behind_a_link_is_read_where_the_link_lies(wide: Path, tmp_path: Path) -> None:
    """Snapshots of the Hub are folders of links, so that a root may be one; so may its parts."""
    hub = tmp_path / "hub"
    hub.mkdir()
    for path in (wide / "set").iterdir():
        (hub / path.name).symlink_to(path)
    report = sparsedelta.validate(hub / "d.safetensors")
    rules = [problem.rule for problem in report.problems]
    assert rules in ([], ["SD601"]), rules
