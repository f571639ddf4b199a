"""Numbers that are not finite, in every merge method: an error that names them, or words copied."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes
from thorough import examples

import sparsedelta
from sparsedelta import NotFiniteError, UsageError
from sparsedelta.merging.aligned import Aligned, align
from sparsedelta.merging.methods import METHODS, BoundMethod, settings_of
from sparsedelta.rounding import FLOATS, from_float64, is_finite, to_float64
from sparsedelta.words import TensorSpec, Words

COPYING: Final = ("sum", "task_arithmetic", "last", "first", "max_magnitude")
"""Methods that copy a word that one task of weight 1 alone has changed; others compute."""

SIZE: Final = 24
BAD: Final = {"nan": np.nan, "+inf": np.inf, "-inf": -np.inf}


def numbers(seed: int, dtype: str, size: int = SIZE) -> Words:
    return from_float64(np.random.default_rng(seed).standard_normal(size), dtype)


def tasks(dtype: str, seed: int) -> Aligned:
    """Two tasks in a matrix: three elements of the one, three of both, three of the other."""
    base = numbers(seed, dtype)
    entries = [
        (np.arange(start, start + 6), numbers(seed + start + 1, dtype, 6)) for start in (4, 7)
    ]
    return align(TensorSpec("w", dtype, (4, 6)), 0, base, entries)


def made(method: str, aligned: Aligned, weights: tuple[float, float] = (1.0, 1.0)) -> Words:
    rule = METHODS[method]
    parameters = {"density": 0.6, "density_of": "entries"} if "density" in rule.parameters else {}
    if "t" in rule.parameters:
        parameters = {"t": 0.5}
    chosen = replace(settings_of(rule, parameters, weights, 5), identities=("a", "b"))
    return BoundMethod(rule, chosen)(
        aligned, float((to_float64(aligned.base, aligned.spec.dtype) ** 2).sum())
    ).words


def poisoned(aligned: Aligned, at: int, task: int | None, bad: float) -> Aligned:
    """One word that is no finite number: of a task, or of the base."""
    word = from_float64(np.array([bad]), aligned.spec.dtype)[0]
    base, words = aligned.base.copy(), aligned.words.copy()
    if task is None:
        base[at] = word
        words[~aligned.present[:, at], at] = word
    else:
        words[task, at] = word
    return replace(aligned, base=base, words=words)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_computed_with_is_refused_by_its_index(method: str, bad: str) -> None:
    """In a task or in the base, alone or beside another task; what is only copied stands."""
    for dtype in FLOATS:
        aligned = tasks(dtype, 11)
        clean = made(method, aligned)
        for at, task in ((1, 0), (4, 0), (4, 1), (7, 1), (1, None), (4, None)):
            given_tasks = poisoned(aligned, at, task, BAD[bad])
            alone = int(aligned.present[:, at].sum()) == 1
            copied = method in COPYING and (alone or method in ("last", "first"))
            if not copied:
                with pytest.raises(NotFiniteError, match=rf"tensor 'w', index {4 + at}: .*SD505"):
                    made(method, given_tasks)
                continue
            words = made(method, given_tasks)
            present = np.flatnonzero(aligned.present[:, at])
            winner = present[0 if method == "first" else -1]
            assert words[at] == given_tasks.words[winner, at]
            others = np.arange(words.size) != at
            assert np.array_equal(words[others], clean[others])


@pytest.mark.parametrize("method", ["last", "first", "max_magnitude", "sum"])
@pytest.mark.parametrize("bad", BAD)
def test_a_weight_is_computed_with(method: str, bad: str) -> None:
    for dtype in FLOATS:
        for task in (0, None):
            given_tasks = poisoned(tasks(dtype, 3), 1, task, BAD[bad])
            with pytest.raises(NotFiniteError, match=r"tensor 'w', index 5: "):
                made(method, given_tasks, (0.5, 1.0))


@given(method=st.sampled_from(sorted(METHODS)), dtype=st.sampled_from(FLOATS), data=st.data())
@examples(60)
def test_whatever_words_there_are_no_garbage_comes_out(
    method: str, dtype: str, data: st.DataObject
) -> None:
    """Of words of any bits: an error, or words that are finite or a task's own."""
    aligned = tasks(dtype, 1)
    width = 8 * aligned.base.itemsize
    word = st.integers(0, (1 << width) - 1)
    base, words = aligned.base.copy(), aligned.words.copy()
    for at in data.draw(st.sets(st.integers(0, aligned.size - 1), max_size=3)):
        base[at] = data.draw(word)
        words[:, at] = np.where(aligned.present[:, at], data.draw(word), base[at])
    drawn = replace(aligned, base=base, words=words, present=words != base)
    try:
        found = made(method, drawn)
    except NotFiniteError as error:
        assert "tensor 'w'" in error.message  # noqa: PT017 (not always)
        return
    own = (found == drawn.words).any(axis=0) | (found == drawn.base)
    assert (is_finite(found, dtype) | own).all()
    if method not in COPYING:
        assert is_finite(found, dtype).all()


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "model_stock", "sce"])
def test_norms_that_float64_does_not_hold_are_refused(method: str) -> None:
    """They would divide numbers away, or make one angle of all."""
    spec = TensorSpec("w", "F64", (2, 2))
    base = np.array([1e200, -1e200, 1.0, 2.0]).view(np.uint64)
    moved = [np.array(v).view(np.uint64) for v in ([3e200, 1e200], [-3e200, 2e200])]
    aligned = align(spec, 0, base, [(np.arange(2), words) for words in moved])
    with np.errstate(all="ignore"), pytest.raises(NotFiniteError, match="more than float64 holds"):
        made(method, aligned)


def test_weights_that_add_up_to_more_than_float64_holds_are_refused() -> None:
    """As a divisor they would be infinite, and all would stay."""
    for method in METHODS:
        with pytest.raises(UsageError, match="add up to more than float64 holds"):
            settings_of(METHODS[method], {}, [1e308, 1e308], 0)


@pytest.mark.parametrize("bad", BAD)
def test_what_no_task_changes_is_left_alone_or_refused(bad: str) -> None:
    """Methods that compute with all of a tensor refuse it by its index; others keep the word."""
    spec = TensorSpec("w", "BF16", (4, 6))
    base = numbers(1, "BF16")
    base[20] = from_float64(np.array([BAD[bad]]), "BF16")[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, change in (("base", 0), ("one", 3), ("two", 5)):
            words = base.copy()
            words[change : change + 3] = numbers(9, "BF16", 3) if change else words[:3]
            made_tensors: Tensors = {"w": (spec, words.tobytes())}
            (folder / name).write_bytes(checkpoint_bytes(made_tensors))
            if change:
                sparsedelta.diff(folder / "base", folder / name, folder / f"{name}.delta")
        deltas = [folder / "one.delta", folder / "two.delta"]
        for method in METHODS:
            parameters = {"normalize": False} if method == "linear" else {}
            out = folder / "out"
            if method in ("slerp", "linear"):
                for threads in (1, 3):
                    with pytest.raises(NotFiniteError, match="tensor 'w', index 20: "):
                        sparsedelta.apply_stack(
                            folder / "base",
                            deltas,
                            out,
                            method=method,
                            parameters=parameters,
                            threads=threads,
                        )
                assert not out.exists()
                continue
            sparsedelta.apply_stack(folder / "base", deltas, out, method=method)
            assert out.read_bytes()[-2 * 4 :][:2] == base[20:21].tobytes()
            out.unlink()
