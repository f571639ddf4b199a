"""Many processes make what one process makes, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    Stored,
    Tensors,
    environment,
    load,
    split,
    tree,
    without_progress,
    write_shards,
)
from forked_scripts import Forked
from many_ranks import TIMEOUT, all_well, free_port, run_ranks
from real_packages import minilm

import sparsedelta
from sparsedelta import UsageError
from sparsedelta.launch import launched
from sparsedelta.operations.diff import plan_parts
from sparsedelta.operations.pairing import Pair
from sparsedelta.ranks import ALONE
from sparsedelta.words import TensorSpec

SIZES = (2, 4)


def real_tensors() -> Tensors:
    """Two layers of all-MiniLM-L6-v2 and their neighbours, in float32: 14 MB."""
    path = minilm() / "model.safetensors"
    return {
        name: tensor
        for name, tensor in load(path).items()
        if "layer.0." in name or "layer.1." in name or name == "embeddings.position_ids"
    }


def stepped(tensors: Tensors, seed: int) -> Tensors:
    """The same with a few words of most tensors changed, one dropped, one new, one renamed."""
    rng = np.random.default_rng(seed)
    result: Tensors = {}
    for name, tensor in tensors.items():
        words = tensor.words
        if "output.dense" not in name:
            words[rng.random(words.size) < 0.004] += np.uint16(seed)
        result[name] = Stored(tensor.dtype, tensor.shape, words.tobytes())
    names = sorted(result)
    result["renamed.weight"] = result.pop(names[5])
    del result[names[9]]
    result["fresh.weight"] = Stored("BF16", (300,), rng.bytes(600))
    return result


def in_shards(folder: Path, tensors: Tensors) -> Path:
    names = list(tensors)
    third = len(names) // 3
    groups = names[:third], names[third : 2 * third], names[2 * third :]
    write_shards(folder, *split(tensors, *groups))
    (folder / "config.json").write_text(f'{{"tensors": {len(names)}}}')
    return folder


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a target, a base that is another, and what one process makes."""
    folder = tmp_path_factory.mktemp("ranks")
    tensors = real_tensors()
    in_shards(folder / "base", tensors)
    in_shards(folder / "target", stepped(tensors, 1))
    other = dict(tensors)
    name = max(other)
    other[name] = other[name].with_word(0, 1)
    in_shards(folder / "other", other)
    return folder


@pytest.mark.real
@pytest.mark.parametrize("size", SIZES)
def test_many_ranks_make_what_one_makes(ends: Path, tmp_path: Path, size: int) -> None:
    """Content digest as of one file; bytes as of one process with the same plan."""
    for name in ("base", "target", "other"):
        (tmp_path / name).symlink_to(ends / name)
    many, one = tmp_path / "many", tmp_path / "one"
    many.mkdir()
    one.mkdir()
    all_well(run_ranks(size, "files", tmp_path))
    base, target = ends / "base", ends / "target"
    single = sparsedelta.diff(base, target, one / "single", with_files=True)
    sparsedelta.diff(
        base, target, one / "whole.safetensors", shards=size, with_files=True, profile="compact"
    )
    sparsedelta.diff(base, target, one / "cut.safetensors", shards=5, layout="always")
    sparsedelta.diff(base, base, one / "nothing", shards=size)
    sparsedelta.apply(base, one / "whole.safetensors", tmp_path / "out", undo=one / "undo")
    assert sparsedelta.info(many / "whole.safetensors").content == single.manifest.content
    assert len(sparsedelta.info(many / "whole.safetensors").parts) == size
    for path in one.iterdir():
        if path.name != "single":
            assert path.read_bytes() == (many / path.name).read_bytes(), path.name
    assert sparsedelta.validate(many / "whole.safetensors", base=base).base_checked
    for made, expected in (("out", target), ("again", target), ("back", base)):
        weights = {p.name: p.read_bytes() for p in expected.iterdir() if p.name != "config.json"}
        found = {p.name: p.read_bytes() for p in (many / made).iterdir()}
        assert {name: found.get(name) for name in weights} == weights
    assert (many / "out" / "config.json").read_bytes() == (target / "config.json").read_bytes()
    expected_names = {path.name for path in one.iterdir()} - {"single"}
    assert {p.name for p in many.iterdir()} == expected_names | {"out", "again", "back"}


@pytest.mark.real
def test_a_rank_that_fails_ends_the_others_and_leaves_nothing(ends: Path, tmp_path: Path) -> None:
    for name in ("base", "target"):
        (tmp_path / name).symlink_to(ends / name)
    (tmp_path / "many").mkdir()
    all_well(run_ranks(3, "failures", tmp_path))
    assert tree(tmp_path / "many") == {}


WRITE = "sparsedelta.writer.DeltaWriter:_write"
FOLLOW = "sparsedelta.operations.steps:follow"


