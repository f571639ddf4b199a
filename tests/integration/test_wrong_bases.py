"""Compact deltas on bases that are not theirs: every way that reads one, every kind of wrong base.

On other words most blocks decode to something. So each way must say that the base is another before
anything is written or returned, and must not trust words that it reads a second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import Stored, Tensors, call, tree, write_file, write_shards
from torch import nn

import sparsedelta
from sparsedelta import (
    CheckpointError,
    SparseDeltaError,
    Stack,
    StructureError,
    WrongBaseError,
)
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.files import InputFile
from sparsedelta.state_dict import StateDictReader
from sparsedelta.words import Words

ROWS, WIDTH = 96, 40
NAME: Final = "layer.weight"
HALF: Final = "other.weight"


def weights(seed: int, dtype: str) -> Words:
    """Words of 16-bit weights."""
    numbers = np.random.default_rng(seed).standard_normal(ROWS * WIDTH).astype("<f4") * 0.02
    if dtype == "F16":
        return numbers.astype("<f2").view("<u2")
    return np.ascontiguousarray(numbers.view("<u2")[1::2])


def stepped(words: Words, seed: int) -> Words:
    """Some words one step up or down, none of the first 8."""
    chance = np.random.default_rng(seed)
    at = np.flatnonzero(chance.random(words.size) < 0.1)
    at = at[at >= 8]
    made = words.copy()
    made[at] += chance.choice(np.array([1, 3, 65535], "<u2"), at.size)
    return made


def state(step: int, branch: int = 0) -> Tensors:
    """A checkpoint of a chain, or one beside it."""
    words = {NAME: weights(1, "BF16"), HALF: weights(2, "F16")}
    for number in range(step):
        seed = 10 * number + (branch if number == step - 1 else 0)
        words = {name: stepped(each, seed) for name, each in words.items()}
    return {
        NAME: Stored("BF16", (ROWS, WIDTH), words[NAME].tobytes()),
        HALF: Stored("F16", (ROWS, WIDTH), words[HALF].tobytes()),
        "stays": Stored("F32", (10,), bytes(40)),
    }


def write(folder: Path, tensors: Tensors) -> Path:
    """Two shards."""
    folder.mkdir()
    return write_shards(
        folder, {NAME: tensors[NAME]}, {n: each for n, each in tensors.items() if n != NAME}
    )


@dataclass(frozen=True)
class Material:
    """A chain s1 - d1 - s2 - d2 - s3 of compact deltas, and s1 - beside - another one."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    for name, each in {
        "s0": state(0), "s1": state(1), "s2": state(2), "s3": state(3), "t": state(2, 5),
    }.items():  # fmt: skip
        write(folder / name, each)
    for delta, base, target in (("d1", "s1", "s2"), ("d2", "s2", "s3"), ("beside", "s1", "t")):
        sparsedelta.diff(
            folder / base, folder / target, folder / delta, profile="compact", codec="ranked"
        )
        assert sparsedelta.info(folder / delta).needs_base == 2
    sparsedelta.diff(folder / "s1", folder / "s2", folder / "portable")
    return Material(folder)


Way = Callable[[Path, Material, Path], Any]
"""Reads a compact delta with a base, and writes to an output or returns what it made."""


def in_place(base: Path, m: Material, out: Path) -> None:
    """The output is a copy of the base: it must stay as it is."""
    shutil.copytree(base, out)
    before = tree(out)
    try:
        sparsedelta.apply(out, m.d1, in_place=True)
    except SparseDeltaError:
        assert tree(out) == before
        shutil.rmtree(out)
        raise


def with_undo(base: Path, m: Material, out: Path) -> bytes:
    undo = out.with_name("undo")
    try:
        sparsedelta.apply(base, [m.d1, m.d2], out, undo=undo)
        return undo.read_bytes()
    finally:
        assert undo.exists() == out.exists()
        undo.unlink(missing_ok=True)


def all_rows(base: Path, m: Material, out: Path) -> bytes:
    return sparsedelta.read_rows(base, m.d1, NAME, 3, 50).tobytes()


def loaded(base: Path, m: Material, out: Path, verify: Any = "full") -> list[bytes]:  # noqa: ANN401
    found = sparsedelta.load_state_dict(base, [m.d1, m.d2], verify=verify)
    return [each.view(torch.uint8).numpy().tobytes() for each in found.values()]


def weighed(base: Path, m: Material, out: Path) -> list[bytes]:
    found = sparsedelta.load_state_dict(base, [m.d1, m.beside], weights=[1, 0.5])
    return [each.view(torch.uint8).numpy().tobytes() for each in found.values()]


