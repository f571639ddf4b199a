"""Positioned reads that never come up short, outputs that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsedelta.errors import CheckpointError, OutputError
from sparsedelta.files import InputFile
from sparsedelta.outputs import check_output, output_errors, staged, write_all

CONTENT = bytes(range(100))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_bytes(CONTENT)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Files below a folder by name, hidden ones too; None for what is no file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def open_files() -> int:
    """Number of this process's open files."""
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 (needs no Path of each)


# --- reading ---


def test_the_size_is_known(file: Path) -> None:
    with InputFile(file) as source:
        assert source.size == 100


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (0, 0), (10, 1), (99, 1), (100, 0)])
def test_any_run_can_be_read(file: Path, offset: int, length: int) -> None:
    with InputFile(file) as source:
        assert source.read(offset, length) == CONTENT[offset : offset + length]


def test_a_read_fills_a_buffer(file: Path) -> None:
    buffer = bytearray(b"." * 10)
    with InputFile(file) as source:
        source.read_into(memoryview(buffer)[2:8], 50)
    assert bytes(buffer) == b".." + CONTENT[50:56] + b".."


def test_reads_that_come_in_pieces_are_put_together(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may return fewer bytes than asked for: at most 2 GiB at once, for one."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
    with InputFile(file) as source:
        assert source.read(3, 90) == CONTENT[3:93]


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (1000, 1)])
def test_a_short_read_names_the_file_and_the_place(file: Path, offset: int, length: int) -> None:
    with InputFile(file) as source, pytest.raises(CheckpointError) as error:
        source.read(offset, length)
    end = max(100, offset)
    assert str(file) in error.value.message
    assert f"ends at byte {end}, {offset + length - end} bytes early" in error.value.message


def test_a_file_that_shrinks_is_a_short_read(file: Path) -> None:
    with InputFile(file) as source:
        os.truncate(file, 50)
        assert source.read(0, 50) == CONTENT[:50]
        with pytest.raises(CheckpointError, match="ends at byte 50"):
            source.read(40, 20)


def test_a_disk_that_fails_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with InputFile(file) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=f"cannot read {file}: Input/output error"):
            source.read(0, 1)


def test_links_are_followed(file: Path, tmp_path: Path) -> None:
    """A snapshot of the Hub consists of them."""
    (tmp_path / "link").symlink_to("input")
    with InputFile(tmp_path / "link") as source:
        assert source.read(0, 3) == CONTENT[:3]
        assert source.location == tmp_path / "link"


def test_a_file_that_was_replaced_is_read_as_it_was_opened(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * 100)
    with InputFile(file) as source:
        (tmp_path / "other").replace(file)
        assert source.read(0, 100) == CONTENT


def a_folder(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to(os.devnull)


@pytest.mark.parametrize("make", [a_folder, a_fifo, a_device])
def test_only_a_regular_file_is_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "special"
    make(path)
    with pytest.raises(CheckpointError, match=f"{path} is not a regular file"):
        InputFile(path)


@pytest.mark.parametrize("name", ["gone", "input/below", "x" * 300, "dangling", "loop"])
def test_what_cannot_be_opened_is_named(file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="cannot read") as error:
        InputFile(tmp_path / name)
    assert str(tmp_path / name) in error.value.message


def test_a_failed_open_leaves_no_file_open(file: Path, tmp_path: Path) -> None:
    before = open_files()
    for name in ("gone", "."):
        with pytest.raises(CheckpointError):
            InputFile(tmp_path / name)
    assert open_files() == before


def test_closing_twice_is_fine(file: Path) -> None:
    """And closes no other file that got the number meanwhile."""
    source = InputFile(file)
    before = open_files()
    source.close()
    with InputFile(file) as other:
        source.close()
        assert other.read(0, 1) == CONTENT[:1]
    assert open_files() == before - 1


# --- writing ---


def test_writes_that_come_in_pieces_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    path = tmp_path / "out"
    with path.open("wb") as output:
        write_all(output.fileno(), CONTENT, 5)
    assert path.read_bytes() == bytes(5) + CONTENT


# --- errors of outputs ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_lack_of_room_gets_a_hint(number: int) -> None:
    with pytest.raises(OutputError) as error, output_errors(Path("out")):
        raise OSError(number, os.strerror(number))
    assert error.value.message == f"cannot write out: {os.strerror(number)}"
    assert "free some space" in str(error.value.hint)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_other_refusals_get_none(number: int) -> None:
    with pytest.raises(OutputError) as error, output_errors(Path("out")):
        raise OSError(number, os.strerror(number))
    assert error.value.message == f"cannot write out: {os.strerror(number)}"
    assert error.value.hint is None


def test_other_errors_pass() -> None:
    with pytest.raises(CheckpointError, match="the input"), output_errors(Path("out")):
        raise CheckpointError("the input is broken")


# --- check_output ---


def test_a_new_name_in_a_folder_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "new", force=False)


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new", force=True)
    assert contents(tmp_path) == {}


