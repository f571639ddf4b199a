"""Digests remembered beside files are believed while the files look the same, never longer."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_disk import SYNC
from safetensors.numpy import load_file, save_file

import sparsedelta
from sparsedelta import digest_cache
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.digest_cache import recall, record_path, remember
from sparsedelta.files import FileState


@pytest.fixture(autouse=True)
def _small_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_cache, "MIN_FILE_BYTES", 0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "base.safetensors"
    save_file({f"t{n}": rng.standard_normal(300).astype(np.float32) for n in range(4)}, path)
    return settled(path)


@pytest.fixture
def target(base: Path) -> Path:
    tensors = load_file(base)
    tensors["t2"][7] += 1
    path = base.with_name("target.safetensors")
    save_file(tensors, path)
    return settled(path)


def settled(path: Path) -> Path:
    """Long enough after its last change that another one would show."""
    time.sleep(0.06)
    return path


def without_cache(path: Path) -> str:
    return sparsedelta.fingerprint(path, cache=False).fingerprint


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are read from now on."""
    seen: list[str] = []
    read = FileCheckpoint.read

    def recording(reader: FileCheckpoint, name: str, *rest: Any) -> object:  # noqa: ANN401
        seen.append(name)
        return read(reader, name, *rest)

    monkeypatch.setattr(FileCheckpoint, "read", recording)
    return seen


def test_a_second_fingerprint_reads_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sparsedelta.fingerprint(base)
    seen = reads(monkeypatch)
    second = sparsedelta.fingerprint(base)
    assert (second.fingerprint, second.tensors) == (first.fingerprint, first.tensors)
    assert (first.remembered, second.remembered) == (0, 4)
    assert seen == []
    assert without_cache(base) == first.fingerprint
    assert len(seen) == 4


