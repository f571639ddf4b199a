"""What a selection found: the numbers that a mask should be judged by."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Overlap", "SamplingReport", "SelectionReport", "Share", "TensorReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One eligible tensor.

    Attributes:
        eligible: Its number of entries, zeros included.
        zeros: How many of them are exactly zero.
        chosen: How many were chosen.
        threshold: The last score chosen in this tensor's own ranking; None where the ranking is
            the model's, and where nothing was chosen.
        kind: What kind of parameter it is; see ``gallop.kinds``.
    """

    eligible: int
    zeros: int
    chosen: int
    threshold: float | None = None
    kind: str = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What was chosen of some tensors.

    Attributes:
        tensors: How many tensors they are.
        eligible: Their number of entries.
        chosen: How many of those were chosen.
    """

    tensors: int
    eligible: int
    chosen: int

    @property
    def density(self) -> float:
        """``chosen / eligible``."""
        return self.chosen / self.eligible


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How far a mask is explained by small weights and by large gradients.

    Three sets of the same size, of the entries that may be chosen: the mask, those with the
    smallest ``|w|``, and those with the largest ``|g|`` (of the selector's own gradient
    statistic). In ``"per_tensor"`` scope each tensor gives as many entries to each set as it has
    in the mask. Equal values are taken in the order of tensors and flat indices.

    Attributes:
        size: Number of entries of each set.
        low_weight: How many of the mask are among those with the smallest weights.
        high_gradient: How many of the mask are among those with the largest gradients; None if
            the selector needs no gradient.
        both: How many entries are among both, in the mask or not; None likewise.
        all_three: How many are in the mask and among both; None likewise.
    """

    size: int
    low_weight: int
    high_gradient: int | None
    both: int | None
    all_three: int | None

    def jaccard(self, shared: int) -> float:
        """Turn a number of shared entries into the Jaccard index of two of the sets.

        Args:
            shared: One of the first three counts.

        Returns:
            ``shared / (2 * size - shared)``, in [0, 1].
        """
        return shared / (2 * self.size - shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingReport:
    """How far off the threshold of a ``"sampled_global"`` scope may be.

    Attributes:
        size: How many scores were looked at, with repeats unless it is all of them.
        rank: The threshold is the ``rank``-th largest of them.
        density_low: Lower bound of the share of eligible entries at or above the threshold.
        density_high: Upper bound of the share of eligible entries above the threshold.
        confidence: The probability, over seeds, that both hold; see ``gallop.sampling``.
    """

    size: int
    rank: int
    density_low: float
    density_high: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionReport:
    """One selection.

    Attributes:
        k: Number of entries chosen.
        requested: What the density asked for. Unless the threshold was sampled, ``k`` is smaller
            only if fewer entries than that have a positive score: an entry that the selection
            samples do not pull at all is never chosen.
        eligible: Number of parameters that could be chosen, zeros included, tied ones once.
        zeros: How many of them are exactly zero.
        zeros_excluded: How many of them could not be chosen for that reason.
        zero_share: Share of the mask, in [0, 1], that zero weights take, or with
            ``exclude_zeros`` would have taken if they had not been excluded.
        threshold: The last score chosen, the smallest one unless the selector takes the smallest
            first; None in ``"per_tensor"`` scope, see ``tensors``.
        ties: How many scores equal the threshold (summed over tensors in ``"per_tensor"`` scope).
        ties_taken: How many of those were chosen, first in tensor order, then flat index.
        tensors: Every eligible tensor by name, in the model's order.
        samples: Number of selection samples, None if the batches did not tell.
        tokens: Number of supervised tokens, None if the batches did not tell.
        batches: Number of batches; 0 if the selector needs no gradient.
        loss: Mean loss over them, at the pre-trained weights; None if there was none.
        overlap: What the mask shares with the smallest weights and the largest gradients; None
            where a sampled threshold chose more than twice of what was requested.
        histogram: How many scores lie in ``[2**e, 2**(e + 1))``, by exponent ``e`` as a string;
            scores of entries that may not be chosen, and scores of 0, under ``"zero"``.
        sampling: In ``"sampled_global"`` scope, how good the threshold is.
        seconds: Wall-clock time; None for a mask read from a file. Not part of equality, and not
            saved: the same selection gives the same file.
        memory: Where gradients were summed up; None for a mask read from a file. Not part of
            equality, and not saved: every way gives the same mask.
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
    loss: float | None
    overlap: Overlap | None = None
    histogram: Mapping[str, int] = field(default_factory=dict)
    sampling: SamplingReport | None = None
    seconds: float | None = field(default=None, compare=False)
    memory: str | None = field(default=None, compare=False)

    @property
    def density(self) -> float:
        """``k / eligible``: what the density came to."""
        return self.k / self.eligible

    def by_kind(self) -> dict[str, Share]:
        """Return what was chosen of each kind of parameter, in the order of the model."""
        return _grouped((row.kind, row) for row in self.tensors.values())

    def by_layer(self) -> dict[str, Share]:
        """Return what was chosen of each layer, in the order of the model.

        A layer is what the first number in a name leads to, as ``model.layers.3``; parameters
        without a number go by the name of their module.
        """
        return _grouped((_layer_of(name), row) for name, row in self.tensors.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, without ``seconds`` and ``memory``."""
        values = dataclasses.asdict(self)
        del values["seconds"], values["memory"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SelectionReport:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: Fields by name.

        Returns:
            The report, without ``seconds`` and ``memory``.

        Raises:
            TypeError: A field is missing or unknown.
            KeyError: There are no tensors.
        """
        parsed: dict[str, Any] = {
            "tensors": {name: TensorReport(**each) for name, each in values["tensors"].items()}
        }
        for name, kind in (("overlap", Overlap), ("sampling", SamplingReport)):
            if values.get(name) is not None:
                parsed[name] = kind(**values[name])
        return cls(**(values | parsed))


_LAYER = re.compile(r"^(?:[^.]*\.)*?\d+(?=\.)")


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return found[0] if found else name.rpartition(".")[0] or name


def _grouped(rows: Iterable[tuple[str, TensorReport]]) -> dict[str, Share]:
    groups: dict[str, list[TensorReport]] = {}
    for key, row in rows:
        groups.setdefault(key, []).append(row)
    return {
        key: Share(
            tensors=len(group),
            eligible=sum(row.eligible for row in group),
            chosen=sum(row.chosen for row in group),
        )
        for key, group in groups.items()
    }
