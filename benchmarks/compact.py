"""How fast the codec of the profile ``compact`` is, beside a BLAKE3 pass over the base.

Of each pair of ``pairs.py``, in one process and in turns: a BLAKE3 pass over the base on one
thread; all blocks of the delta read, decoded and applied to a copy of the base, on one thread and
on two; and the same blocks found and encoded. ``portable`` is timed beside it. What ``diff`` and
``apply`` do besides (digests, headers, choices) is the same for both profiles and left out.

The ratios to BLAKE3 are of seconds of a core, which a busy neighbour bends least; those of two
threads to one are of seconds on the clock.

    PYTHONPATH=examples python benchmarks/compact.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import machine
import numpy as np
import report
from blake3 import blake3
from numpy.typing import NDArray
from pairs import ensure_pairs
from stored import StoredFile

import sparsedelta
from sparsedelta.codecs import Block, Encoding
from sparsedelta.records import PartRecord

THREADS: Final = 2
PROFILES: Final = ("portable", "compact")
LEAST: Final = {"rl": 0.30, "mask": 0.22, "rlmid": 0.12, "sft": 0.09}
"""Decoding speed of one core, as a share of BLAKE3's, that is asked of ``compact``."""
LEAST_THREADS: Final = 1.5
LEAST_ENCODE: Final = 1 / 3

Words = NDArray[np.uint16]


@dataclass(frozen=True)
class Piece:
    """A block of a difference.

    Attributes:
        tensor: Name of its tensor.
        number: Number of the block.
        span: Its words, in the tensor.
        read: Reads and decodes it, given its base words.
        encoding: How it is encoded.
        block: What an encoder is told of it.
    """

    tensor: str
    number: int
    span: slice
    read: Callable[[Words], tuple[NDArray[np.int64], Words]]
    encoding: Encoding
    block: Block


def pieces(reader: sparsedelta.DeltaReader, base: StoredFile) -> list[Piece]:
    """All blocks of a delta in which every record is one difference."""
    found = []
    for record in reader.manifest.tensors:
        (part,) = record.parts
        if not isinstance(part, PartRecord) or part.op != "difference":
            raise TypeError(f"{record.name}: the pairs differ in words only")
        size, shape, words = 1 << part.block_log2, record.spec.shape, record.spec.words
        row = shape[-1] if len(shape) > 1 else 0
        for number in range(part.block_count(words)):
            start, stop = number * size, min(words, (number + 1) * size)

            def read(
                old: Words,
                record: Any = record,  # noqa: ANN401 - bound now, not when it is called
                number: int = number,
            ) -> tuple[NDArray[np.int64], Words]:
                return reader.read_block(record, 0, number, base=old, any_order=True)

            span = slice(start, stop)
            block = Block(
                stop - start, 2, base.words(record.name)[span], record.spec.dtype, start, row
            )
            found.append(Piece(record.name, number, span, read, part.encoding, block))
    return found


def decode_piece(piece: Piece, old: Words, new: Words) -> None:
    """Write what a block leads to."""
    base, target = old[piece.span], new[piece.span]
    target[:] = base
    places, steps = piece.read(base)
    target[places] += steps


def encode_piece(piece: Piece, old: Words, new: Words) -> int:
    """Find and encode what differs in a block; returns the bytes."""
    base, target = old[piece.span], new[piece.span]
    places = np.flatnonzero(base != target)
    streams = piece.encoding.encode(places, target[places] - base[places], piece.block)
    return sum(stream.size for stream in streams)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@dataclass(frozen=True)
class Weights:
    """The words of a pair, in memory: before, after, and those that a decoder makes."""

    old: dict[str, Words]
    new: dict[str, Words]
    made: dict[str, Words]

    @classmethod
    def of(cls, base: StoredFile, target: StoredFile) -> Weights:
        """Copies of the words of two files."""
        old = {name: np.array(base.words(name)) for name in base.tensors}
        new = {name: np.array(target.words(name)) for name in target.tensors}
        return cls(old, new, {name: np.zeros_like(words) for name, words in old.items()})

    def digest(self) -> None:
        """A BLAKE3 pass over the base, on one thread."""
        for words in self.old.values():
            blake3(words.view(np.uint8).data, max_threads=1).digest()

    def decode(self, piece: Piece) -> None:
        """Write what a block leads to."""
        decode_piece(piece, self.old[piece.tensor], self.made[piece.tensor])

    def encode(self, piece: Piece) -> None:
        """Find and encode what differs in a block."""
        encode_piece(piece, self.old[piece.tensor], self.new[piece.tensor])

    def check(self, listed: Sequence[Piece]) -> None:
        """Decode all blocks; raises RuntimeError if they lead elsewhere than to the target."""
        for piece in listed:
            self.decode(piece)
        for name in {piece.tensor for piece in listed}:
            if not np.array_equal(self.made[name], self.new[name]):
                raise RuntimeError(f"{name} is not what it should be")


