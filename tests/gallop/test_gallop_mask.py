"""Masks: what they hold, what they refuse, and their file."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_models import tiny_model, token_batches, token_loss
from torch import nn

from gallop import GallopConfig, Mask, select
from gallop.errors import MaskError
from sparsedelta.errors import OutputError, SparseDeltaError

SHAPES = {"a": (2, 3), "b": (4,), "scalar": ()}


def small_mask() -> Mask:
    return Mask({"b": [1, 3], "a": [0, 5], "scalar": []}, SHAPES)


def chosen_mask() -> Mask:
    return select(tiny_model(), token_batches(2), GallopConfig(0.02, seed=4), token_loss)


def test_is_a_mapping_of_sorted_read_only_indices() -> None:
    mask = small_mask()
    assert (list(mask), len(mask), mask.nnz) == (["b", "a"], 2, 4)
    assert "a" in mask
    assert "scalar" not in mask
    assert dict(mask.shapes) == {"b": (4,), "a": (2, 3)}
    assert mask["a"].dtype == np.int64
    assert mask["a"].tolist() == [0, 5]
    with pytest.raises(ValueError, match="read-only"):
        mask["a"][0] = 1
    with pytest.raises(KeyError):
        mask["scalar"]


def test_does_not_change_with_its_source() -> None:
    source = np.array([1, 3])
    mask = Mask({"b": source}, SHAPES)
    source[0] = 0
    assert mask["b"].tolist() == [1, 3]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_equal_and_read_only(how: str) -> None:
    mask = chosen_mask()
    twin = copy.deepcopy(mask) if how == "deepcopy" else pickle.loads(pickle.dumps(mask))  # noqa: S301
    assert twin == mask
    assert twin.report == mask.report
    assert not twin[next(iter(mask))].flags.writeable


def test_equality_and_digest_are_of_entries_and_shapes() -> None:
    mask = small_mask()
    reordered = Mask({"a": [0, 5], "b": [1, 3]}, {"a": [2, 3], "b": (4,)})  # type: ignore[dict-item]
    assert mask == reordered
    assert mask.digest == reordered.digest
    for other in (
        Mask({"a": [0, 4], "b": [1, 3]}, SHAPES),
        Mask({"a": [0, 5]}, SHAPES),
        Mask({"a": [0, 5], "b": [1, 3]}, {"a": (3, 2), "b": (4,)}),
    ):
        assert mask != other
        assert mask.digest != other.digest
    assert mask != "mask"


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([3, 1], "not strictly increasing"),
        ([1, 1], "not strictly increasing"),
        ([-1, 2], r"in \[0, 4\)"),
        ([0, 4], r"in \[0, 4\)"),
        ([0.5], "vector of integers"),
        ([[0, 1]], "vector of integers"),
        ([True], "vector of integers"),
    ],
)
def test_bad_indices_are_refused_by_name(indices: list[int], says: str) -> None:
    with pytest.raises(MaskError, match=f"mask of b: .*{says}"):
        Mask({"b": indices}, SHAPES)
    with pytest.raises(MaskError, match="mask of c: expected the parameter's shape"):
        Mask({"c": [0]}, SHAPES)


def test_save_and_load_keep_everything_but_the_time(tmp_path: Path) -> None:
    mask = chosen_mask()
    mask.save(tmp_path / "m.safetensors")
    loaded = Mask.load(tmp_path / "m.safetensors")
    assert loaded == mask
    assert list(loaded) == list(mask)
    assert loaded.config == mask.config
    assert loaded.report == mask.report
    assert loaded.report is not None
    assert loaded.report.seconds is None
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_same_selection_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        chosen_mask().save(str(tmp_path / name))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    mask = chosen_mask()
    mask.save(tmp_path / "m")
    with safe_open(tmp_path / "m", framework="numpy") as file:
        assert set(file.keys()) == set(mask)
        assert all(file.get_tensor(name).dtype == np.int32 for name in mask)
        document = json.loads(file.metadata()["gallop.mask"])
    assert document["recipe"]["density"] == 0.02
    assert document["recipe"]["seed"] == 4
    assert document["report"]["k"] == mask.nnz
    assert "seconds" not in document["report"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        st.sets(st.integers(0, 99), max_size=20),
        max_size=4,
    )
)
def test_any_mask_survives_its_file(sets: dict[str, set[int]]) -> None:
    """Law: load(save(mask)) == mask, whatever the names and however few the entries."""
    import tempfile  # noqa: PLC0415  (hypothesis does not reset tmp_path)

    mask = Mask({n: sorted(s) for n, s in sets.items()}, dict.fromkeys(sets, (10, 10)))
    with tempfile.TemporaryDirectory() as folder:
        mask.save(Path(folder) / "m")
        loaded = Mask.load(Path(folder) / "m")
    assert loaded == mask
    assert (loaded.config, loaded.report) == (None, None)


def test_saving_fails_cleanly(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        small_mask().save(tmp_path / "missing" / "m")
    small_mask().save(tmp_path / "m")
    Mask({"b": [0]}, SHAPES).save(tmp_path / "m")
    assert Mask.load(tmp_path / "m").nnz == 1


def spoiled(path: Path, metadata: dict[str, str] | None, **tensors: NDArray[np.int64]) -> Path:
    save_file(dict(tensors), path, metadata=metadata)
    return path


def test_files_that_hold_no_mask_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(MaskError, match="expected a mask file, found none"):
        Mask.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(MaskError, match="expected a safetensors file"):
        Mask.load(path)
    index = np.array([3, 1])
    document = {"version": 1, "shapes": {"a": [4]}, "recipe": None, "report": None}
    for metadata, says in (
        (None, "gallop.mask in its metadata"),
        ({"gallop.mask": "{"}, "gallop.mask in its metadata"),
        ({"gallop.mask": "[]"}, "gallop.mask in its metadata"),
        ({"gallop.mask": json.dumps(document | {"version": 2})}, "version 1, found 2"),
        ({"gallop.mask": json.dumps(document)}, "strictly increasing"),
        ({"gallop.mask": json.dumps(document | {"shapes": {"b": [4]}})}, "valid mask"),
        ({"gallop.mask": json.dumps(document | {"shapes": 3})}, "valid mask"),
        ({"gallop.mask": json.dumps(document | {"shapes": {}, "recipe": {}})}, "density"),
        ({"gallop.mask": json.dumps(document | {"shapes": {}, "report": {}})}, "valid mask"),
    ):
        with pytest.raises(MaskError, match=says) as caught:
            Mask.load(spoiled(path, metadata, a=index))
        assert isinstance(caught.value, SparseDeltaError)


def test_validation_names_what_does_not_fit() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    Mask({"a.weight": [0]}, {"a.weight": (2, 3)}).validate(model)
    with pytest.raises(MaskError, match=r"mask of c.weight: expected a parameter of that name"):
        Mask({"c.weight": [0]}, {"c.weight": (2, 3)}).validate(model)
    with pytest.raises(MaskError, match=r"a.weight: expected shape \(3, 2\), found \(2, 3\)"):
        Mask({"a.weight": [0]}, {"a.weight": (3, 2)}).validate(model)
    model["b"].weight = model["a"].weight
    Mask({"b.weight": [0]}, {"b.weight": (2, 3)}).validate(model)  # an alias will do
    both = dict.fromkeys(("a.weight", "b.weight"), (2, 3))
    with pytest.raises(MaskError, match=r"b.weight: expected each parameter once"):
        Mask({name: [0] for name in both}, both).validate(model)
