"""Choosing a mask: gradients, scores, exact top-k, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from gallop.collecting import Collected, Collector
from gallop.collectives import DataParallel, Peers, find_peers
from gallop.config import GallopConfig
from gallop.errors import ParameterError, SelectionError
from gallop.formulas import SELECTORS
from gallop.gradients import LossFunction, MeanGradient, mean_gradient
from gallop.mask import IndexArray, Mask
from gallop.mask_slices import counted_once, with_replicas
from gallop.memory import MemoryMode, MemoryPlan, plan_targets
from gallop.report import SelectionReport, TensorReport
from gallop.scores import score_of_key
from gallop.selectors import Selector
from gallop.survey import Survey, survey_weights
from gallop.targets import Target, eligible_targets
from gallop.topk import ALONE, Exchange

__all__ = ["choose_entries", "select"]

_log = logging.getLogger("gallop")

_NO_GRADIENT = MeanGradient(tensors={}, loss=None, samples=None, tokens=None, batches=0)


def select(
    model: nn.Module,
    batches: Iterable[Any] | None,
    config: GallopConfig,
    loss_fn: LossFunction | None = None,
    *,
    weigh: Callable[[Any], float] | None = None,
    on_batch: Callable[[int, float], None] | None = None,
    memory: MemoryMode = "auto",
    memory_budget: int | None = None,
    on_plan: Callable[[MemoryPlan], None] | None = None,
    data_parallel: DataParallel = None,
) -> Mask:
    """Choose the entries with the best score, by default ``|mean gradient| / (|weight| + eps)``.

    The choice is exact: ``config.budget(eligible)`` entries, all scores above the threshold and
    then those equal to it in (tensor, flat index) order. Entries whose score is 0 are never
    chosen; if fewer than the budget have a positive score the mask is smaller, which the report
    shows (``k < requested``) and the ``gallop`` logger warns about. Selectors that take the
    smallest scores first choose scores of 0 before all others. In ``"sampled_global"`` scope the
    threshold is an estimate, and the size of the mask is within the bounds of the report.

    The model is left as it was found: weights, buffers, ``requires_grad``, ``.grad``, mode. The
    mode during selection is the caller's: call ``model.eval()`` first for gradients without
    dropout. The global random state is not touched.

    Args:
        model: Any module, holding the pre-trained weights.
        batches: Any iterable of batches, consumed once; held in a list where they go through the
            model more than once. None will do for a selector that needs no gradient.
        config: How to choose.
        loss_fn: ``loss_fn(model, batch)`` returns the scalar mean loss over the batch;
            ``model(**batch).loss`` by default.
        weigh: ``weigh(batch)`` returns how much the batch counts in the mean; by default its
            number of samples or of supervised tokens, read off the batch (``gallop.weighing``);
            batches without a tensor count the same.
        on_batch: Called after each batch with a number, from 1, and its loss. The number goes on
            from pass to pass: the last is the number of batches times ``plan.passes``.
        memory: Where gradients are summed up: ``"resident"``, ``"offload"``, ``"grouped"`` or
            ``"auto"``; see :func:`gallop.memory.plan_memory`. The mask is the same.
        memory_budget: Bytes that this may take; half of the free memory if None.
        on_plan: Called with the estimates and the choice before the first batch.
        data_parallel: Whether processes that each hold the whole model, and have batches of their
            own, choose one mask together: all of them (True), those of a process group, or none
            (False). None is an error where there are several. A sharded model (``fully_shard``)
            needs no answer: its processes choose together.

    Returns:
        The mask, with ``config`` and ``report``. Of a sharded model each process has the entries
        that lie in its shards, by their flat indices in the whole parameters; together they are
        the mask of one process. The report is that of all of them.

    Raises:
        ConfigError: The selector, the allocation or the memory mode is unknown.
        SelectionError: Nothing is eligible, a loss, gradient or score is not finite (the message
            names the batch or tensor), or all scores are zero.
        ParameterError: An eligible parameter is of an unsupported kind, or some of them are
            sharded and others are not.
        RankError: Another process failed, or ended.
    """
    started = time.perf_counter()
    SELECTORS.find(config.selector)
    peers = find_peers(model, data_parallel)
    targets = eligible_targets(model, config)
    sharded = _require_alike(targets)
    exchange = ALONE
    if peers is not None and sharded:
        exchange = Exchange(total=peers.total, largest=peers.largest)
    plan = plan_targets(
        targets,
        config,
        memory=memory,
        memory_budget=memory_budget,
        exchange=ALONE if peers is None else Exchange(largest=peers.largest),
    )
    if on_plan:
        on_plan(plan)
    indices, report = choose_entries(
        model,
        counted_once(targets),
        batches=batches,
        config=config,
        plan=plan,
        loss_fn=loss_fn,
        weigh=weigh,
        on_batch=on_batch,
        exchange=exchange,
        peers=peers,
        started=started,
    )
    if peers is not None and sharded:
        indices = with_replicas(targets, indices, peers)
    mask = Mask(
        indices,
        {target.name: tuple(target.parameter.shape) for target in targets},
        config=config,
        report=report,
    )
    if peers is not None and not sharded:
        _require_one_choice(mask, peers)
    return mask


def _require_alike(targets: Sequence[Target]) -> bool:
    # Whether targets are sharded: all of them, or none.
    plain = [target.name for target in targets if target.shard is None]
    if plain and len(plain) < len(targets):
        raise ParameterError(
            f"parameter {plain[0]}: expected a shard, as of the {len(targets) - len(plain)} other "
            "eligible parameters, found a plain tensor, whose gradients nobody averages",
            hint="shard the whole model, fully_shard(model) after its blocks, or exclude it",
        )
    return not plain


def _require_one_choice(mask: Mask, peers: Peers) -> None:
    digests = peers.gather(mask.digest)
    if len(set(digests)) > 1:
        raise SelectionError(
            f"selection: expected one mask on all ranks, found {len(set(digests))} different ones",
            hint="load the same weights on every rank; what a sum over ranks gives must not "
            "depend on the rank",
        )


def choose_entries(
    model: nn.Module,
    targets: Sequence[Target],
    *,
    batches: Iterable[Any] | None,
    config: GallopConfig,
    plan: MemoryPlan,
    loss_fn: LossFunction | None = None,
    weigh: Callable[[Any], float] | None = None,
    on_batch: Callable[[int, float], None] | None = None,
    exchange: Exchange = ALONE,
    peers: Peers | None = None,
    started: float | None = None,
) -> tuple[dict[str, IndexArray], SelectionReport]:
    """Choose entries of given targets, which may be shards; :func:`select` is this and a mask.

    Args:
        model: As in :func:`select`.
        targets: What to choose from, in the order of the model; on every rank the same.
        batches: As in :func:`select`.
        config: As in :func:`select`.
        plan: Where gradients are summed up; on every rank the same.
        loss_fn: As in :func:`select`.
        weigh: As in :func:`select`.
        on_batch: As in :func:`select`.
        exchange: How ranks that hold shards of the targets tell each other their counts.
        peers: The ranks whose batches count in one mean.
        started: When the selection began, by ``time.perf_counter``.

    Returns:
        Per target the sorted flat indices, in the whole parameter, of the entries chosen of what
        this process holds, and the report, which is that of all ranks.

    Raises:
        GallopError: As in :func:`select`.
    """
    started = time.perf_counter() if started is None else started
    selector = SELECTORS.find(config.selector)
    with torch.no_grad():
        survey = survey_weights(targets, config, exchange)
    collector = Collector(targets, config, selector=selector, survey=survey, exchange=exchange)
    gradient = _NO_GRADIENT
    if not plan.groups:
        with torch.no_grad():
            collector.add({}, [target.name for target in targets], last=True)
    else:
        batches = () if batches is None else batches
        if plan.passes > 1:
            # Nothing is drawn that the selector does not need.
            batches = list(islice(batches, 1 if selector.gradient == "first_batch" else None))
        by_name = {target.name: target for target in targets}
        for number, group in enumerate(plan.groups):
            gradient = mean_gradient(
                model,
                [by_name[name] for name in group],
                batches=batches,
                config=config,
                loss_fn=loss_fn,
                weigh=weigh,
                on_batch=_numbered(on_batch, after=number * gradient.batches),
                statistic=selector.gradient,
                on_host=plan.mode == "offload",
                partial=plan.passes > 1,
                peers=peers,
            )
            with torch.no_grad():
                collector.add(gradient.tensors, group, last=number + 1 == plan.passes)
            gradient = replace(gradient, tensors={})  # before the next group's are made
    if peers is not None:
        gradient = replace(gradient, batches=gradient.batches * peers.size)
    _warn_of_squares(selector, gradient)
    with torch.no_grad():
        found = collector.finish()
    report = _report(
        targets,
        config,
        selector=selector,
        survey=survey,
        found=found,
        gradient=gradient,
        memory=plan.mode,
        seconds=time.perf_counter() - started,
    )
    _judge(report, config)
    shards = {target.name: target.shard for target in targets}
    indices = {
        name: positions if (shard := shards[name]) is None else shard.flat(positions)
        for name, positions in found.ranked.indices.items()
    }
    return indices, report


def _numbered(
    on_batch: Callable[[int, float], None] | None, *, after: int
) -> Callable[[int, float], None] | None:
    return (lambda number, loss: on_batch(after + number, loss)) if on_batch else None


def _warn_of_squares(selector: Selector, gradient: MeanGradient) -> None:
    samples, batches = gradient.samples, gradient.batches
    if selector.gradient == "mean_square" and samples is not None and samples > batches:
        _log.warning(
            "selector %s takes the squares of the gradients of %d batches that hold %d samples; "
            "squares of samples need batches of one sample",
            selector.name,
            batches,
            samples,
        )


def _judge(report: SelectionReport, config: GallopConfig) -> None:
    if report.k == 0:
        raise SelectionError(
            f"selection: expected positive scores, found none among {report.eligible} eligible "
            f"parameters in {report.batches} batches",
            hint="check that the loss depends on the eligible parameters, and their zeros",
        )
    # With a threshold for the weights, the density is an outcome; with a sample, an estimate.
    outcome = config.weight_threshold is not None or config.threshold_scope == "sampled_global"
    if report.k < report.requested and not outcome:
        _log.warning(
            "density %g asks for %d entries, but only %d have a positive score",
            config.density,
            report.requested,
            report.k,
        )


def _report(
    targets: Sequence[Target],
    config: GallopConfig,
    *,
    selector: Selector,
    survey: Survey,
    found: Collected,
    gradient: MeanGradient,
    memory: str,
    seconds: float,
) -> SelectionReport:
    def score_of(key: float | None) -> float | None:
        return None if key is None else score_of_key(selector, key)

    ranked = found.ranked
    rows = {
        target.name: TensorReport(
            eligible=target.size,
            zeros=zeros,
            chosen=found.chosen[target.name],
            threshold=score_of(ranked.thresholds.get(target.name)),
            kind=target.kind,
        )
        for target, zeros in zip(targets, survey.zeros, strict=True)
    }
    return SelectionReport(
        k=ranked.count,
        requested=survey.requested,
        eligible=survey.eligible,
        zeros=sum(survey.zeros),
        zeros_excluded=sum(survey.zeros) if config.exclude_zeros else 0,
        zero_share=found.zero_share,
        threshold=score_of(ranked.threshold),
        ties=ranked.ties,
        ties_taken=ranked.ties_taken,
        tensors=rows,
        samples=gradient.samples,
        tokens=gradient.tokens,
        batches=gradient.batches,
        loss=gradient.loss,
        overlap=found.overlap,
        histogram=found.histogram,
        sampling=found.sampling,
        seconds=seconds,
        memory=memory,
    )
