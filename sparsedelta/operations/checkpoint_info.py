"""What a checkpoint is, from its headers, and what is remembered of its digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.digest_cache import Verified, recall
from sparsedelta.digests import Digest, checkpoint_fingerprint
from sparsedelta.locations import LocationLike, streamed


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself, and what is remembered beside it.

    Attributes:
        path: Where it lies.
        files: Names of its files.
        tensors: Number of tensors.
        nbytes: Bytes of all tensors.
        dtypes: Number of tensors of each dtype.
        fingerprint: Its fingerprint, if the digests of all tensors are remembered; 64 hex digits.
        verified: How the digests were come by: ``"read"`` from the files; ``"full"``, a result that
            was verified whole; ``"touched"``, one of which only the tensors were verified that the
            delta touches; None: nothing is remembered, or not of every file.
        remembered: Number of tensors whose digests are remembered.
    """

    path: str
    files: tuple[str, ...]
    tensors: int
    nbytes: int
    dtypes: Mapping[str, int]
    fingerprint: str | None
    verified: Verified | None
    remembered: int


def checkpoint_info(checkpoint: LocationLike) -> CheckpointInfo:
    """What a checkpoint is. Reads headers, and what is remembered beside the files; no weights.

    Args:
        checkpoint: A file, a directory or an index.

    Raises:
        CheckpointError: It cannot be read.
        DeltaGivenError: It is a delta.
    """
    with FileCheckpoint(streamed(checkpoint)) as opened:
        leaves: dict[str, Digest] = {}
        ways: set[Verified | None] = set()
        for file in opened.files:
            path = file.source.location
            found = recall(path) if isinstance(path, Path) else None
            ways.add(None if found is None else found.verified)
            if found is not None:
                names = {stored.spec.name for stored in file.layout.tensors}
                leaves |= {n: digest for n, digest in found.tensors.items() if n in names}
        specs = opened.specs
        order: tuple[Verified, ...] = ("touched", "read", "full")
        is_known = leaves.keys() == specs.keys() and bool(specs)
        return CheckpointInfo(
            path=opened.location,
            files=tuple(file.name for file in opened.files),
            tensors=len(specs),
            nbytes=sum(spec.nbytes for spec in specs.values()),
            dtypes=dict(sorted(Counter(spec.dtype for spec in specs.values()).items())),
            fingerprint=checkpoint_fingerprint(leaves).hex() if is_known else None,
            verified=None if None in ways else next((way for way in order if way in ways), None),
            remembered=len(leaves),
        )
