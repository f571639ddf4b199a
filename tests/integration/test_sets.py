"""Sets: a root and its part files are one delta, and less than all of them is none."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    Stored,
    Tensors,
    call,
    failed,
    hint_of,
    succeeded,
    tree,
    write_file,
)

import sparsedelta
from sparsedelta import DeltaReader, FormatError, OutputError, StructureError, UsageError

TENSORS = 6
PART_BYTES = 8000
"""Two tensors fit, three do not."""


def tensors(seed: int) -> Tensors:
    """Six tensors without a word in common with those of another seed: about 3 kB each."""
    rng = np.random.default_rng(seed)
    return {f"t{n}": Stored("BF16", (30, 50), rng.bytes(3000)) for n in range(TENSORS)}


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_file(tmp_path / "in" / "base.safetensors", tensors(0)),
        write_file(tmp_path / "in" / "target.safetensors", tensors(1)),
    )


@pytest.fixture
def root(ends: tuple[Path, Path], tmp_path: Path) -> Path:
    """The root of a set of three part files, in a folder with nothing else."""
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "d.safetensors"
    sparsedelta.diff(*ends, path, max_shard_size=PART_BYTES)
    return path


def parts(root: Path) -> list[Path]:
    """The part files beside a root, in their order."""
    return sorted(path for path in root.parent.iterdir() if path != root)


# --- reading ---


def test_part_files_are_named_as_shards_are(root: Path) -> None:
    assert [path.name for path in parts(root)] == [
        f"d-{n:05}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert sparsedelta.info(root).parts == tuple(path.name for path in parts(root))


def test_a_set_is_read_like_one_file(root: Path, ends: tuple[Path, Path], tmp_path: Path) -> None:
    one = tmp_path / "one"
    report = sparsedelta.diff(*ends, one)
    with DeltaReader(one) as single, DeltaReader(root) as many:
        assert many.read() == single.read()
        assert many.is_set
        assert not many.is_part
        assert set(many.paths) == {root, *parts(root)}
    assert sparsedelta.info(root).content == report.manifest.content
    assert sparsedelta.validate(root, base=ends[0]).base_checked
    sparsedelta.apply(ends[0], root, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == ends[1].read_bytes()
    sparsedelta.revert(ends[1], root, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == ends[0].read_bytes()


def test_the_size_of_a_set_is_that_of_all_its_files(root: Path, ends: tuple[Path, Path]) -> None:
    size = sum(path.stat().st_size for path in (root, *parts(root)))
    assert sparsedelta.info(root).size == size
    again = sparsedelta.diff(*ends, root, max_shard_size=PART_BYTES, force=True)
    assert again.size == size
    assert (
        sparsedelta.diff(*ends, root, max_shard_size=PART_BYTES, force=True, dry_run=True).size
        == size
    )


@pytest.mark.parametrize("size", [1, 3000, 3500, 6500, 10_000, 14_000])
def test_sizes_are_kept_but_for_the_head_and_for_single_tensors(
    ends: tuple[Path, Path], tmp_path: Path, size: int
) -> None:
    """The size asked for is that of frames and tables; header and manifest come on top."""
    (tmp_path / "set").mkdir()
    root = tmp_path / "set" / "d"
    sparsedelta.diff(*ends, root, max_shard_size=size)
    files = parts(root)
    assert len(files) > 1
    own = []
    for path in files:
        with DeltaReader(path) as reader:
            own.append(path.stat().st_size - reader.header.ranges["sd.manifest"][1])
            assert own[-1] <= size or len(reader.records) == 1
    # Nor are there more files than needed: no two neighbours would have fitted into one.
    assert all(one + other > size for one, other in pairwise(own))


@pytest.mark.parametrize("size", [100_000, 10**12])
def test_what_fits_into_one_file_is_one_file(
    ends: tuple[Path, Path], tmp_path: Path, size: int
) -> None:
    (tmp_path / "set").mkdir()
    root = tmp_path / "set" / "d"
    sparsedelta.diff(*ends, root, max_shard_size=size)
    assert parts(root) == []
    sparsedelta.diff(*ends, tmp_path / "one")
    assert root.read_bytes() == (tmp_path / "one").read_bytes()


def test_the_root_may_be_renamed_its_part_files_may_not(
    root: Path, ends: tuple[Path, Path], tmp_path: Path
) -> None:
    """The root may have any name; it lists the names of the others."""
    other = root.rename(root.with_name("anything at all"))
    sparsedelta.apply(ends[0], other, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == ends[1].read_bytes()


def test_a_set_in_a_folder_that_cannot_be_written_is_read(
    root: Path, ends: tuple[Path, Path], tmp_path: Path
) -> None:
    for path in (root, *parts(root)):
        path.chmod(0o400)
    root.parent.chmod(0o500)
    try:
        sparsedelta.apply(ends[0], root, tmp_path / "out")
        assert sparsedelta.validate(root).ok
    finally:
        root.parent.chmod(0o700)
    assert (tmp_path / "out").read_bytes() == ends[1].read_bytes()


def test_a_set_is_found_through_a_link_to_its_folder(
    root: Path, ends: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(root.parent, target_is_directory=True)
    assert sparsedelta.validate(tmp_path / "link" / root.name, base=ends[0]).ok


# --- files that are not what the root says ---


def refused(root: Path, ends: tuple[Path, Path], rule: str) -> str:
    """The message with which every command refuses a set; nothing is left behind."""
    before = tree(root.parent)
    for operation in (DeltaReader, sparsedelta.info):
        with pytest.raises(FormatError) as caught:
            operation(root)
        assert caught.value.rule == rule
    assert [problem.rule for problem in sparsedelta.validate(root).problems][:1] == [rule]
    message = failed(call("apply", ends[0], root, "-o", root.parent / "out"), 3)
    assert rule in message
    assert str(root) in message
    hint_of(message)
    assert tree(root.parent) == before
    return message


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(root: Path, ends: tuple[Path, Path], number: int) -> None:
    gone = parts(root)[number]
    size = gone.stat().st_size
    gone.unlink()
    message = refused(root, ends, "SD601")
    assert f"{gone.name} is not there as a regular file, expected {size} bytes" in message
    assert "get all files of the set into one folder" in message


def test_a_part_under_another_name_is_missing(root: Path, ends: tuple[Path, Path]) -> None:
    path = parts(root)[1]
    path.rename(path.with_name("d-2.safetensors"))
    assert path.name in refused(root, ends, "SD601")


def test_a_truncated_part_is_named_with_both_sizes(root: Path, ends: tuple[Path, Path]) -> None:
    path = parts(root)[2]
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    message = refused(root, ends, "SD601")
    assert f"{path.name} has {len(data) - 1} bytes, expected {len(data)} bytes" in message


def test_a_part_that_grew_is_named(root: Path, ends: tuple[Path, Path]) -> None:
    path = parts(root)[0]
    path.write_bytes(path.read_bytes() + b"\0")
    assert path.name in refused(root, ends, "SD601")


def test_a_folder_in_the_place_of_a_part_is_no_part(root: Path, ends: tuple[Path, Path]) -> None:
    path = parts(root)[0]
    path.unlink()
    path.mkdir()
    assert path.name in refused(root, ends, "SD601")


def test_a_link_that_leads_nowhere_is_no_part(root: Path, ends: tuple[Path, Path]) -> None:
    path = parts(root)[0]
    path.unlink()
    path.symlink_to("nowhere")
    assert path.name in refused(root, ends, "SD601")


def test_exchanged_parts_are_found(root: Path, ends: tuple[Path, Path]) -> None:
    one, other = parts(root)[:2]
    sizes = one.stat().st_size, other.stat().st_size
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    message = refused(root, ends, "SD602" if sizes[0] == sizes[1] else "SD601")
    assert one.name in message


def test_parts_of_two_sets_do_not_mix(root: Path, ends: tuple[Path, Path], tmp_path: Path) -> None:
    """The same base and another target: the files have the same names, and may have one size."""
    (tmp_path / "other").mkdir()
    other = write_file(tmp_path / "in" / "other", tensors(2))
    sparsedelta.diff(ends[0], other, tmp_path / "other" / root.name, max_shard_size=PART_BYTES)
    path = parts(root)[1]
    foreign = tmp_path / "other" / path.name
    same = foreign.stat().st_size == path.stat().st_size
    shutil.copy(foreign, path)
    message = refused(root, ends, "SD602" if same else "SD601")
    assert path.name in message
    if same:
        assert "files of two deltas got mixed" in message


def test_the_root_of_another_set_does_not_take_these_parts(
    root: Path, ends: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    sparsedelta.diff(ends[1], ends[0], tmp_path / "other" / root.name, max_shard_size=PART_BYTES)
    shutil.copy(tmp_path / "other" / root.name, root)
    with pytest.raises(FormatError, match=r"SD60[12]"):
        sparsedelta.info(root)


def test_a_flipped_bit_in_a_part_is_found_where_it_is_read(
    root: Path, ends: tuple[Path, Path], tmp_path: Path
) -> None:
    """Opening checks manifests and sizes; the frames are checked by who reads them."""
    path = parts(root)[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert sparsedelta.info(root).touched == TENSORS
    (problem,) = sparsedelta.validate(root).problems
    assert problem.rule == "SD401"
    assert str(path) in problem.message
    with pytest.raises(FormatError, match="SD401"):
        sparsedelta.apply(ends[0], root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- a part file alone ---


def test_a_part_alone_tells_of_its_own_records(root: Path) -> None:
    run = succeeded(call("info", parts(root)[1]))
    assert "part file 2 of a set" in run.out
    found = [sparsedelta.info(path) for path in parts(root)]
    assert [info.part for info in found] == [1, 2, 3]
    whole = sparsedelta.info(root)
    assert whole.part is None
    assert sum(info.nnz for info in found) == whole.nnz
    assert [t.name for info in found for t in info.tensors] == [t.name for t in whole.tensors]
    assert {(info.base, info.target) for info in found} == {(whole.base, whole.target)}


def test_a_part_alone_can_be_validated_and_read(root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in parts(root):
        copy = shutil.copy(path, alone / "x")
        assert sparsedelta.validate(copy).problems == ()
        with DeltaReader(copy) as reader, DeltaReader(root) as whole:
            assert reader.is_part
            for name, tensor in reader.read().tensors.items():
                assert tensor == whole.read_tensor(name)


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_part_alone_is_not_applied_and_the_root_is_asked_for(
    root: Path, ends: tuple[Path, Path], tmp_path: Path, verb: str
) -> None:
    part = parts(root)[0]
    source = ends[0] if verb == "apply" else ends[1]
    message = failed(call(verb, source, part, "-o", tmp_path / "out"), 1)
    assert f"{part} is part file 1 of a set" in message
    assert "name the root of the set" in hint_of(message)
    assert not (tmp_path / "out").exists()


def test_a_part_alone_is_not_proven_on_a_base(root: Path, ends: tuple[Path, Path]) -> None:
    with pytest.raises(StructureError, match=r"part file [0-9]+ of a set") as caught:
        sparsedelta.validate(parts(root)[0], base=ends[0])
    assert "root" in (caught.value.hint or "")


# --- writing ---


def test_a_set_is_written_whole_or_not_at_all(
    ends: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root comes last; if it does not get its name, the part files do not keep theirs."""
    folder = tmp_path / "set"
    folder.mkdir()
    place = Path.hardlink_to

    def refuse_root(self: Path, target: Path) -> None:
        if self.name == "d":
            raise FileExistsError
        place(self, target)

    monkeypatch.setattr(Path, "hardlink_to", refuse_root)
    with pytest.raises(OutputError):
        sparsedelta.diff(*ends, folder / "d", max_shard_size=PART_BYTES)
    assert tree(folder) == {}


