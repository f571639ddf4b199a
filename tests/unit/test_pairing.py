"""Which tensor is paired with which: told, by name, by content, by likeness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sparsedelta.errors import StructureError, UsageError
from sparsedelta.operations.pairing import Pair, pair_tensors
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Bytes, TensorSpec

Kind = tuple[str, tuple[int, ...], bytes]


class Memory:
    """A checkpoint in memory that counts what is read of it."""

    def __init__(self, location: str, tensors: Mapping[str, Kind]) -> None:
        self.location = location
        self.paths: tuple[Path, ...] = ()
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(name, *kind[:2]) for name, kind in tensors.items()
        }
        self.data = {name: kind[2] for name, kind in tensors.items()}
        self.bytes_read = 0

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of a run of words."""
        width = self.specs[name].word_bytes
        self.bytes_read += (stop - start) * width
        return np.frombuffer(self.data[name], np.uint8)[start * width : stop * width].copy()

    def close(self) -> None:
        """Nothing is open."""


def bf16(seed: int, words: int = 4000, *, changed: float = 0.0, of: int = 0) -> Kind:
    """Random words; or those of another seed with a share of them changed."""
    found = np.random.default_rng(of or seed).integers(0, 1 << 16, words, np.uint16)
    marks = np.random.default_rng(seed + 1000).random(words) < changed
    found[marks] += np.uint16(1)
    return "BF16", (words,), found.tobytes()


def paired(
    base: Mapping[str, Kind],
    target: Mapping[str, Kind],
    *,
    renames: Mapping[str, str] | None = None,
    unrelated: bool = False,
) -> list[tuple[str | None, str | None, str | None]]:
    """Names at both ends and of what is copied, pair by pair."""
    with OrderedMap(2) as pool:
        pairs = pair_tensors(
            Memory("BASE", base),
            Memory("TARGET", target),
            pool=pool,
            renames=renames,
            unrelated=unrelated,
        )
    assert [pair.name for pair in pairs] == sorted({pair.name for pair in pairs})
    return [
        (
            None if pair.base is None else pair.base.name,
            None if pair.target is None else pair.target.name,
            pair.copied,
        )
        for pair in pairs
    ]


# --- by name, by content ---


def test_tensors_of_the_same_name_belong_together_whatever_they_hold() -> None:
    """Also where the contents have changed places: the names are what the user sees."""
    assert paired({"a": bf16(1), "b": bf16(2)}, {"a": bf16(2), "b": bf16(1)}) == [
        ("a", "a", None),
        ("b", "b", None),
    ]


def test_nothing_is_read_where_all_names_are_the_same() -> None:
    ends = [Memory(name, {"a": bf16(1), "b": bf16(2)}) for name in ("BASE", "TARGET")]
    with OrderedMap(1) as pool:
        pair_tensors(ends[0], ends[1], pool=pool)
    assert [end.bytes_read for end in ends] == [0, 0]


def test_only_tensors_of_the_same_dtype_and_shape_are_read_to_find_a_rename() -> None:
    base = Memory("BASE", {"a": bf16(1), "b": bf16(2, 500), "c": bf16(3, 600)})
    target = Memory("TARGET", {"a": bf16(1), "b": bf16(2, 500), "d": bf16(3, 600)})
    with OrderedMap(1) as pool:
        pair_tensors(base, target, pool=pool)
    assert (base.bytes_read, target.bytes_read) == (1200, 1200)


def test_a_tensor_with_another_name_is_found_by_its_content() -> None:
    assert paired({"a": bf16(1), "b": bf16(2)}, {"a": bf16(1), "c": bf16(2)}) == [
        ("a", "a", None),
        ("b", "c", None),
    ]


@pytest.mark.parametrize("changed", [0.01, 0.1, 0.3])
def test_a_tensor_that_was_renamed_and_trained_is_found_by_likeness(changed: float) -> None:
    target = {f"new.{n}": bf16(n + 50, changed=changed, of=n) for n in range(1, 9)}
    base = {f"old.{n}": bf16(n) for n in range(1, 9)}
    assert paired(base, target) == [(f"old.{n}", f"new.{n}", None) for n in range(1, 9)]


