"""Digests remembered beside files are believed while the files look the same, never longer."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sparsedelta
from sparsedelta import digest_cache
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.digest_cache import FileState, recall, record_path, remember


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


def test_a_file_that_just_changed_is_not_recorded(base: Path) -> None:
    tensors = load_file(base)
    save_file(tensors, base)
    state = FileState.of(base)
    assert not state.is_settled(state.modified_ns + 1)
    remember(base, state, {}, "read")  # within a tick of the clock
    if not state.is_settled(time.time_ns()):
        assert recall(base) is None
    coarse = FileState(1, 5_000_000_000, 5_000_000_000, 1)
    assert not coarse.is_settled(6_000_000_000)
    assert coarse.is_settled(7_000_000_000)


def test_a_file_that_changed_while_it_was_read_is_not_recorded(base: Path) -> None:
    state = FileState.of(base)
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
    state = FileState.of(base)
    remember(base, state, {"t0": bytes(32), "elsewhere": bytes(32)}, "read")
    found = recall(base)
    assert found is not None
    with FileCheckpoint(base) as reader:
        known = digest_cache.KnownDigests(reader, use=True)
    assert known.tensors.keys() == {"t0"}


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
    assert again.remembered == found.remembered


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
