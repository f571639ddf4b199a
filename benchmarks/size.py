"""Bits per changed entry on real pairs: our files, all bytes counted, against what peers store.

The peers are formats of ``formats.py`` and the command ``zstd --patch-from``, measured in the same
run on the same words. Two yardsticks, which are no formats: ``entropy`` is what an ideal coder of a
random support per tensor and of independent differences would need; ``conditional`` (of
``conditional.py``) what one would need that knows the exponent of each base word, and the rows in
which nothing changed.

    make bench
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import report
import tools
from conditional import conditional_bits, entropy_bits, tensors
from formats import ZIPNN, available
from pairs import ensure_pairs

import sparsedelta

PROFILES: Final = ("portable", "compact")
PEERS: Final = ("int32+bf16", "u16 gaps+bf16+zstd", "u16 gaps+xor+zstd", "dense xor+zstd")
"""Formats of ``formats.py``, beside ZipNN's; others are larger, see ``peers.py``."""
MOST_OF_CONDITIONAL: Final = 1.3
TARGETS: Final = {"rl": 5.3, "rlmid": 6.05, "sft": 4.65, "mask": 14.5}
"""Bits per change that ``compact`` may take at most, whole file."""


def peers(base: Path, target: Path, folder: Path) -> dict[str, int]:
    """Bytes that other ways of storing the same change take."""
    formats = [form for form in available() if form.name in PEERS or form is ZIPNN]
    sizes = dict.fromkeys((form.name for form in formats), 0)
    for old, new, _ in tensors(base, target):
        if not np.array_equal(old, new):
            for form in formats:
                sizes[form.name] += sum(s.size for s in form.encode(old, new))
    if shutil.which("zstd"):
        patch = folder / "patch"
        window = f"--long={max(27, base.stat().st_size.bit_length())}"
        command = ["zstd", "-qf1", window, f"--patch-from={base}", f"{target}", "-o", f"{patch}"]
        subprocess.run(command, check=True)
        sizes["zstd --patch-from"] = patch.stat().st_size
        tools.remove(patch)
    return sizes


def entropy_limit(base: Path, target: Path) -> float:
    """Bits per entry of a random support per tensor and of independent differences."""
    bits, nnz = 0.0, 0
    for old, new, _ in tensors(base, target):
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
    sizes, seconds, nnz = {}, {}, 0
    for profile in PROFILES:
        delta = folder / f"{name}.{profile}.safetensors"
        begun = time.perf_counter()
        found = sparsedelta.diff(base, target, delta, profile=profile, force=True)
        seconds[profile] = time.perf_counter() - begun
        sizes[profile], nnz = found.size, found.manifest.nnz
        nbytes = found.checkpoint_bytes
    bits = {key: 8 * size / nnz for key, size in (sizes | peers(base, target, folder)).items()}
    conditional, apart = conditional_bits(base, target)
    times = bits["compact"] / conditional
    return {
        "pair": name,
        "nnz": nnz,
        "density": 2 * nnz / nbytes,
        "bits": bits | {"entropy": entropy_limit(base, target), "conditional": conditional},
        "conditional_per_tensor": apart,
        "compact_of_portable": bits["compact"] / bits["portable"],
        "compact_of_conditional": times,
        "target_bits": TARGETS[name],
        "met": bits["compact"] <= TARGETS[name] and times <= MOST_OF_CONDITIONAL,
        "diff_seconds": seconds,
    }


def main() -> None:
    """Command line."""
    arguments = report.parser(__doc__).parse_args()
    folder = arguments.work / "pairs"
    names = ensure_pairs(folder, arguments.work / "reviews.zip", quick=arguments.quick)
    rows = [measure(name, folder) for name in names]
    left_out = [] if ZIPNN in available() else ["zipnn is not installed: pip install zipnn"]
    left_out += [] if shutil.which("zstd") else ["the command zstd is not installed"]
    figures = {"rows": rows, "left_out": left_out}
    report.write_results("size", figures, work=arguments.work, quick=arguments.quick)
    columns = list(rows[0]["bits"])
    report.print_table(
        "bits per changed entry, all bytes counted",
        ["pair", "changed", *columns],
        [
            [row["pair"], f"{row['density']:.2%}", *(f"{row['bits'][c]:.2f}" for c in columns)]
            for row in rows
        ],
    )
    report.print_table(
        f"compact; target of the last ratio: at most {MOST_OF_CONDITIONAL}",
        ["pair", "bits", "target", "of portable", "of conditional", ""],
        [
            [
                row["pair"],
                f"{row['bits']['compact']:.2f}",
                f"≤ {row['target_bits']}",
                *(f"{row[key]:.2f}" for key in ("compact_of_portable", "compact_of_conditional")),
                "met" if row["met"] else "NOT MET",
            ]
            for row in rows
        ],
    )
    for note in left_out:
        print(f"left out: {note}")


if __name__ == "__main__":
    main()
