"""The score of GaLLoP, recomputed in chunks so that it is never held for a whole model.

``score = |g| / (|w| + eps)`` in float32 (arXiv 2510.19778, section 3): large where the task wants
a change, and where the pre-trained weight has little to lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gallop.errors import SelectionError

__all__ = ["CHUNK", "ScoredTensor", "score"]

CHUNK = 1 << 18
"""Entries scored at a time: 1 MiB of float32, whatever the size of the tensor."""

ZeroScores = Literal["exclude", "require_finite", "saturate"]


def score(gradient: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``|gradient| / (|weight| + eps)``.

    Args:
        gradient: Mean gradient, float32, any shape.
        weight: Pre-trained weights of the same shape, any floating dtype.
        eps: Added to the magnitude of the weights, as float32.

    Returns:
        float32 scores of the same shape, at least 0; infinite or NaN where the division
        overflows or is 0 / 0.
    """
    return gradient.float().abs().div_(weight.float().abs().add_(eps))


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTensor:
    """The scores of one parameter, computed when asked for.

    Attributes:
        name: Name of the parameter.
        weight: Its values, flat, any supported dtype.
        gradient: Its mean gradient, flat float32; None where it is zero throughout.
        eps: The eps of the score.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None
    eps: float

    def zeros(self) -> int:
        """Count the weights that are exactly zero, of either sign."""
        return self.weight.numel() - int(torch.count_nonzero(self.weight))

    def chunks(self, *, zeros: ZeroScores) -> Iterator[Tensor]:
        """Yield the float32 scores of consecutive runs of at most ``CHUNK`` entries.

        Args:
            zeros: What zero weights score: ``"exclude"`` gives 0, which is never chosen;
                ``"require_finite"`` scores them like any other; ``"saturate"`` too, but with
                the largest float for infinity and 0 for 0 / 0 (for a what-if count only).

        Yields:
            Scores at least 0 and finite, in flat order; nothing if there is no gradient.

        Raises:
            SelectionError: A score is infinite or NaN; the message names tensor and index.
        """
        if self.gradient is None:
            return
        for start in range(0, self.weight.numel(), CHUNK):
            weight = self.weight[start : start + CHUNK]
            scores = score(self.gradient[start : start + CHUNK], weight, self.eps)
            if zeros == "exclude":
                scores.masked_fill_(weight == 0, 0.0)
            elif zeros == "saturate":
                scores = torch.nan_to_num(scores, nan=0.0)
            self._require_finite(scores, start)
            yield scores

    def _require_finite(self, scores: Tensor, start: int) -> None:
        if math.isfinite(float(scores.amax())):  # one pass, and NaN is the largest of all
            return
        at = start + int(torch.nonzero(~torch.isfinite(scores))[0])
        gradient = float(self.gradient[at]) if self.gradient is not None else 0.0
        raise SelectionError(
            f"parameter {self.name}: expected finite scores, found {float(scores[at - start])} at "
            f"flat index {at} (gradient {gradient:g}, weight {float(self.weight[at]):g}, "
            f"eps {self.eps:g})",
            hint="exclude zeros, or raise eps",
        )