def stacked(base: Path, m: Material, out: Path) -> list[bytes]:
    model = nn.Module()
    with FileCheckpoint(base) as checkpoint:
        for name, spec in checkpoint.specs.items():
            place, _, last = name.rpartition(".")
            if place and place not in dict(model.named_children()):
                model.add_module(place, nn.Module())
            dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[spec.dtype]
            data = torch.from_numpy(checkpoint.read(name, 0, spec.words).copy())
            own = nn.Parameter(data.view(dtype).reshape(spec.shape))
            model.get_submodule(place).register_parameter(last, own)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    try:
        Stack(model).add("one", m.d1)
    except SparseDeltaError:
        after = model.state_dict()
        assert all(torch.equal(each, after[name]) for name, each in before.items())
        raise
    reader = StateDictReader(model.state_dict())
    return [reader.read(name, 0, spec.words).tobytes() for name, spec in reader.specs.items()]


def validated(base: Path, m: Material, out: Path) -> bool:
    report = sparsedelta.validate(m.d1, base=base)
    if not report.ok:
        assert [problem.rule for problem in report.problems] == ["SD501"]
        assert not report.base_checked
        assert call("validate", m.d1, "--base", base).code == 3
        raise WrongBaseError(report.problems[0].message)
    assert (report.base_checked, report.unread) == (True, 0)
    return True


def merged(base: Path, m: Material, out: Path, **options: bool) -> None:
    models = [
        {"model": str(each), "parameters": {"weight": 0.5, "density": 0.5}}
        for each in (m.d1, m.beside)
    ]
    recipe = {"merge_method": "ties", "base_model": str(base), "models": models}
    path = out.with_name("recipe.yaml")
    path.write_text(yaml.safe_dump(recipe))
    try:
        sparsedelta.merge(path, out, **options)  # type: ignore[arg-type]
    finally:
        path.unlink()


WAYS: Final[dict[str, Way]] = {
    "apply": lambda base, m, out: sparsedelta.apply(base, m.d1, out, threads=1),
    "threads": lambda base, m, out: sparsedelta.apply(base, m.d1, out, threads=3),
    "touched": lambda base, m, out: sparsedelta.apply(base, m.d1, out, verify="touched"),
    "resume": lambda base, m, out: sparsedelta.apply(base, m.d1, out, resume=True),
    "stream": lambda base, m, out: sparsedelta.apply(base, m.d1, out, stream=True),
    "chain": lambda base, m, out: sparsedelta.apply(base, [m.d2, m.d1], out),
    "undo": with_undo,
    "in place": in_place,
    "rows": all_rows,
    "export": lambda base, m, out: sparsedelta.export_raw(m.d1, out, base=base),
    "stack": stacked,
    "load": loaded,
    "load touched": lambda base, m, out: loaded(base, m, out, "touched"),
    "load weighed": weighed,
    "compose": lambda base, m, out: sparsedelta.compose(base, [m.d1, m.beside], out),
    "merge": merged,
    "merge as delta": lambda base, m, out: merged(base, m, out, as_delta=True),
    "revert": lambda base, m, out: sparsedelta.revert(m.s3, [m.d1, m.d2], out, base=base),
    "squash": lambda base, m, out: sparsedelta.squash([m.d1, m.d2], out, base=base),
    "invert": lambda base, m, out: sparsedelta.invert(m.d1, out, base=base),
    "to portable": lambda base, m, out: sparsedelta.recode(m.d1, base, out, profile="portable"),
    "to compact": lambda base, m, out: sparsedelta.recode(m.portable, base, out, profile="compact"),
    "recompact": lambda base, m, out: sparsedelta.recode(m.d1, base, out, profile="compact"),
    "validate": validated,
}


def words_of(stored: Stored, change: Callable[[Words], Words]) -> Stored:
    return Stored(stored.dtype, stored.shape, change(stored.words).tobytes())


def a_word(tensors: Tensors) -> Tensors:
    """One that no delta changes: of the same size, under the same header."""
    return {**tensors, NAME: tensors[NAME].with_word(5, 1)}


def last_tensor(tensors: Tensors) -> Tensors:
    return {**tensors, HALF: tensors[HALF].with_word(ROWS * WIDTH - 1, 1 << 15)}


def stale(tensors: Tensors) -> Tensors:
    """A checkpoint before."""
    return state(0) | {"stays": tensors["stays"]}


def other_dtype(tensors: Tensors) -> Tensors:
    return {**tensors, NAME: Stored("F16", (ROWS, WIDTH), tensors[NAME].data)}


def other_shape(tensors: Tensors) -> Tensors:
    return {**tensors, NAME: Stored("BF16", (WIDTH, ROWS), tensors[NAME].data)}


def shorter(tensors: Tensors) -> Tensors:
    data = tensors[NAME].data[: -2 * WIDTH]
    return {**tensors, NAME: Stored("BF16", (ROWS - 1, WIDTH), data)}


WRONG: Final = {
    each.__name__: each for each in (a_word, last_tensor, stale, other_dtype, other_shape, shorter)
}


