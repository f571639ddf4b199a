"""How much the batches of a trainer count in a selection: as they would in its own steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gallop.collectives import Peers
from gallop.config import GallopConfig
from gallop.errors import SelectionError
from gallop.weighing import measure_batch

__all__ = ["batch_weights"]


def batch_weights(
    trainer: Any,  # noqa: ANN401  (transformers comes without types)
    batches: Sequence[Any],
    items: Sequence[Any],
    *,
    config: GallopConfig,
    peers: Peers | None,
) -> list[float]:
    """Weigh batches so that their mean gradient is that of the trainer's steps.

    The gradient of a step of many processes is the mean of theirs, whatever their batches hold:
    the trainer has put ``world_size / items of all`` into each loss where
    ``average_tokens_across_devices`` is set, as it is by default, and otherwise wants each process
    to count the same. So what the processes draw at a time is one batch, each has the same share
    in it, and it counts by the samples, or by the items, of all of them together.

    Only one large step without ``average_tokens_across_devices`` is something else: each process
    divides by the items that it has in all. There its batches count by their share in those.

    Args:
        trainer: A ``transformers.Trainer``.
        batches: Of this process; the others have as many.
        items: The trainer's count of items in each, by which it divides the loss: of all processes
            with ``average_tokens_across_devices``; None where it does not count.
        config: Its ``gradient_mean``.
        peers: The processes; None if there are no others.

    Returns:
        Per batch its weight; nothing where it counts by its samples, of one process.

    Raises:
        SelectionError: Only some batches tell their samples.
    """
    by_items = config.gradient_mean == "token"
    if peers is None and not by_items:
        return []
    counts = [
        _items(batch, counted) if by_items else _samples(batch)
        for batch, counted in zip(batches, items, strict=True)
    ]
    if peers is None:
        return [float(count or 0) for count in counts]
    everywhere = peers.gather(counts)
    known = {count is not None for each in everywhere for count in each}
    if len(known) > 1:
        raise SelectionError(
            "selection: expected batches whose samples can all be counted, or none of them, found "
            "both kinds",
            hint="let the collator return tensors whose first dimension is the batch",
        )
    filled = [[1.0 if count is None else float(count) for count in each] for each in everywhere]
    alone = by_items and not trainer.args.average_tokens_across_devices
    if alone and any(counted is not None for counted in items):
        own = filled[peers.rank]
        whole = sum(map(sum, filled))
        return [count * whole / ((sum(own) or 1.0) * peers.size) for count in own]
    return [sum(each) / peers.size for each in zip(*filled, strict=True)]


def _samples(batch: Any) -> float | None:  # noqa: ANN401
    return measure_batch(batch).samples


def _items(batch: Any, counted: Any) -> float | None:  # noqa: ANN401
    return (measure_batch(batch).tokens or 0) if counted is None else float(counted)
