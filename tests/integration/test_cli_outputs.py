"""Outputs: never over an input, never over anything without ``--force``, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import (
    FROZEN,
    TUNED,
    Pair,
    base_tensors,
    call,
    cli,
    failed,
    hint_of,
    split,
    succeeded,
    tree,
    tuned,
    write_file,
    write_shards,
)

import sparsedelta

WRITING = ("diff", "apply", "revert")


def writing(pair: Pair, command: str, out: Path) -> list[str | Path]:
    """A command that writes to ``out``."""
    sources = {
        "diff": (pair.base, pair.target),
        "apply": (pair.base, pair.delta),
        "revert": (pair.target, pair.delta),
    }
    return [command, *sources[command], "-o", out]


def result(pair: Pair, command: str) -> bytes:
    """What the command should write."""
    source = {"diff": pair.delta, "apply": pair.target, "revert": pair.base}[command]
    return source.read_bytes()


# --- existing outputs ---


@pytest.mark.parametrize("command", WRITING)
def test_an_existing_output_is_refused_and_untouched(pair: Pair, command: str) -> None:
    pair.out.write_bytes(b"precious")
    before = tree(pair.folder)
    message = failed(cli(*writing(pair, command, pair.out)), 1)
    assert str(pair.out) in message
    assert "--force" in hint_of(message)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_force_replaces_a_file(pair: Pair, command: str) -> None:
    expected = result(pair, command)
    pair.out.write_bytes(b"old")
    names = set(tree(pair.folder))
    succeeded(cli(*writing(pair, command, pair.out), "--force"))
    assert pair.out.read_bytes() == expected
    assert set(tree(pair.folder)) == names


def test_force_replaces_the_name_and_not_what_it_links_to(pair: Pair) -> None:
    """The old file may have other names: they keep their contents."""
    other = pair.folder / "other-name"
    other.write_bytes(b"precious")
    pair.out.symlink_to(other)
    succeeded(call(*writing(pair, "diff", pair.out), "--force"))
    assert other.read_bytes() == b"precious"
    assert pair.out.read_bytes() == pair.delta.read_bytes()


@pytest.mark.parametrize("command", WRITING)
def test_a_dangling_link_is_an_existing_output(pair: Pair, command: str) -> None:
    pair.out.symlink_to(pair.folder / "nowhere")
    before = tree(pair.folder)
    failed(call(*writing(pair, command, pair.out)), 1)
    assert tree(pair.folder) == before


@pytest.fixture
def folders(tmp_path: Path) -> Pair:
    """The pair again, as folders with one file each."""
    base, target, delta = (tmp_path / name for name in ("base", "target", "delta"))
    write_file(base / "model.safetensors", base_tensors())
    write_file(target / "model.safetensors", tuned(base_tensors()))
    sparsedelta.diff(base, target, delta)
    return Pair(tmp_path, base, target, delta)


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_force_replaces_a_checkpoint_folder_as_a_whole(folders: Pair, command: str) -> None:
    """Files of the old checkpoint do not survive beside the new one."""
    expected = tree(folders.target if command == "apply" else folders.base)
    write_file(folders.out / "old.safetensors", base_tensors())
    succeeded(call(*writing(folders, command, folders.out), "--force"))
    assert tree(folders.out) == expected


def test_a_folder_with_other_things_is_not_replaced_by_a_file(pair: Pair) -> None:
    """``-o models --force`` for ``-o models/delta --force`` must not cost all models."""
    folder = pair.folder / "models"
    write_file(folder / "precious" / "model.safetensors", base_tensors())
    before = tree(pair.folder)
    failed(call(*writing(pair, "diff", folder), "--force"), 1)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_folder_with_other_things_is_not_replaced_by_a_checkpoint(
    folders: Pair, command: str
) -> None:
    out = folders.folder / "models"
    write_file(out / "precious" / "model.safetensors", base_tensors())
    before = tree(folders.folder)
    message = failed(call(*writing(folders, command, out), "--force"), 1)
    assert str(out) in message
    hint_of(message)
    assert tree(folders.folder) == before


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_not_replaced(pair: Pair, command: str, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(pair.out)
    out = pair.out if kind == "fifo" else Path(os.devnull)
    before = tree(pair.folder)
    assert str(out) in failed(call(*writing(pair, command, out), "--force"), 1)
    assert tree(pair.folder) == before
    assert out.exists()


# --- places where nothing can be written ---


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_that_is_not_there_is_named(pair: Pair, command: str) -> None:
    before = tree(pair.folder)
    out = pair.folder / "new" / "deep" / "out"
    message = failed(call(*writing(pair, command, out)), 1)
    assert str(out) in message
    assert f"mkdir -p {out.parent}" in hint_of(message)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_file_is_no_folder_to_write_to(pair: Pair, command: str) -> None:
    (pair.folder / "notes").write_text("text")
    before = tree(pair.folder)
    out = pair.folder / "notes" / "out"
    message = failed(call(*writing(pair, command, out)), 1)
    assert str(out) in message
    assert "mkdir" not in message, "it would fail: a file has that name"
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_name_that_is_too_long_is_an_error_that_says_so(pair: Pair, command: str) -> None:
    before = tree(pair.folder)
    failed(call(*writing(pair, command, pair.folder / ("x" * 300))), 1)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_link_to_itself_is_an_error_that_says_so(pair: Pair, command: str) -> None:
    pair.out.symlink_to(pair.out)
    before = tree(pair.folder)
    assert str(pair.out) in failed(call(*writing(pair, command, pair.out), "--force"), 1)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_path_without_a_name_is_refused(pair: Pair, command: str, out: str) -> None:
    before = tree(pair.folder)
    run = cli(*writing(pair, command, Path(out)), "--force", cwd=pair.folder)
    failed(run, 1)
    assert tree(pair.folder) == before


NAMES = {
    "long": "x" * 255,
    "long in two bytes": "é" * 127,
    "long in four bytes": "🧠" * 63,
    "space": " ",
    "like an option": "-o",
    "two lines": "new\nline",
    "like a format": "%s{}",
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_any_name_that_the_disk_takes_can_be_written(pair: Pair, command: str, name: str) -> None:
    succeeded(call(*writing(pair, command, pair.folder / name)))
    assert (pair.folder / name).read_bytes() == result(pair, command)


# --- inputs as outputs ---

Place = Callable[[Pair], Path]


def same_file(end: str) -> Place:
    return lambda pair: getattr(pair, end)


def through_dots(pair: Pair) -> Path:
    return pair.folder / ".." / pair.folder.name / pair.base.name


def through_symlink(pair: Pair) -> Path:
    pair.out.symlink_to(pair.base)
    return pair.out


def through_symlinked_folder(pair: Pair) -> Path:
    (pair.folder / "link").symlink_to(pair.folder)
    return pair.folder / "link" / pair.base.name


def through_hard_link(pair: Pair) -> Path:
    pair.out.hardlink_to(pair.base)
    return pair.out


def folder_around(pair: Pair) -> Path:
    return pair.folder


def delta_file(pair: Pair) -> Path:
    return pair.delta


FILE_PLACES: dict[str, Place] = {
    "base": same_file("base"),
    "through dots": through_dots,
    "through a symbolic link": through_symlink,
    "through a linked folder": through_symlinked_folder,
    "through a hard link": through_hard_link,
    "the folder around": folder_around,
}


def refused(pair: Pair, command: str, out: Path) -> None:
    """The command fails, with ``--force`` as without, and changes nothing."""
    before = tree(pair.folder)
    for options in ([], ["--force"], ["--force", "--dry-run"]):
        message = failed(call(*writing(pair, command, out), *options), 1)
        assert str(out) in message
        assert tree(pair.folder) == before


@pytest.mark.parametrize("place", FILE_PLACES.values(), ids=FILE_PLACES.keys())
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_an_output_over_an_input_is_refused(pair: Pair, command: str, place: Place) -> None:
    refused(pair, command, place(pair))


@pytest.mark.parametrize("command", ["diff", "revert"])
def test_an_output_over_the_target_is_refused(pair: Pair, command: str) -> None:
    refused(pair, command, pair.target)


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_an_output_over_the_delta_is_refused(pair: Pair, command: str) -> None:
    refused(pair, command, pair.delta)


def inside(pair: Pair) -> Path:
    return pair.base / "out"


def deep_inside(pair: Pair) -> Path:
    (pair.base / "sub").mkdir()
    return pair.base / "sub" / "out"


def inside_through_a_link(pair: Pair) -> Path:
    (pair.folder / "link").symlink_to(pair.base)
    return pair.folder / "link" / "out"


def its_file(pair: Pair) -> Path:
    return pair.base / "model.safetensors"


def link_to_the_folder(pair: Pair) -> Path:
    pair.out.symlink_to(pair.base)
    return pair.out


FOLDER_PLACES: dict[str, Place] = {
    "base": same_file("base"),
    "inside": inside,
    "deep inside": deep_inside,
    "inside through a link": inside_through_a_link,
    "its file": its_file,
    "a link to it": link_to_the_folder,
    "the folder around": folder_around,
}


@pytest.mark.parametrize("place", FOLDER_PLACES.values(), ids=FOLDER_PLACES.keys())
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_an_output_in_or_around_an_input_folder_is_refused(
    folders: Pair, command: str, place: Place
) -> None:
    refused(folders, command, place(folders))


@pytest.fixture
def sharded(tmp_path: Path) -> Pair:
    """The base named by its index, with its shards beside it; the target a file."""
    shards = split(base_tensors(), [FROZEN, TUNED], list(base_tensors())[2:])
    folder = write_shards(tmp_path / "base", *shards)
    target = write_file(tmp_path / "target", tuned(base_tensors()))
    index = folder / "model.safetensors.index.json"
    sparsedelta.diff(index, target, tmp_path / "delta")
    return Pair(tmp_path, index, target, tmp_path / "delta")


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_an_output_over_a_file_of_an_index_is_refused(
    sharded: Pair, command: str, name: str
) -> None:
    """The shards that an index names are inputs as much as the index."""
    refused(sharded, command, sharded.base.parent / name)


def test_an_output_around_an_index_is_refused(sharded: Pair) -> None:
    refused(sharded, "apply", sharded.base.parent)


@pytest.fixture
def snapshot(folders: Pair) -> Pair:
    """The base as the Hub's cache has it: files that are links into another folder."""
    blobs = folders.folder / "blobs"
    blobs.mkdir()
    file = folders.base / "model.safetensors"
    file.rename(blobs / "0123abcd")
    file.symlink_to(blobs / "0123abcd")
    return folders


