"""Laws of compose on files: order, encoding, weights, and the same words by either way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, densities, seeds

import sparsedelta
from sparsedelta.merging.methods import METHODS
from sparsedelta.rounding import from_float64
from sparsedelta.words import TensorSpec

DTYPES = ("F64", "F32", "F16", "BF16")
CODECS = ("gap8", "bitmask", "raw+raw", "dense+planes", None)


def random_numbers(rng: np.random.Generator, spec: TensorSpec) -> bytes:
    """Numbers of moderate size, both zeros and a few tiny ones among them."""
    numbers = rng.standard_normal(spec.words) * rng.choice([1.0, 1e-3, 1e-7, 0.0, -0.0], spec.words)
    return from_float64(numbers, spec.dtype).tobytes()


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Tensors, list[Tensors]]:
    """A base and what up to four tasks make of it; integers are changed by the first task alone."""
    base: Tensors = {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([(7,), (40, 30), (), (3, 4, 50), (2000,)]))
        spec = TensorSpec(f"layers.{number}.w", draw(st.sampled_from(DTYPES)), shape)
        base[spec.name] = spec, random_numbers(np.random.default_rng(draw(seeds)), spec)
    ints = TensorSpec("ids", "I32", (9,))
    base["ids"] = ints, np.arange(9, dtype=np.int32).tobytes()
    made = []
    for task in range(draw(st.integers(1, 4))):
        target = dict(base)
        for name, (spec, data) in base.items():
            rng = np.random.default_rng(draw(seeds))
            marks = rng.random(spec.words) < draw(densities)
            words = np.frombuffer(data, spec.word_dtype).copy()
            if spec.dtype == "I32":
                words[:1] += np.uint32(task == 0)
            else:
                words[marks] = np.frombuffer(random_numbers(rng, spec), spec.word_dtype)[marks]
            target[name] = spec, words.tobytes()
        if task == 0 and draw(st.booleans()):  # one task renames, drops and brings a tensor
            spec = TensorSpec("fresh", "BF16", (5,))
            target["fresh"] = spec, bytes(10)
        made.append(target)
    return base, made


@dataclass(frozen=True)
class Files:
    """Where a base, its tasks and their deltas lie."""

    folder: Path
    base: Path
    targets: list[Path]
    deltas: list[Path]


@contextmanager
def files(base: Tensors, made: list[Tensors], codecs: list[str | None]) -> Iterator[Files]:
    """Files of them, and deltas with the given codecs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "base.safetensors"
        path.write_bytes(checkpoint_bytes(base))
        targets, deltas = [], []
        for number, target in enumerate(made):
            targets.append(folder / f"target{number}.safetensors")
            targets[-1].write_bytes(checkpoint_bytes(target))
            deltas.append(folder / f"delta{number}.safetensors")
            codec = codecs[number % len(codecs)]
            sparsedelta.diff(path, targets[-1], deltas[-1], codec=codec, unrelated=True)
        yield Files(folder, path, targets, deltas)


weights = st.lists(st.sampled_from([1.0, 0.5, -1.0, 1 / 3, 0.0]), min_size=4, max_size=4)


def usable(chosen: list[float], count: int) -> list[float]:
    """Weights for so many tasks; the first one's, which changes what is no number, is 1."""
    return [1.0, *chosen[1:count]]


@given(
    made=tasks(),
    chosen=weights,
    codecs=st.lists(st.sampled_from(CODECS), min_size=2),
    data=st.data(),
)
@settings(max_examples=10)
def test_order_and_encoding_do_not_matter(
    made: tuple[Tensors, list[Tensors]],
    chosen: list[float],
    codecs: list[str | None],
    data: st.DataObject,
) -> None:
    """compose(D1, D2) = compose(D2, D1), to the byte, and however both are encoded."""
    base, targets = made
    count = len(targets)
    weight = usable(chosen, count)
    order = data.draw(st.permutations(range(count)))
    with files(base, targets, [None]) as plain, files(base, targets, codecs) as coded:
        one, two = plain.folder / "one", coded.folder / "two"
        sparsedelta.compose(plain.base, plain.deltas, one, weights=weight)
        sparsedelta.compose(
            coded.base,
            [coded.deltas[n] for n in order],
            two,
            weights=[weight[n] for n in order],
            threads=2,
        )
        assert one.read_bytes() == two.read_bytes()
        assert sparsedelta.validate(one).problems == ()


@given(made=tasks(), chosen=weights, method=st.sampled_from(sorted(METHODS)))
@settings(max_examples=20)
def test_compose_then_apply_is_apply_stack(
    made: tuple[Tensors, list[Tensors]], chosen: list[float], method: str
) -> None:
    """apply(base, compose(D…)) = apply --stack base D…, file for file, by every method."""
    base, targets = made
    rule = METHODS[method]
    weight = usable(chosen, len(targets))
    used = sum(each != 0 for each in weight)
    if used < rule.at_least or (rule.at_most is not None and used > rule.at_most):
        return
    if method == "linear" and abs(sum(weight)) < 1e-6:
        return  # of such weights there is no mean
    parameters = {"density": 0.6} if "density" in rule.parameters else {}
    how: dict[str, Any] = {"weights": weight, "method": method, "parameters": parameters, "seed": 3}
    with files(base, targets, [None]) as given_files:
        folder = given_files.folder
        report = sparsedelta.compose(given_files.base, given_files.deltas, folder / "d", **how)
        applied = sparsedelta.apply(given_files.base, folder / "d", folder / "applied")
        stacked = sparsedelta.apply_stack(
            given_files.base, given_files.deltas, folder / "stacked", threads=2, **how
        )
        assert (folder / "applied").read_bytes() == (folder / "stacked").read_bytes()
        assert applied.fingerprint == stacked.fingerprint == report.manifest.target
        assert stacked.base == report.manifest.base
        # and it leads back
        sparsedelta.revert(folder / "stacked", folder / "d", folder / "back")
        assert sparsedelta.fingerprint(folder / "back").fingerprint == report.manifest.base


@given(made=tasks(), method=st.sampled_from(["sum", "last", "first", "max_magnitude"]))
@settings(max_examples=6)
def test_a_single_task_of_weight_one_is_itself(
    made: tuple[Tensors, list[Tensors]], method: str
) -> None:
    """compose(D) has the content of D, whatever its dtypes; signs of zeros included."""
    base, targets = made
    with files(base, targets, [None]) as given_files:
        out = given_files.folder / "out"
        delta = given_files.deltas[0]
        report = sparsedelta.compose(given_files.base, [delta], out, method=method)
        with sparsedelta.DeltaReader(delta) as reader:
            assert report.manifest.content == reader.manifest.content


@given(made=tasks(), chosen=weights)
@settings(max_examples=6)
def test_weight_zero_removes_a_task(
    made: tuple[Tensors, list[Tensors]], chosen: list[float]
) -> None:
    """compose(D1, D2:0) = compose(D1)."""
    base, targets = made
    weight = usable(chosen, len(targets))
    with files(base, [*targets, targets[-1]], [None]) as given_files:
        one, two = given_files.folder / "one", given_files.folder / "two"
        sparsedelta.compose(given_files.base, given_files.deltas[:-1], one, weights=weight)
        sparsedelta.compose(given_files.base, given_files.deltas, two, weights=[*weight, 0.0])
        assert one.read_bytes() == two.read_bytes()
