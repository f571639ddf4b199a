"""Sparse fine-tuning of a causal language model, from the first gradient to the last step.

The loop is meant to be read from top to bottom. Anything it does can be written by hand with
:func:`gallop.select` and :class:`gallop.SparseAdamW`.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from gallop.config import GallopConfig
from gallop.data import Batch, Sample, make_batch, sample_order
from gallop.errors import ConfigError, SelectionError
from gallop.gradients import model_loss
from gallop.mask import Mask
from gallop.optim import SparseAdamW, WeightDecayMode, check_hyperparameters
from gallop.progress import NoProgress, TrainingProgress
from gallop.selection import select
from gallop.weighing import supervised_tokens

__all__ = ["TrainConfig", "TrainResult", "choose_mask", "finetune", "lr_factor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a mask is trained.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate.
        batch_size: Samples per backward pass.
        accumulate: Backward passes per step.
        warmup: Share of the steps over which the learning rate rises; see :func:`lr_factor`.
        betas: As in AdamW.
        eps: As in AdamW.
        weight_decay: As in :class:`gallop.SparseAdamW`.
        weight_decay_mode: As in :class:`gallop.SparseAdamW`.
        max_grad_norm: Clip the gradient of the chosen entries to this norm, or None.
        max_length: Tokens per sample.
        selection_samples: How many samples the selection sees.
        seed: Seeds the order of the data, which samples the selection sees, and dropout.

    Raises:
        ConfigError: A value is out of range.
    """

    steps: int
    lr: float = 2e-4
    batch_size: int = 8
    accumulate: int = 1
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_mode: WeightDecayMode = "weight"
    max_grad_norm: float | None = 1.0
    max_length: int = 512
    selection_samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "accumulate", "max_length", "selection_samples"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: expected at least 1, found {getattr(self, field)}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected an integer >= 0, found {self.seed}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup: expected a share in [0, 1], found {self.warmup}")
        # Here as well as in the optimizer, which is made only after the selection has run.
        check_hyperparameters(
            self.lr,
            self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            weight_decay_mode=self.weight_decay_mode,
            max_grad_norm=self.max_grad_norm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run did.

    Attributes:
        mask: What was trained.
        losses: Mean loss per supervised token, of each step.
        grad_norms: 2-norm of the chosen entries' gradient before clipping, of each step.
        samples: Training samples seen, repeats included.
        tokens: Tokens seen by the model in training, padding excluded.
        seconds: Wall-clock time of the steps, selection excluded.
        peak_memory: Largest resident size of the process so far, in bytes.
    """

    mask: Mask
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

    Returns:
        What was done.

    Raises:
        ConfigError: Neither ``selection`` nor ``mask`` is given.
        GallopError: From the selection or the optimizer.
    """
    progress = progress or NoProgress()
    if mask is None:
        if selection is None:
            raise ConfigError("finetune: expected selection settings or a mask, found neither")
        mask = choose_mask(
            model, samples, selection=selection, training=training, pad_id=pad_id, progress=progress
        )
    optimizer = SparseAdamW(
        model,
        mask,
        lr=training.lr,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        weight_decay_mode=training.weight_decay_mode,
        max_grad_norm=training.max_grad_norm,
    )
    schedule = LambdaLR(optimizer, lambda step: lr_factor(step, training))
    batches = _batches(samples, training, pad_id=pad_id)
    losses: list[float] = []
    grad_norms: list[float] = []
    tokens = 0
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    started = time.perf_counter()
    with optimizer, _mode(model, training=True), torch.random.fork_rng(devices=devices):
        torch.manual_seed(training.seed)
        for step in range(1, training.steps + 1):
            micro_batches = list(islice(batches, training.accumulate))
            supervised = [supervised_tokens(batch["labels"]) or 0 for batch in micro_batches]
            step_loss = 0.0
            for batch, count in zip(micro_batches, supervised, strict=True):
                # The step's loss is the mean over all its tokens, however they fall into batches.
                loss = model_loss(model, batch) * (count / sum(supervised))
                loss.backward()  # type: ignore[no-untyped-call]
                step_loss += float(loss.detach())
                tokens += int(batch["attention_mask"].sum())
            optimizer.step()
            schedule.step()
            losses.append(step_loss)
            grad_norms.append(optimizer.last_grad_norm or 0.0)
            progress.advance(
                "train",
                step,
                total=training.steps,
                detail=f"loss {step_loss:.4f}, "
                f"{tokens / (time.perf_counter() - started):.0f} tokens/s",
            )
    return TrainResult(
        mask=mask,
        losses=tuple(losses),
        grad_norms=tuple(grad_norms),
        samples=training.steps * training.accumulate * training.batch_size,
        tokens=tokens,
        seconds=time.perf_counter() - started,
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
) -> Mask:
    """Run the selection in eval mode over ``training.selection_samples`` of the samples.

    Args:
        model: The model, holding the pre-trained weights; left as it was.
        samples: Encoded training data.
        selection: How to choose.
        training: Its ``batch_size``, ``selection_samples`` and ``seed``.
        pad_id: Token id to pad with.
        progress: Hears about every batch.

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
    with _mode(model, training=False):
        return select(
            model,
            (make_batch([samples[i] for i in part], pad_id) for part in parts),
            selection,
            on_batch=lambda number, loss: progress.advance(
                "select", number, total=len(parts), detail=f"loss {loss:.4f}"
            ),
        )


def lr_factor(step: int, training: TrainConfig) -> float:
    """Return the share of the peak learning rate: linear warm-up, then linear decay.

    With ``w = round(warmup * steps)``, step ``s`` (from 0) has ``(s + 1) / (w + 1)`` while
    ``s < w`` and ``(steps - s) / (steps - w)`` after: no step is wasted at rate 0.

    Args:
        step: Steps taken.
        training: Its ``steps`` and ``warmup``.

    Returns:
        A factor in [0, 1].
    """
    warmup = round(training.warmup * training.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (training.steps - step) / max(1, training.steps - warmup))


def settings(training: TrainConfig) -> dict[str, Any]:
    """Return the training settings as JSON-ready values."""
    return dataclasses.asdict(training) | {"betas": list(training.betas)}


def _batches(samples: Sequence[Sample], training: TrainConfig, *, pad_id: int) -> Iterator[Batch]:
    order = sample_order(len(samples), training.seed)
    while True:
        yield make_batch([samples[i] for i in islice(order, training.batch_size)], pad_id)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    found = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode  # train() would overrule a submodule that the caller set apart


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