def test_a_relative_name_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("new"), force=False)


def test_an_existing_file_needs_force(file: Path) -> None:
    with pytest.raises(OutputError, match="exists") as error:
        check_output(file, force=False)
    assert "--force" in str(error.value.hint)
    check_output(file, force=True)


@pytest.mark.parametrize("target", ["gone", "loop"])
def test_a_link_that_leads_nowhere_exists(tmp_path: Path, target: str) -> None:
    path = tmp_path / "loop"
    path.symlink_to(target)
    with pytest.raises(OutputError):
        check_output(path, force=False)


@pytest.mark.parametrize("make", [a_fifo, a_device])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "special"
    make(path)
    with pytest.raises(OutputError, match="neither a file nor a directory"):
        check_output(path, force=True)


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist") as error:
        check_output(tmp_path / "a" / "b" / "out", force=True)
    assert error.value.hint == f"mkdir -p {tmp_path / 'a' / 'b'}"


def test_the_command_that_makes_a_folder_can_be_pasted(tmp_path: Path) -> None:
    """A folder with a space is one word to a shell."""
    with pytest.raises(OutputError) as error:
        check_output(tmp_path / "my models" / "out", force=True)
    assert error.value.hint in (
        f"mkdir -p '{tmp_path / 'my models'}'",
        f'mkdir -p "{tmp_path / "my models"}"',
    )


@pytest.mark.parametrize("content", [None, "model.safetensors"])
def test_a_folder_replaces_an_empty_one_or_a_checkpoint(
    tmp_path: Path, content: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if content is not None:
        (out / content).touch()
    with pytest.raises(OutputError, match="exists"):
        check_output(out, force=False, directory=True)
    check_output(out, force=True, directory=True)


@pytest.mark.parametrize("content", ["notes.txt", ".hidden", "models"])
def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, content: str) -> None:
    """``-o models --force`` for ``-o models/new --force`` must not cost all models."""
    out = tmp_path / "out"
    (out / content).mkdir(parents=True)
    (out / content / "model.safetensors").touch()
    with pytest.raises(OutputError, match="not replaced") as error:
        check_output(out, force=True, directory=True)
    assert str(out / "NAME") in str(error.value.hint)


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    """Not even one that holds a checkpoint: who names a folder for a delta did not mean it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").touch()
    with pytest.raises(OutputError, match="is a directory"):
        check_output(out, force=True)


def test_a_folder_replaces_a_file_or_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    check_output(file, force=True, directory=True)
    check_output(tmp_path / "link", force=True, directory=True)


def test_an_input_is_refused_even_with_force(file: Path) -> None:
    with pytest.raises(OutputError, match="input"):
        check_output(file, force=True, inputs=(file,))


def test_any_of_many_inputs_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="input"):
        check_output(file, force=True, inputs=(tmp_path / "gone", file))


def test_a_missing_input_is_refused_too(tmp_path: Path) -> None:
    """It may come into being meanwhile."""
    with pytest.raises(OutputError, match="input"):
        check_output(tmp_path / "new", force=False, inputs=(tmp_path / "new",))


def test_an_unrelated_input_is_fine(file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    check_output(tmp_path / "new", force=False, inputs=(file, tmp_path / "folder"))


@pytest.mark.parametrize("name", ["folder2", "folde", "folder.txt"])
def test_a_name_that_begins_like_an_input_is_fine(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    check_output(tmp_path / name, force=False, inputs=(tmp_path / "folder",))


def test_a_sibling_of_an_input_file_is_fine(file: Path) -> None:
    check_output(file.with_name("other"), force=False, inputs=(file,))


# --- staged ---


def test_a_file_appears_at_the_end_and_not_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, force=True) as work:
        work.write_bytes(b"half")
        assert not out.exists()
        work.write_bytes(b"whole")
    assert contents(tmp_path) == {"out": b"whole"}


def test_a_folder_appears_at_the_end_and_not_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, directory=True, force=True) as work:
        (work / "sub").mkdir()
        (work / "sub" / "file").write_bytes(b"x")
        assert not out.exists()
    assert contents(out) == {"sub": None, "sub/file": b"x"}
    assert contents(tmp_path).keys() == {"out", "out/sub", "out/sub/file"}


def test_the_work_is_hidden_beside_the_output(tmp_path: Path) -> None:
    """Beside: a rename is not a copy. Hidden: no program takes it for the output."""
    with staged(tmp_path / "out.safetensors", force=True) as work:
        work.touch()
        (stage,) = tmp_path.iterdir()
        assert stage.name.startswith(".sparsedelta.")
        assert stage.name.endswith(".tmp")
        assert work.parent == stage


def test_nobody_else_can_look_into_the_work(tmp_path: Path) -> None:
    with staged(tmp_path / "out", force=True) as work:
        work.touch()
        assert stat.S_IMODE(work.parent.stat().st_mode) == stat.S_IRWXU


def test_two_at_a_time_do_not_meet(tmp_path: Path) -> None:
    with (
        staged(tmp_path / "out", force=True) as first,
        staged(tmp_path / "out", force=True) as second,
    ):
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert first != second
    assert contents(tmp_path) == {"out": b"first"}


class StopError(Exception):
    """Raised inside."""


def stop_half_way(path: Path, kind: type[BaseException], *, directory: bool) -> None:
    """Begin an output and raise."""
    with staged(path, directory=directory, force=True) as work:
        (work / "file" if directory else work).write_bytes(b"half")
        raise kind


@pytest.mark.parametrize("kind", [StopError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("directory", [False, True])
def test_an_exception_leaves_nothing(
    tmp_path: Path, kind: type[BaseException], *, directory: bool
) -> None:
    with pytest.raises(kind):
        stop_half_way(tmp_path / "out", kind, directory=directory)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("directory", [False, True])
def test_an_exception_leaves_what_was_there(file: Path, tmp_path: Path, *, directory: bool) -> None:
    with pytest.raises(StopError):
        stop_half_way(file, StopError, directory=directory)
    assert contents(tmp_path) == {"input": CONTENT}


def test_an_error_of_the_disk_names_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=f"cannot write {out}: "), staged(out, force=True):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert contents(tmp_path) == {}


def test_an_output_that_was_not_made_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=f"cannot write {out}: "), staged(out, force=True):
        pass
    assert contents(tmp_path) == {}


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "gone" / "out"
    with pytest.raises(OutputError, match=f"cannot write {out}: "), staged(out, force=True):
        pytest.fail("there is nowhere to write")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "重" * 85, "🧠" * 63], ids=len)
@pytest.mark.parametrize("directory", [False, True])
def test_a_name_may_be_as_long_as_the_disk_takes(
    tmp_path: Path, name: str, *, directory: bool
) -> None:
    """The name of the temporary folder is not longer: names are limited in bytes."""
    with staged(tmp_path / name, directory=directory, force=True) as work:
        (work / "file" if directory else work).touch()
    assert (tmp_path / name).exists()


NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """FAT, network shares and FUSE have none, AFS none between folders: in different words."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with staged(tmp_path / "out", force=False) as work:
        work.write_bytes(b"x")
    assert contents(tmp_path) == {"out": b"x"}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("directory", [False, True])
