"""Selection inside a trainer: on its first batches, with its loss, without a trace in its state."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gallop.collectives import Peers
from gallop.config import GallopConfig
from gallop.errors import DataError
from gallop.formulas import SELECTORS
from gallop.mask import Mask
from gallop.memory import MemoryMode
from gallop.rank_batches import RankBatches
from gallop.selection import select
from gallop.trainer_processes import holds_shards
from gallop.trainer_weights import batch_weights
from gallop.weighing import measure_batch

__all__ = ["select_with_trainer"]

_log = logging.getLogger("gallop")


def select_with_trainer(
    trainer: Any,  # noqa: ANN401  (transformers comes without types)
    model: nn.Module,
    config: GallopConfig,
    *,
    samples: int,
    memory: MemoryMode,
    peers: Peers | None,
) -> Mask:
    """Choose a mask on the batches that the trainer is about to begin with.

    Loss, collator, autocast and order of the data are the trainer's; the loss of a batch is the
    mean that the trainer takes over it if it makes up a step alone. ``gradient_mean="token"``
    weighs batches by the trainer's own count of items, by which it normalises the loss of a step,
    and so gives the gradient of one large step; ``"sample"`` weighs them by samples.

    Where several processes train, a batch is what they all draw at a time, as it is in training
    (:func:`gallop.trainer_weights.batch_weights`).

    Modules are in eval mode, so that there is no dropout, except those that are checkpointed:
    transformers recomputes activations in training mode only.

    Args:
        trainer: A ``transformers.Trainer``.
        model: Its model, unwrapped, holding the pre-trained weights.
        config: How to choose.
        samples: How many samples to see, of all processes together, rounded up to whole batches; a
            selector that needs no gradient sees none.
        memory: As in :func:`gallop.select`.
        peers: The processes that train together; None if there are no others.

    Returns:
        The mask; of a sharded model, what this process holds of it.

    Raises:
        DataError: The training data can be read only once.
        SelectionError: From :func:`gallop.select`.
    """
    with _random_state_kept(), _trainer_state_kept(trainer), _selection_mode(model):
        needs_data = SELECTORS.find(config.selector).gradient != "none"
        # Kept, so that every pass over them sees the same ones, whatever is random in a collator.
        batches = _first_batches(trainer, samples, peers) if needs_data else []
        items = [trainer.get_batch_samples(iter([b]), 1, trainer.args.device)[1] for b in batches]
        weights = batch_weights(trainer, batches, items, config=config, peers=peers)
        numbers = {id(batch): number for number, batch in enumerate(batches)}
        # FSDP has its own policy of mixed precision.
        autocast = nullcontext if holds_shards(model) else trainer.accelerator.autocast

        def loss_fn(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
            inputs = trainer._prepare_inputs(batch)  # noqa: SLF001  (a copy: labels are taken out)
            counted = items[numbers[id(batch)]]
            with trainer.compute_loss_context_manager(), autocast():
                loss: Tensor = trainer.compute_loss(model, inputs, num_items_in_batch=counted)
            return loss

        return select(
            model,
            batches if needs_data else None,
            config,
            loss_fn,
            weigh=(lambda batch: weights[numbers[id(batch)]]) if weights else None,
            memory=memory,
            on_plan=lambda plan: _log.info("%s", "\n".join(plan.lines())),
            data_parallel=peers is not None,
        )


def _first_batches(
    trainer: Any,  # noqa: ANN401
    samples: int,
    peers: Peers | None,
) -> list[Any]:
    if isinstance(trainer.train_dataset, Iterator):
        raise DataError(
            f"train_dataset: expected one that can be read more than once, found "
            f"{type(trainer.train_dataset).__name__}, which is its own iterator: training would "
            "not see what the selection has seen",
            hint="return a new iterator from __iter__, or pass mask=",
        )
    loader = trainer.get_train_dataloader()
    batches: list[Any] = []
    seen = 0
    with _generators_kept(loader):
        for _, batch in RankBatches(peers, sharded=False).drawn(loader):
            batches.append(batch)
            own = measure_batch(batch).samples or trainer.args.train_batch_size
            seen += own if peers is None else sum(peers.gather(own))
            if seen >= samples:
                break
    # What accelerate notes about a loader that it prepared, or that is being read.
    if callable(getattr(loader, "end", None)):
        loader.end()
    prepared = getattr(trainer.accelerator, "_dataloaders", [])
    prepared[:] = [each for each in prepared if each is not loader]
    return batches


@contextmanager
def _random_state_kept() -> Iterator[None]:
    own, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the state that is there)
    cpu = torch.random.get_rng_state()
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if on_gpu else None
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.random.set_rng_state(cpu)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def _generators_kept(loader: Any) -> Iterator[None]:  # noqa: ANN401
    # A trainer may return one loader in every call, or share a generator among them.
    found = []
    part, parts = loader, ("batch_sampler", "sampler")
    holders = [loader]
    for _ in range(4):  # DataLoaderShard, BatchSamplerShard, BatchSampler, RandomSampler
        part = next((getattr(part, name) for name in parts if getattr(part, name, None)), None)
        if part is None:
            break
        holders.append(part)
    for holder in holders:
        for name in ("generator", "synchronized_generator"):
            generator = getattr(holder, name, None)
            if isinstance(generator, torch.Generator):
                found.append((generator, generator.get_state()))
    try:
        yield
    finally:
        for generator, state in found:
            generator.set_state(state)


@contextmanager
def _trainer_state_kept(trainer: Any) -> Iterator[None]:  # noqa: ANN401
    # What compute_loss of trl's trainers counts, and what training_step would have set for it.
    names = ("_metrics", "_total_train_tokens", "current_gradient_accumulation_steps")
    kept = {name: copy.deepcopy(vars(trainer)[name]) for name in names if name in vars(trainer)}
    trainer.current_gradient_accumulation_steps = 1
    try:
        yield
    finally:
        for name in names:
            if name in kept:
                setattr(trainer, name, kept[name])
            else:
                with contextlib.suppress(AttributeError):
                    delattr(trainer, name)


@contextmanager
def _selection_mode(model: nn.Module) -> Iterator[None]:
    found = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in found:
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # of itself alone: the dropout inside it stays off
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode
