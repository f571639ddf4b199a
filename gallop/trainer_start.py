"""What happens in a trainer once, before its first step: equal weights, a mask, an engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from gallop.collectives import Peers
from gallop.config import GallopConfig
from gallop.exporting import check_base, check_weights
from gallop.mask import Mask
from gallop.memory import MemoryMode
from gallop.optim import WeightDecayMode
from gallop.sampled_product import GradientMode
from gallop.trainer_arguments import decay_groups
from gallop.trainer_data import select_with_trainer
from gallop.trainer_engines import AutogradEngine, Engine, EngineName, HookEngine
from gallop.trainer_processes import holds_shards, start_alike, trainer_peers
from sparsedelta.locations import LocationLike

__all__ = ["Request", "start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a trainer was asked for; see :func:`gallop.attach`."""

    config: GallopConfig | None
    engine: EngineName
    gradient: GradientMode
    samples: int
    memory: MemoryMode
    weight_decay_mode: WeightDecayMode


def start(
    trainer: Any,  # noqa: ANN401  (transformers comes without types)
    model: nn.Module,
    request: Request,
    *,
    mask: Mask | None,
    base: LocationLike | None,
) -> tuple[Mask, Engine]:
    """Choose a mask, if there is none, and make the engine that trains it.

    Args:
        trainer: A ``transformers.Trainer``.
        model: Its model, sharded or not.
        request: What was asked for.
        mask: What to train, if that is known.
        base: What the weights have to be, apart from those of the mask; None if nobody asks.

    Returns:
        The mask, of a sharded model what this process holds of it, and the engine.

    Raises:
        GallopError: The weights are not those of the base, or nothing could be chosen.
    """
    peers = trainer_peers(trainer, model)
    if peers is not None and not holds_shards(model):
        start_alike(model, peers)
    _check(check_weights, model, mask or Mask({}, {}), base, peers)
    if mask is None:
        assert request.config is not None  # noqa: S101  (attach has seen to it)
        mask = select_with_trainer(
            trainer,
            model,
            request.config,
            samples=request.samples,
            memory=request.memory,
            peers=peers,
        )
        _check(check_base, model, mask, base, peers)
    groups = decay_groups(trainer, model, mask, peers)
    if request.engine == "autograd":
        made = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        return mask, AutogradEngine(
            model, mask, made, groups=groups, gradient=request.gradient, peers=peers
        )
    return mask, HookEngine(
        model,
        mask,
        trainer.args,
        groups=groups,
        weight_decay_mode=request.weight_decay_mode,
        peers=peers,
    )


def _check(
    check: Callable[[nn.Module, Mask, LocationLike], object],
    model: nn.Module,
    mask: Mask,
    base: LocationLike | None,
    peers: Peers | None,
) -> None:
    # Of copies one is compared with the base, of shards each.
    if base is None:
        return
    alike: AbstractContextManager[None] = nullcontext() if peers is None else peers.together()
    with alike:
        if peers is None or peers.rank == 0 or holds_shards(model):
            check(model, mask, base)