def test_what_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, directory: bool, links: bool
) -> None:
    """Without ``force``, with hard links or without."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"

    def appear() -> None:
        with staged(out, directory=directory, force=False) as work:
            (work / "file" if directory else work).write_bytes(b"new")
            out.write_bytes(b"precious")

    with pytest.raises(OutputError, match="exists"):
        appear()
    assert contents(tmp_path) == {"out": b"precious"}


def test_a_file_replaces_a_file(file: Path, tmp_path: Path) -> None:
    with staged(file, force=True) as work:
        work.write_bytes(b"new")
        assert file.read_bytes() == CONTENT
    assert contents(tmp_path) == {"input": b"new"}


def test_a_folder_replaces_a_folder_and_all_in_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")
    with staged(out, directory=True, force=True) as work:
        (work / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"out": None, "out/new": b"new"}


def test_a_folder_replaces_a_file(file: Path, tmp_path: Path) -> None:
    with staged(file, directory=True, force=True) as work:
        (work / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"input": None, "input/new": b"new"}


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_is_replaced_and_not_what_it_leads_to(
    tmp_path: Path, kind: str, *, directory: bool
) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    if kind == "file":
        elsewhere.write_bytes(CONTENT)
    else:
        elsewhere.mkdir()
        (elsewhere / "file").write_bytes(CONTENT)
    out.symlink_to("elsewhere")
    before = contents(elsewhere)
    with staged(out, directory=directory, force=True) as work:
        (work / "file" if directory else work).write_bytes(b"new")
    assert not out.is_symlink()
    assert (out / "file" if directory else out).read_bytes() == b"new"
    assert contents(elsewhere) == before
    assert elsewhere.is_dir() if kind == "folder" else elsewhere.read_bytes() == CONTENT


def test_everything_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine leaves the old output or the new one, not an empty file."""
    out = tmp_path / "out"
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        name = next(p.name for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == inode)
        synced.append((name, out.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with staged(out, directory=True, force=True) as work:
        (work / "sub").mkdir()
        (work / "sub" / "file").write_bytes(b"x")
    assert {name for name, named in synced if not named} == {"out", "sub", "file"}
    assert synced[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with staged(tmp_path / "out", force=True) as work:
        work.write_bytes(b"x")
    assert contents(tmp_path) == {"out": b"x"}


def test_a_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk did not take must not replace anything."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    before = open_files()
    with (
        pytest.raises(OutputError, match="Input/output error"),
        staged(tmp_path / "out", force=True) as work,
    ):
        work.write_bytes(b"x")
    assert contents(tmp_path) == {}
    assert open_files() == before