def test_a_dry_run_leaves_nothing(ends: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    sparsedelta.diff(*ends, tmp_path / "set" / "d", max_shard_size=PART_BYTES, dry_run=True)
    assert tree(tmp_path / "set") == {}


def test_a_name_that_a_part_file_needs_is_not_taken_unasked(
    ends: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    mine = folder / "d-00002-of-00003.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"d-00002-of-00003\.safetensors exists") as caught:
        sparsedelta.diff(*ends, folder / "d", max_shard_size=PART_BYTES)
    assert "--force" in (caught.value.hint or "")
    assert tree(folder) == {mine.name: b"mine"}
    sparsedelta.diff(*ends, folder / "d", max_shard_size=PART_BYTES, force=True)
    assert sparsedelta.validate(folder / "d", base=ends[0]).ok


def test_a_part_file_never_overwrites_an_input(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """Also with --force, which replaces outputs: the base is no output."""
    base = ends[0].rename(tmp_path / "d-00001-of-00003.safetensors")
    data = base.read_bytes()
    with pytest.raises(OutputError, match="would overwrite the input"):
        sparsedelta.diff(
            base, ends[1], tmp_path / "d.safetensors", max_shard_size=PART_BYTES, force=True
        )
    assert base.read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"in", base.name}


def test_force_replaces_a_set_by_one_with_other_parts(root: Path, ends: tuple[Path, Path]) -> None:
    """The new root lists the new files; nothing of the older set is taken for a part of it."""
    sparsedelta.diff(*ends, root, max_shard_size=1, force=True)
    assert len(sparsedelta.info(root).parts) == TENSORS
    assert sparsedelta.validate(root, base=ends[0]).ok
    sparsedelta.diff(*ends, root, max_shard_size=10_000, force=True)
    assert len(sparsedelta.info(root).parts) == 2
    assert sparsedelta.validate(root, base=ends[0]).ok
    sparsedelta.diff(*ends, root, force=True)
    assert sparsedelta.info(root).parts == ()
    assert sparsedelta.validate(root, base=ends[0]).ok


@pytest.mark.parametrize("name", ["d e", ".d", "-d", "con", "COM1.safetensors", "é", "d."])
def test_the_root_of_a_set_needs_a_plain_name(
    ends: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Its part files get their names from it, and those must mean the same everywhere."""
    with pytest.raises(UsageError, match="the files of a set need a simple name"):
        sparsedelta.diff(*ends, tmp_path / name, max_shard_size=PART_BYTES)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["d", "d.delta", "d.safetensors.delta", "con-1", "_", "a+b"])
def test_any_plain_name_is_fine_for_a_root(
    ends: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    sparsedelta.diff(*ends, tmp_path / name, max_shard_size=PART_BYTES)
    assert sparsedelta.validate(tmp_path / name, base=ends[0]).ok


def test_a_name_that_is_too_long_for_its_parts_is_an_error_that_leaves_nothing(
    ends: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UsageError, match="longer than 255"):
        sparsedelta.diff(*ends, tmp_path / "set" / ("r" * 250), max_shard_size=PART_BYTES)
    assert tree(tmp_path / "set") == {}
