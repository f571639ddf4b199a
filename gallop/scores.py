"""The scores of a tensor, computed in chunks when asked for, and as keys that a ranking sorts by.

Scores are never held for a whole model: the ranking asks for them again for every pass it makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gallop.errors import SelectionError
from gallop.formulas import SELECTORS, score
from gallop.selectors import Chunk, Selector
from gallop.shards import Shard

__all__ = ["CHUNK", "ScoredTensor", "ZeroScores", "score", "score_of_key"]

CHUNK = 1 << 18
"""Entries scored at a time: 1 MiB of float32, whatever the size of the tensor."""

ZeroScores = Literal["exclude", "require_finite", "saturate"]

_INFINITY_BITS = 0x7F800000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTensor:
    """The scores of one parameter, or of the part of it that this process holds.

    Attributes:
        name: Name of the parameter.
        weight: Its values, flat, any supported dtype.
        gradient: Its gradient statistic, flat float32, on the weights' device or the host; None
            where it is zero throughout.
        eps: The eps of the score.
        selector: The score.
        shard: Which values of the whole parameter these are; None for all.
        seed: Seeds a score that is random.
        weight_threshold: Only weights of a magnitude below it may be chosen.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None
    eps: float
    selector: Selector = SELECTORS["gallop"]
    shard: Shard | None = None
    seed: int = 0
    weight_threshold: float | None = None

    def zeros(self) -> int:
        """Count the weights that are exactly zero, of either sign."""
        return self.weight.numel() - int(torch.count_nonzero(self.weight))

    def thinned(self, stride: int) -> ScoredTensor:
        """Return a sample: every ``stride``-th entry, of which no index is right."""
        if stride == 1:
            return self
        gradient = None if self.gradient is None else self.gradient[::stride].contiguous()
        return replace(
            self, weight=self.weight[::stride].contiguous(), gradient=gradient, shard=None
        )

    def chunks(self, *, zeros: ZeroScores) -> Iterator[Tensor]:
        """Yield float32 keys of consecutive runs of at most ``CHUNK`` entries, in flat order.

        The larger a key, the earlier the entry is chosen; entries of key 0 never are. Where the
        largest scores come first a key is the score; where the smallest do, it is the float32
        that lies as far below infinity as the score lies above 0, counted in steps of the last
        bit: an exact reversal.

        Args:
            zeros: What zero weights score: ``"exclude"`` gives them the key 0;
                ``"require_finite"`` scores them like any other; ``"saturate"`` too, but with
                the largest float for infinity and 0 for 0 / 0 (for a what-if count only).

        Yields:
            The keys; nothing if the gradient is zero throughout and needed.

        Raises:
            SelectionError: A score is infinite, NaN or negative; the message names tensor and
                index.
        """
        for start, weight, scores in self._scores(zeros=zeros):
            self._require_scores(scores, start)
            keys = scores.abs()  # -0.0 is 0.0; a copy, which may be written to
            smallest = self.selector.order == "smallest"
            if smallest:
                keys = (_INFINITY_BITS - keys.view(torch.int32)).view(torch.float32)
            # Among the largest, a zero weight has its key of 0 by its score.
            yield self._barred(keys, weight, exclude_zeros=smallest and zeros == "exclude")

    def magnitudes(
        self, of: Literal["gradient", "weight"], *, exclude_zeros: bool
    ) -> Iterator[Tensor]:
        """Yield keys by ``|gradient|``, the largest first, or by ``|weight|``, the smallest first.

        Args:
            of: Which.
            exclude_zeros: Whether zero weights have the key 0.

        Yields:
            float32 keys, as :meth:`chunks` does; those of all entries that may be chosen are
            positive, even if the gradient is 0.
        """
        for start in range(0, self.weight.numel(), CHUNK):
            weight = self.weight[start : start + CHUNK]
            if of == "weight":
                bits = _INFINITY_BITS - weight.float().abs().view(torch.int32)
            elif self.gradient is None:
                bits = torch.ones(weight.numel(), dtype=torch.int32, device=weight.device)
            else:
                gradient = self.gradient[start : start + CHUNK].to(weight.device)
                bits = gradient.abs().view(torch.int32) + 1
            yield self._barred(bits.view(torch.float32), weight, exclude_zeros=exclude_zeros)

    def _barred(self, keys: Tensor, weight: Tensor, *, exclude_zeros: bool) -> Tensor:
        if exclude_zeros:
            keys.masked_fill_(weight == 0, 0.0)
        if self.weight_threshold is not None:
            keys.masked_fill_(weight.float().abs() >= self.weight_threshold, 0.0)
        return keys

    def _scores(self, *, zeros: ZeroScores) -> Iterator[tuple[int, Tensor, Tensor]]:
        if self.gradient is None and self.selector.gradient != "none":
            return
        device = self.weight.device
        for start in range(0, self.weight.numel(), CHUNK):
            weight = self.weight[start : start + CHUNK]
            if self.gradient is None:
                gradient = torch.zeros(weight.numel(), device=device)
            else:
                gradient = self.gradient[start : start + CHUNK].to(device, copy=True)
            chunk = Chunk(
                name=self.name,
                weight=weight.to(torch.float32, copy=True),
                gradient=gradient,
                eps=self.eps,
                seed=self.seed,
                find_indices=partial(self._indices, start, weight.numel()),
            )
            scores = self.selector.score(chunk)
            if not isinstance(scores, Tensor) or (scores.dtype, scores.shape) != (
                torch.float32,
                weight.shape,
            ):
                raise SelectionError(
                    f"selector {self.selector.name}: expected float32 scores of shape "
                    f"{tuple(weight.shape)}, found {_describe(scores)}"
                )
            if zeros == "exclude":
                scores = scores.masked_fill(weight == 0, 0.0)  # whatever a division by zero gave
            elif zeros == "saturate":
                scores = torch.nan_to_num(scores, nan=0.0)
            yield start, weight, scores

    def _indices(self, start: int, count: int) -> Tensor:
        positions = np.arange(start, start + count)
        flat = positions if self.shard is None else self.shard.flat(positions)
        return torch.from_numpy(flat).to(self.weight.device)

    def _flat_index(self, position: int) -> int:
        return position if self.shard is None else int(self.shard.flat(np.array([position]))[0])

    def _require_scores(self, scores: Tensor, start: int) -> None:
        low, high = (float(each) for each in scores.aminmax())  # both are NaN if any score is
        if low >= 0 and math.isfinite(high):
            return
        bad = ~torch.isfinite(scores) | (scores < 0)
        at = start + int(torch.nonzero(bad)[0])
        gradient = 0.0 if self.gradient is None else float(self.gradient[at])
        raise SelectionError(
            f"parameter {self.name}: expected finite scores, at least 0, found "
            f"{float(scores[at - start])} at flat index {self._flat_index(at)} (gradient "
            f"{gradient:g}, weight {float(self.weight[at]):g}, eps {self.eps:g}, selector "
            f"{self.selector.name})",
            hint="exclude zeros, or raise eps",
        )


def score_of_key(selector: Selector, key: float) -> float:
    """Turn a key back into the score that it was made of.

    Args:
        selector: The score.
        key: A positive key.

    Returns:
        The score.
    """
    if selector.order == "largest":
        return key
    bits = int(np.array(key, dtype=np.float32).view(np.int32))
    return float(np.array(_INFINITY_BITS - bits, dtype=np.int32).view(np.float32))


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
