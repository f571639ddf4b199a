"""Sparse fine-tuning of a causal language model, from the first gradient to the last step.

The loop is meant to be read from top to bottom. Anything it does can be written by hand with
:func:`gallop.select` and :class:`gallop.SparseAdamW`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gallop.computing import computing
from gallop.config import GallopConfig
from gallop.data import Batch, Sample, make_batch, sample_order
from gallop.errors import ConfigError, SelectionError
from gallop.gradients import model_loss
from gallop.mask import Mask
from gallop.memory import MemoryMode, MemoryPlan
from gallop.progress import NoProgress, TrainingProgress
from gallop.run_folder import TrainState
from gallop.saving import Saving
from gallop.selection import select
from gallop.step_log import StepLog, StepRecord
from gallop.train_config import TrainConfig, lr_factor
from gallop.train_engines import open_engine
from gallop.visibility import Visibility
from gallop.weighing import supervised_tokens

__all__ = ["TrainConfig", "TrainResult", "choose_mask", "finetune", "lr_factor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run did.

    Attributes:
        mask: What was trained.
        visibility: How many entries moved, and how many weights show it.
        losses: Mean loss per supervised token, of each step.
        grad_norms: 2-norm of the chosen entries' gradient before clipping, of each step.
        samples: Training samples seen, repeats included.
        tokens: Tokens seen by the model in training, padding excluded.
        seconds: Wall-clock time of the steps, selection excluded.
        peak_memory: Largest resident size of the process so far, in bytes.
    """

    mask: Mask
    visibility: Visibility
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    samples: int
    tokens: int
    seconds: float
    peak_memory: int

    @property
    def tokens_per_second(self) -> float:
        """Throughput of the steps."""
        return self.tokens / self.seconds if self.seconds else 0.0


