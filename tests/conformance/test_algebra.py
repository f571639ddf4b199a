"""Inverse and squash against the reference, over all valid vectors (spec/algebra.md)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import algebra
import decode
import numpy as np
import pytest
import terms
from test_package import VALID, expected_of, file_of, is_one_checkpoint, write_checkpoint

import sparsedelta
from sparsedelta import Part, TensorDelta, TensorSpec
from sparsedelta.words import Words

INVERTIBLE = [name for name in VALID if expected_of(name)["invertible"]]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_inverse_is_that_of_the_reference(name: str, tmp_path: Path) -> None:
    """Of a part file alone there is none: only whole deltas are inverted."""
    delta = decode.decode(file_of(name))
    manifest = sparsedelta.invert(file_of(name), tmp_path / "inverse").manifest
    content, records = algebra.inverse(delta)
    assert manifest.content == content
    assert [record.name for record in manifest.tensors] == [record.name for record in records]
    # What the package wrote is a delta by the reference's rules, and leads back.
    again = decode.decode(tmp_path / "inverse")
    assert again.content == content
    assert algebra.inverse(again)[0] == delta.content
    expected = expected_of(name)
    base = write_checkpoint(tmp_path / "base", expected["base_tensors"])
    sparsedelta.apply(base, file_of(name), tmp_path / "target")
    if not is_one_checkpoint(tmp_path / "target"):
        return  # a layout may have files that are no checkpoint without an index
    sparsedelta.apply(tmp_path / "target", tmp_path / "inverse", tmp_path / "back")
    if is_one_checkpoint(tmp_path / "back"):
        assert str(sparsedelta.fingerprint(tmp_path / "back")) == delta.base


@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_delta_and_its_inverse_come_to_nothing(name: str, tmp_path: Path) -> None:
    """Section 4: what is at the end what it was is untouched."""
    sparsedelta.invert(file_of(name), tmp_path / "inverse")
    for pair in ((file_of(name), tmp_path / "inverse"), (tmp_path / "inverse", file_of(name))):
        manifest = sparsedelta.squash(pair, tmp_path / "nothing", force=True).manifest
        assert manifest.tensors == ()
        assert manifest.content == terms.content_digest(manifest.base, manifest.base, ())


def test_entries_are_squashed_as_by_the_reference(tmp_path: Path) -> None:
    """Many deltas of both ops over one tensor: every entry is the one of section 3."""
    rng = np.random.default_rng(0)
    spec = TensorSpec("w", "BF16", (600,))
    words = rng.integers(0, 4, 600).astype(np.uint16)
    (tmp_path / "base0").write_bytes(_file(words))
    chain = []
    for number in range(6):
        order = rng.permutation(600)
        changed, replaced = np.sort(order[:150]), np.sort(order[150:220])
        parts = (
            Part("difference", changed, rng.choice(np.array([1, 65535], np.uint16), 150)),
            Part("replace", replaced, rng.integers(0, 4, 70).astype(np.uint16)),
        )
        chain.append(parts)
        base, out = tmp_path / f"base{number}", tmp_path / f"d{number}"
        sparsedelta.write_delta(base, [TensorDelta(spec, spec, parts)], out)
        sparsedelta.apply(base, out, tmp_path / f"base{number + 1}")
    sparsedelta.squash([tmp_path / f"d{number}" for number in (4, 1, 0, 5, 3, 2)], tmp_path / "s")
    plain = [[terms.Part(p.op, *p.entries) for p in parts] for parts in chain]
    expected = defaultdict(list)
    for index, (op, value) in sorted(algebra.squash(plain).items()):
        expected[op].append((index, value))
    (record,) = decode.decode(tmp_path / "s").records
    assert {
        part.op: list(zip(part.indices.tolist(), part.words.tolist(), strict=True))
        for part in record.parts
    } == expected
    sparsedelta.apply(tmp_path / "base0", tmp_path / "s", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "base6").read_bytes()


def _file(words: Words) -> bytes:
    header = b'{"w":{"dtype":"BF16","shape":[600],"data_offsets":[0,1200]}}'
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + words.tobytes()
