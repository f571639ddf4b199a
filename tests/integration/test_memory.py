"""Peak memory follows from the largest tensor, not from the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from checkpoint_files import TIMEOUT, environment
from numpy.typing import NDArray

MIB: Final = 1 << 20
LARGE: Final = 192 * MIB
PIECE: Final = 64 * MIB
COUNT: Final = 6

# VmHWM is the peak of this program; ru_maxrss, where there is no /proc, begins with the peak of the
# process that started it.
MEASURED: Final = """
import resource, sys
from pathlib import Path
from sparsedelta.cli import main
try:
    main(sys.argv[1:])
finally:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = int(lines["VmHWM"].split()[0]) * 1024
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    print(f"peak {peak}", file=sys.stderr)
"""

Change = Callable[[NDArray[np.uint16], NDArray[np.uint16]], None]


def peak_of(*arguments: str | Path) -> int:
    """Bytes of memory that a command had at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments), "--quiet", "--threads", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


def bound(tensor: int) -> int:
    """What a command may take for a checkpoint whose largest tensor has so many bytes."""
    return 4 * tensor + 200 * MIB


def every_word(words: NDArray[np.uint16], noise: NDArray[np.uint16]) -> None:
    """A step of 1 to 4 in every word of bf16."""
    words += (noise & 3) + 1


def one_percent(words: NDArray[np.uint16], noise: NDArray[np.uint16]) -> None:
    """A step in one of a hundred words of float32."""
    halves = words.reshape(-1, 2)
    halves[:, 0] += noise[: len(halves)] < 655


def write(path: Path, dtype: str, count: int, size: int, change: Change | None) -> Path:
    """A checkpoint of ``count`` tensors of ``size`` bytes, a piece at a time."""
    width = {"BF16": 2, "F32": 4}[dtype]
    entries = {
        f"layers.{number}.weight": {
            "dtype": dtype,
            "shape": [size // width],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(count)
    }
    text = json.dumps(entries).encode()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 1 << 16, 16 * MIB // 2, dtype=np.uint16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(count * size // noise.nbytes):
            words: NDArray[np.uint16] = np.roll(noise, number)
            if change is not None:
                change(words, noise)
            words.tofile(file)
    assert path.stat().st_size == 8 + len(text) + count * size
    return path


@pytest.mark.parametrize(
    ("dtype", "count", "size", "change"),
    [
        ("BF16", 1, LARGE, every_word),
        ("F32", 1, LARGE, one_percent),
        ("F32", COUNT, PIECE, every_word),
    ],
    ids=["a large tensor, all changed", "a large tensor, 1 % changed", "six times a tensor"],
)
def test_memory_is_bounded_by_the_largest_tensor(
    tmp_path: Path, dtype: str, count: int, size: int, change: Change
) -> None:
    base = write(tmp_path / "base", dtype, count, size, None)
    target = write(tmp_path / "target", dtype, count, size, change)
    delta, out = tmp_path / "delta", tmp_path / "out"
    peaks = {
        "diff": peak_of("diff", base, target, "-o", delta),
        "apply": peak_of("apply", base, delta, "-o", out),
    }
    for path in (base, target, delta, out):
        os.truncate(path, 0)  # pytest keeps the folders of the last runs
    assert {name: peak for name, peak in peaks.items() if peak > bound(size)} == {}, peaks
