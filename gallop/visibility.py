"""How many trained entries moved, and how many of them the dtype of the weights can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gallop.pieces import pieces

__all__ = ["Moves", "TrainedEntries", "Visibility", "measure_visibility"]

_WORDS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, slots=True)
class Moves:
    """Chosen entries, and what became of them.

    Attributes:
        entries: How many were trained.
        moved: Of these, how many float32 masters differ from the base.
        visible: Of these, how many weights differ from the base in any bit; less than ``moved``
            where rounding swallows updates: a bfloat16 weight moves by 1/256 of its size or not
            at all.
    """

    entries: int = 0
    moved: int = 0
    visible: int = 0

    def __add__(self, other: Moves) -> Moves:
        return Moves(
            self.entries + other.entries, self.moved + other.moved, self.visible + other.visible
        )

    def to_dict(self) -> dict[str, int]:
        """Return the counts as JSON-ready values."""
        return {"entries": self.entries, "moved": self.moved, "visible": self.visible}


@dataclass(frozen=True, slots=True)
class Visibility:
    """What became of all chosen entries, in all, per dtype and per kind of parameter.

    Attributes:
        total: All chosen entries.
        dtypes: Per dtype of the weights, such as ``"bfloat16"``.
        kinds: Per kind of parameter, as ``gallop.kinds`` tells them.
    """

    total: Moves
    dtypes: Mapping[str, Moves]
    kinds: Mapping[str, Moves]

    def __add__(self, other: Visibility) -> Visibility:
        return Visibility(
            self.total + other.total,
            _summed(self.dtypes, other.dtypes),
            _summed(self.kinds, other.kinds),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-ready values."""
        return {
            **self.total.to_dict(),
            "dtypes": {name: each.to_dict() for name, each in self.dtypes.items()},
            "kinds": {name: each.to_dict() for name, each in self.kinds.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class TrainedEntries:
    """What a visibility is counted from, for one parameter.

    Attributes:
        kind: Kind of the parameter.
        weight: All its weights, flat, on any device.
        index: Flat indices of the chosen entries.
        base: Their values before training, in the dtype of the weights.
        master: Their float32 masters.
    """

    kind: str
    weight: Tensor
    index: Tensor
    base: Tensor
    master: Tensor


@torch.no_grad()
def measure_visibility(trained: Iterable[TrainedEntries]) -> Visibility:
    """Compare bits of masters and weights with those of the base, in chunks.

    Args:
        trained: The entries of each parameter.

    Returns:
        The counts; dtypes and kinds in the order in which they come.
    """
    total = Moves()
    dtypes: dict[str, Moves] = {}
    kinds: dict[str, Moves] = {}
    for each in trained:
        moves = _moves(each)
        dtype = str(each.base.dtype).removeprefix("torch.")
        total = total + moves
        dtypes[dtype] = dtypes.get(dtype, Moves()) + moves
        kinds[each.kind] = kinds.get(each.kind, Moves()) + moves
    return Visibility(total, dtypes, kinds)


def _moves(each: TrainedEntries) -> Moves:
    moved = visible = 0
    for part in pieces(each.index.numel()):
        base = each.base[part]
        moved += _differing(each.master[part], base.float())
        visible += _differing(each.weight.index_select(0, each.index[part]), base)
    return Moves(each.index.numel(), moved, visible)


def _summed(left: Mapping[str, Moves], right: Mapping[str, Moves]) -> dict[str, Moves]:
    names = [*left, *(name for name in right if name not in left)]
    return {name: left.get(name, Moves()) + right.get(name, Moves()) for name in names}


def _differing(left: Tensor, right: Tensor) -> int:
    # Bits: a zero that changed its sign is a change, as it is to a delta.
    words = _WORDS[left.element_size()]
    return int((left.view(words) != right.view(words)).sum())
