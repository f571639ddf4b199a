"""What a selection found: the numbers that a mask should be judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SelectionReport", "TensorReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One eligible tensor.

    Attributes:
        eligible: Its number of entries, zeros included.
        zeros: How many of them are exactly zero.
        chosen: How many were chosen.
        threshold: The smallest score chosen in this tensor's own ranking; None in ``"global"``
            scope, where the ranking is the model's, and where nothing was chosen.
    """

    eligible: int
    zeros: int
    chosen: int
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionReport:
    """One selection.

    Attributes:
        k: Number of entries chosen.
        requested: What the density asked for. ``k`` is smaller only if fewer entries than that
            have a positive score: an entry that the selection samples do not pull at all is never
            chosen.
        eligible: Number of parameters that could be chosen, zeros included, tied ones once.
        zeros: How many of them are exactly zero.
        zeros_excluded: How many of them could not be chosen for that reason.
        zero_share: Share of the mask, in [0, 1], that zero weights take, or with
            ``exclude_zeros`` would have taken if they had not been excluded.
        threshold: The smallest score chosen; None in ``"per_tensor"`` scope, see ``tensors``.
        ties: How many scores equal the threshold (summed over tensors in ``"per_tensor"`` scope).
        ties_taken: How many of those were chosen, first in tensor order, then flat index.
        tensors: Every eligible tensor by name, in the model's order.
        samples: Number of selection samples, None if the batches did not tell.
        tokens: Number of supervised tokens, None if the batches did not tell.
        batches: Number of batches.
        loss: Mean loss over them, at the pre-trained weights.
        seconds: Wall-clock time; None for a mask read from a file. Not part of equality, and not
            saved: the same selection gives the same file.
    """

    k: int
    requested: int
    eligible: int
    zeros: int
    zeros_excluded: int
    zero_share: float
    threshold: float | None
    ties: int
    ties_taken: int
    tensors: Mapping[str, TensorReport]
    samples: int | None
    tokens: int | None
    batches: int
    loss: float
    seconds: float | None = field(default=None, compare=False)

    @property
    def density(self) -> float:
        """``k / eligible``: what the density came to."""
        return self.k / self.eligible

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, without ``seconds``."""
        values = dataclasses.asdict(self)
        del values["seconds"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SelectionReport:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: Fields by name.

        Returns:
            The report, without ``seconds``.

        Raises:
            TypeError: A field is missing or unknown.
            KeyError: There are no tensors.
        """
        tensors = {name: TensorReport(**each) for name, each in values["tensors"].items()}
        return cls(**(values | {"tensors": tensors}))
