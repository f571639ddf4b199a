"""One checkpoint in many layouts: a file, a folder, shards, links. The tensors are what counts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Stored,
    Tensors,
    base_tensors,
    file_bytes,
    load,
    shard_names,
    split,
    tree,
    tuned,
    write_file,
    write_shards,
)
from safetensors.torch import save_file

import sparsedelta

INDEX = "model.safetensors.index.json"
GROUPS = ([HALF, FROZEN], [BIAS], [TUNED])
"""Shards whose tensors are in no order that a program would choose by itself."""


def one_file(tensors: Tensors, folder: Path) -> Path:
    return write_file(folder / "model.safetensors", tensors, {"format": "pt"})


def other_order(tensors: Tensors, folder: Path) -> Path:
    return write_file(folder / "x.safetensors", dict(reversed(tensors.items())), {"k": "v"})


def folder_with_a_file(tensors: Tensors, folder: Path) -> Path:
    return one_file(tensors, folder).parent


def folder_with_shards(tensors: Tensors, folder: Path) -> Path:
    return write_shards(folder, *split(tensors, *GROUPS))


def index_of_shards(tensors: Tensors, folder: Path) -> Path:
    return folder_with_shards(tensors, folder) / INDEX


def a_shard_each(tensors: Tensors, folder: Path) -> Path:
    return write_shards(folder, *split(tensors, *([name] for name in tensors)))


def hub_snapshot(tensors: Tensors, folder: Path) -> Path:
    """As the Hub's cache has it: every file of a snapshot is a relative link into ``blobs``."""
    files = folder_with_shards(tensors, folder / "files")
    snapshot, blobs = folder / "snapshots" / "abc", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(files.iterdir())):
        file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    files.rmdir()
    return snapshot


Layout = Callable[[Tensors, Path], Path]

