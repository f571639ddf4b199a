"""Where a selection sums up gradients: what each way needs, what is free, and the choice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from gallop.config import GallopConfig
from gallop.errors import ConfigError
from gallop.formulas import SELECTORS
from gallop.free_memory import device_free, host_free
from gallop.registry import unknown_name
from gallop.targets import Target, eligible_targets
from gallop.topk import ALONE, Exchange

__all__ = ["MemoryMode", "MemoryPlan", "ModeEstimate", "plan_memory", "plan_targets"]

MemoryMode = Literal["auto", "resident", "offload", "grouped"]

_SHARE = 0.5
"""The share of the free memory that a selection may take; the rest is for activations."""

_ACCUMULATOR = 4  # bytes of a float32
_CHOSEN = 40  # bytes per chosen entry: its index in the mask and in the sets compared with it
_CHOSEN_IN_GROUPS = 64  # and its keys, while two sets of candidates are merged


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeEstimate:
    """What one way of summing up the gradients needs, above the weights and the activations.

    Attributes:
        mode: ``"resident"``: float32 sums beside the weights. ``"offload"``: float32 sums in host
            memory. ``"grouped"``: sums of a group of tensors at a time, in as many passes over
            the batches as there are groups.
        device_bytes: On accelerators, in bytes; 0 if the weights are on the host.
        host_bytes: In host memory, in bytes.
        passes: How often each batch goes through the model.
        fits: Whether half of the free memory, or the budget that was given, is enough.
    """

    mode: str
    device_bytes: int
    host_bytes: int
    passes: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The choice among them.

    Attributes:
        mode: What is going to be done.
        requested: What was asked for.
        estimates: What each mode needs; the plan's own mode among them.
        device: Where the weights are, such as ``"cpu"`` or ``"cuda:0"``.
        device_free: Free bytes there; None if it cannot be told.
        device_source: Where that number comes from.
        host_free: Free bytes of the host; None if it cannot be told.
        host_source: Where that number comes from.
        eligible: Number of eligible entries that this process holds.
        groups: Names of the tensors of each pass, in the order of the model; none if the selector
            needs no gradient.
    """

    mode: str
    requested: str
    estimates: tuple[ModeEstimate, ...]
    device: str
    device_free: int | None
    device_source: str
    host_free: int | None
    host_source: str
    eligible: int
    groups: tuple[tuple[str, ...], ...]

    @property
    def passes(self) -> int:
        """How often each batch goes through the model."""
        return len(self.groups)

    def lines(self) -> list[str]:
        """Return the plan as lines of plain text, for a terminal or a log."""
        if not self.groups:
            return ["selection memory: none, the selector needs no gradient"]
        free = f"{_gib(self.host_free)} GiB of the host free ({self.host_source})"
        if self.device != "cpu":
            free = f"{_gib(self.device_free)} GiB of {self.device} ({self.device_source}), {free}"
        asked = "" if self.requested == self.mode else f", {self.requested} was asked for"
        found = [f"selection memory: {self.mode}{asked}; {free}"]
        for each in self.estimates:
            on_device = "" if self.device == "cpu" else f"{_gib(each.device_bytes)} GiB device, "
            passes = f"{each.passes} pass{'' if each.passes == 1 else 'es'}"
            found.append(
                f"  {each.mode:<9}{on_device}{_gib(each.host_bytes)} GiB host, {passes}"
                f"{'' if each.fits else ', too large'}"
            )
        return found


def plan_memory(
    model: nn.Module,
    config: GallopConfig,
    *,
    memory: MemoryMode = "auto",
    memory_budget: int | None = None,
) -> MemoryPlan:
    """Estimate what a selection would need in each mode, and choose one; nothing is run.

    Args:
        model: The model, holding the pre-trained weights.
        config: How a mask would be chosen.
        memory: A mode, or ``"auto"``: resident sums if they fit, else sums on the host if there
            is an accelerator and they fit there, else groups. All of them give the same mask.
        memory_budget: Bytes that the selection may take where the weights are, and that a group
            is made to fit in; half of the free memory if None.

    Returns:
        The plan.

    Raises:
        ConfigError: The mode is unknown, or the budget is not positive.
        SelectionError: Nothing is eligible.
        ParameterError: An eligible parameter is of an unsupported kind.
    """
    return plan_targets(
        eligible_targets(model, config), config, memory=memory, memory_budget=memory_budget
    )