def test_the_likest_is_taken_not_the_first_that_is_like_enough() -> None:
    base = {"x": bf16(8, changed=0.4, of=1), "y": bf16(9, changed=0.05, of=1), "z": bf16(3)}
    assert ("y", "new", None) in paired(base, {"new": bf16(1), "z": bf16(3)})


def test_tensors_that_are_not_alike_are_dropped_and_made() -> None:
    found = paired({"a": bf16(1), "b": bf16(2)}, {"a": bf16(1), "c": bf16(3)})
    assert found == [("a", "a", None), ("b", None, None), (None, "c", None)]


def test_an_equal_tensor_of_another_dtype_or_shape_is_another_tensor() -> None:
    data = bf16(2)[2]
    for kind in (("F16", (4000,), data), ("BF16", (40, 100), data)):
        found = paired({"a": bf16(1), "b": bf16(2)}, {"a": bf16(1), "c": kind})
        assert found == [("a", "a", None), ("b", None, None), (None, "c", None)]


# --- copies ---


def test_a_tensor_that_is_there_twice_is_renamed_once_and_copied_for_the_rest() -> None:
    target = {"p": bf16(2), "q": bf16(2), "r": bf16(2), "z": bf16(9)}
    assert paired({"a": bf16(2), "z": bf16(9)}, target) == [
        ("a", "p", None),
        (None, "q", "a"),
        (None, "r", "a"),
        ("z", "z", None),
    ]


def test_a_copy_of_a_tensor_that_stays_is_found() -> None:
    """A head that was tied to the embeddings comes to be stored."""
    found = paired({"embed": bf16(1)}, {"embed": bf16(1), "head": bf16(1)})
    assert found == [("embed", "embed", None), (None, "head", "embed")]


def test_a_changed_copy_of_a_tensor_that_changes_is_found() -> None:
    found = paired(
        {"ffn": bf16(1)}, {"ffn": bf16(7, changed=0.2, of=1), "e": bf16(8, changed=0.1, of=1)}
    )
    assert found == [(None, "e", "ffn"), ("ffn", "ffn", None)]


def test_what_goes_but_lives_on_under_another_name_is_not_carried() -> None:
    found = paired({"embed": bf16(1), "head": bf16(1)}, {"embed": bf16(1)})
    assert found == [("embed", "embed", None), ("head", None, "embed")]


def test_of_equal_tensors_the_first_by_name_is_taken() -> None:
    """The choice depends on nothing but names: same inputs, same delta."""
    base = {"c": bf16(1), "a": bf16(1), "b": bf16(1)}
    target = {"z": bf16(1), "y": bf16(1)}
    assert paired(base, target) == [("c", None, "y"), ("a", "y", None), ("b", "z", None)]


@pytest.mark.parametrize("shape", [(0,), (), (1,)])
def test_empty_and_tiny_tensors_are_paired_without_complaint(shape: tuple[int, ...]) -> None:
    size = 2 * int(np.prod(shape))
    base = {"a": ("BF16", shape, b"\1\2"[:size]), "z": bf16(1)}
    target = {"b": ("BF16", shape, b"\1\2"[:size]), "z": bf16(1)}
    assert paired(base, target) == [("a", "b", None), ("z", "z", None)]


# --- renames that are told ---


def test_a_rename_that_is_told_wins_over_names_and_contents() -> None:
    base = {"a": bf16(1), "b": bf16(2)}
    target = {"a": bf16(1), "b": bf16(2)}
    swapped = {"a": "b", "b": "a"}
    assert paired(base, target, renames=swapped) == [("b", "a", None), ("a", "b", None)]


def test_a_rename_may_change_the_rows() -> None:
    base = {"a": bf16(1, 100), "z": bf16(9)}
    target = {"b": bf16(2, 120), "z": bf16(9)}
    assert ("a", "b", None) in paired(base, target, renames={"b": "a"})


