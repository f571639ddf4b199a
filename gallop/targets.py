"""Which parameters may be trained sparsely, under which name, and what of them is held here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor, nn

from gallop.compiled import named_parameters
from gallop.config import KIND_TOKENS, GallopConfig
from gallop.errors import ParameterError, SelectionError
from gallop.kinds import parameter_kinds
from gallop.shards import Shard, is_sharded, local_part, shard_of

__all__ = [
    "Target",
    "aliases",
    "eligible_targets",
    "require_supported",
    "require_unwrapped",
    "require_whole",
]

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A parameter under the first name that ``model.named_parameters()`` gives it.

    Attributes:
        name: That name.
        parameter: The parameter; a DTensor where it is sharded.
        kind: What kind it is; see ``gallop.kinds``.
        shard: Which of its entries this process holds; None if it is a plain tensor.
    """

    name: str
    parameter: nn.Parameter
    kind: str = "other"
    shard: Shard | None = None

    @property
    def size(self) -> int:
        """Number of entries of the whole parameter."""
        return self.parameter.numel()

    @property
    def start(self) -> int:
        """Flat index, in the whole parameter, of the first entry held here."""
        return self.shard.start if self.shard else 0

    @property
    def held(self) -> int:
        """Number of entries held here."""
        return self.shard.size if self.shard else self.size

    def held_of(self, tensor: Tensor) -> Tensor:
        """Return what this process holds of a tensor of the parameter's shape and sharding.

        Args:
            tensor: The parameter, or its gradient.

        Returns:
            A detached plain tensor of :attr:`held` entries, in the order of their flat indices.
        """
        part = local_part(tensor)
        # A replica that another process counts has no entries here.
        return part if self.shard is None or self.held == part.numel() else part.reshape(-1)[:0]

    @property
    def weight(self) -> Tensor:
        """A flat view of the entries held here, detached."""
        return self.held_of(self.parameter).view(-1)


def eligible_targets(
    model: nn.Module, config: GallopConfig, *, loaded: bool = True
) -> tuple[Target, ...]:
    """List the parameters that a selection may choose from.

    A parameter is eligible if it requires a gradient, one of its names or its kind matches
    ``include``, and none of them matches ``exclude``. A tied parameter is listed once, and has one
    kind.

    Args:
        model: Any module.
        config: Its ``include`` and ``exclude`` patterns.
        loaded: Whether the weights are in memory; without them their kind is not checked.

    Returns:
        Targets in the order of ``model.named_parameters()``.

    Raises:
        SelectionError: Nothing is eligible.
        ParameterError: An eligible parameter is of an unsupported kind, or two of them share
            memory without being one parameter.
    """
    names = aliases(model)
    kinds = parameter_kinds(model)
    targets = []
    for name, parameter in named_parameters(model):
        if not parameter.requires_grad:
            continue
        kind = kinds[id(parameter)]
        known_as = names[id(parameter)]
        included = _matches(known_as, kind, config.include)
        if not included or _matches(known_as, kind, config.exclude):
            continue
        if loaded:
            require_supported(name, parameter)
        if parameter.numel():
            targets.append(Target(name, parameter, kind, shard_of(name, parameter)))
    if not targets:
        raise SelectionError(
            f"no eligible parameter in {type(model).__name__}: expected some that require a "
            f"gradient and match include={list(config.include)} but not "
            f"exclude={list(config.exclude)}",
            hint="call requires_grad_(True) on what may be trained, or widen the patterns",
        )
    if loaded:
        _require_separate_memory(targets)
    return tuple(targets)


def aliases(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Map ``id(parameter)`` to all the names under which the model holds that parameter."""
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in named_parameters(model, tied=True):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return names


def require_unwrapped(model: nn.Module) -> None:
    """Refuse wrappers whose reducer writes dense gradients behind our back.

    Args:
        model: The module about to be tapped.

    Raises:
        ParameterError: The model is wrapped in DataParallel or DistributedDataParallel.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ParameterError(
            f"model: expected a plain module, found {type(model).__name__}; its reducer would put "
            "dense, unmasked gradients back after they were gathered",
            hint="pass model.module, and data_parallel=True, which averages the chosen values; "
            "run the plain module, too",
        )


def require_whole(targets: Sequence[Target]) -> None:
    """Refuse sharded parameters, for who needs all of each.

    Args:
        targets: Parameters to train.

    Raises:
        ParameterError: One is sharded.
    """
    for target in targets:
        if is_sharded(target.parameter):
            raise ParameterError(
                f"parameter {target.name}: expected a plain tensor, found shards of one",
                hint="gallop.SparseAdamW trains sharded models",
            )


def require_supported(name: str, parameter: nn.Parameter) -> None:
    """Refuse parameters that the gather and scatter of flat indices would get wrong.

    Args:
        name: Name for the message.
        parameter: Parameter to check.

    Raises:
        ParameterError: Wrong dtype, not a plain contiguous tensor in memory.
    """
    if nn.parameter.is_lazy(parameter) or parameter.is_meta:
        raise ParameterError(
            f"parameter {name}: expected weights in memory, found an uninitialised or meta tensor",
            hint="load the pre-trained weights before selecting or training",
        )
    if parameter.dtype not in SUPPORTED_DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise ParameterError(
            f"parameter {name}: expected dtype {expected}, "
            f"found {str(parameter.dtype).removeprefix('torch.')}",
            hint="convert the model, for example with model.float(), or exclude the parameter",
        )
    data = local_part(parameter) if is_sharded(parameter) else parameter.data
    if type(data) is not torch.Tensor or data.layout is not torch.strided:
        raise ParameterError(
            f"parameter {name}: expected a plain dense tensor, or shards of one, found "
            f"{type(data).__name__} with layout {data.layout}",
            hint="quantised and sparse parameters are not supported in this release",
        )
    if not data.is_contiguous():
        raise ParameterError(
            f"parameter {name}: expected contiguous memory, found shape {tuple(parameter.shape)} "
            f"with strides {parameter.stride()}",
            hint="model.to(memory_format=torch.contiguous_format), or exclude the parameter",
        )


def _matches(names: tuple[str, ...], kind: str, patterns: tuple[str, ...]) -> bool:
    return any(
        KIND_TOKENS[pattern] == kind
        if pattern in KIND_TOKENS
        else any(fnmatchcase(name, pattern) for name in names)
        for pattern in patterns
    )


def _require_separate_memory(targets: list[Target]) -> None:
    spans = sorted(_spans(targets), key=lambda span: (span[0], span[1]))
    for (device, _, end, first), (other, start, _, second) in pairwise(spans):
        if device == other and start < end:
            raise ParameterError(
                f"parameters {first} and {second}: expected separate memory or one tied "
                "parameter, found two parameters over the same memory",
                hint="tie them by assigning one nn.Parameter to both modules",
            )


def _spans(targets: list[Target]) -> Iterator[tuple[str, int, int, str]]:
    for target in targets:
        held = target.weight
        start = held.data_ptr()
        yield str(held.device), start, start + held.nbytes, target.name