def finetune(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    selection: GallopConfig | None = None,
    training: TrainConfig,
    mask: Mask | None = None,
    pad_id: int = 0,
    progress: TrainingProgress | None = None,
    logs: Sequence[StepLog] = (),
    saving: Saving | None = None,
    start: TrainState | None = None,
) -> TrainResult:
    """Choose a mask, unless one is given, and train it.

    The same seed, data and number of threads give the same weights. The caller's random state
    and the model's mode are left alone.

    Args:
        model: A causal language model of transformers, holding the pre-trained weights, on any
            device; changed in place.
        samples: Encoded training data, from :func:`gallop.data.encode_examples`.
        selection: How to choose the mask; needed unless ``mask`` is given.
        training: How to train it.
        mask: A mask to train instead.
        pad_id: Token id to pad with.
        progress: Hears about every batch and step.
        logs: Take a record of every step.
        saving: When and where to save.
        start: A saved state to go on from, with the ``mask`` and everything else as it was: the
            result is then that of a run without interrupt, bit for bit.

    Returns:
        What was done.

    Raises:
        ConfigError: Neither ``selection`` nor ``mask`` is given, or ``start`` without ``mask``.
        GallopError: From the selection or the optimizer.
        KeyboardInterrupt: ``saving`` was asked to stop; the state has been saved.
    """
    progress = progress or NoProgress()
    if start is not None and mask is None:
        raise ConfigError("finetune: expected the mask of the saved state, found none")
    if mask is None:
        if selection is None:
            raise ConfigError("finetune: expected selection settings or a mask, found neither")
        mask = choose_mask(
            model, samples, selection=selection, training=training, pad_id=pad_id, progress=progress
        )
    engine = open_engine(model, mask, training)
    schedule = LambdaLR(engine.optimizer, lambda step: lr_factor(step, training))
    batches = _batches(samples, training, pad_id=pad_id, after=start.step if start else 0)
    losses = list(start.losses) if start else []
    grad_norms = list(start.grad_norms) if start else []
    tokens = start.tokens if start else 0
    before = start.seconds if start else 0.0
    started = time.perf_counter()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})

    def state() -> TrainState:
        return TrainState(
            step=len(losses),
            optimizer=engine.state(),
            schedule=schedule.state_dict(),
            random=_random_state(devices),
            losses=tuple(losses),
            grad_norms=tuple(grad_norms),
            tokens=tokens,
            seconds=before + time.perf_counter() - started,
        )

    with (
        engine,
        computing(training.compute, model),
        _mode(model, training=True),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(training.seed)
        if start:
            engine.load(start.optimizer)
            schedule.load_state_dict(start.schedule)
            _set_random_state(start.random, devices)
        elif saving:
            saving.begin(mask, state)
        for step in range(len(losses) + 1, training.steps + 1):
            step_began = time.perf_counter()
            step_loss, step_tokens = _backward(model, list(islice(batches, training.accumulate)))
            (lr,) = schedule.get_last_lr()
            grad_norms.append(engine.step())
            schedule.step()
            losses.append(step_loss)
            tokens += step_tokens
            now = time.perf_counter()
            record = StepRecord(
                step=step,
                loss=step_loss,
                grad_norm=grad_norms[-1],
                lr=float(lr),
                tokens=step_tokens,
                seconds=now - step_began,
                memory=_peak_memory(devices),
            )
            for log in logs:
                log.write(record)
            speed = tokens / (before + now - started)
            detail = f"loss {step_loss:.4f}, {speed:.0f} tokens/s"
            progress.advance("train", step, total=training.steps, detail=detail)
            if saving:
                saving.after_step(step, state)
        visibility = engine.visibility()
    return TrainResult(
        mask=mask,
        visibility=visibility,
        losses=tuple(losses),
        grad_norms=tuple(grad_norms),
        samples=training.steps * training.accumulate * training.batch_size,
        tokens=tokens,
        seconds=before + time.perf_counter() - started,
        peak_memory=_peak_memory(),
    )


def choose_mask(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    selection: GallopConfig,
    training: TrainConfig,
    pad_id: int = 0,
    progress: TrainingProgress | None = None,
    memory: MemoryMode = "auto",
    memory_budget: int | None = None,
    on_plan: Callable[[MemoryPlan], None] | None = None,
) -> Mask:
    """Run the selection in eval mode over ``training.selection_samples`` of the samples.

    Args:
        model: The model, holding the pre-trained weights; left as it was.
        samples: Encoded training data.
        selection: How to choose.
        training: Its ``batch_size``, ``selection_samples`` and ``seed``.
        pad_id: Token id to pad with.
        progress: Hears about every batch, in every pass over them.
        memory: As of :func:`gallop.select`.
        memory_budget: As of :func:`gallop.select`.
        on_plan: As of :func:`gallop.select`.

    Returns:
        The mask.

    Raises:
        SelectionError: From :func:`gallop.select`, or there are no samples.
    """
    if not samples:
        raise SelectionError("selection: expected at least one sample, found none")
    progress = progress or NoProgress()
    seen = list(
        islice(
            sample_order(len(samples), training.seed),
            min(training.selection_samples, len(samples)),
        )
    )
    size = training.batch_size
    parts = [seen[start : start + size] for start in range(0, len(seen), size)]
    total = len(parts)

    def plan_made(plan: MemoryPlan) -> None:
        nonlocal total
        total = len(parts) * max(1, plan.passes)
        if on_plan:
            on_plan(plan)

    with computing(training.compute, model), _mode(model, training=False):
        return select(
            model,
            (make_batch([samples[i] for i in part], pad_id) for part in parts),
            selection,
            on_batch=lambda number, loss: progress.advance(
                "select", number, total=total, detail=f"loss {loss:.4f}"
            ),
            memory=memory,
            memory_budget=memory_budget,
            on_plan=plan_made,
        )


def _backward(model: nn.Module, micro_batches: Sequence[Batch]) -> tuple[float, int]:
    # Loss of a step, and the tokens that the model sees in it.
    supervised = [supervised_tokens(batch["labels"]) or 0 for batch in micro_batches]
    total_loss, tokens = 0.0, 0
    for batch, count in zip(micro_batches, supervised, strict=True):
        # The step's loss is the mean over all its tokens, however they fall into batches.
        loss = model_loss(model, batch) * (count / sum(supervised))
        loss.backward()  # type: ignore[no-untyped-call]
        total_loss += float(loss.detach())
        tokens += int(batch["attention_mask"].sum())
    return total_loss, tokens


def _batches(
    samples: Sequence[Sample], training: TrainConfig, *, pad_id: int, after: int
) -> Iterator[Batch]:
    seen = after * training.accumulate * training.batch_size
    order = islice(sample_order(len(samples), training.seed), seen, None)
    while True:
        yield make_batch([samples[i] for i in islice(order, training.batch_size)], pad_id)


def _random_state(devices: Sequence[int]) -> tuple[Tensor, ...]:
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices))


def _set_random_state(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    found = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode  # train() would overrule a submodule that the caller set apart


def _peak_memory(devices: Sequence[int] = ()) -> int:
    if devices:
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
