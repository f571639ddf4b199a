"""``diff_state_dict``: the delta from what a live model was to what it is, whoever holds it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from sparsedelta.launch import threads_here
from sparsedelta.local_shards import LocalShards, is_sharded, shards_of
from sparsedelta.operations.diff import DiffReport, diff
from sparsedelta.progress import Progress
from sparsedelta.sharded_reader import ShardedReader, ShardTable, merge_shards
from sparsedelta.snapshot import Snapshot

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from sparsedelta.torch_ranks import TorchRanks

_LOCATIONS = ("the old model", "the new model")


class LiveOptions(TypedDict, total=False):
    """Those of the arguments of :func:`~sparsedelta.diff` that a model in memory can have."""

    one_way: bool
    forget: bool
    lean: bool
    renames: Mapping[str, str] | None
    unrelated: bool
    codec: str | None
    explain: bool
    max_shard_size: int | None
    shards: int | None
    metadata: Mapping[str, str] | None
    base_repo: str | None
    base_revision: str | None
    threads: int | None
    force: bool
    dry_run: bool
    progress: Progress


def diff_state_dict(
    old: Mapping[str, torch.Tensor] | Snapshot,
    new: Mapping[str, torch.Tensor] | Snapshot,
    out: str | Path,
    *,
    group: dist.ProcessGroup | None = None,
    **options: Unpack[LiveOptions],
) -> DiffReport:
    """Write the delta between two states of a live model.

    Plain tensors are compared by this process alone. With DTensors, such as those of FSDP2, or with
    a ``group``, all processes of the group call this together, and each compares its share of the
    tensors and writes its part file. No tensor is ever whole on any of them: words travel by pieces
    of a segment. The delta has the content digest and the fingerprints of :func:`~sparsedelta.diff`
    of the saved checkpoints.

    Args:
        old: Tensors by name, as ``model.state_dict()`` gives them, or a :class:`Snapshot`. Plain
            tensors are the same on all processes.
        new: The same, as it is now. It must not change meanwhile.
        out: The delta, on a file system that all processes share.
        group: The processes that hold the model; None for all.
        **options: As those of :func:`~sparsedelta.diff`.

    Raises:
        CheckpointError: A tensor that safetensors cannot hold, or a DTensor with a placement other
            than ``Shard`` and ``Replicate``.
        StructureError: The two share few tensors, or shards are missing.
        OutputError: The output exists, or cannot be written.
        RankError: Another process failed; nothing is left behind.
    """
    if group is None and not any(_is_sharded(model) for model in (old, new)):
        was, now = _shards((old, new))
        return diff(was.reader, now.reader, out, layout="never", **options)
    # Imported here: plain tensors need no process group.
    from sparsedelta.shard_exchange import ShardExchange  # noqa: PLC0415
    from sparsedelta.torch_ranks import TorchRanks  # noqa: PLC0415

    with ExitStack() as stack:
        ranks = stack.enter_context(TorchRanks(group))
        exchange = stack.enter_context(ShardExchange(ranks))
        stack.enter_context(ranks.together())
        ends = _shards((old, new))
        tables = _tables(ranks, ends)
        exchange.open(ends, [list(table.specs) for table in tables])
        base, target = (
            ShardedReader(end, location, tables, rank=ranks.rank, exchange=exchange)
            for end, location in enumerate(_LOCATIONS)
        )
        base.partner = target
        options["threads"] = threads_here(ranks, options.get("threads"))
        return diff(base, target, out, layout="never", ranks=ranks, **options)


def _is_sharded(model: Mapping[str, torch.Tensor] | Snapshot) -> bool:
    return model.is_sharded if isinstance(model, Snapshot) else is_sharded(model)


def _shards(
    models: tuple[
        Mapping[str, torch.Tensor] | Snapshot,
        Mapping[str, torch.Tensor] | Snapshot,
    ],
) -> tuple[LocalShards, LocalShards]:
    old, new = (
        model.shards() if isinstance(model, Snapshot) else shards_of(model, location)
        for model, location in zip(models, _LOCATIONS, strict=True)
    )
    return old, new


def _tables(
    ranks: TorchRanks, ends: tuple[LocalShards, LocalShards]
) -> tuple[ShardTable, ShardTable]:
    gathered = ranks.gather([(end.specs, end.boxes) for end in ends])
    tables = None
    if gathered:
        old, new = (
            merge_shards(location, [found[end] for found in gathered])
            for end, location in enumerate(_LOCATIONS)
        )
        tables = old, new
    return ranks.share(tables)
