"""Laws of chains of deltas, bit for bit: squash, invert, apply and revert (spec section 5.1)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, structured_chains

import sparsedelta
from sparsedelta import StructureError
from sparsedelta.manifest import Manifest

CHANGES: Final = ("changes", "goes", "grows", "shrinks", "changes its dtype", "changes its shape")
"""What may become of a tensor that is never looked for under another name."""

options: Final = st.fixed_dictionaries(
    {}, optional={"lean": st.just(True), "layout": st.sampled_from(["always", "never"])}
)


class Chain:
    """Checkpoints in files, and the deltas between them."""

    def __init__(self, folder: Path, states: Sequence[Tensors], diffs: Sequence[dict[str, Any]]):
        self.folder = folder
        self.states = []
        for number, tensors in enumerate(states):
            path = folder / f"state{number}"
            path.write_bytes(checkpoint_bytes(tensors))
            self.states.append(path)
        self.deltas = [
            self.diff(number, number + 1, f"d{number}", **each) for number, each in enumerate(diffs)
        ]

    def diff(self, base: int, target: int, name: str, **each: Any) -> Path:
        out = self.folder / name
        sparsedelta.diff(self.states[base], self.states[target], out, unrelated=True, **each)
        return out

    def squash(self, name: str, *deltas: Path, **each: Any) -> Path:
        sparsedelta.squash(deltas, self.folder / name, **each)
        return self.folder / name


@contextmanager
def stored(
    states: Sequence[Tensors], diffs: Sequence[dict[str, Any]] | None = None
) -> Iterator[Chain]:
    with tempfile.TemporaryDirectory() as name:
        yield Chain(Path(name), states, diffs or [{}] * (len(states) - 1))


def manifest(path: Path) -> Manifest:
    with sparsedelta.DeltaReader(path) as reader:
        return reader.manifest


def content(path: Path) -> str:
    """The content digest, after every check of the specification."""
    with sparsedelta.DeltaReader(path) as reader:
        return reader.read().content


@given(states=structured_chains(), diffs=st.lists(options, min_size=3, max_size=3))
@settings(max_examples=60)
def test_a_squashed_chain_does_what_the_chain_does(
    states: list[Tensors], diffs: list[dict[str, Any]]
) -> None:
    """apply(base, squash(d1, d2, d3)) is the last target, and back."""
    # (what comes back to where it was is no chain whatever the order)
    with stored(states, diffs) as chain:
        try:
            out = chain.squash("s", *chain.deltas)
        except StructureError as error:
            assert "without the base" in error.message or "forget" in str(error)  # noqa: PT017
            assume(False)
        found = manifest(out)
        first, last = manifest(chain.deltas[0]), manifest(chain.deltas[-1])
        assert (found.base, found.target) == (first.base, last.target)
        assert sparsedelta.validate(out, base=chain.states[0]).problems == ()
        sparsedelta.apply(chain.states[0], out, chain.folder / "there")
        assert str(sparsedelta.fingerprint(chain.folder / "there")) == last.target
        if not found.invertible:
            for d in [*chain.deltas, out]:
                print("====", d.name)
                for r in manifest(d).tensors:
                    print("  REC", ascii(r.base and (r.base.name,r.base.dtype,r.base.shape)), "->", ascii(r.target and (r.target.name, r.target.dtype, r.target.shape)), [(q.op, getattr(q,'nnz',None), q.reference and ascii(q.reference)) for q in r.parts])
        assert found.invertible
        sparsedelta.revert(chain.states[-1], out, chain.folder / "back")
        assert str(sparsedelta.fingerprint(chain.folder / "back")) == first.base
