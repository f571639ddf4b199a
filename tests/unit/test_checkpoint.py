"""FileCheckpoint: one reader, wherever the tensors lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from sparsedelta.checkpoint import FileCheckpoint, open_checkpoint, segments
from sparsedelta.errors import CheckpointError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.operations.identity import fingerprint
from sparsedelta.words import TensorSpec

INDEX = "model.safetensors.index.json"


def write(path: Path, metadata: dict[str, str] | None = None, **tensors: bytes) -> Path:
    """A file of U8 tensors, in the order given."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, data in tensors.items():
        end = offset + len(data)
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))
    return path


def write_index(folder: Path, **weight_map: str) -> Path:
    """An index of the shards ``one`` and ``two``, by default of all that they hold."""
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder / INDEX


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards and their index."""
    write(tmp_path / "two.safetensors", c=b"cc", a=b"aaa")
    write(tmp_path / "one.safetensors", b=b"b")
    write_index(tmp_path, a="two.safetensors", b="one.safetensors", c="two.safetensors")
    return tmp_path


def open_files() -> int:
    """Number of this process's open files."""
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 (needs no Path of each)


# --- a file ---


def test_a_file_is_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"k": "v"}, b=b"123", a=b"")
    with FileCheckpoint(path) as checkpoint:
        assert checkpoint.specs == {
            "b": TensorSpec("b", "U8", (3,)),
            "a": TensorSpec("a", "U8", (0,)),
        }
        (file,) = checkpoint.files
        assert file.name == "x"
        assert file.layout.metadata == {"k": "v"}
        assert not checkpoint.is_directory
        assert checkpoint.index is None
        assert checkpoint.root == tmp_path


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "x", a=b"1")
    with FileCheckpoint(str(path)) as checkpoint:
        assert checkpoint.path == path


def test_messages_call_it_as_the_user_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", a=b"1")
    monkeypatch.chdir(tmp_path)
    with FileCheckpoint("./x") as checkpoint:
        assert checkpoint.location == "./x"


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 3), (4, 5), (2, 2), (0, 0), (5, 5)])
def test_a_run_of_words_is_read(tmp_path: Path, start: int, stop: int) -> None:
    path = write(tmp_path / "x", a=b"before", w=b"01234", z=b"behind")
    with FileCheckpoint(path) as checkpoint:
        assert checkpoint.read("w", start, stop).tobytes() == b"01234"[start:stop]


@pytest.mark.parametrize(
    ("dtype", "shape", "width"),
    [("BF16", [6], 2), ("F32", [3], 4), ("C64", [3], 8), ("F4", [8], 1)],
)
def test_runs_count_words_and_not_elements_or_bytes(
    tmp_path: Path, dtype: str, shape: list[int], width: int
) -> None:
    data = bytes(range(24))[: {"BF16": 12, "F32": 12, "C64": 24, "F4": 4}[dtype]]
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with FileCheckpoint(path) as checkpoint:
        assert checkpoint.read("w", 1, 3).tobytes() == data[width : 3 * width]


def test_what_is_read_may_be_changed(tmp_path: Path) -> None:
    """Apply changes words where they were read to: neither the file nor the next read sees it."""
    path = write(tmp_path / "x", w=b"0123")
    with FileCheckpoint(path) as checkpoint:
        data = checkpoint.read("w", 0, 4)
        assert data.dtype == np.uint8
        data[:] = 0
        assert checkpoint.read("w", 0, 4).tobytes() == b"0123"
    assert path.read_bytes().endswith(b"0123")


# --- folders and shards ---


def test_a_folder_of_one_file_is_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "anything.safetensors", a=b"1")
    with FileCheckpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["a"]
        assert checkpoint.is_directory
        assert checkpoint.index is None
        assert checkpoint.root == tmp_path


@pytest.mark.parametrize("by_index", [False, True])
def test_shards_are_a_checkpoint(shards: Path, *, by_index: bool) -> None:
    """Named by their folder or by their index."""
    with FileCheckpoint(shards / INDEX if by_index else shards) as checkpoint:
        assert {name: spec.words for name, spec in checkpoint.specs.items()} == {
            "a": 3,
            "b": 1,
            "c": 2,
        }
        assert [file.name for file in checkpoint.files] == ["one.safetensors", "two.safetensors"]
        assert checkpoint.index == shards / INDEX
        assert checkpoint.is_directory
        assert checkpoint.root == shards


def test_words_are_read_from_the_shard_that_holds_them(shards: Path) -> None:
    with FileCheckpoint(shards) as checkpoint:
        found = {
            name: checkpoint.read(name, 0, spec.words).tobytes()
            for name, spec in checkpoint.specs.items()
        }
    assert found == {"a": b"aaa", "b": b"b", "c": b"cc"}


def test_an_index_of_one_shard_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", a=b"1")
    write_index(tmp_path, a="one.safetensors")
    with FileCheckpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["a"]


def test_a_folder_with_any_name_is_read(tmp_path: Path) -> None:
    """Brackets and stars are letters, not patterns."""
    folder = tmp_path / "[a-z]*?.safetensors"
    folder.mkdir()
    write(folder / "x.safetensors", a=b"1")
    with FileCheckpoint(folder) as checkpoint:
        assert list(checkpoint.specs) == ["a"]


