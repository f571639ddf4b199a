"""Hypothesis strategies: tensors as words, checkpoints as files, and changes at every density."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import numpy as np
from hypothesis import strategies as st

from sparsedelta.words import DTYPE_BITS, Bytes, Indices, TensorSpec, Words, word_dtype

WORD_BYTES: Final = (1, 2, 4, 8)
VALUE_KINDS: Final = ("any", "steps", "small", "constant", "extreme")

word_bytes = st.sampled_from(WORD_BYTES)
seeds = st.integers(0, 2**32 - 1)
profiles = st.sampled_from(["portable", "compact"])
densities = st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2, 0.4, 0.7, 0.99, 1.0])

tensor_names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")


def random_values(rng: np.random.Generator, count: int, width: int, kind: str) -> Words:
    """Words other than 0, of a kind that real and hostile deltas have."""
    dtype = word_dtype(width)
    top = 1 << (8 * width)
    if kind == "steps":
        values = rng.choice(np.array([1, top - 1], dtype), count)
    elif kind == "small":
        signed = rng.integers(-40, 41, count)
        values = np.where(signed == 0, 1, signed).astype(f"<i{width}").view(dtype)
    elif kind == "constant":
        values = np.full(count, rng.integers(1, top, dtype=dtype), dtype)
    elif kind == "extreme":
        edges = np.array([top // 2, top // 2 - 1, top // 2 + 1, top - 1, 1], dtype)
        values = rng.choice(edges, count)
    else:
        values = rng.integers(1, top, count, dtype=dtype)
    return np.ascontiguousarray(values)


@st.composite
def entries(draw: st.DrawFn, *, max_words: int = 3000) -> tuple[int, int, Indices, Words]:
    """Word bytes, words of a block, indices and non-zero values."""
    width = draw(word_bytes)
    words = draw(st.integers(1, max_words))
    rng = np.random.default_rng(draw(seeds))
    density = draw(densities)
    indices: Indices = np.flatnonzero(rng.random(words) < density)
    if draw(st.booleans()) and words:  # clustered: one run of rows
        start = int(rng.integers(words))
        indices = np.arange(start, min(words, start + int(density * words) + 1))
    kind = draw(st.sampled_from(VALUE_KINDS))
    return width, words, indices, random_values(rng, indices.size, width, kind)


@st.composite
def some_bytes(draw: st.DrawFn, low: int, high: int, step: int) -> Bytes:
    """Bytes of a length from ``low`` to ``high`` that is a multiple of ``step``: any, or few."""
    length = draw(st.integers(-(-low // step), high // step)) * step
    rng = np.random.default_rng(draw(seeds))
    top = draw(st.sampled_from([1, 2, 4, 32, 256]))
    noise = rng.integers(0, top, length).astype(np.uint8)
    return 255 - noise if draw(st.booleans()) and top < 32 else noise


@st.composite
def specs(draw: st.DrawFn, name: str = "w") -> TensorSpec:
    """A tensor of any dtype: scalars, empty tensors and odd shapes included."""
    dtype = draw(st.sampled_from(sorted(DTYPE_BITS) + 3 * ["BF16", "F16"]))
    shape = draw(
        st.one_of(
            st.just(()),
            st.tuples(st.integers(0, 900)),
            st.tuples(st.integers(0, 30), st.integers(0, 40)),
            st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 60)),
        )
    )
    unit = {4: 2, 6: 4}.get(DTYPE_BITS[dtype], 1)  # packed dtypes fill whole bytes
    if unit > 1:
        shape = (*shape, unit)
    return TensorSpec(name, dtype, shape)


Tensors = dict[str, tuple[TensorSpec, bytes]]


@st.composite
def checkpoint_pairs(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Two checkpoints of the same structure, some tensors equal, others changed somewhere."""
    names = draw(st.lists(tensor_names, min_size=0, max_size=5, unique=True))
    base: Tensors = {}
    target: Tensors = {}
    for name in names:
        spec = draw(specs(name))
        rng = np.random.default_rng(draw(seeds))
        old = rng.integers(0, 256, spec.nbytes, np.uint8)
        new = old.copy()
        marks = rng.random(spec.words) < draw(densities)
        words = new.view(spec.word_dtype)
        kind = draw(st.sampled_from(VALUE_KINDS))
        words[marks] += random_values(rng, int(marks.sum()), spec.word_bytes, kind)
        base[name] = (spec, old.tobytes())
        target[name] = (spec, new.tobytes())
    return base, target


def checkpoint_bytes(tensors: Tensors) -> bytes:
    """A safetensors file, by hand: the usual writers do not know every dtype in numpy."""
    header: dict[str, object] = {}
    offset = 0
    for name, (spec, data) in tensors.items():
        end = offset + len(data)
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, data in tensors.values())


FATES: Final = (
    "stays",
    "changes",
    "is renamed",
    "is renamed and trained",
    "goes",
    "grows",
    "shrinks",
    "changes its dtype",
    "changes its shape",
    "is copied",
    "is copied and trained",
    "loses its copy",
    "leaves its copy",
)
"""What may become of a tensor of the base; each may meet any other in one pair."""


def _trained(draw: st.DrawFn, spec: TensorSpec, data: bytes) -> bytes:
    """The bytes with some words changed."""
    rng = np.random.default_rng(draw(seeds))
    words = np.frombuffer(data, spec.word_dtype).copy()
    marks = rng.random(words.size) < draw(densities)
    kind = draw(st.sampled_from(VALUE_KINDS))
    words[marks] += random_values(rng, int(marks.sum()), spec.word_bytes, kind)
    return words.tobytes()


