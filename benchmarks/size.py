"""Bits per changed entry on real pairs: our file, all bytes counted, against what peers store.

The peers are measured in the same run on the same words:

- ``int32+bf16``: flat indices and new words, uncompressed (TRL v1, prime-rl);
- ``u16 gaps+bf16+zstd``: gaps and new words, one Zstandard frame each (slime v1, verl);
- ``dense xor+zstd``: the xor of all words, one frame per tensor (slime, SkyRL, ZipNN delta);
- ``entropy``: what an ideal coder of a random support and of independent differences would need;
  not a format, a yardstick.

    make bench
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from pairs import ensure_pairs
from rich.console import Console
from rich.table import Table

import sparsedelta
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.words import Words, as_words

RESULTS = Path(__file__).parent / "results"


def tensors(base: Path, target: Path) -> Iterator[tuple[Words, Words]]:
    """Words of every tensor, before and after."""
    with FileCheckpoint(base) as old, FileCheckpoint(target) as new:
        for name, spec in old.specs.items():
            yield (
                as_words(old.read(name, 0, spec.words), spec.word_bytes),
                as_words(new.read(name, 0, spec.words), spec.word_bytes),
            )


def peers(base: Path, target: Path) -> dict[str, int]:
    """Bytes that other ways of storing the same change take."""
    compressor = zstandard.ZstdCompressor(level=1)
    sizes = {"int32+bf16": 0, "u16 gaps+bf16+zstd": 0, "dense xor+zstd": 0}
    for old, new in tensors(base, target):
        indices = np.flatnonzero(old != new)
        if not indices.size:
            continue
        values = new[indices]
        gaps = np.diff(indices, prepend=-1) - 1
        width = np.uint16 if gaps.max() < 1 << 16 else np.uint32
        sizes["int32+bf16"] += 4 * indices.size + values.nbytes
        sizes["u16 gaps+bf16+zstd"] += sum(
            len(compressor.compress(part.tobytes())) for part in (gaps.astype(width), values)
        )
        sizes["dense xor+zstd"] += len(compressor.compress((old ^ new).tobytes()))
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where pairs are kept")
    arguments = parser.parse_args()
    folder = arguments.work / "pairs"
    names = ensure_pairs(folder, arguments.work / "reviews.zip")
    rows = [measure(name, folder) for name in names]
    RESULTS.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    (RESULTS / "size.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )
    columns = list(rows[0]["bits"])
    table = Table("pair", "changed", *columns, title="bits per changed entry, all bytes counted")
    for row in rows:
        bits = (f"{row['bits'][column]:.2f}" for column in columns)
        table.add_row(row["pair"], f"{row['density']:.2%}", *bits)
    Console().print(table)


if __name__ == "__main__":
    main()