@pytest.mark.parametrize(
    ("renames", "message"),
    [
        ({"c": "no"}, "rename 'no' to 'c': BASE has no 'no'"),
        ({"no": "b"}, "rename 'b' to 'no': TARGET has no 'no'"),
        ({"d": "b"}, r"rename 'b' to 'd': BF16 \[4000\] cannot become F32 \[7\]"),
        ({"a": "a"}, "rename 'a' to 'a'"),
        ({"c": "b", "e": "b"}, "two tensors are said to be renamed from the same one"),
        ({"c": "a"}, "'a' is said to be renamed, but the target has a tensor of that name too"),
        ({"a": "b"}, "renamed to 'a', but the base has one of that name too"),
    ],
)
def test_a_rename_that_makes_no_sense_is_refused(renames: dict[str, str], message: str) -> None:
    base = {"a": bf16(1), "b": bf16(2)}
    target = {"a": bf16(3), "c": bf16(4), "d": ("F32", (7,), bytes(28)), "e": bf16(5)}
    with pytest.raises(UsageError, match=message):
        paired(base, target, renames=renames, unrelated=True)


def test_a_name_is_taken_over_if_it_is_told_where_its_own_tensor_goes() -> None:
    base = {"a": bf16(1), "b": bf16(2)}
    target = {"a": bf16(2), "c": bf16(1)}
    assert paired(base, target, renames={"a": "b", "c": "a"}) == [
        ("b", "a", None),
        ("a", "c", None),
    ]


# --- few in common ---


def test_checkpoints_that_share_less_than_half_are_refused_with_the_numbers() -> None:
    base = {f"b{n}": bf16(n) for n in range(5)} | {"x": bf16(90)}
    target = {f"t{n}": bf16(50 + n) for n in range(9)} | {"x": bf16(90)}
    with pytest.raises(
        StructureError, match=r"share 1 tensors.* of 6 in the base and 10"
    ) as caught:
        paired(base, target)
    assert "--unrelated" in (caught.value.hint or "")
    assert "--rename OLD=NEW" in (caught.value.hint or "")
    found = paired(base, target, unrelated=True)
    assert len(found) == 5 + 9 + 1


@pytest.mark.parametrize(("shared", "is_enough"), [(0, False), (1, False), (2, True), (3, True)])
def test_half_of_the_smaller_one_is_enough(shared: int, *, is_enough: bool) -> None:
    """Two of four: the larger one may have as many others as it likes."""
    base = {f"s{n}": bf16(n) for n in range(shared)}
    base |= {f"b{n}": bf16(20 + n) for n in range(4 - shared)}
    target = {f"s{n}": bf16(n) for n in range(shared)}
    target |= {f"t{n}": bf16(50 + n) for n in range(20)}
    if is_enough:
        assert len(paired(base, target)) == 4 + 20
    else:
        with pytest.raises(StructureError, match=f"share {shared} tensors"):
            paired(base, target)


def test_an_empty_checkpoint_shares_all_it_has() -> None:
    assert paired({}, {"a": bf16(1)}) == [(None, "a", None)]
    assert paired({"a": bf16(1)}, {}) == [("a", None, None)]
    assert paired({}, {}) == []


# --- what a pair is ---


@pytest.mark.parametrize(
    ("one", "other", "is_change"),
    [
        ((4, 3), (4, 3), True),
        ((4, 3), (5, 3), True),
        ((4, 3), (0, 3), True),
        ((4, 3), (4, 2), False),
        ((4, 3), (12,), False),
        ((4,), (5,), True),
        ((), (), True),
        ((), (1,), False),
    ],
)
def test_a_pair_is_a_change_if_only_rows_come_or_go(
    one: tuple[int, ...], other: tuple[int, ...], *, is_change: bool
) -> None:
    """Section 5: resize changes the first dimension and nothing else."""
    ends = TensorSpec("w", "F32", one), TensorSpec("w", "F32", other)
    assert Pair(*ends).is_change == is_change
    assert not Pair(ends[0], TensorSpec("w", "I32", other)).is_change
    assert not Pair(ends[0], None).is_change
