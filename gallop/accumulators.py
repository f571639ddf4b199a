"""Float32 sums of gradients, or of their squares, on the device of the weights or on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gallop.collectives import Peers
from gallop.errors import SelectionError
from gallop.selectors import GradientStatistic
from gallop.taps import Receiver
from gallop.targets import Target

__all__ = ["Accumulators"]

_STAGED = 1 << 22
"""Entries copied to the host at a time: 16 MiB of float32, in memory that a device can write to."""


class Accumulators:
    """One flat float32 sum per target, made when its first gradient arrives.

    Args:
        targets: What gradients come of.
        statistic: Whether to sum gradients or, for ``"mean_square"``, their squares.
        on_host: Whether the sums lie in host memory, page-locked where gradients come from an
            accelerator, instead of beside the weights.

    Attributes:
        share: What the gradients that arrive next are multiplied by.
    """

    __slots__ = ("_on_host", "_seen", "_staging", "_statistic", "_sums", "_targets", "share")

    def __init__(
        self, targets: Sequence[Target], *, statistic: GradientStatistic, on_host: bool
    ) -> None:
        self.share = 1.0
        self._targets = targets
        self._statistic = statistic
        self._on_host = on_host
        self._sums: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._staging: dict[torch.dtype, Tensor] = {}

    def receivers(self) -> dict[Target, Receiver]:
        """Return per target the function that takes its gradients."""
        return {target: self._receiver(target) for target in self._targets}

    def start_batch(self, share: float) -> None:
        """Say that another batch begins.

        Args:
            share: What its gradients are multiplied by; of squares, after squaring.
        """
        self.share = share
        self._seen.clear()

    def add_up(self, peers: Peers) -> None:
        """Add the sums of other processes to those of this one; collective.

        Args:
            peers: The processes; each holds all of every target.
        """
        here = np.array([target.name in self._sums for target in self._targets], dtype=np.int64)
        for target, count in zip(self._targets, peers.total(here), strict=True):
            if count:
                if target.name not in self._sums:
                    self._sums[target.name] = self._zeros_for(target.weight)
                peers.add_up([self._sums[target.name]])

    def finish(self, total: float) -> Mapping[str, Tensor]:
        """Divide the sums by the sum of the shares.

        Args:
            total: That sum.

        Returns:
            Per target name the flat mean; a target of which no gradient came is missing.

        Raises:
            SelectionError: A mean is not finite; the message names the tensor.
        """
        for name, tensor in self._sums.items():
            tensor.div_(total)
            if not tensor.numel():
                continue
            low, high = tensor.aminmax()  # both are NaN if any entry is
            if not (math.isfinite(float(low)) and math.isfinite(float(high))):
                raise SelectionError(
                    f"parameter {name}: expected a finite mean gradient, found "
                    f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} entries that are "
                    "not",
                    hint="load the model in float32 or bfloat16, or lower the batch's loss scale",
                )
        return self._sums

    def _receiver(self, target: Target) -> Receiver:
        def receive(gradient: Tensor) -> None:
            held = target.held_of(gradient)
            if target.name not in self._sums:
                self._sums[target.name] = self._zeros_for(held)
            if self._statistic == "mean_square":
                self._require_whole(target)
            self._add(self._sums[target.name], held)

        return receive

    def _require_whole(self, target: Target) -> None:
        # A gradient that comes in two parts can be added up, but its square cannot.
        if target.name in self._seen:
            raise SelectionError(
                f"parameter {target.name}: expected one gradient per batch, found a second one, "
                "whose square cannot be added to that of the first",
                hint="gradient checkpointing with use_reentrant=False gives whole gradients",
            )
        self._seen.add(target.name)

    def _zeros_for(self, gradient: Tensor) -> Tensor:
        on_host = self._on_host and gradient.is_cuda
        return torch.zeros(
            gradient.numel(),
            dtype=torch.float32,
            device="cpu" if on_host else gradient.device,
            pin_memory=on_host,
        )

    def _add(self, sums: Tensor, gradient: Tensor) -> None:
        if sums.device == gradient.device:
            self._add_run(sums.view(gradient.shape), gradient)  # it may not be contiguous
            return
        # Through a small buffer: a copy of the whole gradient on the host would add to the peak.
        staging = self._staging.get(gradient.dtype)
        if staging is None:
            staging = torch.empty(_STAGED, dtype=gradient.dtype, pin_memory=True)
            self._staging[gradient.dtype] = staging
        flat = gradient.reshape(-1)
        for start in range(0, flat.numel(), _STAGED):
            run = flat[start : start + _STAGED]
            buffer = staging[: run.numel()]
            buffer.copy_(run)
            self._add_run(sums[start : start + _STAGED], buffer)

    def _add_run(self, sums: Tensor, gradient: Tensor) -> None:
        if self._statistic == "mean_square":
            gradient = gradient.float()
            sums.addcmul_(gradient, gradient, value=self.share)
        else:
            sums.add_(gradient, alpha=self.share)
