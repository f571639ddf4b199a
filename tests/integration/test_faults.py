"""Signals, full disks, failing renames, changing inputs: an output is whole, or it is not there."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

import sparsedelta
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.digests import segment_digest, tensor_digest
from sparsedelta.files import write_all
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.progress import Progress
from sparsedelta.words import TensorSpec
from sparsedelta.writer import DeltaWriter

HUGE: Final = 8 << 30
"""Bytes of a tensor of zeros that takes seconds to read and no room on the disk."""

MAIN: Final = "import sys; from sparsedelta.cli import main; main(sys.argv[1:])"

# A shell gives its background jobs, and so their children, an ignored SIGINT.
INTERRUPTIBLE: Final = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
)


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
def running(pair: Pair, command: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command at work: it has read something, and made what it writes to."""
    other = pair.target if command == "diff" else pair.delta
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", INTERRUPTIBLE + MAIN),
            *(command, str(pair.base), str(other), "-o", str(pair.out), "--threads", "2"),
            *options,
        ],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()  # progress, which comes while it works
        assert line.startswith(f"{command}: "), line
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)


def ended(process: subprocess.Popen[str]) -> Run:
    out, err = process.communicate(timeout=TIMEOUT)
    return Run(process.returncode, out, err)


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
    done = subprocess.run(
        [sys.executable, "-c", code + MAIN, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
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