@pytest.mark.real
@pytest.mark.parametrize(
    "case",
    [("diff", WRITE, 1, 3), ("diff", WRITE, 0, 2), ("apply", FOLLOW, 1, 2)],
)
def test_a_rank_that_is_killed_ends_the_others(
    ends: Path, tmp_path: Path, case: tuple[str, str, int, int]
) -> None:
    """Nothing of it is seen under the output's name, and the others say whom they miss."""
    command, moment, victim, size = case
    second = ends / "target"
    if command == "apply":
        second = tmp_path / "in" / "d"
        second.parent.mkdir()
        sparsedelta.diff(ends / "base", ends / "target", second)
    folder = tmp_path / "out"
    folder.mkdir()
    arguments = (command, ends / "base", second, "-o", folder / "x")
    runs = run_ranks(size, "killed", moment, str(victim), *arguments)
    assert runs[victim].code == -signal.SIGKILL
    for rank, run in enumerate(runs):
        if rank != victim:
            assert run.code == 1, run.err
            assert f"error: rank {victim} ended without a word" in run.err
            assert "hint: nothing was left behind" in run.err
            assert run.out == ""
    left = [path.name for path in folder.iterdir()]
    if victim:
        assert left == []
    else:  # nobody could remove what was rank 0's, as after a kill of one process
        assert all(name.startswith(".sparsedelta.") for name in left)


@pytest.mark.real
def test_a_rank_that_is_asked_to_end_says_so_to_the_others(ends: Path, tmp_path: Path) -> None:
    arguments = ("diff", ends / "base", ends / "target", "-o", tmp_path / "x")
    runs = run_ranks(2, "terminated", "1", *arguments)
    assert (runs[0].code, runs[1].code) == (1, 130)
    assert runs[0].err == "error: rank 1 was interrupted\n"
    assert runs[1].err.strip() == "interrupted; nothing was left behind"
    assert tree(tmp_path) == {}


@pytest.mark.real
def test_under_torchrun_one_result_is_printed(ends: Path, tmp_path: Path) -> None:
    """The command of the documentation; its launcher is forked, what it starts is not."""
    launcher = Forked(
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
        *("-m", "sparsedelta"),
        *("diff", ends / "base", ends / "target", "-o", tmp_path / "d"),
        env=environment({"OMP_NUM_THREADS": "1"}),
    )
    out, err = launcher.communicate(timeout=TIMEOUT)
    assert launcher.returncode == 0, err
    assert out.count("wrote ") == 1
    assert without_progress(err) == ""
    assert len(sparsedelta.info(tmp_path / "d").parts) == 2


# --- in one process ---


def test_a_part_without_changes_is_left_out(ends: Path, tmp_path: Path) -> None:
    """Section 3.8: a part file has at least one record."""
    tensors = {f"t{n}": Stored("BF16", (100,), bytes(200)) for n in range(4)}
    changed = tensors | {name: tensors[name].with_word(5, 1) for name in ("t0", "t3")}
    base = write_shards(tmp_path / "base", *split(tensors, [*tensors]))
    target = write_shards(tmp_path / "target", *split(changed, [*changed]))
    report = sparsedelta.diff(base, target, tmp_path / "d", shards=4)
    assert sparsedelta.info(tmp_path / "d").parts == (
        "d-00001-of-00002.safetensors",
        "d-00002-of-00002.safetensors",
    )
    assert report.size == sum(path.stat().st_size for path in tmp_path.glob("d*"))
    assert sparsedelta.validate(tmp_path / "d", base=base).base_checked
    one = sparsedelta.diff(base, target, tmp_path / "e", shards=1)
    assert len(sparsedelta.info(tmp_path / "e").parts) == 1
    assert one.manifest.content == report.manifest.content
    sparsedelta.diff(base, base, tmp_path / "f", shards=4)
    assert sparsedelta.info(tmp_path / "f").parts == ()


def test_the_plan_follows_from_names_and_sizes_alone() -> None:
    def pair(name: str, words: int) -> Pair:
        spec = TensorSpec(name, "BF16", (words,))
        return Pair(spec, spec)

    pairs = [pair(f"t{n}", words) for n, words in enumerate((10, 10, 20, 5, 5, 30))]
    assert list(plan_parts(pairs, 4).values()) == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize("options", [{"shards": 0}, {"shards": (1 << 16) + 1}])
def test_numbers_of_shards_that_make_no_sense(
    ends: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(UsageError, match="shards, expected 1 to 65536"):
        sparsedelta.diff(ends / "base", ends / "target", tmp_path / "d", **options)  # type: ignore[arg-type]


def test_a_size_and_a_number_of_shards_exclude_each_other(ends: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the number of part files cannot follow"):
        sparsedelta.diff(
            ends / "base", ends / "target", tmp_path / "d", shards=2, max_shard_size=1000
        )


@pytest.mark.parametrize("given", [{}, {"WORLD_SIZE": "1"}, {"RANK": "3"}])
def test_one_process_alone_needs_nobody(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if "WORLD_SIZE" in given:
        given |= {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with launched() as ranks:
        assert ranks is ALONE


def test_without_torch_many_processes_are_told_what_is_missing(ends: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError")
    paths = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    many = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sparsedelta", "fingerprint", str(ends / "base")],
        env=environment({"PYTHONPATH": paths, **many}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: 2 processes at localhost: torch is not installed\n"
        "hint: to run one process alone: env -u WORLD_SIZE sparsedelta …\n"
    )
    one = {"WORLD_SIZE": "1"}
    alone = subprocess.run(
        [sys.executable, "-m", "sparsedelta", "fingerprint", str(ends / "base")],
        env=environment({"PYTHONPATH": paths, **many, **one}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert alone.returncode == 0
