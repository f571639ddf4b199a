"""What a review found: each once, so that it does not come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsedelta
from sparsedelta.attachments import LayoutEnd
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta import Part, TensorDelta
from sparsedelta.errors import OutputError, StructureError
from sparsedelta.operations import attach
from sparsedelta.words import Indices, TensorSpec, Words

SPEC = TensorSpec("w", "F32", (4, 4))
WORDS = np.arange(16, dtype=np.float32).view(np.uint32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of two tensors."""
    path = tmp_path / "base.safetensors"
    save_file({"w": WORDS.view(np.float32).reshape(4, 4), "x": np.ones(3, np.float32)}, path)
    return path


def at(*indices: int) -> Indices:
    """Indices of entries."""
    return np.array(indices, np.int64)


def words(*values: int) -> Words:
    """Words of 32 bits."""
    return np.array(values, np.uint32)


def changed(*parts: Part) -> TensorDelta:
    """A change of ``w``."""
    return TensorDelta(SPEC, SPEC, parts)


WRONG = {
    "no entries": changed(Part("difference", at(), words())),
    "an index outside": changed(Part("difference", at(16), words(1))),
    "a negative index": changed(Part("difference", at(-1), words(1))),
    "descending": changed(Part("difference", at(2, 1), words(1, 1))),
    "a difference of 0": changed(Part("difference", at(1), words(0))),
    "narrow words": changed(Part("difference", at(1), np.array([1], np.uint16))),
    "floats": changed(Part("replace", at(1), np.array([1], np.float32))),
    "big-endian words": changed(Part("replace", at(1), np.array([1], ">u4"))),
    "a replace of nothing": changed(Part("replace", at(1), WORDS[1:2])),
    "an index twice": changed(
        Part("difference", at(1), words(1)), Part("replace", at(1), words(7))
    ),
    "no parts": changed(),
    "an unknown dtype": changed(Part("add", at(1), words(1), dtype="Q8")),
    "a dtype that does not belong": changed(Part("difference", at(1), words(1), dtype="F32")),
    "a drop of other words": TensorDelta(SPEC, None, (Part("drop", None, WORDS + 1),)),
    "a cut of other words": TensorDelta(
        SPEC, TensorSpec("w", "F32", (3, 4)), (Part("resize", None, words(0, 0, 0, 0)),)
    ),
    "a drop to nowhere": TensorDelta(SPEC, None, (Part("drop", None, None, "nowhere"),)),
    "a copy of nothing": TensorDelta(
        None, TensorSpec("y", "F32", (3,)), (Part("new", None, None, "nowhere"),)
    ),
    "new words of another width": TensorDelta(
        None, TensorSpec("y", "F32", (1,)), (Part("new", None, np.array([1], np.uint64)),)
    ),
    "a name that is no text": TensorDelta(
        None, TensorSpec("\ud800", "F32", (1,)), (Part("new", None, words(1)),)
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_write_delta_refuses_what_no_delta_can_hold(
    base: Path, tmp_path: Path, wrong: TensorDelta
) -> None:
    """Nothing is written that our own reader would refuse, or that could not be reverted."""
    out = tmp_path / "d.safetensors"
    with pytest.raises(StructureError):
        sparsedelta.write_delta(base, [wrong], out)
    assert not out.exists()


def test_validate_with_a_base_does_not_call_valid_what_apply_refuses(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout whose header fits the manifest but not the untouched tensors of the base."""
    other = tmp_path / "other.safetensors"
    save_file({"w": WORDS.view(np.float32).reshape(4, 4), "x": np.ones(3, np.int32)}, other)
    target = tmp_path / "target.safetensors"
    save_file({"w": np.zeros((4, 4), np.float32), "x": np.ones(3, np.float32)}, target)

    real = attach._end  # noqa: SLF001 (to write what the package would not)

    def end(given: object, writer: object, *, sha256: bool) -> LayoutEnd:
        with FileCheckpoint(other) as odd:
            return real(odd, writer, sha256=sha256)  # type: ignore[arg-type]

    monkeypatch.setattr(attach, "_end", end)
    delta = tmp_path / "d.safetensors"
    sparsedelta.diff(base, target, delta, layout="always")
    assert sparsedelta.validate(delta).ok
    report = sparsedelta.validate(delta, base=base)
    assert [problem.rule for problem in report.problems] == ["SD415"]
    assert not report.base_checked


def test_a_part_file_of_a_lean_set_gives_no_rows(base: Path, tmp_path: Path) -> None:
    """What another part changes would look untouched in it."""
    target = tmp_path / "target.safetensors"
    save_file({"w": np.zeros((4, 4), np.float32), "x": np.zeros(3, np.float32)}, target)
    root = tmp_path / "s.safetensors"
    sparsedelta.diff(base, target, root, lean=True, max_shard_size=1)
    part = tmp_path / "s-00001-of-00002.safetensors"
    with pytest.raises(StructureError, match="part file 1"):
        sparsedelta.read_rows(base, part, "x", 0, 1)
    with pytest.raises(StructureError, match="part file 1"):
        sparsedelta.export_raw(part, tmp_path / "raw.safetensors", base=base)
    assert sparsedelta.read_rows(base, root, "x", 0, 1).tolist() == [0]


@pytest.mark.parametrize("name", ["notes/thesis.txt", ".git/HEAD", "big.bin"])
def test_force_does_not_delete_what_is_no_checkpoint(base: Path, tmp_path: Path, name: str) -> None:
    """A folder that happens to hold weights may hold a life's work beside them."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(base.read_bytes())
    sparsedelta.diff(folder, folder, tmp_path / "d.safetensors")
    home = tmp_path / "home"
    sparsedelta.apply(folder, tmp_path / "d.safetensors", home)
    sparsedelta.apply(folder, tmp_path / "d.safetensors", home, force=True)  # our own is replaced
    kept = home / name
    kept.parent.mkdir(exist_ok=True)
    with kept.open("wb") as file:
        file.truncate((1 << 26) + 1 if name == "big.bin" else 1)
    with pytest.raises(OutputError, match=name.split("/", maxsplit=1)[0]):
        sparsedelta.apply(folder, tmp_path / "d.safetensors", home, force=True)
    assert kept.exists()


def test_exchanged_names_give_the_files_back(base: Path, tmp_path: Path) -> None:
    """The header stays, and yet the tensors do not: the layout has to be recorded."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    one, two = np.arange(4096, dtype=np.float32), np.arange(4096, dtype=np.float32) * 3
    save_file({"a": one, "b": two}, old)
    save_file({"a": two, "b": one}, new)
    delta = tmp_path / "d.safetensors"
    sparsedelta.diff(old, new, delta, renames={"a": "b", "b": "a"})
    sparsedelta.apply(old, delta, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == new.read_bytes()
