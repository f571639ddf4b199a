r"""What a selector needs of the loss gradients at the pre-trained weights: by default their mean.

GaLLoP (arXiv 2510.19778, section 3) scores with

.. math:: g = \frac{1}{n} \sum_{i=1}^{n} \nabla_\theta L(x_i; \theta_0)

over ``n`` selection samples; the absolute value is taken after averaging. A loss function returns
the mean over *its* batch, so batches of unequal size must weigh differently:
``g = sum_b(w_b * grad L_b) / sum_b(w_b)``.

- ``"sample"``: ``w_b`` is the number of samples. This is the formula above if the loss is a mean
  over samples. The loss of a causal language model is a mean over the *tokens* of the batch, so
  inside a batch long samples still count for more; with one sample per batch it is exact. Batches
  that are no tensors, and hold none, count the same: as many samples as a loss function makes of
  them. They do not mix with batches whose samples can be counted.
- ``"token"``: ``w_b`` is the number of supervised tokens: every token of the set counts the same,
  however the set is cut into batches.

Other selectors need the mean of ``(grad L_b)^2`` with the same weights, or the first batch alone.
The squares are those of batches: they are those of samples if every batch holds one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gallop.accumulators import Accumulators
from gallop.collectives import Peers
from gallop.config import GallopConfig
from gallop.errors import SelectionError
from gallop.rank_batches import RankBatches
from gallop.selectors import GradientStatistic
from gallop.taps import GradientTap
from gallop.targets import Target
from gallop.weighing import BatchSize, measure_batch

__all__ = ["LossFunction", "MeanGradient", "mean_gradient", "model_loss"]

LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class MeanGradient:
    """A mean of gradients, or of their squares, and what it was taken over.

    Attributes:
        tensors: Per target name a flat float32 tensor of the entries that this process holds,
            beside the weights or on the host; a parameter that no loss depends on is missing and
            counts as zero.
        loss: Mean loss, with the same weights; None if there was nothing to differentiate.
        samples: Number of samples, None if some batch did not tell.
        tokens: Number of supervised tokens, None if some batch did not tell.
        batches: Number of batches, of this process.
    """

    tensors: Mapping[str, Tensor]
    loss: float | None
    samples: int | None
    tokens: int | None
    batches: int


def model_loss(model: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401  (a batch is what the model takes)
    """Return ``model(**batch).loss``, the batch moved to the model's device.

    Args:
        model: A module in the manner of transformers.
        batch: Keyword arguments of its forward, labels included.

    Returns:
        Scalar loss.

    Raises:
        SelectionError: The batch is no mapping, or the model returned no loss.
    """
    if not isinstance(batch, Mapping):
        raise SelectionError(
            f"batch: expected a mapping of the model's keyword arguments, "
            f"found {type(batch).__name__}",
            hint="pass loss_fn=lambda model, batch: ... for other kinds of batches",
        )
    device = next(model.parameters()).device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    loss = getattr(model(**moved), "loss", None)
    if not isinstance(loss, Tensor):
        raise SelectionError(
            f"{type(model).__name__}: expected an output with a loss, found none for a batch of "
            f"{sorted(map(str, batch))}",
            hint="add labels to the batch, or pass loss_fn=lambda model, batch: ...",
        )
    return loss


def mean_gradient(
    model: nn.Module,
    targets: Sequence[Target],
    *,
    batches: Iterable[Any],
    config: GallopConfig,
    loss_fn: LossFunction | None = None,
    weigh: Callable[[Any], float] | None = None,
    on_batch: Callable[[int, float], None] | None = None,
    statistic: GradientStatistic = "mean",
    on_host: bool = False,
    partial: bool = False,
    peers: Peers | None = None,
) -> MeanGradient:
    """Average the gradient over batches, leaving the model as it was found.

    The mode (train or eval) is the caller's; buffers that the forward pass writes, such as
    BatchNorm's, are put back; random numbers come from ``config.seed``, and the caller's
    generators are not advanced. Peak memory above the weights is one float32 copy of the targets
    and one gradient. Batch ``n`` has the same random numbers in every call.

    Args:
        model: Any module, holding the pre-trained weights.
        targets: Parameters to differentiate.
        batches: Any iterable of batches.
        config: Its ``gradient_mean`` and ``seed``.
        loss_fn: Returns the scalar mean loss over a batch; :func:`model_loss` by default.
        weigh: Returns the weight of a batch, instead of :func:`measure_batch`.
        on_batch: Called after each batch with its number, from 1, and its loss.
        statistic: What to average: gradients, their squares, or the first gradient alone.
        on_host: Whether the float32 sums lie in host memory.
        partial: Whether the targets are some of many, so that a loss may not depend on any.
        peers: Processes that each draw batches of their own, and all get the mean over all of
            them; of sharded targets, each its shards.

    Returns:
        The mean, in float32.

    Raises:
        SelectionError: There is no batch, a weight cannot be told, or a loss or a gradient is not
            finite; the message names the batch or the tensor.
        RankError: That is so on another process.
    """
    loss_of = loss_fn or model_loss
    if statistic == "first_batch":
        batches = islice(batches, 1)
    sums = Accumulators(targets, statistic=statistic, on_host=on_host)
    sizes: list[BatchSize] = []
    sharded = any(target.shard is not None for target in targets)
    counted = RankBatches(peers, sharded=sharded)
    with ExitStack() as stack:
        stack.enter_context(_buffers_restored(model))
        stack.enter_context(GradientTap(model, sums.receivers()))
        stack.enter_context(_checkpoints_fed(model))
        stack.enter_context(torch.enable_grad())
        for number, batch in counted.drawn(batches):
            with counted.alike():
                size = measure_batch(batch)
                weight = (
                    weigh(batch) if weigh else _weight([*sizes[:1], size], config, number=number)
                )
                if not 0 < weight < math.inf:
                    raise SelectionError(
                        f"selection batch {number}: expected a positive {config.gradient_mean} "
                        f"count, found {weight}"
                    )
            factor = counted.count(weight)
            sums.start_batch(counted.share)
            with _seeded(model, config.seed, number=counted.place(number)):
                loss = loss_of(model, batch)
                with counted.alike():
                    value = _finite_loss(loss, number, partial=partial)
                if loss.requires_grad:
                    (loss if factor == 1 else loss * factor).backward()  # type: ignore[no-untyped-call]
            sizes.append(size)
            counted.add_loss(value)
            if on_batch:
                on_batch(number, value)
    if not sizes:
        raise SelectionError("selection: expected at least one batch, found none")
    if peers is not None and not sharded:
        sums.add_up(peers)
    with counted.alike():
        tensors = sums.finish(counted.total)
    return MeanGradient(
        tensors=tensors,
        loss=counted.mean_loss(),
        samples=counted.sum_of(_sum(size.samples for size in sizes)),
        tokens=counted.sum_of(_sum(size.tokens for size in sizes)),
        batches=len(sizes),
    )


_WEIGH = "pass weigh=lambda batch: ... to select(), which returns the weight of a batch"


def _weight(first_and_last: Sequence[BatchSize], config: GallopConfig, *, number: int) -> float:
    size = first_and_last[-1]
    if config.gradient_mean == "sample":
        if (size.samples is None) != (first_and_last[0].samples is None):
            raise SelectionError(
                f"selection batch {number}: expected batches whose samples can all be counted, or "
                "none of them, found both kinds",
                hint=_WEIGH,
            )
        return 1 if size.samples is None else size.samples
    if size.tokens is None:
        raise SelectionError(
            f"selection batch {number}: expected integer labels, to count the supervised tokens, "
            "found none",
            hint=_WEIGH,
        )
    return size.tokens


def _finite_loss(loss: object, number: int, *, partial: bool) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise SelectionError(
            f"selection batch {number}: expected a scalar loss tensor, found {found}"
        )
    if not loss.requires_grad and not partial:
        raise SelectionError(
            f"selection batch {number}: expected a loss that depends on the eligible parameters, "
            "found one without a gradient"
        )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise SelectionError(
            f"selection batch {number}: expected a finite loss, found {value}",
            hint="a batch whose labels are all ignored (-100) has no loss: leave it out",
        )
    return value


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


@contextmanager
def _seeded(model: nn.Module, seed: int, *, number: int) -> Iterator[None]:
    # Only the forward and backward run under our seed: the batches are drawn outside, so that a
    # shuffling loader keeps using, and advancing, its owner's generator.
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        batch_seed = (seed * 1_000_003 + number) % 2**63
        torch.default_generator.manual_seed(batch_seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(batch_seed)
        yield


@contextmanager
def _checkpoints_fed(model: nn.Module) -> Iterator[None]:
    # A reentrant checkpoint whose inputs need no gradient gives its parameters none, silently. It
    # is so where the embeddings are not among the targets: their outputs then ask for one.
    handles = []
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        handles = [
            module.register_forward_hook(_ask_for_gradient)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ask_for_gradient(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    del module, inputs
    # Not a leaf, which a model could not change in place.
    return output if output.requires_grad else output.requires_grad_().clone()


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    found = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in found:
                module._buffers[name] = buffer  # noqa: SLF001  (a forward may rebind a buffer)
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
