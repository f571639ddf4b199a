"""Journals: what is written is what is read, and what is damaged is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.errors import UnfinishedError
from sparsedelta.inodes import Inode
from sparsedelta.journal import (
    UNCOMMITTED,
    Head,
    Journal,
    JournalWriter,
    journal_path,
    journals_about,
    refuse_unfinished,
)
from sparsedelta.journal_frames import (
    RUN,
    SMALL_FILE,
    Run,
    SmallFile,
    decode_run,
    decode_small,
    run_frame,
    small_frame,
)
from sparsedelta.words import word_dtype

NAMES = ("m.safetensors", "\udcff.safetensors")
HEAD = Head(tuple((name, 100, Inode(7, 0)) for name in NAMES), ("i.json",), "d", "c", False, True)


def payload(frame: list[bytes | memoryview]) -> memoryview:
    return memoryview(b"".join(bytes(part) for part in frame[1:-1]))


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 200_000),
    st.sampled_from([0.0, 1e-4, 0.01, 0.06, 0.07, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_a_run_comes_back(width: int, words: int, density: float, seed: int) -> None:
    """Whichever way its positions are stored."""
    rng = np.random.default_rng(seed)
    at = np.flatnonzero(rng.random(words) < density)
    dtype = word_dtype(width)
    old = np.frombuffer(rng.bytes(width * at.size), dtype)
    new = np.frombuffer(rng.bytes(width * at.size), dtype)
    positions = None if at.size == words else at
    run = Run(3, 1 << 40, words, positions, old, new)
    found = decode_run(payload(list(run_frame(run))))
    assert (found.file, found.offset, found.words) == (3, 1 << 40, words)
    assert (found.positions is None) == (positions is None)
    assert found.positions is None or np.array_equal(found.positions, at)
    assert np.array_equal(found.old, old)
    assert np.array_equal(found.new, new)


def test_positions_take_the_smaller_form() -> None:
    """Two bytes each while they are few, a bit per word when they are many."""
    sizes = []
    for step in (100, 2):
        at = np.arange(0, 1 << 20, step)
        run = Run(0, 0, 1 << 20, at, np.zeros(at.size, np.uint8), np.zeros(at.size, np.uint8))
        sizes.append(len(payload(list(run_frame(run)))) - 2 * at.size)
    assert sizes[0] < 2 * (1 << 20) // 100 + 200
    assert sizes[1] < (1 << 17) + 100


@given(st.binary(max_size=50) | st.none(), st.binary(max_size=50) | st.none())
def test_a_small_file_comes_back(old: bytes | None, new: bytes | None) -> None:
    small = SmallFile("a name", old, new)
    assert decode_small(payload(list(small_frame(small)))) == small


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd"])
def test_a_small_file_is_never_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="path"):
        decode_small(payload(list(small_frame(SmallFile(name, None, b"x")))))


def inode_at(path: Path) -> Inode:
    found = Inode.at(path)
    assert found is not None
    return found


def committed(folder: Path, head: Head = HEAD) -> Path:
    path = journal_path(folder, "m.safetensors")
    writer = JournalWriter(path, head)
    words = np.arange(5, dtype=np.uint16)
    writer.append(run_frame(Run(0, 8, 40, np.array([1, 2, 3, 8, 39]), words, words + 1)))
    writer.append(small_frame(SmallFile("i.json", b"old", None)))
    writer.commit()
    return path


def read(path: Path) -> tuple[Head, list[tuple[int, bytes]]]:
    with Journal(path) as journal:
        return journal.head, [(kind, bytes(journal.payload(at))) for kind, at in journal.frames()]


def test_a_journal_comes_back(tmp_path: Path) -> None:
    head, frames = read(committed(tmp_path))
    assert head == HEAD
    assert [kind for kind, _ in frames] == [RUN, SMALL_FILE]


def test_damage_is_told(tmp_path: Path) -> None:
    """Any flipped bit, any cut, anything behind the end, and frames that changed places."""
    path = committed(tmp_path)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole[:at] + bytes([byte ^ 1]) + whole[at + 1 :] for at, byte in enumerate(whole)]
    damaged += [whole + b"\0", whole + whole]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UnfinishedError):
            read(path)


def test_a_frame_that_is_missing_is_told(tmp_path: Path) -> None:
    """Each frame has its own checksum: their order has another."""
    path = committed(tmp_path)
    whole = path.read_bytes()
    small = b"".join(bytes(part) for part in small_frame(SmallFile("i.json", b"old", None)))
    at = whole.index(small)
    for data in (whole[:at] + whole[at + len(small) :], whole[:at] + small + whole[at:]):
        path.write_bytes(data)
        with pytest.raises(UnfinishedError, match="trailer"):
            read(path)


def test_an_uncommitted_journal_says_nothing(tmp_path: Path) -> None:
    writer = JournalWriter(journal_path(tmp_path, "m.safetensors"), HEAD)
    assert [path.name for path in tmp_path.iterdir()] == [
        f".m.safetensors.sparsedelta-journal{UNCOMMITTED}"
    ]
    refuse_unfinished(tmp_path)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_whom_a_journal_is_about(tmp_path: Path) -> None:
    """The folder, and the files that it names; others in the folder are nobody's business."""
    for name in NAMES:
        (tmp_path / name).touch()
    files = tuple((name, 0, inode_at(tmp_path / name)) for name in NAMES)
    committed(tmp_path, replace(HEAD, files=files))
    for name in (*NAMES, "i.json", ""):
        with pytest.raises(UnfinishedError) as caught:
            refuse_unfinished(tmp_path / name)
        assert caught.value.hint is not None
        assert "--in-place --resume" in caught.value.hint
    refuse_unfinished(tmp_path / "other.safetensors")
    assert list(journals_about(tmp_path / "missing" / "m.safetensors")) == []


def test_an_inode_that_is_used_again_is_another(tmp_path: Path) -> None:
    """As far as its generation is known; what is not known is no difference."""
    assert Inode(1, 5).may_be(Inode(1, 5))
    assert Inode(1, 0).may_be(Inode(1, 5))
    assert Inode(1, 5).may_be(Inode(1, 0))
    assert not Inode(1, 5).may_be(Inode(1, 6))
    assert not Inode(1, 5).may_be(Inode(2, 5))
    path = tmp_path / "file"
    path.write_text("a")
    first = inode_at(path)
    path.write_text("b")
    with path.open() as file:
        assert Inode.of(file.fileno()) == inode_at(path) == first
    path.unlink()
    assert Inode.at(path) is None
    path.symlink_to(tmp_path)
    assert Inode.at(path) is None
    path.unlink()
    path.write_text("a")
    assert not first.generation or not first.may_be(inode_at(path))


def test_a_journal_about_other_files_says_so(tmp_path: Path) -> None:
    """Files that are gone, or others of the same name: what the journal says is not true of them.

    The message says which journal to remove, if what is there is whole.
    """
    path = tmp_path / NAMES[0]
    path.touch()
    journal = committed(tmp_path, replace(HEAD, files=((NAMES[0], 0, inode_at(path)),)))
    (tmp_path / "new").touch()
    (tmp_path / "new").replace(path)
    with pytest.raises(UnfinishedError, match="replaced by another file") as caught:
        refuse_unfinished(path)
    assert caught.value.hint is not None
    assert f"rm {journal}" in caught.value.hint
    path.unlink()
    with pytest.raises(UnfinishedError, match="is gone, or no regular file"):
        refuse_unfinished(path)