def test_a_diff_skips_tensors_that_are_known_to_be_equal(
    base: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = base.with_name("plain")
    sparsedelta.diff(base, target, plain, cache=False)
    assert not record_path(base).exists()
    first, again = base.with_name("first"), base.with_name("again")
    sparsedelta.diff(base, target, first)
    assert record_path(base).exists()
    assert record_path(target).exists()
    seen = reads(monkeypatch)
    sparsedelta.diff(base, target, again)
    assert set(seen) == {"t2"}
    assert plain.read_bytes() == first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("how", ["in place", "another file", "longer", "old times"])
def test_a_file_that_changed_is_read_again(base: Path, how: str) -> None:
    before = sparsedelta.fingerprint(base).fingerprint
    times = base.stat()
    tensors = load_file(base)
    tensors["t1"][0] += 1
    if how == "longer":
        tensors["t9"] = tensors["t1"]
    if how == "another file":
        save_file(tensors, base.with_name("new"))
        base.with_name("new").replace(base)
    else:
        other = base.with_name("other")
        save_file(tensors, other)
        with base.open("r+b") as file:
            file.write(other.read_bytes())
    if how == "old times":  # as some tools set them back; that shows, too
        os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert base.stat().st_mtime_ns == times.st_mtime_ns
    found = sparsedelta.fingerprint(base)
    assert found.fingerprint == without_cache(base) != before
    assert found.remembered == 0


def test_a_result_is_recorded_when_its_tick_is_over(base: Path) -> None:
    save_file(load_file(base), base)
    remember(base, FileState.of(base.stat()), {"t0": bytes(32)}, "full")
    found = recall(base)
    assert found is not None
    state = FileState.of(base.stat())
    assert time.time_ns() - max(state.modified_ns, state.changed_ns) >= digest_cache._TICK_NS  # noqa: SLF001


def test_whole_seconds_are_not_trusted_before_two_have_passed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns() // 1_000_000_000 * 1_000_000_000
    os.utime(base, ns=(now, now))
    remember(base, FileState.of(base.stat()), {"t0": bytes(32)}, "full")
    assert recall(base) is None


def test_a_large_file_that_was_just_written_is_not_recorded(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_cache, "_CHEAP_BYTES", 0)
    sparsedelta.fingerprint(base)
    assert recall(base) is None
    old = time.time_ns() - 61_000_000_000
    os.utime(base, ns=(old, old))
    settled(base)
    sparsedelta.fingerprint(base)
    assert recall(base) is not None


def test_a_mapped_page_that_changes_again_shows(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not, had the file not been written back before it was read."""
    monkeypatch.setattr(os, "fsync", SYNC)
    words = np.memmap(base, np.uint8, "r+")
    words[-1] ^= 1
    first = sparsedelta.fingerprint(base).fingerprint
    settled(base)
    words[-1] ^= 2
    assert sparsedelta.fingerprint(base).fingerprint == without_cache(base) != first


def test_nothing_is_recorded_in_memory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_cache, "_is_in_memory", lambda _: True)
    sparsedelta.fingerprint(base)
    assert not record_path(base).exists()


def test_a_file_that_was_replaced_after_it_was_opened_is_not_taken_for_the_new_one(
    base: Path, target: Path
) -> None:
    wanted = without_cache(base), without_cache(target)
    sparsedelta.fingerprint(target)
    with FileCheckpoint(base) as old:
        target.replace(base)
        record_path(target).replace(record_path(base))
        assert sparsedelta.fingerprint(old).fingerprint == wanted[0]
    assert sparsedelta.fingerprint(base).fingerprint == wanted[1]


def test_tables_of_a_lean_delta_that_nothing_proves_are_not_recorded(
    base: Path, target: Path
) -> None:
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, lean=True, cache=False)
    report = sparsedelta.apply(target, delta, out)
    assert not report.changed
    assert recall(out) is None


def test_a_file_that_changed_while_it_was_read_is_not_recorded(base: Path) -> None:
    state = FileState.of(base.stat())
    with base.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    settled(base)
    remember(base, state, {"t0": bytes(32)})
    assert recall(base) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": "sparsedelta digests 1"}',
        b'{"format": 1, "file": 2, "tensors": 3, "verified": 4}',
        "short digest",
        "no hex",
        "other way",
    ],
)
def test_a_record_that_is_broken_counts_as_none(base: Path, content: bytes | str) -> None:
    before = sparsedelta.fingerprint(base).fingerprint
    record = json.loads(record_path(base).read_bytes())
    if isinstance(content, str):
        if content == "other way":
            record["verified"] = "believe me"
        else:
            record["tensors"]["t0"] = "ab" if content == "short digest" else "x" * 64
        content = json.dumps(record).encode()
    record_path(base).write_bytes(content)
    assert recall(base) is None
    found = sparsedelta.fingerprint(base)
    assert (found.fingerprint, found.remembered) == (before, 0)


def test_a_record_of_other_tensors_does_not_stand_for_those_of_the_file(base: Path) -> None:
    state = FileState.of(base.stat())
    remember(base, state, {"t0": bytes(32), "elsewhere": bytes(32)}, "read")
    found = recall(base)
    assert found is not None
    with FileCheckpoint(base) as reader:
        known = digest_cache.KnownDigests(reader, use=True)
    assert known.tensors == {}  # all of a file, or none


def test_nothing_is_recorded_beside_links_nor_where_nothing_can_be_written(
    base: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(base)
    sparsedelta.fingerprint(link)
    assert not record_path(link).exists()
    record_path(base).mkdir()  # in the way
    assert sparsedelta.fingerprint(base).fingerprint == without_cache(base)
    assert {path.name for path in tmp_path.iterdir()} == {
        base.name,
        link.name,
        record_path(base).name,
    }


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("verify", ["full", "touched"])
def test_info_says_what_was_verified(
    base: Path, target: Path, *, in_place: bool, verify: digest_cache.Verified
) -> None:
    assert verify != "read"
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, cache=False)
    wanted = without_cache(target)
    if in_place:
        sparsedelta.apply(base, delta, in_place=True, verify=verify)
        out = base
    else:
        sparsedelta.apply(base, delta, out, verify=verify)
    assert without_cache(out) == wanted
    found = sparsedelta.checkpoint_info(out)
    assert found.verified == verify
    assert found.remembered == (4 if verify == "full" else 1)
    assert found.fingerprint == (wanted if verify == "full" else None)
    again = sparsedelta.fingerprint(out)
    assert again.fingerprint == wanted
    assert again.remembered == (4 if verify == "full" else 0)
    if verify == "touched":  # all of it has been read now
        assert sparsedelta.checkpoint_info(out).verified == "read"


def test_verify_touched_does_not_see_what_the_delta_does_not_touch(
    base: Path, target: Path
) -> None:
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, cache=False)
    tensors = load_file(base)
    tensors["t0"][0] += 1
    other = base.with_name("other.safetensors")
    save_file(tensors, other)
    with pytest.raises(sparsedelta.WrongBaseError, match="t0"):
        sparsedelta.apply(other, delta, out)
    assert not out.exists()
    report = sparsedelta.apply(other, delta, out, verify="touched")
    assert report.verified == "touched"
    made, wanted = load_file(out), load_file(target)
    assert {n for n in made if made[n].tobytes() != wanted[n].tobytes()} == {"t0"}
    tensors["t2"][0] += 1
    save_file(tensors, other)
    out.unlink()
    with pytest.raises(sparsedelta.WrongBaseError, match="t0"):
        sparsedelta.apply(other, delta, out, verify="touched")
    assert not out.exists()


def test_verify_touched_of_nothing_is_refused(base: Path) -> None:
    delta = base.with_name("delta")
    sparsedelta.diff(base, base, delta)
    with pytest.raises(sparsedelta.UsageError, match="nothing would be verified"):
        sparsedelta.apply(base, delta, base.with_name("out"), verify="touched")


def test_a_folder_with_records_may_be_replaced(base: Path, target: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, path in zip(folders, (base, target), strict=True):
        folder.mkdir()
        path.rename(folder / "model.safetensors")
    delta, out = tmp_path / "delta", tmp_path / "out"
    sparsedelta.diff(folders[0], folders[1], delta)
    sparsedelta.apply(folders[0], delta, out)
    assert record_path(out / "model.safetensors").exists()
    sparsedelta.apply(folders[0], delta, out, force=True)
    assert sparsedelta.fingerprint(out).fingerprint == without_cache(folders[1])


def test_verify_touched_sees_a_base_that_changes_while_it_is_copied(
    base: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, cache=False)
    copy_to = FileCheckpoint.copy_to

    def changing(reader: FileCheckpoint, *arguments: Any) -> bool:  # noqa: ANN401
        with base.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        return copy_to(reader, *arguments)

    monkeypatch.setattr(FileCheckpoint, "copy_to", changing)
    with pytest.raises(sparsedelta.CheckpointError, match="changed while"):
        sparsedelta.apply(base, delta, out, verify="touched")
    assert not out.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EXDEV, errno.EPERM, None])
def test_words_are_read_and_written_where_the_kernel_does_not_copy_them(
    base: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, cache=False)

    def refusing(*_: object) -> int:
        assert number is not None
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refusing)
    for verify in ("full", "touched"):
        sparsedelta.apply(base, delta, out, verify=verify, force=True)
        assert without_cache(out) == without_cache(target)


def test_a_disk_that_is_full_while_the_kernel_copies(
    base: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, out = base.with_name("delta"), base.with_name("out.safetensors")
    sparsedelta.diff(base, target, delta, cache=False)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(sparsedelta.OutputError, match="No space"):
        sparsedelta.apply(base, delta, out)
    assert not out.exists()