LAYOUTS: tuple[Layout, ...] = (
    one_file,
    other_order,
    folder_with_a_file,
    folder_with_shards,
    index_of_shards,
    a_shard_each,
    hub_snapshot,
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_profile = pytest.mark.parametrize("profile", ["portable", "compact"])
FOLDERS = tuple(layout for layout in LAYOUTS if layout not in (one_file, other_order))
each_folder = pytest.mark.parametrize("layout", FOLDERS)


def weights_of(path: Path) -> Tensors:
    """What a checkpoint holds, as the official library reads it."""
    folder = path.parent if path.name == INDEX else path
    return load(*([path] if folder.is_file() else folder.glob("*.safetensors")))


# --- reading ---


@each_layout
def test_the_layout_is_no_part_of_the_identity(tmp_path: Path, layout: Layout) -> None:
    plain = write_file(tmp_path / "plain", base_tensors())
    path = layout(base_tensors(), tmp_path / "checkpoint")
    assert str(sparsedelta.fingerprint(path)) == str(sparsedelta.fingerprint(plain))


@each_profile
@pytest.mark.parametrize(("old", "new"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_the_delta_between_any_two_layouts_is_the_same(
    tmp_path: Path, old: Layout, new: Layout, profile: str
) -> None:
    plain = tmp_path / "a", tmp_path / "b"
    write_file(plain[0], base_tensors())
    write_file(plain[1], tuned(base_tensors()))
    sparsedelta.diff(*plain, tmp_path / "expected", layout="never", profile=profile)
    base = old(base_tensors(), tmp_path / "base")
    target = new(tuned(base_tensors()), tmp_path / "target")
    sparsedelta.diff(base, target, tmp_path / "delta", layout="never", profile=profile)
    assert (tmp_path / "delta").read_bytes() == (tmp_path / "expected").read_bytes()


def test_files_of_the_official_library_are_read(tmp_path: Path) -> None:
    """Shards and index by safetensors.torch, with every dtype that it writes and torch counts."""
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]
    tensors = {
        f"layers.{number}.weight": torch.randn(3, 5, generator=generator).to(dtype)
        for number, dtype in enumerate(dtypes)
    }
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.empty(0, 4)
    save_file(tensors, tmp_path / "whole.safetensors", {"format": "pt"})
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(tensors)
    shards = dict(zip(shard_names(2), (names[:4], names[4:]), strict=True))
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole = sparsedelta.fingerprint(tmp_path / "whole.safetensors")
    assert str(sparsedelta.fingerprint(folder)) == str(whole)
    assert list(whole.tensors) == names


def test_tensors_that_the_index_forgot_count(tmp_path: Path) -> None:
    """Every name stored in the files is part of the checkpoint, whatever the index says."""
    shards = split(base_tensors(), *GROUPS)
    weight_map = {HALF: shard_names(3)[0], BIAS: shard_names(3)[1], TUNED: shard_names(3)[2]}
    folder = write_shards(tmp_path / "forgetful", *shards, weight_map=weight_map)
    plain = write_file(tmp_path / "plain", base_tensors())
    assert str(sparsedelta.fingerprint(folder)) == str(sparsedelta.fingerprint(plain))


@each_layout
def test_reading_changes_nothing(tmp_path: Path, layout: Layout) -> None:
    path = layout(base_tensors(), tmp_path / "checkpoint")
    before = tree(tmp_path)
    sparsedelta.fingerprint(path)
    assert tree(tmp_path) == before


# --- writing ---


@each_profile
@each_layout
def test_apply_and_revert_keep_the_layout(tmp_path: Path, layout: Layout, profile: str) -> None:
    """Same files, same headers, same order: the output is the target as this layout has it."""
    base = layout(base_tensors(), tmp_path / "base")
    target = layout(tuned(base_tensors()), tmp_path / "target")
    delta, out, back = (tmp_path / name for name in ("delta", "out", "back"))
    sparsedelta.diff(base, target, delta, profile=profile)
    sparsedelta.apply(base, delta, out)
    known = base if profile == "compact" else None
    sparsedelta.revert(target, delta, back, base=known)
    for written, model in ((out, target), (back, base)):
        folder = model.parent if model.name == INDEX else model
        if folder.is_file():
            assert written.read_bytes() == folder.read_bytes()
        else:
            found = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert tree(written) == found


@each_layout
def test_apply_leaves_its_inputs_alone(tmp_path: Path, layout: Layout) -> None:
    base = layout(base_tensors(), tmp_path / "in" / "base")
    target = write_file(tmp_path / "in" / "target", tuned(base_tensors()))
    sparsedelta.diff(base, target, tmp_path / "in" / "delta")
    before = tree(tmp_path / "in")
    sparsedelta.apply(base, tmp_path / "in" / "delta", tmp_path / "out")
    assert tree(tmp_path / "in") == before


@pytest.mark.parametrize("old", LAYOUTS)
@pytest.mark.parametrize("new", [other_order, folder_with_shards])
def test_a_delta_of_one_layout_applies_to_any_other(
    tmp_path: Path, old: Layout, new: Layout
) -> None:
    """Made from ``new`` files on one machine, applied to ``old`` files on another."""
    made_from = new(base_tensors(), tmp_path / "theirs")
    target = new(tuned(base_tensors()), tmp_path / "target")
    sparsedelta.diff(made_from, target, tmp_path / "delta")
    ours = old(base_tensors(), tmp_path / "ours")
    sparsedelta.apply(ours, tmp_path / "delta", tmp_path / "out")
    assert weights_of(tmp_path / "out") == tuned(base_tensors())


@each_layout
def test_a_checkpoint_that_already_is_the_target_keeps_its_layout(
    tmp_path: Path, layout: Layout
) -> None:
    plain = tmp_path / "a", tmp_path / "b"
    write_file(plain[0], base_tensors())
    write_file(plain[1], tuned(base_tensors()))
    sparsedelta.diff(*plain, tmp_path / "delta")
    target = layout(tuned(base_tensors()), tmp_path / "target")
    report = sparsedelta.apply(target, tmp_path / "delta", tmp_path / "out")
    assert not report.changed
    folder = target.parent if target.name == INDEX else target
    if folder.is_file():
        assert (tmp_path / "out").read_bytes() == folder.read_bytes()
    else:
        assert tree(tmp_path / "out") == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_header_bytes_are_kept_as_they_stand(tmp_path: Path) -> None:
    """Metadata, key order, padding and odd spacing of the base's header are the output's."""
    tensors = {"w": Stored("U8", (4,), b"\0\1\2\3")}
    data = file_bytes(tensors)
    text = (
        b'{ "w" : {"shape":[4], "data_offsets":[0,4],"dtype":"U8"},\n'
        b'"__metadata__":{"z":"1","a":"\\u00e9 = \xc3\xa9"}}     '
    )
    header = len(text).to_bytes(8, "little") + text
    (tmp_path / "base").write_bytes(header + b"\0\1\2\3")
    (tmp_path / "target").write_bytes(data[:-4] + b"\0\1\2\4")
    base, target, delta = (tmp_path / name for name in ("base", "target", "delta"))
    sparsedelta.diff(base, target, delta, layout="never")
    sparsedelta.apply(base, delta, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == header + b"\0\1\2\4"
    sparsedelta.diff(base, target, delta, force=True)  # recorded, since the headers differ
    sparsedelta.apply(base, delta, tmp_path / "recorded")
    assert (tmp_path / "recorded").read_bytes() == target.read_bytes()
    sparsedelta.revert(target, delta, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == base.read_bytes()


def test_the_order_of_tensors_is_the_bases(tmp_path: Path) -> None:
    """Without a layout record, the output keeps the order of what is at hand."""
    base = write_file(tmp_path / "base", base_tensors())
    target = write_file(tmp_path / "target", dict(reversed(tuned(base_tensors()).items())))
    sparsedelta.diff(base, target, tmp_path / "delta", layout="never")
    sparsedelta.apply(base, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == file_bytes(tuned(base_tensors()))


def test_empty_and_scalar_tensors_go_along(tmp_path: Path) -> None:
    tensors = {
        "empty.first": Stored("F32", (0, 3), b""),
        "scalar": Stored("I64", (), bytes(8)),
        "empty.middle": Stored("BF16", (0,), b""),
        "word": Stored("U8", (1,), b"\7"),
        "empty.last": Stored("F64", (5, 0), b""),
    }
    base = write_file(tmp_path / "base", tensors)
    target = write_file(tmp_path / "target", tensors | {"scalar": Stored("I64", (), b"\1" * 8)})
    sparsedelta.diff(base, target, tmp_path / "delta")
    sparsedelta.apply(base, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target.read_bytes()


# --- what lies beside the weights ---

COMPANIONS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"\x0a\x0d\0sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# card",
    "1_Pooling/config.json": b'{"word_embedding_dimension": 4}',
    "2_Dense/deep/er/notes.txt": b"x",
    "empty.txt": b"",
}
FOREIGN = {
    "pytorch_model.bin": b"old",
    "pytorch_model.bin.index.json": b"{}",
    "model-q8_0.gguf": b"old",
    "tf_model.h5": b"old",
    "flax_model.msgpack": b"old",
    "consolidated.00.pth": b"old",
    "onnx/model.onnx": b"old",
    "2_Dense/model.safetensors": b"old",
}
HIDDEN = {
    ".gitattributes": b"*.safetensors filter=lfs",
    ".cache/huggingface/download/config.json.metadata": b"x",
    "1_Pooling/.hidden": b"x",
}


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def applied(base: Path, work: Path) -> tuple[dict[str, bytes | str], list[str]]:
    """Files of an output made from a base, and the names that were left behind."""
    target = write_file(work / "target", tuned(base_tensors()))
    sparsedelta.diff(base, target, work / "delta", layout="never")
    report = sparsedelta.apply(base, work / "delta", work / "out")
    assert load(*(work / "out").glob("*.safetensors")) == tuned(base_tensors())
    files = {k: v for k, v in tree(work / "out").items() if v != "directory"}
    return files, list(report.left_behind)


@pytest.mark.parametrize("layout", [folder_with_a_file, folder_with_shards, index_of_shards])
def test_small_files_beside_the_weights_are_copied(tmp_path: Path, layout: Layout) -> None:
    base = layout(base_tensors(), tmp_path / "base")
    lay_out(tmp_path / "base", COMPANIONS)
    files, left = applied(base, tmp_path)
    assert {name: files.get(name) for name in COMPANIONS} == COMPANIONS
    assert left == []


@pytest.mark.parametrize("layout", [folder_with_a_file, folder_with_shards])
def test_other_weights_are_left_behind_and_named(tmp_path: Path, layout: Layout) -> None:
    """They hold the old weights: beside the new ones they would contradict them."""
    base = layout(base_tensors(), tmp_path / "base")
    own = set(tree(base))
    lay_out(base, FOREIGN)
    files, left = applied(base, tmp_path)
    assert set(files) == own
    assert left == sorted(FOREIGN)


def test_hidden_files_are_left_behind_in_silence(tmp_path: Path) -> None:
    """``.git`` and ``.cache`` belong to the folder they are in."""
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    lay_out(base, HIDDEN)
    files, left = applied(base, tmp_path)
    assert set(files) == {"model.safetensors"}
    assert left == []


def test_a_large_file_beside_the_weights_is_left_behind_and_named(tmp_path: Path) -> None:
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    with (base / "dump.dat").open("wb") as file:
        file.truncate((1 << 26) + 1)
    files, left = applied(base, tmp_path)
    assert "dump.dat" not in files
    assert left == ["dump.dat"]


def test_linked_files_beside_the_weights_are_copied_as_files(tmp_path: Path) -> None:
    """The output does not depend on the Hub's cache."""
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    (tmp_path / "blob").write_bytes(b"{}")
    (base / "config.json").symlink_to(tmp_path / "blob")
    files, _ = applied(base, tmp_path)
    assert files["config.json"] == b"{}"


def test_a_linked_folder_beside_the_weights_is_copied_or_named(tmp_path: Path) -> None:
    """What is not in the output is told: nothing gets lost in silence."""
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    lay_out(tmp_path / "elsewhere", {"config.json": b"{}"})
    (base / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    files, left = applied(base, tmp_path)
    assert "1_Pooling/config.json" in files or "1_Pooling" in left


def test_a_link_to_a_folder_above_is_not_followed_forever(tmp_path: Path) -> None:
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    (base / "self").symlink_to(base)
    applied(base, tmp_path)


def test_special_and_dangling_files_beside_the_weights_are_no_obstacle(tmp_path: Path) -> None:
    base = folder_with_a_file(base_tensors(), tmp_path / "base")
    (base / "gone.json").symlink_to(tmp_path / "gone")
    os.mkfifo(base / "pipe")
    files, _ = applied(base, tmp_path)
    assert set(files) == {"model.safetensors"}


def test_nothing_is_copied_from_beside_a_single_file(tmp_path: Path) -> None:
    base = one_file(base_tensors(), tmp_path / "base")
    lay_out(tmp_path / "base", COMPANIONS)
    target = write_file(tmp_path / "target", tuned(base_tensors()))
    sparsedelta.diff(base, target, tmp_path / "delta")
    sparsedelta.apply(base, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").is_file()


def test_the_output_has_ordinary_permissions(tmp_path: Path) -> None:
    """Others may read what the user's mask lets them, not only what temporary files allow."""
    base = folder_with_shards(base_tensors(), tmp_path / "base")
    lay_out(base, COMPANIONS)
    applied(base, tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").touch()
    expected = {"d": (tmp_path / "model").stat().st_mode, "f": 0}
    expected["f"] = (tmp_path / "model" / "file").stat().st_mode
    for path in (tmp_path / "delta", tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert path.stat().st_mode == expected["d" if path.is_dir() else "f"], path


# --- a folder with more than one reading ---


def test_one_of_two_files_can_be_named(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", base_tensors())
    write_file(tmp_path / "adapter.safetensors", {"a": Stored("U8", (1,), b"\0")})
    with pytest.raises(sparsedelta.CheckpointError, match="more than one checkpoint") as error:
        sparsedelta.fingerprint(tmp_path)
    assert str(tmp_path / "adapter.safetensors") in str(error.value.hint)
    assert len(sparsedelta.fingerprint(tmp_path / "model.safetensors").tensors) == 4


def test_a_file_beside_shards_is_another_checkpoint(tmp_path: Path) -> None:
    folder = folder_with_shards(base_tensors(), tmp_path)
    write_file(folder / "consolidated.safetensors", base_tensors())
    with pytest.raises(sparsedelta.CheckpointError, match="more than one checkpoint") as error:
        sparsedelta.fingerprint(folder)
    assert str(folder / INDEX) in str(error.value.hint)
    assert len(sparsedelta.fingerprint(folder / INDEX).tensors) == 4


def test_shards_without_their_index_are_no_checkpoint(tmp_path: Path) -> None:
    """Whether all shards are there, only the index knows."""
    folder = folder_with_shards(base_tensors(), tmp_path)
    (folder / INDEX).unlink()
    with pytest.raises(sparsedelta.CheckpointError, match="more than one checkpoint"):
        sparsedelta.fingerprint(folder)


def test_hidden_weights_are_no_second_checkpoint(tmp_path: Path) -> None:
    """MacOS leaves ``._model.safetensors`` beside files on foreign disks."""
    folder = folder_with_a_file(base_tensors(), tmp_path)
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    assert len(sparsedelta.fingerprint(folder).tensors) == 4


def test_the_output_of_apply_is_a_checkpoint_in_its_own_right(tmp_path: Path) -> None:
    """From a folder with two readings, the one that was named comes out and is readable."""
    folder = folder_with_shards(base_tensors(), tmp_path / "base")
    write_file(folder / "consolidated.safetensors", base_tensors())
    target = write_file(tmp_path / "target", tuned(base_tensors()))
    sparsedelta.diff(folder / INDEX, target, tmp_path / "delta")
    sparsedelta.apply(folder / INDEX, tmp_path / "delta", tmp_path / "out")
    found = sparsedelta.fingerprint(tmp_path / "out")
    assert str(found) == str(sparsedelta.fingerprint(target))


# --- an index that lies ---


def lying(folder: Path, changes: dict[str, object]) -> Path:
    """Shards and an index in which some tensors are said to be elsewhere."""
    shards = split(base_tensors(), *GROUPS)
    weight_map: dict[str, object] = {
        name: shard
        for shard, members in zip(shard_names(3), GROUPS, strict=True)
        for name in members
    }
    return write_shards(folder, *shards, weight_map=weight_map | changes)


def refused(folder: Path, *parts: str) -> sparsedelta.CheckpointError:
    """Reading and applying fail alike, and name what is wrong."""
    with pytest.raises(sparsedelta.CheckpointError) as error:
        sparsedelta.fingerprint(folder)
    for part in parts:
        assert part in error.value.message
    return error.value


def test_a_tensor_in_another_shard_is_an_error(tmp_path: Path) -> None:
    first, second, _ = shard_names(3)
    folder = lying(tmp_path, {FROZEN: second})
    refused(folder, str(folder / INDEX), repr(FROZEN), first, second)


def test_a_tensor_in_no_shard_is_an_error(tmp_path: Path) -> None:
    folder = lying(tmp_path, {"ghost": shard_names(3)[0]})
    refused(folder, str(folder / INDEX), "'ghost'", "no shard")


def test_a_missing_shard_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = lying(tmp_path, {})
    (folder / shard_names(3)[1]).unlink()
    assert refused(folder, str(folder / INDEX), shard_names(3)[1]).hint


def test_a_shard_that_is_a_dangling_link_is_missing(tmp_path: Path) -> None:
    folder = lying(tmp_path, {})
    shard = folder / shard_names(3)[1]
    shard.unlink()
    shard.symlink_to("../blobs/0000")
    refused(folder, shard.name)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "./model-00001-of-00003.safetensors",
        "..",
        ".",
        "",
        "model/",
    ],
)
def test_a_shard_is_a_name_and_never_a_path(tmp_path: Path, shard: str) -> None:
    """An index from a stranger does not choose which files of this machine are read."""
    write_file(tmp_path / "model.safetensors", base_tensors())
    write_file(tmp_path / "folder" / "sub" / "model.safetensors", base_tensors())
    folder = lying(tmp_path / "folder", {BIAS: shard})
    refused(folder, str(folder / INDEX), repr(BIAS), repr(shard))


@pytest.mark.parametrize("shard", [None, 1, True, ["a"], {"a": "b"}])
def test_a_shard_is_a_string(tmp_path: Path, shard: object) -> None:
    refused(lying(tmp_path, {BIAS: shard}), INDEX, repr(BIAS))


@pytest.mark.parametrize(
    "shard",
    ["x" * 300, "a\0b", "a\x1b[2Jb", "\ud800"],
    ids=["long", "nul", "escape", "surrogate"],
)
def test_an_odd_name_of_a_shard_is_an_error_like_any_other(tmp_path: Path, shard: str) -> None:
    """Nor does an index choose what a terminal is sent."""
    error = refused(lying(tmp_path, {BIAS: shard}))
    assert "\x1b" not in str(error)
    assert "\0" not in str(error)


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, base_tensors(), {BIAS: base_tensors()[BIAS]})
    refused(folder, repr(BIAS), "twice", *shard_names(2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": "x"}, "weight_map": {}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        "\ufeff{}",
        '{"weight_map": NaN}',
        "[" * 100_000,
    ],
    ids=range(10),
)
def test_a_malformed_index_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    folder = lying(tmp_path, {})
    (folder / INDEX).write_text(text, encoding="utf-8")
    refused(folder, str(folder / INDEX))


def test_two_indexes_are_two_checkpoints(tmp_path: Path) -> None:
    folder = lying(tmp_path, {})
    shutil.copyfile(folder / INDEX, folder / "other.safetensors.index.json")
    refused(folder, "more than one checkpoint", INDEX, "other.safetensors.index.json")


def test_a_delta_is_no_shard(tmp_path: Path) -> None:
    sparsedelta.diff(
        write_file(tmp_path / "a", base_tensors()),
        write_file(tmp_path / "b", tuned(base_tensors())),
        tmp_path / "delta",
    )
    folder = lying(tmp_path / "folder", {})
    shutil.copyfile(tmp_path / "delta", folder / shard_names(3)[1])
    refused(folder, shard_names(3)[1], "is a delta")
