"""The base that an operation reads a delta with is an input as any other: never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import call, failed, tree, write_file, write_shards
from test_compact_chains import first, stepped

import sparsedelta


@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_no_output_replaces_what_is_read(profile: str, tmp_path: Path) -> None:
    """Whether it is needed or not; nor do its shards, or deltas that are recoded on the way."""
    states = [first()]
    states += [stepped(states[0], 1)]
    states += [stepped(states[1], 2)]
    base = write_shards(tmp_path / "base", *({n: t} for n, t in states[0].items()))
    second = write_file(tmp_path / "second", states[1])
    third = write_file(tmp_path / "third", states[2])
    one, two = tmp_path / "one", tmp_path / "two"
    sparsedelta.diff(base, second, one, profile=profile)
    sparsedelta.diff(second, third, two, profile=profile)
    index = base / "model.safetensors.index.json"
    before = tree(tmp_path)
    shard = min(base.glob("*.safetensors"))
    for given in (base, index):
        for out in (shard, index, one):
            commands: list[list[str | Path]] = [
                ["squash", one, two, "--base", given],
                ["invert", one, "--base", given],
                ["revert", second, one, "--base", given],
            ]
            for words in commands:
                message = failed(call(*words, "-o", out, "--force"), 1)
                assert f"the output {out}" in message
                assert tree(tmp_path) == before, words
        # Part files have the names that shards have.
        squash = ["squash", one, two, "--base", given, "--shards", "2", "--force", "-o"]
        failed(call(*map(str, squash), base / "model.safetensors"), 1)
        assert tree(tmp_path) == before
