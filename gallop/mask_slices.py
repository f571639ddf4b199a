"""Masks of sharded models: each process has a slice; together they are the mask of one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from gallop.collectives import Peers, find_peers
from gallop.compiled import named_parameters
from gallop.mask import IndexArray, Mask
from gallop.shards import Shard
from gallop.targets import Target
from sparsedelta.boxes import Box

__all__ = ["counted_once", "gather_mask", "gathered", "whole_digest", "with_replicas"]


def counted_once(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Leave out what other processes hold, too, and one of them counts.

    Args:
        targets: Parameters, sharded or not.

    Returns:
        The same parameters; those that another process counts have no entries here.
    """
    return tuple(
        target
        if target.shard is None or target.shard.counted
        else Target(target.name, target.parameter, target.kind, _nothing(target.shard))
        for target in targets
    )


def _nothing(shard: Shard) -> Shard:
    none = (0,) * len(shard.box.shape)
    return Shard(Box(shard.box.shape, none, none), counted=False)


def with_replicas(
    targets: Sequence[Target], indices: Mapping[str, IndexArray], peers: Peers
) -> dict[str, IndexArray]:
    """Give the processes that hold replicas what was chosen of them; collective.

    Args:
        targets: What was chosen from.
        indices: By name the flat indices that this process chose, of what it counts.
        peers: The processes that hold the model.

    Returns:
        By name the flat indices chosen of what this process holds.
    """
    shards = {target.name: target.shard for target in targets}
    replicated = [shard is not None and not shard.counted for shard in shards.values()]
    anywhere = peers.total(np.array(replicated, dtype=np.int64))
    found = dict(indices)
    for (name, shard), count in zip(shards.items(), anywhere, strict=True):
        if count and shard is not None:
            whole = np.unique(np.concatenate(peers.gather(indices[name])))
            held, _ = shard.find(whole)
            found[name] = whole[held]
    return found


def gathered(mask: Mask, peers: Peers) -> Iterator[tuple[str, tuple[int, ...], IndexArray | None]]:
    """Put the slices of a mask together, one tensor at a time; collective.

    Args:
        mask: On each process its slice, or the whole.
        peers: The processes.

    Yields:
        Names, sorted; shapes; and on rank 0 the flat indices, None on the others.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for each in peers.gather(dict(mask.shapes)):
        shapes |= each
    none = np.empty(0, dtype=np.int64)
    for name in sorted(shapes):
        parts = peers.gather_first(mask.get(name, none))
        yield name, shapes[name], np.unique(np.concatenate(parts)) if parts else None


def gather_mask(model: nn.Module, mask: Mask) -> Mask | None:
    """Put the slices of a mask together on rank 0; collective.

    Args:
        model: The model, sharded or not.
        mask: On each process what :func:`gallop.select` returned there.

    Returns:
        On rank 0 the mask that one process would have chosen, to be saved, for one; None on the
        others. Of a model that is not sharded, the mask as it is.
    """
    peers = find_peers(model, data_parallel=False)
    if peers is None:
        return mask
    found = {
        name: (shape, indices)
        for name, shape, indices in gathered(mask, peers)
        if indices is not None
    }
    if peers.rank:
        return None
    order = [name for name, _ in named_parameters(model, tied=True) if name in found]
    return Mask(
        {name: found[name][1] for name in order},
        {name: found[name][0] for name in order},
        config=mask.config,
        report=mask.report,
    )


def whole_digest(mask: Mask, peers: Peers) -> tuple[str, int]:
    """Tell the digest of the whole mask, and its number of entries, on every process; collective.

    Args:
        mask: On each process its slice, or the whole.
        peers: The processes.

    Returns:
        What ``digest`` and ``nnz`` of the mask of one process would be.
    """
    state = hashlib.sha256()
    nnz = 0
    for name, shape, indices in gathered(mask, peers):
        if indices is not None:
            state.update(json.dumps([name, shape, len(indices)]).encode())
            state.update(indices.astype("<i8", copy=False).tobytes())
            nnz += len(indices)
    return peers.share((state.hexdigest(), nnz))