def test_a_folder_inside_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", a=b"1")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "y.safetensors", b=b"1")
    with FileCheckpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["a"]


def test_an_index_of_other_weights_is_no_index(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", a=b"1")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with FileCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.index is None


# --- what is refused ---


@pytest.mark.parametrize("name", ["gone", "gone/below", "x.safetensors/below"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x.safetensors", a=b"1")
    with pytest.raises(CheckpointError, match="there is no file or directory") as error:
        FileCheckpoint(tmp_path / name)
    assert str(tmp_path / name) in error.value.message


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        FileCheckpoint(tmp_path)


def test_a_delta_is_no_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"format": "sparsedelta"}, a=b"1")
    with pytest.raises(CheckpointError, match=f"{path} is a delta, expected a checkpoint"):
        FileCheckpoint(path)


def test_a_tensor_in_two_shards_is_named_with_both(shards: Path) -> None:
    write(shards / "one.safetensors", b=b"b", c=b"cc")
    with pytest.raises(CheckpointError, match="'c' is stored twice") as error:
        FileCheckpoint(shards)
    for name in ("one.safetensors", "two.safetensors"):
        assert str(shards / name) in error.value.message


def test_a_tensor_in_another_shard_than_the_index_says_is_named(shards: Path) -> None:
    write_index(shards, a="two.safetensors", b="one.safetensors", c="one.safetensors")
    with pytest.raises(CheckpointError) as error:
        FileCheckpoint(shards)
    expected = f"{shards / INDEX}: tensor 'c' should be in one.safetensors, it is in two"
    assert expected in error.value.message


def test_a_tensor_that_only_the_index_knows_is_named(shards: Path) -> None:
    write_index(shards, a="two.safetensors", b="one.safetensors", ghost="one.safetensors")
    with pytest.raises(CheckpointError, match=r"'ghost' should be in .*, it is in no shard"):
        FileCheckpoint(shards)


def test_an_index_beyond_any_size_is_not_read(tmp_path: Path) -> None:
    """Before memory is taken for it."""
    index = tmp_path / INDEX
    index.touch()
    os.truncate(index, 10**12)
    with pytest.raises(CheckpointError, match="1000000000000 bytes"):
        FileCheckpoint(index)


def test_an_index_of_very_many_shards_is_read(tmp_path: Path) -> None:
    """More files than a process may have open by default on some systems."""
    names = {f"w{number}": f"{number:04}.safetensors" for number in range(300)}
    for name, file in names.items():
        write(tmp_path / file, None, **{name: b"1"})
    write_index(tmp_path, **names)
    before = open_files()
    with FileCheckpoint(tmp_path) as checkpoint:
        assert len(checkpoint.specs) == 300
    assert open_files() == before


# --- files are closed ---


def test_leaving_closes_every_file(shards: Path) -> None:
    before = open_files()
    with FileCheckpoint(shards):
        assert open_files() > before
    assert open_files() == before


def test_closing_twice_is_fine(shards: Path) -> None:
    checkpoint = FileCheckpoint(shards)
    checkpoint.close()
    checkpoint.close()


@pytest.mark.parametrize("fault", ["broken shard", "missing shard", "lying index", "delta"])
def test_a_failure_leaves_no_file_open(shards: Path, fault: str) -> None:
    """The shards that were opened before it included."""
    if fault == "broken shard":
        (shards / "two.safetensors").write_bytes(b"broken")
    elif fault == "missing shard":
        (shards / "two.safetensors").unlink()
    elif fault == "lying index":
        write_index(shards, a="two.safetensors", b="two.safetensors", c="one.safetensors")
    else:
        write(shards / "two.safetensors", {"format": "sparsedelta"}, a=b"1")
    before = open_files()
    with pytest.raises(CheckpointError):
        FileCheckpoint(shards)
    assert open_files() == before


# --- helpers ---


def test_a_reader_is_passed_through(shards: Path) -> None:
    with FileCheckpoint(shards) as checkpoint:
        assert open_checkpoint(checkpoint) is checkpoint


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_opened(shards: Path, kind: type[str | Path]) -> None:
    reader = open_checkpoint(kind(shards))
    assert set(reader.specs) == {"a", "b", "c"}
    reader.close()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (0, []),
        (1, [(0, 1)]),
        (SEGMENT_WORDS, [(0, SEGMENT_WORDS)]),
        (SEGMENT_WORDS + 1, [(0, SEGMENT_WORDS), (SEGMENT_WORDS, SEGMENT_WORDS + 1)]),
    ],
)
def test_segments_cover_a_tensor(words: int, expected: list[tuple[int, int]]) -> None:
    assert list(segments(TensorSpec("w", "BF16", (words,)))) == expected


def test_a_file_that_is_written_meanwhile_is_told_before_a_result_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x", a=b"12345")
    with FileCheckpoint(path) as checkpoint:
        fingerprint(checkpoint)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"6")
        os.utime(path, ns=(1, 1))  # file systems whose clock is slow
        with pytest.raises(CheckpointError, match="x changed while it was being read"):
            fingerprint(checkpoint)


def test_a_url_that_became_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file") as error:
        FileCheckpoint(Path("s3://bucket/x"))
    assert error.value.hint == "give a URL as text, not as a Path: s3://…"
