"""``fingerprint``: the identity of a checkpoint (spec section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from sparsedelta.checkpoint import CheckpointReader, check_unchanged, open_checkpoint, segments
from sparsedelta.digests import (
    Digest,
    checkpoint_fingerprint,
    segment_digest,
    tensor_digest,
)
from sparsedelta.locations import LocationLike
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, own, watched


@dataclass(frozen=True, slots=True)
class Identity:
    """Fingerprint of a checkpoint and what it follows from.

    Attributes:
        fingerprint: 64 hex digits.
        tensors: Tensor digests by name, ascending.
        nbytes: Bytes of all tensors.
    """

    fingerprint: str
    tensors: Mapping[str, Digest]
    nbytes: int

    def __str__(self) -> str:
        return self.fingerprint


def fingerprint(
    checkpoint: LocationLike | CheckpointReader,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> Identity:
    """The identity of a checkpoint, from one pass over it.

    Two checkpoints have the same fingerprint exactly if they hold the same names, dtypes, shapes
    and bits; files, order and metadata do not matter.

    Args:
        checkpoint: A file, a directory, an index, or a reader.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were digested, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        CheckpointError: It cannot be read.
        RankError: Another rank failed.
    """
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        reader = open_checkpoint(checkpoint)
        if reader is not checkpoint:
            stack.callback(reader.close)
        pool = stack.enter_context(OrderedMap(threads))
        leaves = tensor_digests(reader, pool=pool, progress=progress, ranks=ranks)
        check_unchanged(reader)
    nbytes = sum(spec.nbytes for spec in reader.specs.values())
    return Identity(checkpoint_fingerprint(leaves).hex(), leaves, nbytes)


def tensor_digests(
    reader: CheckpointReader,
    *,
    pool: OrderedMap,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> dict[str, Digest]:
    """Digests of all tensors of a checkpoint, by name, ascending; all ranks know all of them."""
    every = sorted(reader.specs)
    names = [every[n] for n in own(ranks, [reader.specs[name].nbytes for name in every])]
    total = sum(reader.specs[name].nbytes for name in names)
    told = watched(ranks, progress)
    done = 0

    def digest(item: tuple[str, int, int]) -> Digest:
        return segment_digest(reader.read(*item).data)

    items = ((name, start, stop) for name in names for start, stop in segments(reader.specs[name]))
    leaves: dict[str, Digest] = {}
    with pool.mapped(digest, items) as digests:
        for name in names:
            spec = reader.specs[name]
            leaves[name] = tensor_digest(spec, [next(digests) for _ in segments(spec)])
            done += spec.nbytes
            told(done, total)
    # Runs of names: rank by rank they are in order.
    gathered = ranks.gather(leaves)
    return ranks.share({name: leaf for found in gathered for name, leaf in found.items()})