def on(
    threads: int, work: Callable[[Piece], object], listed: Sequence[Piece]
) -> Callable[[], object]:
    """Work on all blocks, by so many threads."""
    if threads == 1:
        return lambda: [work(piece) for piece in listed]

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, listed))

    return run


def measure(name: str, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Figures of one pair."""
    before, after = (folder / f"{name}-{end}.safetensors" for end in ("base", "target"))
    base, target = StoredFile(before), StoredFile(after)
    weights = Weights.of(base, target)
    works: dict[str, Callable[[], object]] = {"blake3": weights.digest}
    nnz = 0
    with ExitStack() as stack:
        for profile in PROFILES:
            path = folder / f"{name}.{profile}.safetensors"
            nnz = sparsedelta.diff(before, after, path, profile=profile, force=True).manifest.nnz
            reader = stack.enter_context(sparsedelta.DeltaReader(path))
            # The largest first, so that two threads end together.
            listed = sorted(pieces(reader, base), key=lambda p: p.span.start - p.span.stop)
            weights.check(listed)
            works[f"decode {profile}"] = on(1, weights.decode, listed)
            works[f"decode {profile}, {THREADS} threads"] = on(THREADS, weights.decode, listed)
            works[f"encode {profile}"] = on(1, weights.encode, listed)
        seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
        for _ in range(rounds):
            for key, work in works.items():
                seconds[key].append(timed(work))
    nbytes = sum(words.nbytes for words in weights.old.values())
    return {"pair": name, "nnz": nnz, "bytes": nbytes, **ratios(name, nbytes, seconds)}


def ratios(name: str, nbytes: int, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Medians over the rounds of ratios within a round, and speeds."""

    def ratio(one: str, other: str, kind: int) -> float:
        pairs = zip(seconds[one], seconds[other], strict=True)
        return statistics.median(a[kind] / b[kind] for a, b in pairs)

    found: dict[str, Any] = {
        "gb_per_second": {
            key: nbytes / 1e9 / statistics.median(cpu for _, cpu in each)
            for key, each in seconds.items()
        },
        "wall_seconds": {key: [wall for wall, _ in each] for key, each in seconds.items()},
        "cpu_seconds": {key: [cpu for _, cpu in each] for key, each in seconds.items()},
    }
    for profile in PROFILES:
        decode = f"decode {profile}"
        found[profile] = {
            "decode_of_blake3": ratio("blake3", decode, 1),
            "two_threads_of_one": ratio(decode, f"{decode}, {THREADS} threads", 0),
            "encode_of_decode": ratio(decode, f"encode {profile}", 1),
        }
    compact = found["compact"]
    found["least"] = LEAST[name]
    found["met"] = {
        "decode": compact["decode_of_blake3"] >= LEAST[name],
        "threads": compact["two_threads_of_one"] >= LEAST_THREADS,
        "encode": compact["encode_of_decode"] >= LEAST_ENCODE,
    }
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table."""
    report.print_table(
        "decoding, one core, as a share of BLAKE3; two threads; encoding as a share of decoding",
        ["pair", "GB/s", "of blake3", "asked", "portable", "2 threads", "encode", "met"],
        [
            [
                row["pair"],
                f"{row['gb_per_second']['decode compact']:.2f}",
                f"{row['compact']['decode_of_blake3']:.2f}",
                f"≥ {row['least']}",
                f"{row['portable']['decode_of_blake3']:.2f}",
                f"{row['compact']['two_threads_of_one']:.2f}",
                f"{row['compact']['encode_of_decode']:.2f}",
                ", ".join(key for key, met in row["met"].items() if met) or "none",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds [%(default)s]")
    arguments = parser.parse_args()
    machine.pin(THREADS)
    folder = arguments.work / "pairs"
    names = ensure_pairs(folder, arguments.work / "reviews.zip", quick=arguments.quick)
    rounds = 2 if arguments.quick else arguments.rounds
    rows = [measure(name, folder, rounds=rounds) for name in names]
    figures = {"rounds": rounds, "rows": rows}
    report.write_results("compact", figures, work=arguments.work, quick=arguments.quick)
    print_rows(rows)


if __name__ == "__main__":
    main()
