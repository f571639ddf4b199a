"""Bits per changed entry on real pairs: our file, all bytes counted, against what peers store.

The peers are formats of ``formats.py``, measured in the same run on the same words. ``entropy`` is
what an ideal coder of a random support and of independent differences would need: not a format, a
yardstick.

    make bench
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import report
from formats import FORMATS
from pairs import ensure_pairs
from stored import Words

import sparsedelta
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.words import as_words

PEERS: Final = ("int32+bf16", "u16 gaps+bf16+zstd", "u16 gaps+xor+zstd", "dense xor+zstd")
"""Formats of ``formats.py``; the other ones are larger, see ``peers.py``."""


def tensors(base: Path, target: Path) -> Iterator[tuple[Words, Words]]:
    """Words of every tensor, before and after: the pairs are bf16."""
    with FileCheckpoint(base) as old, FileCheckpoint(target) as new:
        for name, spec in old.specs.items():
            yield (
                as_words(old.read(name, 0, spec.words), spec.word_bytes).view(np.uint16),
                as_words(new.read(name, 0, spec.words), spec.word_bytes).view(np.uint16),
            )


def peers(base: Path, target: Path) -> dict[str, int]:
    """Bytes that other ways of storing the same change take."""
    sizes = dict.fromkeys(PEERS, 0)
    for old, new in tensors(base, target):
        if not np.array_equal(old, new):
            for name in PEERS:
                sizes[name] += sum(s.size for s in FORMATS[name].encode(old, new))
    return sizes


def entropy_bits(counts: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Bits per symbol of independent symbols with these counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def entropy_limit(base: Path, target: Path) -> float:
    """Bits per entry of a random support per tensor and of independent differences."""
    bits, nnz = 0.0, 0
    for old, new in tensors(base, target):
        marks = old != new
        count = int(marks.sum())
        if count:
            bits += marks.size * entropy_bits(np.array([count, marks.size - count]))
            _, counts = np.unique((new - old)[marks], return_counts=True)
            bits += count * entropy_bits(counts)
            nnz += count
    return bits / nnz


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All figures of one pair."""
    base, target = folder / f"{name}-base.safetensors", folder / f"{name}-target.safetensors"
    delta = folder / f"{name}.delta.safetensors"
    begun = time.perf_counter()
    report = sparsedelta.diff(base, target, delta, force=True)
    seconds = time.perf_counter() - begun
    nnz = report.manifest.nnz
    sizes = {"sparsedelta": report.size, **peers(base, target)}
    return {
        "pair": name,
        "nnz": nnz,
        "density": 2 * nnz / report.checkpoint_bytes,
        "bits": {key: 8 * size / nnz for key, size in sizes.items()}
        | {"entropy": entropy_limit(base, target)},
        "diff_seconds": seconds,
    }


def main() -> None:
    """Command line."""
    arguments = report.parser(__doc__).parse_args()
    folder = arguments.work / "pairs"
    names = ensure_pairs(folder, arguments.work / "reviews.zip", quick=arguments.quick)
    rows = [measure(name, folder) for name in names]
    report.write_results("size", {"rows": rows}, work=arguments.work, quick=arguments.quick)
    columns = list(rows[0]["bits"])
    report.print_table(
        "bits per changed entry, all bytes counted",
        ["pair", "changed", *columns],
        [
            [row["pair"], f"{row['density']:.2%}", *(f"{row['bits'][c]:.2f}" for c in columns)]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
