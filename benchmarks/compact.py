"""How fast the codec of the profile ``compact`` is, beside a BLAKE3 pass over the base.

Of each pair of ``pairs.py``, in one process and in turns: a BLAKE3 pass over the base on one
thread; all blocks of the delta read, decoded and applied to a copy of the base, in batches as
``apply`` makes them, on one thread and on two; and the same blocks found, encoded and compressed.
``portable`` is timed beside it. What ``diff`` and ``apply`` do besides (digests, headers, choices)
is the same for both profiles and left out. ``joined`` pairs have the same weights in three large
matrices: what many small ones cost beside them.

The ratios to BLAKE3 are of seconds of a core, which a busy neighbour bends least; those of two
threads to one are of seconds on the clock.

    PYTHONPATH=examples python benchmarks/compact.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import machine
import numpy as np
import report
from blake3 import blake3
from numpy.typing import NDArray
from pairs import ensure_joined, ensure_pairs
from stored import StoredFile

import sparsedelta
from sparsedelta.batches import BATCH_BYTES, batched
from sparsedelta.codecs import Block, CodedBlock, Encoding
from sparsedelta.codecs.frames import encode_frame
from sparsedelta.container import BlockRequest
from sparsedelta.records import PartRecord, TensorRecord

THREADS: Final = 2
PROFILES: Final = ("portable", "compact")
LEAST: Final = {"rl": 0.30, "mask": 0.22, "rlmid": 0.12, "sft": 0.09}
"""Decoding speed of one core, as a share of BLAKE3's, that is asked of ``compact``."""
LEAST_THREADS: Final = 1.5
LEAST_ENCODE: Final = 1 / 3

Words = NDArray[np.uint16]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """A block of a difference.

    Attributes:
        record: The tensor.
        number: Number of the block.
        span: Its words, in the tensor.
        encoding: How it is encoded.
        block: What an encoder is told of it.
    """

    record: TensorRecord
    number: int
    span: slice
    encoding: Encoding
    block: Block


def pieces(reader: sparsedelta.DeltaReader, base: StoredFile) -> list[Piece]:
    """All blocks of a delta in which every record is one difference, the largest first."""
    found = []
    for record in reader.manifest.tensors:
        (part,) = record.parts
        if not isinstance(part, PartRecord) or part.op != "difference":
            raise TypeError(f"{record.name}: the pairs differ in words only")
        size, shape, words = 1 << part.block_log2, record.spec.shape, record.spec.words
        row = shape[-1] if len(shape) > 1 else 0
        for number in range(part.block_count(words)):
            start, stop = number * size, min(words, (number + 1) * size)
            span = slice(start, stop)
            block = Block(
                stop - start, 2, base.words(record.name)[span], record.spec.dtype, start, row
            )
            found.append(Piece(record, number, span, part.encoding, block))
    return sorted(found, key=lambda piece: -piece.block.words)


def batches(listed: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces that are decoded together, as ``apply`` has them."""
    return batched(listed, lambda piece: 2 * piece.block.words, BATCH_BYTES)


def encode_piece(piece: Piece, old: Words, new: Words) -> int:
    """Find what differs in a block, encode and compress it; returns the bytes."""
    base, target = old[piece.span], new[piece.span]
    places = np.flatnonzero(base != target)
    streams = piece.encoding.encode(places, target[places] - base[places], piece.block)
    cuts = piece.encoding.cuts(CodedBlock(streams, places.size, piece.block))
    return sum(len(encode_frame(stream.tobytes(), cuts)) for stream in streams)


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

    def decode(self, reader: sparsedelta.DeltaReader, batch: Sequence[Piece]) -> None:
        """Write what the blocks of a batch lead to."""
        requests = []
        for piece in batch:
            name = piece.record.name
            old = self.old[name][piece.span]
            self.made[name][piece.span] = old
            requests.append(BlockRequest(piece.record, 0, piece.number, old))
        found = reader.read_blocks(requests, any_order=True)
        for piece, (places, steps) in zip(batch, found, strict=True):
            self.made[piece.record.name][piece.span][places] += steps

    def encode(self, piece: Piece) -> None:
        """Find and encode what differs in a block."""
        encode_piece(piece, self.old[piece.record.name], self.new[piece.record.name])

    def check(self, reader: sparsedelta.DeltaReader, listed: Sequence[Piece]) -> None:
        """Decode all blocks; raises RuntimeError if they lead elsewhere than to the target."""
        for batch in batches(listed):
            self.decode(reader, batch)
        for name in {piece.record.name for piece in listed}:
            if not np.array_equal(self.made[name], self.new[name]):
                raise RuntimeError(f"{name} is not what it should be")


def on(threads: int, work: Callable[[Item], object], items: Sequence[Item]) -> Callable[[], object]:
    """Work on all items, by so many threads."""
    if threads == 1:
        return lambda: [work(item) for item in items]

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items))

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
            listed = pieces(reader, base)
            weights.check(reader, listed)
            decode, parts = partial(weights.decode, reader), list(batches(listed))
            works[f"decode {profile}"] = on(1, decode, parts)
            works[f"decode {profile}, {THREADS} threads"] = on(THREADS, decode, parts)
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
    found["least"] = least = LEAST[name.removesuffix("-joined")]
    found["met"] = {
        "decode": compact["decode_of_blake3"] >= least,
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
    names += [ensure_joined(folder, name) for name in names]
    rows = [measure(name, folder, rounds=rounds) for name in names]
    figures = {"rounds": rounds, "rows": rows}
    report.write_results("compact", figures, work=arguments.work, quick=arguments.quick)
    print_rows(rows)


if __name__ == "__main__":
    main()
