"""Choosing a mask: gradients, scores, exact top-k, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gallop.config import GallopConfig
from gallop.errors import SelectionError
from gallop.gradients import LossFunction, MeanGradient, mean_gradient
from gallop.mask import Mask
from gallop.report import SelectionReport, TensorReport
from gallop.scores import ScoredTensor, ZeroScores
from gallop.targets import Target, eligible_targets
from gallop.topk import Choice, top_k

__all__ = ["select"]

_log = logging.getLogger("gallop")


def select(
    model: nn.Module,
    batches: Iterable[Any],
    config: GallopConfig,
    loss_fn: LossFunction | None = None,
    *,
    weigh: Callable[[Any], float] | None = None,
    on_batch: Callable[[int, float], None] | None = None,
) -> Mask:
    """Choose the entries with the largest ``|mean gradient| / (|weight| + eps)``.

    The choice is exact: ``config.budget(eligible)`` entries, all scores above the threshold and
    then those equal to it in (tensor, flat index) order. Entries whose score is 0 are never
    chosen; if fewer than the budget have a positive score the mask is smaller, which the report
    shows (``k < requested``) and the ``gallop`` logger warns about.

    The model is left as it was found: weights, buffers, ``requires_grad``, ``.grad``, mode. The
    mode during selection is the caller's: call ``model.eval()`` first for gradients without
    dropout. The global random state is not touched.

    Args:
        model: Any module, holding the pre-trained weights.
        batches: Any iterable of batches, consumed once.
        config: How to choose.
        loss_fn: ``loss_fn(model, batch)`` returns the scalar mean loss over the batch;
            ``model(**batch).loss`` by default.
        weigh: ``weigh(batch)`` returns how much the batch counts in the mean; by default its
            number of samples or of supervised tokens, read off the batch (``gallop.weighing``);
            batches without a tensor count the same.
        on_batch: Called after each batch with its number, from 1, and its loss.

    Returns:
        The mask, with ``config`` and ``report``.

    Raises:
        SelectionError: Nothing is eligible, a loss, gradient or score is not finite (the message
            names the batch or tensor), or all scores are zero.
        ParameterError: An eligible parameter is of an unsupported kind.
    """
    started = time.perf_counter()
    targets = eligible_targets(model, config)
    gradient = mean_gradient(
        model,
        targets,
        batches=batches,
        config=config,
        loss_fn=loss_fn,
        weigh=weigh,
        on_batch=on_batch,
    )
    with torch.no_grad():
        tensors = [_scored(target, gradient, config.eps) for target in targets]
        choices = _choose(
            tensors, config, zeros="exclude" if config.exclude_zeros else "require_finite"
        )
        zeros = [tensor.zeros() for tensor in tensors]
        zero_share = _zero_share(tensors, config, choices=choices, zeros=sum(zeros))
    indices = _per_tensor(choices)
    report = _report(
        tensors,
        config,
        choices=choices,
        zeros=zeros,
        zero_share=zero_share,
        gradient=gradient,
        started=started,
    )
    if report.k == 0:
        raise SelectionError(
            f"selection: expected positive scores, found none among {report.eligible} eligible "
            f"parameters in {report.batches} batches",
            hint="check that the loss depends on the eligible parameters, and their zeros",
        )
    if report.k < report.requested:
        _log.warning(
            "density %g asks for %d entries, but only %d have a positive score",
            config.density,
            report.requested,
            report.k,
        )
    return Mask(
        {tensor.name: found for tensor, found in zip(tensors, indices, strict=True)},
        {target.name: tuple(target.parameter.shape) for target in targets},
        config=config,
        report=report,
    )


def _scored(target: Target, gradient: MeanGradient, eps: float) -> ScoredTensor:
    mean = gradient.tensors.get(target.name)
    weight = target.parameter.detach().view(-1)
    return ScoredTensor(target.name, weight, None if mean is None else mean.view(-1), eps)


def _choose(
    tensors: Sequence[ScoredTensor], config: GallopConfig, *, zeros: ZeroScores
) -> tuple[Choice, ...]:
    # One ranking over all tensors, or one for each of them.
    sources = [partial(tensor.chunks, zeros=zeros) for tensor in tensors]
    sizes = [tensor.weight.numel() for tensor in tensors]
    if config.threshold_scope == "global":
        return (top_k(sources, config.budget(sum(sizes))),)
    return tuple(
        top_k([source], config.budget(size)) for source, size in zip(sources, sizes, strict=True)
    )


def _per_tensor(choices: Iterable[Choice]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [found for choice in choices for found in choice.indices]


def _zero_share(
    tensors: Sequence[ScoredTensor],
    config: GallopConfig,
    *,
    choices: Sequence[Choice],
    zeros: int,
) -> float:
    if zeros == 0:
        return 0.0
    if config.exclude_zeros:
        choices = _choose(tensors, config, zeros="saturate")
    taken = sum(
        len(found) - int(torch.count_nonzero(tensor.weight[torch.from_numpy(found)]))
        for tensor, found in zip(tensors, _per_tensor(choices), strict=True)
    )
    chosen = sum(choice.count for choice in choices)
    return taken / chosen if chosen else 0.0


def _report(
    tensors: Sequence[ScoredTensor],
    config: GallopConfig,
    *,
    choices: Sequence[Choice],
    zeros: Sequence[int],
    zero_share: float,
    gradient: MeanGradient,
    started: float,
) -> SelectionReport:
    per_tensor = config.threshold_scope == "per_tensor"
    sizes = [tensor.weight.numel() for tensor in tensors]
    requested = (
        sum(config.budget(size) for size in sizes) if per_tensor else config.budget(sum(sizes))
    )
    rows = {
        tensor.name: TensorReport(
            eligible=size,
            zeros=zero,
            chosen=len(found),
            threshold=choices[position].threshold if per_tensor else None,
        )
        for position, (tensor, size, zero, found) in enumerate(
            zip(tensors, sizes, zeros, _per_tensor(choices), strict=True)
        )
    }
    return SelectionReport(
        k=sum(choice.count for choice in choices),
        requested=requested,
        eligible=sum(sizes),
        zeros=sum(zeros),
        zeros_excluded=sum(zeros) if config.exclude_zeros else 0,
        zero_share=zero_share,
        threshold=None if per_tensor else choices[0].threshold,
        ties=sum(choice.ties for choice in choices),
        ties_taken=sum(choice.ties_taken for choice in choices),
        tensors=rows,
        samples=gradient.samples,
        tokens=gradient.tokens,
        batches=gradient.batches,
        loss=gradient.loss,
        seconds=time.perf_counter() - started,
    )