@pytest.fixture(scope="module")
def right(material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each way makes of the right base."""
    found = {}
    for name, way in WAYS.items():
        folder = tmp_path_factory.mktemp("right")
        found[name] = outcome(way, material.s1, material, folder)
    assert found["apply"] == found["threads"] == found["resume"] == found["in place"]
    s2 = {f"out/{name}": each for name, each in tree(material.s2).items()}
    assert {**found["apply"][1], "out": ""} == {**s2, "out": ""}
    return found


def outcome(way: Way, base: Path, material: Material, folder: Path) -> tuple[Any, Any]:
    """What a way returned, where that is plain, and what it left behind."""
    returned = way(base, material, folder / "out")
    plain = returned if isinstance(returned, bytes | list | bool) else None
    return plain, {**tree(folder), "out": ""}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_goes_on_with_a_wrong_base(
    way: str, material: Material, right: dict[str, Any], tmp_path: Path
) -> None:
    assert right[way]
    for name, change in WRONG.items():
        if way == "rows" and name == "last_tensor":
            continue  # rows of another tensor: those are verified, no others
        base = write(tmp_path / f"base-{name}", change(state(1)))
        place = tmp_path / name
        place.mkdir()
        kinds = (WrongBaseError, StructureError) if way == "stack" else WrongBaseError
        with pytest.raises(kinds) as caught:
            WAYS[way](base, material, place / "out")
        assert isinstance(caught.value, StructureError) or caught.value.exit_code == 3, name
        assert tree(place) == {}, name


@pytest.mark.parametrize("way", ["apply", "in place", "load", "merge", "rows", "squash"])
def test_no_way_goes_on_with_a_base_that_is_cut(
    way: str, material: Material, tmp_path: Path
) -> None:
    """It is no checkpoint then, and is refused when it is opened."""
    base = write(tmp_path / "base", state(1))
    shard = base / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-2])
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(CheckpointError):
        WAYS[way](base, material, place / "out")
    assert tree(place) == {}


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """How many more reads of the words of a file give what is there; then a word is another."""
    left: dict[Path, int] = {}
    read_into = InputFile.read_into

    def read(self: InputFile, buffer: memoryview, offset: int) -> None:
        read_into(self, buffer, offset)
        if self.location in left and len(buffer) == 2 * ROWS * WIDTH:
            left[self.location] -= 1
            if left[self.location] < 0:
                buffer[-WIDTH] ^= 1

    monkeypatch.setattr(InputFile, "read_into", read)
    return left


@pytest.mark.parametrize("way", WAYS)
def test_a_base_that_changes_meanwhile_is_never_believed(
    way: str, material: Material, right: dict[str, Any], torn: dict[Path, int], tmp_path: Path
) -> None:
    """Whenever it does: an error, or what the right base would have given."""
    base = write(tmp_path / "base", state(1))
    ended: list[str] = []
    for reads in range(12):
        if ended[-2:] == ["right", "right"]:
            break  # nothing is read so often
        place = tmp_path / str(reads)
        place.mkdir()
        at = place / "out" if way == "in place" else base
        torn[at / "model-00001-of-00002.safetensors"] = reads
        try:
            found = outcome(WAYS[way], base, material, place)
        except SparseDeltaError as error:
            ended.append(type(error).__name__)
            assert tree(place) == {}, reads
        else:
            ended.append("right")
            assert found == right[way], reads
    assert (ended[0], ended[-1]) == ("WrongBaseError", "right")


def test_one_of_several_segments(tmp_path: Path) -> None:
    """Rows of the others are read; whatever meets it is refused, and leaves nothing of the rest."""
    rows, width = (1 << 10) + 1, 1 << 12  # a segment, and a row
    words = np.full(rows * width, 0x3F80, "<u2")

    def written(name: str) -> Path:
        stored = Stored("BF16", (rows, width), words.tobytes())
        return write_file(tmp_path / name, {NAME: stored})

    base = written("base")
    words[-1] ^= 1
    wrong = written("wrong")
    words[-1] ^= 1
    words[::32] += 1  # blocks of half a segment
    target = written("target")
    delta, out = tmp_path / "delta", tmp_path / "out"
    sparsedelta.diff(base, target, delta, profile="compact", codec="ranked")
    before = tree(tmp_path)
    found = sparsedelta.read_rows(wrong, delta, NAME, 0, 2)
    assert found.tobytes() == words[: 2 * width].tobytes()
    for attempt in (
        lambda: sparsedelta.read_rows(wrong, delta, NAME, rows - 1, rows),
        lambda: sparsedelta.apply(wrong, delta, out, threads=1, undo=tmp_path / "undo"),
        lambda: sparsedelta.apply(wrong, delta, in_place=True),
        lambda: sparsedelta.recode(delta, wrong, out, profile="portable"),
        lambda: sparsedelta.invert(delta, out, base=wrong),
        lambda: sparsedelta.export_raw(delta, out, base=wrong),
        lambda: sparsedelta.load_state_dict(wrong, [delta], verify="touched"),
    ):
        with pytest.raises(WrongBaseError):
            attempt()
        assert tree(tmp_path) == before
    report = sparsedelta.validate(delta, base=wrong)
    assert [problem.rule for problem in report.problems] == ["SD501"]
    assert report.unread == 1