@pytest.mark.parametrize("out", ["blobs", "blobs/0123abcd"])
@pytest.mark.parametrize("command", ["diff", "apply"])
def test_an_output_over_what_an_input_links_to_is_refused(
    snapshot: Pair, command: str, out: str
) -> None:
    refused(snapshot, command, snapshot.folder / out)


def test_a_folder_beside_the_input_with_a_longer_name_is_fine(folders: Pair) -> None:
    """``base2`` is not inside ``base``."""
    out = folders.folder / "base2"
    succeeded(call(*writing(folders, "apply", out)))
    assert tree(out) == tree(folders.target)


# --- dry runs ---


@pytest.mark.parametrize("command", WRITING)
def test_a_dry_run_leaves_nothing(pair: Pair, command: str) -> None:
    before = tree(pair.folder)
    run = succeeded(cli(*writing(pair, command, pair.out), "--dry-run"))
    assert f"would write {pair.out}" in run.out
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_dry_run_tells_programs_what_the_run_would(pair: Pair, command: str) -> None:
    dry = succeeded(call(*writing(pair, command, pair.out), "--dry-run", "--json")).document
    real = succeeded(call(*writing(pair, command, pair.out), "--json")).document
    assert dry.pop("dry_run")
    assert not real.pop("dry_run")
    assert dry == real


