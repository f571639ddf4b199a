"""Parameter groups of a mask: which of its tensors are trained with settings of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from gallop.errors import ConfigError
from gallop.targets import aliases

__all__ = ["GroupSpec", "group_names"]

GroupSpec = Mapping[str, Any]
"""``params`` (patterns, names or parameters of the model) and settings for what they match."""


def group_names(
    model: nn.Module,
    chosen: Mapping[str, Tensor],
    groups: Sequence[GroupSpec],
    *,
    settings: Collection[str] | None = None,
) -> list[tuple[list[str], dict[str, Any]]]:
    """Distribute the tensors of a mask over groups, as a torch optimizer takes them.

    A tensor goes to the first group that matches it. ``params`` of a group is a glob pattern
    (``fnmatch``) of names, a parameter of the model, or a sequence of these; a tied parameter
    goes by any of its names. What no group matches makes up one more, with the defaults. A group
    may turn out to hold nothing, if none of the parameters that it matches has a chosen entry: it
    is kept, so that schedulers with one function per group find the groups that were given.

    Args:
        model: The model that the mask was chosen for.
        chosen: The parameters of the mask by name, in order.
        groups: What was asked for.
        settings: Settings that a group may have; None for any.

    Returns:
        Names and settings of each group, in the order given, then the rest if there is one.

    Raises:
        ConfigError: A group has no ``params`` or an unknown setting, or matches no parameter.
    """
    names = aliases(model)
    rest = dict(chosen)
    made = []
    for number, group in enumerate(groups):
        wanted = _wanted(group, number)
        own = {key: value for key, value in group.items() if key != "params"}
        unknown = sorted(set(own) - set(settings)) if settings is not None else []
        if settings is not None and unknown:
            raise ConfigError(
                f"param_groups[{number}]: expected params and any of {sorted(settings)}, "
                f"found {unknown}"
            )
        for each in wanted:
            if not any(_matches(each, names[id(p)], id(p)) for p in model.parameters()):
                raise ConfigError(
                    f"param_groups[{number}]: expected patterns that match a parameter of "
                    f"{type(model).__name__}, found {_shown(each)}",
                    hint="patterns are matched against whole names: '*.bias', not 'bias'",
                )
        matched = [
            name
            for name, p in rest.items()
            if any(_matches(each, names.get(id(p), (name,)), id(p)) for each in wanted)
        ]
        for name in matched:
            del rest[name]
        made.append((matched, own))
    if rest:
        made.append((list(rest), {}))
    return made


def _wanted(group: GroupSpec, number: int) -> list[str | Tensor]:
    if not isinstance(group, Mapping) or "params" not in group:
        raise ConfigError(
            f"param_groups[{number}]: expected a mapping with params, found {group!r}"
        )
    params = group["params"]
    found = [params] if isinstance(params, str | Tensor) else list(params)
    odd = [each for each in found if not isinstance(each, str | Tensor)]
    if odd or not found:
        raise ConfigError(
            f"param_groups[{number}]: expected patterns or parameters in params, found "
            f"{type(odd[0]).__name__ if odd else 'none'}"
        )
    return found


def _matches(wanted: str | Tensor, known: tuple[str, ...], identity: int) -> bool:
    if isinstance(wanted, str):
        return any(fnmatchcase(name, wanted) for name in known)
    return id(wanted) == identity


def _shown(wanted: str | Tensor) -> str:
    return repr(wanted) if isinstance(wanted, str) else f"a tensor of shape {tuple(wanted.shape)}"
