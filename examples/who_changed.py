"""Look into a delta: which layers a fine-tune moved, and by how much.

    python examples/who_changed.py DELTA

Reads one tensor at a time; needs no base and no torch.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

import sparsedelta


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("delta", type=Path)
    with sparsedelta.DeltaReader(parser.parse_args().delta) as reader:
        print(f"{reader.manifest.base[:12]}… -> {reader.manifest.target[:12]}…")
        steps: Counter[str] = Counter()
        for name, record in reader.records.items():
            parts = reader.read_tensor(name).parts
            if [part.op for part in parts] != ["difference"]:
                print(f"{', '.join(part.op for part in parts)}  {name}")
                continue
            _, words = parts[0].entries
            share = words.size / record.spec.words
            # A difference is a word: seen as a signed number, it says how many steps of the dtype
            # a weight went up or down.
            moved = words.view(f"i{words.itemsize}")
            up = np.count_nonzero(moved > 0) / words.size
            print(f"{share:8.3%} changed, {up:4.0%} upwards  {name}")
            steps["one step"] += int(np.count_nonzero(np.abs(moved) == 1))
            steps["more"] += int(np.count_nonzero(np.abs(moved) != 1))
    for kind, count in steps.items():
        print(f"{count:,} by {kind}")


if __name__ == "__main__":
    main()