def test_a_dry_run_tells_what_would_be_left_behind(folders: Pair) -> None:
    """The same answer as the run, for folders with other files too."""
    (folders.base / "pytorch_model.bin").write_bytes(b"old weights")
    out = folders.folder / "out"
    dry = succeeded(call(*writing(folders, "apply", out), "--dry-run", "--json")).document
    real = succeeded(call(*writing(folders, "apply", out), "--json")).document
    assert dry["left_behind"] == real["left_behind"] == ["pytorch_model.bin"]


@pytest.mark.parametrize("command", WRITING)
def test_a_dry_run_with_force_keeps_the_existing_output(pair: Pair, command: str) -> None:
    pair.out.write_bytes(b"precious")
    before = tree(pair.folder)
    succeeded(call(*writing(pair, command, pair.out), "--dry-run", "--force"))
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_dry_run_refuses_what_the_run_would_refuse(pair: Pair, command: str) -> None:
    pair.out.write_bytes(b"precious")
    failed(call(*writing(pair, command, pair.out), "--dry-run"), 1)
    assert pair.out.read_bytes() == b"precious"


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_dry_run_verifies(pair: Pair, command: str) -> None:
    """A wrong checkpoint is found, and still nothing is left."""
    other = base_tensors()
    other[TUNED] = other[TUNED].with_word(0, 1)
    for path in (pair.base, pair.target):
        write_file(path, other)
    before = tree(pair.folder)
    assert "SD501" in failed(cli(*writing(pair, command, pair.out), "--dry-run"), 3)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_dry_run_of_a_broken_delta_leaves_nothing(pair: Pair, command: str) -> None:
    damaged = bytearray(pair.delta.read_bytes())
    damaged[-1] ^= 1
    pair.delta.write_bytes(damaged)
    before = tree(pair.folder)
    assert "SD401" in failed(call(*writing(pair, command, pair.out), "--dry-run"), 3)
    assert tree(pair.folder) == before


def test_a_dry_run_where_there_is_nothing_to_do_leaves_nothing(pair: Pair) -> None:
    before = tree(pair.folder)
    run = succeeded(call("apply", pair.target, pair.delta, "-o", pair.out, "--dry-run"))
    assert "nothing to do" in run.out
    assert "wrote" not in run.out
    assert tree(pair.folder) == before
