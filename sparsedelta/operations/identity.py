"""``fingerprint``: the identity of a checkpoint (spec section 4)."""

from __future__ import annotations

from collections.abc import Mapping
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
) -> Identity:
    """The identity of a checkpoint, from one pass over it.

    Two checkpoints have the same fingerprint exactly if they hold the same names, dtypes, shapes
    and bits; files, order and metadata do not matter.

    Args:
        checkpoint: A file, a directory, an index, or a reader.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were digested, and of how many.

    Raises:
        CheckpointError: It cannot be read.
    """
    reader = open_checkpoint(checkpoint)
    try:
        with OrderedMap(threads) as pool:
            leaves = tensor_digests(reader, pool=pool, progress=progress)
        check_unchanged(reader)
    finally:
        if reader is not checkpoint:
            reader.close()
    nbytes = sum(spec.nbytes for spec in reader.specs.values())
    return Identity(checkpoint_fingerprint(leaves).hex(), leaves, nbytes)


def tensor_digests(
    reader: CheckpointReader, *, pool: OrderedMap, progress: Progress = silent
) -> dict[str, Digest]:
    """Digests of all tensors of a checkpoint, by name, ascending."""
    names = sorted(reader.specs)
    total = sum(spec.nbytes for spec in reader.specs.values())
    done = 0

    def digest(item: tuple[str, int, int]) -> Digest:
        return segment_digest(reader.read(*item).data)

    items = ((name, start, stop) for name in names for start, stop in segments(reader.specs[name]))
    leaves = {}
    with pool.mapped(digest, items) as digests:
        for name in names:
            spec = reader.specs[name]
            leaves[name] = tensor_digest(spec, [next(digests) for _ in segments(spec)])
            done += spec.nbytes
            progress(done, total)
    return leaves
