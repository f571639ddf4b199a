"""Bits per changed word, from one in 10^8 to all of them, against what no coder can beat.

Supports are uniform and seeded, differences are +-1 with equal chances, the words are bf16. Then a
support of density p costs at least H(p) / p bits per change, H the entropy of a coin, and a
difference one bit. Columns:

- ``index``: the index streams and their cells of the block table;
- ``file``: the whole delta file, as ``sparsedelta.diff`` writes it;
- ``loss``: what the choice by a sample of the blocks costs, against measuring all of them;
- one for each index codec, where it is asked for: its streams and cells.

    python benchmarks/density.py
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import report
from numpy.typing import NDArray
from safetensors.numpy import save_file

import sparsedelta
from sparsedelta.changes import Changes
from sparsedelta.choice import CodecChoice, parse_choice
from sparsedelta.encode import EncodedPart, encode_part
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import TensorSpec, Words

DENSITIES: Final = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.9)
INDEX_CODECS: Final = ("gap8", "gap8-split", "bitmask", "raw")
RUN_CODECS: Final = ("dense", "range")
CELL_BYTES: Final = 16
TARGETS: Final = {0.001: 1.02, 0.01: 1.03, 0.05: 1.03, 0.2: 1.03}
"""Most that index streams may cost, as a multiple of the limit."""

Marks = NDArray[np.bool_]


def limit(words: int, changed: int) -> float:
    """Bits per change of a uniform support."""
    p = changed / words
    if p == 1:
        return 0.0
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / p


def spec_of(words: int) -> TensorSpec:
    """A tensor of bf16."""
    return TensorSpec("w", "BF16", (words,))


def encoded(changes: Changes, codec: str | None = None, *, explain: bool = False) -> EncodedPart:
    """The changes as a part, in a codec or in the smallest."""
    choice: CodecChoice | None = None if codec is None else parse_choice(codec)
    with OrderedMap() as pool:
        return encode_part(changes, "difference", pool=pool, choice=choice, explain=explain)


def index_bytes(part: EncodedPart) -> int:
    """Bytes of the index streams and of their cells."""
    record = part.coded
    streams = record.encoding.stream_count(2)
    split = record.encoding.index.stream_count(2)
    blocks = len(part.frames) // streams
    lengths = [len(frame) for number, frame in enumerate(part.frames) if number % streams < split]
    return sum(lengths) + blocks * split * CELL_BYTES


def file_bytes(base: Words, target: Words) -> tuple[int, float]:
    """Bytes of the delta file, and seconds that diff takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, words in (("base", base), ("target", target)):
            save_file({"w": words}, folder / file)
        begun = time.perf_counter()
        report = sparsedelta.diff(folder / "base", folder / "target", folder / "delta")
        return report.size, time.perf_counter() - begun


def uniform(words: int, density: float, seed: int) -> dict[str, Any]:
    """All figures of one density."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 1 << 16, words, np.uint16)
    indices = np.flatnonzero(rng.random(words) < density)
    values = rng.choice(np.array([1, 0xFFFF], np.uint16), indices.size)
    target = base.copy()
    target[indices] += values
    changes = Changes.from_entries(spec_of(words), indices, values)
    part = encoded(changes, explain=True)
    chosen = part.coded.encoding.describe()
    size, seconds = file_bytes(base, target)
    least = limit(words, indices.size)
    bits = 8 / indices.size
    forced = {c: index_bytes(encoded(changes, c)) * bits for c in INDEX_CODECS}
    return {
        "density": density,
        "nnz": indices.size,
        "limit": least,
        "chosen": chosen,
        "index": index_bytes(part) * bits,
        "index_ratio": index_bytes(part) * bits / least,
        "bitmask_plain": words / indices.size,
        "file": size * bits,
        "file_ratio": size * bits / (least + 1),
        "loss": part.sizes[chosen] / min(part.sizes.values()) - 1,
        "diff_seconds": seconds,
        "forced_index": forced,
        "parts": {encoding: size * bits for encoding, size in sorted(part.sizes.items())},
    }


def one(words: int, rng: np.random.Generator) -> Marks:
    """One word."""
    marks = np.zeros(words, np.bool_)
    marks[rng.integers(words)] = True
    return marks


def every(words: int, rng: np.random.Generator) -> Marks:  # noqa: ARG001 (one signature for all)
    """All words."""
    return np.ones(words, np.bool_)


def alternating(words: int, rng: np.random.Generator) -> Marks:  # noqa: ARG001
    """Every second word."""
    marks: Marks = np.arange(words) % 2 == 1
    return marks


def one_row(words: int, rng: np.random.Generator) -> Marks:
    """One row of 4096 words of an embedding."""
    row = int(rng.integers(words >> 12))
    marks: Marks = np.arange(words) >> 12 == row
    return marks


def two_of_four(words: int, rng: np.random.Generator) -> Marks:
    """Any two of each four words."""
    pairs = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    pairs = np.concatenate([pairs, [[0, 0, 1, 1]]]).astype(np.bool_)
    return pairs[rng.integers(0, 6, words // 4)].reshape(-1)


def scattered(words: int, rng: np.random.Generator) -> Marks:
    """One word in 20."""
    marks: Marks = rng.random(words) < 1 / 20
    return marks


def rows_of_any_density(words: int, rng: np.random.Generator) -> Marks:
    """Rows of 4096 words, from one change in 3,000 words to all of them."""
    density = np.minimum(1, np.exp(rng.normal(-2, 2, words >> 12)))
    marks: Marks = rng.random(words) < np.repeat(density, 4096)
    return marks


CASES: Final[tuple[tuple[str, int, Callable[[int, np.random.Generator], Marks], str], ...]] = (
    ("one word of 2^26", 26, one, "steps"),
    ("all words, any values", 24, every, "any"),
    ("all words, steps", 24, every, "steps"),
    ("every second word, steps", 24, alternating, "steps"),
    ("one row of 16384, any values", 26, one_row, "any"),
    ("one row of 16384, steps", 26, one_row, "steps"),
    ("2 of 4, steps", 24, two_of_four, "steps"),
    ("rows of any density, steps", 26, rows_of_any_density, "steps"),
    ("5 %, constant", 24, scattered, "constant"),
    ("all words, constant", 24, every, "constant"),
)


def structured(name: str, log2: int, support: Callable[..., Marks], kind: str) -> dict[str, Any]:
    """All figures of a support that is not uniform."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 1 << 16, 1 << log2, np.uint16)
    indices = np.flatnonzero(support(1 << log2, rng))
    if kind == "any":
        values = rng.integers(1, 1 << 16, indices.size, np.uint16)
    else:
        steps = np.array([1, 0xFFFF] if kind == "steps" else [3], np.uint16)
        values = rng.choice(steps, indices.size)
    target = base.copy()
    target[indices] += values
    changes = Changes.from_entries(spec_of(1 << log2), indices, values)
    part = encoded(changes, explain=True)
    size, seconds = file_bytes(base, target)
    return {
        "case": name,
        "nnz": indices.size,
        **figures(part, indices.size),
        "file_bytes": size,
        "file": 8 * size / indices.size,
        "diff_seconds": seconds,
    }


