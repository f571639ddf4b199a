"""``fingerprint``: the identity of a checkpoint (spec section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

from sparsedelta.checkpoint import CheckpointReader, check_unchanged, open_checkpoint, segments
from sparsedelta.digest_cache import KnownDigests
from sparsedelta.digests import (
    Digest,
    checkpoint_fingerprint,
    segment_digest,
    tensor_digest,
)
from sparsedelta.hub.named_base import pin_together
from sparsedelta.locations import LocationLike
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, first, own, watched


@dataclass(frozen=True, slots=True)
class Identity:
    """Fingerprint of a checkpoint and what it follows from.

    Attributes:
        fingerprint: 64 hex digits.
        tensors: Tensor digests by name, ascending.
        nbytes: Bytes of all tensors.
        remembered: Number of tensors whose digests were remembered, not read again.
    """

    fingerprint: str
    tensors: Mapping[str, Digest]
    nbytes: int
    remembered: int = 0

    def __str__(self) -> str:
        return self.fingerprint


def fingerprint(
    checkpoint: LocationLike | CheckpointReader,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
) -> Identity:
    """The identity of a checkpoint, from one pass over it.

    Two checkpoints have the same fingerprint exactly if they hold the same names, dtypes, shapes
    and bits; files, order and metadata do not matter.

    Args:
        checkpoint: A file, a directory, an index, or a reader.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were digested, and of how many: by this rank.
        cache: Whether digests that are remembered beside files are believed, and new ones recorded:
            see :mod:`sparsedelta.digest_cache`.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        CheckpointError: It cannot be read.
        RankError: Another rank failed.
    """
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        reader = open_checkpoint(pin_together(checkpoint, ranks))
        if reader is not checkpoint:
            stack.callback(reader.close)
        pool = stack.enter_context(OrderedMap(threads))
        known = first(ranks, lambda: KnownDigests(reader, use=cache))
        leaves = tensor_digests(
            reader, pool=pool, progress=progress, ranks=ranks, known=known.tensors
        )
        check_unchanged(reader)
        if ranks.rank == 0:
            known.remember(leaves)
    nbytes = sum(spec.nbytes for spec in reader.specs.values())
    return Identity(checkpoint_fingerprint(leaves).hex(), leaves, nbytes, len(known.tensors))


def tensor_digests(
    reader: CheckpointReader,
    *,
    pool: OrderedMap,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    known: Mapping[str, Digest] = MappingProxyType({}),
) -> dict[str, Digest]:
    """Digests of all tensors of a checkpoint, by name, ascending; all ranks know all of them.

    Those that are ``known`` are not read.
    """
    every = sorted(reader.specs.keys() - known.keys())
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
    gathered = ranks.gather(leaves)
    merged = [item for found in (known, *gathered) for item in found.items()]
    return ranks.share(dict(sorted(merged)))
