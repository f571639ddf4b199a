"""A delta of a chain that uses a tensor which one before it has removed: SD306, wherever it is met.

Only lean deltas can say so: their fingerprints do not follow from what is in them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from checkpoint_files import Tensors, call, failed, hint_of, tree, write_file
from test_compact_chains import NAMES, SHAPE, first, stepped

import sparsedelta
from sparsedelta.writer import DeltaWriter

GONE, OTHER = NAMES


def gone(tensors: Tensors) -> Tensors:
    """Without one of them."""
    return {OTHER: tensors[OTHER]}


def renamed(tensors: Tensors) -> Tensors:
    """The same one under another name."""
    return {OTHER: tensors[OTHER], "later": tensors[GONE]}


def replaced(tensors: Tensors) -> Tensors:
    """Another tensor by the same name: what the next delta uses is gone all the same."""
    return {OTHER: tensors[OTHER], GONE: stepped(stepped(tensors, 5), 6)[GONE]}


def changed(tensors: Tensors) -> Tensors:
    """Its words differ."""
    return {**tensors, GONE: stepped(tensors, 7)[GONE]}


def copied(tensors: Tensors) -> Tensors:
    """It stays, and a copy of it changes."""
    return {**tensors, "copy": stepped(tensors, 7)[GONE]}


def dropped(tensors: Tensors) -> Tensors:
    """It goes once more; another tensor changes."""
    return {OTHER: stepped(tensors, 8)[OTHER]}


REMOVALS = (gone, renamed, replaced)
USES = (changed, copied, dropped)


class Chain(NamedTuple):
    """A checkpoint, a delta that removes a tensor of it, and one that uses the tensor."""

    base: Path
    removing: Path
    using: Path


@pytest.fixture(params=["portable", "compact"])
def profile(request: pytest.FixtureRequest) -> str:
    """Whether the base is needed to read the deltas."""
    return str(request.param)


@pytest.fixture(params=USES, ids=lambda each: each.__name__)
def use(request: pytest.FixtureRequest) -> object:
    """What the second delta does with the tensor."""
    return request.param


@pytest.fixture(params=REMOVALS, ids=lambda each: each.__name__)
def chain(
    request: pytest.FixtureRequest,
    use: Callable[[Tensors], Tensors],
    profile: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Chain:
    """Both deltas in a profile; by their fingerprints the second follows the first."""
    tensors = first()
    assert tensors[GONE].shape == SHAPE
    base = write_file(tmp_path / "base", tensors)
    middle = write_file(tmp_path / "middle", request.param(tensors))
    target = write_file(tmp_path / "target", use(tensors))
    found = Chain(base, tmp_path / "removing", tmp_path / "using")
    options: dict[str, Any] = {"profile": profile, "lean": True, "layout": "never"}
    if profile == "compact":
        options["codec"] = "ranked"
    sparsedelta.diff(base, middle, found.removing, **options)
    ends = (sparsedelta.fingerprint(middle).fingerprint, "ab" * 32)
    with monkeypatch.context() as patch:
        lying = functools.partial(DeltaWriter, ends=ends)
        patch.setattr("sparsedelta.operations.diff.DeltaWriter", lying)
        sparsedelta.diff(base, target, found.using, **options)
    assert sparsedelta.validate(found.using).ok
    assert bool(sparsedelta.info(found.using).needs_base) == (profile == "compact")
    return found


def test_it_is_told_and_nothing_is_written(chain: Chain, profile: str) -> None:
    """Where a chain is followed, where it is squashed, and where its links are recoded for that."""
    base, removing, using = chain
    out: list[str | Path] = ["-o", base.with_name("out")]
    squash: list[str | Path] = ["squash", removing, using, *out]
    revert: list[str | Path] = [
        "revert",
        base.with_name("target"),
        removing,
        using,
        *out,
        "--base",
        base,
    ]
    before = tree(base.parent)
    commands: list[list[str | Path]] = [
        ["apply", base, removing, using, *out],
        ["apply", base, using, removing, *out, "--dry-run"],
        ["apply", base, removing, using, "--in-place"],
        ["apply", base, removing, using, *out, "--undo", base.with_name("undo")],
        *([squash] if profile == "portable" else [[*squash, "--base", base], revert]),
    ]
    for words in commands:
        message = failed(call(*words), 3)
        assert "SD306" in message, words
        assert f"{using}: tensor {GONE!r} is not the one that the delta before leads to" in message
        assert hint_of(message)
        assert tree(base.parent) == before, words