def plan_targets(
    targets: Sequence[Target],
    config: GallopConfig,
    *,
    memory: MemoryMode = "auto",
    memory_budget: int | None = None,
    exchange: Exchange = ALONE,
) -> MemoryPlan:
    """Plan for given targets; see :func:`plan_memory`.

    Args:
        targets: What the selection may choose from.
        config: How a mask would be chosen.
        memory: As there.
        memory_budget: As there.
        exchange: Makes all ranks choose alike: by the largest need and the least free memory.

    Returns:
        The plan.

    Raises:
        ConfigError: As there.
    """
    if memory not in get_args(MemoryMode):
        raise unknown_name("memory", memory, dict.fromkeys(get_args(MemoryMode)))
    if memory_budget is not None and memory_budget <= 0:
        raise ConfigError(f"memory_budget: expected a number of bytes > 0, found {memory_budget}")
    held = _agreed([target.held for target in targets], exchange)
    free = _Free(targets, exchange, memory_budget)
    needs_gradient = SELECTORS.find(config.selector).gradient != "none"
    chosen = config.budget(sum(target.size for target in targets))
    room = free.limit(free.device) - _largest_gradient(targets, held)
    if free.device == "cpu":
        room -= _CHOSEN_IN_GROUPS * chosen
    groups = _groups(targets, held, limit=room)
    everything = (tuple(target.name for target in targets),)
    largest: dict[str, tuple[tuple[str, ...], ...]] = {"resident": everything, "grouped": groups}
    estimates = []
    for mode in ("resident", "offload", "grouped"):
        parts = largest.get(mode, everything) if needs_gradient else ()
        needs = _needs(targets, held, parts=parts, on_host=mode == "offload")
        per_entry = _CHOSEN_IN_GROUPS if len(parts) > 1 else _CHOSEN
        needs["cpu"] = needs.get("cpu", 0) + per_entry * chosen
        estimates.append(
            ModeEstimate(
                mode=mode,
                device_bytes=sum(size for device, size in needs.items() if device != "cpu"),
                host_bytes=needs["cpu"],
                passes=len(parts),
                fits=all(size <= free.limit(device) for device, size in needs.items()),
            )
        )
    mode = memory if memory != "auto" else _choose(estimates, accelerated=free.device != "cpu")
    return MemoryPlan(
        mode=mode,
        requested=memory,
        estimates=tuple(estimates),
        device=free.device,
        device_free=free.bytes.get(free.device),
        device_source=free.sources[free.device],
        host_free=free.bytes.get("cpu"),
        host_source=free.sources["cpu"],
        eligible=sum(held),
        groups=largest.get(mode, everything) if needs_gradient else (),
    )


class _Free:
    """What is free on each device that holds weights, and on the host."""

    def __init__(self, targets: Sequence[Target], exchange: Exchange, budget: int | None) -> None:
        held: Mapping[str, int] = _sums((str(t.weight.device), t.held) for t in targets)
        self.device = max(held, key=lambda device: (device != "cpu", held[device]))
        self.sources: dict[str, str] = {}
        self.bytes: dict[str, int | None] = {}
        self._budget = budget
        for device in sorted({*held, "cpu"}):
            found, source = host_free() if device == "cpu" else device_free(torch.device(device))
            least = -exchange.largest(np.array([-math.inf if found is None else -found]))[0]
            self.bytes[device] = None if math.isinf(least) else int(least)
            self.sources[device] = source

    def limit(self, device: str) -> float:
        """Return how many bytes may be taken of a device."""
        if self._budget is not None and device == self.device:
            return self._budget
        found = self.bytes[device]
        return math.inf if found is None else found * _SHARE


def _choose(estimates: Sequence[ModeEstimate], *, accelerated: bool) -> str:
    resident, offload, _ = estimates
    if resident.fits:
        return "resident"
    return "offload" if accelerated and offload.fits else "grouped"


def _groups(
    targets: Sequence[Target], held: Sequence[int], *, limit: float
) -> tuple[tuple[str, ...], ...]:
    # Neighbours in the model's order, as many as fit; a tensor that does not fit is alone.
    groups: list[list[str]] = []
    size = 0
    for target, entries in zip(targets, held, strict=True):
        needed = entries * _ACCUMULATOR
        if not groups or size + needed > limit:
            groups.append([])
            size = 0
        groups[-1].append(target.name)
        size += needed
    return tuple(map(tuple, groups))


def _needs(
    targets: Sequence[Target],
    held: Sequence[int],
    *,
    parts: Sequence[Sequence[str]],
    on_host: bool,
) -> dict[str, int]:
    # Bytes per device: the sums of the largest part, and one gradient.
    needs: dict[str, int] = defaultdict(int)
    by_name = {target.name: (target, size) for target, size in zip(targets, held, strict=True)}
    for part in parts:
        sums: dict[str, int] = _sums(
            ("cpu" if on_host else str(by_name[name][0].weight.device), by_name[name][1])
            for name in part
        )
        for device, entries in sums.items():
            needs[device] = max(needs[device], entries * _ACCUMULATOR)
    if parts:
        for device in {str(target.weight.device) for target in targets}:
            here = [
                (target, size)
                for target, size in zip(targets, held, strict=True)
                if str(target.weight.device) == device
            ]
            needs[device] += _largest_gradient(*zip(*here, strict=True))
    return dict(needs)


def _largest_gradient(targets: Sequence[Target], held: Sequence[int]) -> int:
    return max(
        size * target.parameter.element_size() for target, size in zip(targets, held, strict=True)
    )


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for key, value in pairs:
        found[key] += value
    return dict(found)


def _agreed(sizes: Sequence[int], exchange: Exchange) -> list[int]:
    return [int(size) for size in exchange.largest(np.array(sizes, dtype=np.float64))]


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f}"
