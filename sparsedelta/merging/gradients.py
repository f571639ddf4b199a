"""Settings that vary over a model: by names of tensors, and from its first layer to its last.

A setting is a value; a list of numbers, which are interpolated over the layers, evenly spaced; a
value for names that contain a text (``filter``); or a list of such, of which the first that fits
is taken. All as mergekit has it; tensors that belong to no layer count as the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

_LAYER: Final = re.compile(r"(?:^|\.)([0-9]+)(?:\.|$)")

Value: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of one parameter.

    Attributes:
        values: One value, or several that are spread over the layers.
        filter: What a tensor's name has to contain; None: it is for all.
    """

    values: tuple[Value, ...]
    filter: str | None = None

    def at(self, depth: float) -> Value:
        """The value at a depth from 0, the first layer, to 1, the last."""
        if len(self.values) == 1:
            return self.values[0]
        place = depth * (len(self.values) - 1)
        before = min(int(place), len(self.values) - 1)
        low = self.values[before]
        high = self.values[min(before + 1, len(self.values) - 1)]
        if isinstance(low, bool | str) or isinstance(high, bool | str):
            return low
        share = place - int(place)
        return (1 - share) * low + share * high


Settings: TypeAlias = Mapping[str, tuple[Setting, ...]]
"""Settings by the names of their parameters; of several the first that fits is taken."""


def resolve(name: str, tensor: str, depth: float, *scopes: Settings) -> Value | None:
    """The value of a parameter for a tensor.

    Args:
        name: Name of the parameter.
        tensor: Name of the tensor.
        depth: See :meth:`Setting.at`.
        scopes: Where to look, the narrowest first.
    """
    for scope in scopes:
        for setting in scope.get(name, ()):
            if setting.filter in (None, "*") or (setting.filter or "") in tensor:
                return setting.at(depth)
    return None


class Depths:
    """How deep in a model its tensors lie: 0 in the first layer, 1 in the last.

    Args:
        names: Names of all tensors.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.layers = 1 + max((layer for n in names if (layer := _layer(n)) is not None), default=0)

    def __call__(self, tensor: str) -> float:
        """The depth of a tensor."""
        layer = _layer(tensor)
        if layer is None:
            return 0.0
        return layer / (self.layers - 1) if self.layers > 1 else 1.0


def _layer(tensor: str) -> int | None:
    match = _LAYER.search(tensor)
    return None if match is None else int(match[1])