def _content(draw: st.DrawFn, spec: TensorSpec) -> bytes:
    # Constant tensors are what most often is equal to something else.
    if draw(st.integers(0, 3)) == 0:
        return bytes(spec.nbytes)
    return np.random.default_rng(draw(seeds)).bytes(spec.nbytes)


def _reshaped(draw: st.DrawFn, spec: TensorSpec, fate: str) -> TensorSpec | None:
    """Another spec that a tensor of this one may have, or None if it cannot."""
    dtype, shape = spec.dtype, spec.shape
    if fate == "changes its dtype":
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
    elif not shape:
        return None
    elif fate == "changes its shape":
        shape = draw(st.sampled_from([shape[::-1], (*shape, 1), (spec.words,), (1, *shape)]))
    elif fate == "grows":
        shape = (shape[0] + draw(st.integers(1, 5)), *shape[1:])
    else:
        shape = (draw(st.integers(0, shape[0])), *shape[1:])
    try:
        return TensorSpec(spec.name, dtype, shape)
    except ValueError:  # a packed dtype that does not fill whole bytes
        return None


@st.composite
def structured_pairs(draw: st.DrawFn, *, trained: bool = True) -> tuple[Tensors, Tensors]:
    """Two checkpoints whose tensors come, go, move, are copied, grow, shrink and change.

    Args:
        draw: Given by Hypothesis.
        trained: Whether tensors with another name may have changed words too.
    """
    names = iter(draw(st.lists(tensor_names, min_size=12, max_size=12, unique=True)))
    base: Tensors = {}
    target: Tensors = {}
    for _ in range(draw(st.integers(0, 5))):
        name = next(names)
        spec = draw(specs(name))
        data = _content(draw, spec)
        base[name] = (spec, data)
        fate = draw(st.sampled_from(FATES))
        if fate == "goes":
            continue
        if "its copy" in fate:
            twin = TensorSpec(next(names), spec.dtype, spec.shape)
            base[twin.name] = (twin, data)
            if fate == "leaves its copy":
                target[twin.name] = (twin, _trained(draw, spec, data))
        other = _reshaped(draw, spec, fate) if fate in FATES[5:9] else None
        if other is not None:
            kept = _trained(draw, spec, data)[: other.nbytes]
            target[name] = (other, kept + bytes(other.nbytes - len(kept)))
            continue
        if "copied" in fate or "renamed" in fate:
            new = next(names)
            changed = _trained(draw, spec, data) if trained and "trained" in fate else data
            target[new] = (TensorSpec(new, spec.dtype, spec.shape), changed)
        if "renamed" not in fate:
            target[name] = (spec, _trained(draw, spec, data) if fate == "changes" else data)
    for _ in range(draw(st.integers(0, 2))):
        spec = draw(specs(next(names)))
        target[spec.name] = (spec, _content(draw, spec))
    order = draw(st.permutations(sorted(target)))
    return base, {name: target[name] for name in order}


@st.composite
def structured_chains(
    draw: st.DrawFn, *, length: int = 3, fates: tuple[str, ...] = FATES, returning: bool = True
) -> list[Tensors]:
    """Checkpoints one after the other.

    Args:
        draw: Given by Hypothesis.
        length: Number of steps between them.
        fates: What may become of a tensor in a step, beside being changed.
        returning: Whether tensors may become again what they were, or come back.
    """
    names = iter(draw(st.lists(tensor_names, min_size=40, max_size=40, unique=True)))
    known: list[tuple[TensorSpec, bytes]] = []
    first: Tensors = {}
    for _ in range(draw(st.integers(1, 4))):
        spec = draw(specs(next(names)))
        first[spec.name] = (spec, _content(draw, spec))
    chain = [first]
    for _ in range(length):
        known += chain[-1].values()
        chain.append(_next(draw, chain[-1], known, names, fates))
        if returning:
            for spec, data in known:
                if draw(st.integers(0, 7)) == 0:
                    chain[-1][spec.name] = (spec, data)
    return chain


def _next(
    draw: st.DrawFn,
    before: Tensors,
    known: list[tuple[TensorSpec, bytes]],
    names: Iterator[str],
    fates: tuple[str, ...],
) -> Tensors:
    after: Tensors = {}
    for name, (spec, data) in before.items():
        fate = draw(st.sampled_from(("changes", "changes", *fates)))
        other = _reshaped(draw, spec, fate) if fate in FATES[5:9] else None
        if other is not None:
            kept = _trained(draw, spec, data)[: other.nbytes]
            after.setdefault(name, (other, kept + _content(draw, other)[len(kept) :]))
        elif "copied" in fate or "renamed" in fate:
            # Under a new name, or one that was in use before and may be free again.
            old = sorted({spec.name for spec, _ in known} - before.keys() - after.keys())
            new = draw(st.sampled_from([next(names), *old]))
            words = _trained(draw, spec, data) if "trained" in fate else data
            after[new] = (TensorSpec(new, spec.dtype, spec.shape), words)
        if fate == "goes" or "renamed" in fate:
            continue
        after.setdefault(name, (spec, _trained(draw, spec, data) if fate == "changes" else data))
    for _ in range(draw(st.integers(0, 1))):
        spec = draw(specs(next(names)))
        after.setdefault(spec.name, (spec, _content(draw, spec)))
    return after