def figures(part: EncodedPart, nnz: int) -> dict[str, Any]:
    """What a part says of itself."""
    chosen = part.coded.encoding.describe()
    return {
        "chosen": chosen,
        "part_bytes": part.sizes[chosen],
        "index": 8 * index_bytes(part) / nnz,
        "loss": part.sizes[chosen] / min(part.sizes.values()) - 1,
        "part_bytes_forced": {
            codec: min(s for e, s in part.sizes.items() if e.startswith(f"{codec} + "))
            for codec in (*INDEX_CODECS, *RUN_CODECS)
        },
    }


def one_in_10_to_the_8() -> dict[str, Any]:
    """The part alone, of one changed word."""
    words = 10**8
    changes = Changes.from_entries(spec_of(words), np.array([61_803_398]), np.array([1], np.uint16))
    part = encoded(changes, explain=True)
    return {"case": "one word of 10^8, no file", "nnz": 1, **figures(part, 1)}


def rows_of(words: int) -> Iterator[dict[str, Any]]:
    """Figures of every density, told as they come."""
    for seed, density in enumerate(DENSITIES):
        yield uniform(words, density, seed)


def print_tables(rows: list[dict[str, Any]], cases: list[dict[str, Any]]) -> None:
    """Both tables."""
    columns = (
        *("changed", "limit", "index", "x limit", "target", "file", "x limit", "loss", "chosen"),
    )
    shown = []
    for row in rows:
        density = row["density"]
        goal = (
            f"{TARGETS[density]:.2f}" if density in TARGETS else f"< {row['bitmask_plain']:.2f} b"
        )
        shown.append(
            [
                f"{row['density']:.1%}",
                f"{row['limit']:.3f}",
                f"{row['index']:.3f}",
                f"{row['index_ratio']:.4f}",
                goal,
                f"{row['file']:.3f}",
                f"{row['file_ratio']:.4f}",
                f"{row['loss']:.3%}",
                row["chosen"],
                *(f"{row['forced_index'][codec]:.3f}" for codec in INDEX_CODECS),
            ]
        )
    title = "bits per change, uniform supports, differences of one step"
    report.print_table(title, [*columns, *INDEX_CODECS], shown)
    forced = (*INDEX_CODECS, *RUN_CODECS)
    shown = [
        [
            case["case"],
            case["nnz"],
            case.get("file_bytes", "-"),
            case["part_bytes"],
            f"{8 * case['part_bytes'] / case['nnz']:.3f}",
            f"{case['loss']:.3%}",
            case["chosen"],
            *(case["part_bytes_forced"][codec] for codec in forced),
        ]
        for case in cases
    ]
    report.print_table(
        "bytes: other supports, and the part in each index codec",
        ["case", "changes", "file", "part", "bits/change", "loss", "chosen", *forced],
        shown,
    )


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--log2", type=int, default=24, help="words of uniform supports")
    arguments = parser.parse_args()
    words = 1 << (18 if arguments.quick else arguments.log2)
    rows = list(rows_of(words))
    # The other supports are of some size, or they are not what their names say.
    cases = [] if arguments.quick else [structured(*case) for case in CASES]
    cases.append(one_in_10_to_the_8())
    figures = {"words": words, "uniform": rows, "cases": cases}
    report.write_results("density", figures, work=arguments.work, quick=arguments.quick)
    print_tables(rows, cases)


if __name__ == "__main__":
    main()
