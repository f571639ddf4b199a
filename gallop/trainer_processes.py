"""The processes of a trainer: that none wraps the model, and that all begin with one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gallop.collectives import Peers, find_peers
from gallop.compiled import plain_name
from gallop.errors import ConfigError
from gallop.parallelism import word_sum
from gallop.shards import is_sharded

__all__ = ["check_sharding", "holds_shards", "keep_unwrapped", "start_alike", "trainer_peers"]

_log = logging.getLogger("gallop")


def trainer_peers(trainer: Any, model: nn.Module) -> Peers | None:  # noqa: ANN401  (comes without types)
    """Find the processes that train with this one.

    Args:
        trainer: A ``transformers.Trainer``.
        model: Its model, sharded or not.

    Returns:
        The processes; None if there are no others.
    """
    return find_peers(model, data_parallel=trainer.args.world_size > 1)


def holds_shards(model: nn.Module) -> bool:
    """Whether a model is sharded, so that each process holds a part of it."""
    return any(is_sharded(parameter) for parameter in model.parameters())


def keep_unwrapped(accelerator: Any) -> None:  # noqa: ANN401
    """Let an accelerator prepare models without wrapping them in DistributedDataParallel.

    The wrapper would reduce dense gradients, and put them back after they were taken. Everything
    else that the trainer prepares stays: device, autocast, compilation.

    Args:
        accelerator: Of the trainer; changed for good.
    """
    prepare = accelerator.prepare_model

    @functools.wraps(prepare)
    def prepare_model(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401
        if args[1:]:  # device_placement, evaluation_mode
            args = (args[0], True)
        else:
            kwargs["evaluation_mode"] = True
        prepared: nn.Module = prepare(model, *args, **kwargs)
        return prepared

    accelerator.prepare_model = prepare_model


def start_alike(model: nn.Module, peers: Peers) -> None:
    """Give every process the weights and buffers of the first, as DistributedDataParallel does.

    Nothing travels but sums of words where they are equal already.

    Args:
        model: A model that every process holds as a whole.
        peers: The processes; collective.

    Raises:
        ConfigError: The processes hold models of different parameters.
    """
    held: Mapping[str, Tensor] = {
        plain_name(name): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }
    mine = {name: (tuple(each.shape), word_sum(each)) for name, each in held.items()}
    everywhere = peers.gather(mine)
    for rank, theirs in enumerate(everywhere):
        shapes = {name: shape for name, (shape, _) in theirs.items()}
        expected = {name: shape for name, (shape, _) in everywhere[0].items()}
        if shapes != expected:
            odd = next(n for n in [*expected, *shapes] if expected.get(n) != shapes.get(n))
            raise ConfigError(
                f"model: expected the same parameters on all ranks, found {odd} of shape "
                f"{shapes.get(odd)} on rank {peers.members[rank]}, of {expected.get(odd)} on rank "
                f"{peers.members[0]}",
                hint="load the same model on every rank",
            )
    odd_ones = [n for n in mine if len({theirs[n] for theirs in everywhere}) > 1]
    if odd_ones:
        _log.warning(
            "%d tensors, %s the first, are not the same on all ranks: they are made those of rank "
            "%d, as DistributedDataParallel does; set_seed() before the model is made, where a "
            "part of it is new",
            len(odd_ones),
            odd_ones[0],
            peers.members[0],
        )
        with torch.no_grad():
            peers.spread(held[name] for name in odd_ones)


def check_sharding(trainer: Any, model: nn.Module) -> None:  # noqa: ANN401
    """Compare what ``fsdp`` asked for with what became of the model.

    Args:
        trainer: A ``transformers.Trainer``.
        model: Its model, prepared for training.

    Raises:
        ConfigError: Accelerate says that it has sharded the model, but there are no shards of
            FSDP2 in it: gradients would be averaged by nobody.
    """
    if not (trainer.args.fsdp or trainer.is_fsdp_enabled) or holds_shards(model):
        return
    if trainer.is_fsdp_enabled:
        raise ConfigError(
            f"fsdp: expected parameters sharded by FSDP2 after the model was prepared, found none "
            f"among those of {type(model).__name__}",
            hint="fsdp_config={'version': 2}",
        )
    _log.warning(
        "fsdp was asked for, but accelerate does not shard on %s in %d process(es): every process "
        "holds the whole model, and training is data parallel",
        trainer.args.device.type,
        trainer.args.world_size,
    )
