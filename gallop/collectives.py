"""Processes that train one model together: what they tell each other, and what if one fails.

What is counted, compared or agreed on travels over a gloo group of our own, whatever backend the
model's gradients use; sums of gradients travel over the group that they are given for. Every
function is collective: all ranks of the group call it in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from gallop.errors import ConfigError, ParameterError
from gallop.shards import is_sharded
from sparsedelta.errors import RankError, SparseDeltaError, UsageError

__all__ = ["DataParallel", "Peers", "find_peers", "world_size"]

DataParallel: TypeAlias = bool | dist.ProcessGroup | None
"""Over which processes gradients are averaged: all (True), none (False), a group, or no answer."""

_REMEDY = (
    "pass data_parallel=True to average over all processes, a process group to average over some, "
    "or False if each trains a model of its own"
)

_Value = TypeVar("_Value")

PATIENCE: Final = timedelta(minutes=30)
"""How long a rank waits for another that is alive; one that has ended is noticed at once."""

_channels: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, ...], dist.ProcessGroup]] = (
    WeakKeyDictionary()
)


def world_size() -> int:
    """Number of processes in the default process group; 1 without one."""
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 1


class Peers:
    """The processes of a group, as one of them sees them.

    Args:
        group: The processes; None for all.
        members: Their global ranks, instead of ``group``.

    Attributes:
        group: The group that was given.
        members: Global ranks, ascending.
        rank: Number of this process among them.
        size: Number of processes.
        channel: A gloo group of them.

    Raises:
        UsageError: There is no process group, or this process is not in it.
        RankError: Another process ended or did not come.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        members: Sequence[int] | None = None,
    ) -> None:
        world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        if world is None:
            raise UsageError(
                "there is no process group",
                hint="call torch.distributed.init_process_group() first, and start with torchrun",
            )
        self.group = group
        self.members = tuple(members or dist.get_process_group_ranks(group))
        if dist.get_rank() not in self.members:
            raise UsageError(
                f"rank {dist.get_rank()}: expected a process of the group {self.members}, found "
                "another",
                hint="call this on the ranks that hold the model only",
            )
        self.rank = self.members.index(dist.get_rank())
        self.size = len(self.members)
        channels = _channels.setdefault(world, {})
        if self.members not in channels:
            with _explained(self.members):
                channels[self.members] = dist.new_group(
                    list(self.members),
                    timeout=PATIENCE,
                    backend="gloo",
                    use_local_synchronization=True,
                )
        self.channel = channels[self.members]

    def total(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum int64 counts over the ranks, elementwise."""
        return self._reduced(counts, dist.ReduceOp.SUM)

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the elementwise maximum of float64 values over the ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def sum_in_order(self, value: float) -> float:
        """Sum a float64 over the ranks in their order: every rank has the same bits."""
        found = [torch.zeros(1, dtype=torch.float64) for _ in range(self.size)]
        with _explained(self.members):
            dist.all_gather(found, torch.tensor([value], dtype=torch.float64), group=self.channel)
        return sum(float(each) for each in found)

    def gather(self, value: _Value) -> list[_Value]:
        """Return the small values of all ranks, in their order, on every rank."""
        found: list[Any] = [None] * self.size
        with _explained(self.members):
            dist.all_gather_object(found, value, group=self.channel)
        return found

    def gather_first(self, value: _Value) -> list[_Value]:
        """Return the values of all ranks on rank 0, and nothing on the others."""
        found: list[Any] | None = [None] * self.size if not self.rank else None
        with _explained(self.members):
            dist.gather_object(value, found, group=self.channel, group_dst=0)
        return found or []

    def share(self, value: _Value | None) -> _Value:
        """Return the value of rank 0 on every rank."""
        held: list[Any] = [value]
        with _explained(self.members):
            dist.broadcast_object_list(held, group=self.channel, group_src=0)
        shared: _Value = held[0]
        return shared

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over the ranks, in place, each with those of the same place."""
        with _explained(self.members):
            works = [
                dist.all_reduce(each, group=self._data_group(each), async_op=True)
                for each in tensors
            ]
            for work in works:
                if work is not None:
                    work.wait()

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values of rank 0, in place, of tensors of the same shapes."""
        with _explained(self.members):
            for each in tensors:
                held = each.detach().contiguous()
                dist.broadcast(held, group=self._data_group(held), group_src=0)
                if held.data_ptr() != each.data_ptr():
                    each.detach().copy_(held)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context that all ranks leave alike: if one fails in it, the others fail, too.

        Raises:
            RankError: Another rank failed; the message says which, and of what.
        """
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever it was: the others must not wait)
            failure = error
        if failure is not None and _is_of_the_others(failure):
            raise failure
        told = self.gather(None if failure is None else _described(failure))
        if failure is not None:
            raise failure
        for rank, text in enumerate(told):
            if text is not None:
                raise RankError(f"rank {self.members[rank]} failed: {text[0]}", hint=text[1])

    def _data_group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self.channel if tensor.device.type == "cpu" else self.group

    def _reduced(self, values: NDArray[Any], operation: Any) -> NDArray[Any]:  # noqa: ANN401
        held = torch.from_numpy(np.array(values))  # a copy: the caller's stays as it is
        with _explained(self.members):
            dist.all_reduce(held, op=operation, group=self.channel)
        reduced: NDArray[Any] = held.numpy()
        return reduced


def _described(failure: BaseException) -> tuple[str, str | None]:
    if isinstance(failure, SparseDeltaError):
        return failure.message, failure.hint
    return f"{type(failure).__name__}: {failure}", None


def _is_of_the_others(failure: BaseException) -> bool:
    return isinstance(failure, RankError)


@contextlib.contextmanager
def _explained(members: Sequence[int]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch: a connection is closed, or time is up
        text = str(error).strip().split("\n", maxsplit=1)[0]
        raise RankError(
            f"one of the ranks {_listed(members)} ended or did not come: {text}",
            hint="look at the output of the other ranks: the one that failed first says why",
        ) from error


def _listed(members: Sequence[int]) -> str:
    if len(members) <= 8 or list(members) != list(range(members[0], members[-1] + 1)):  # noqa: PLR2004
        return ", ".join(map(str, members))
    return f"{members[0]} to {members[-1]}"


def find_peers(model: nn.Module, data_parallel: DataParallel) -> Peers | None:
    """Find the processes that hold a model together.

    Args:
        model: The model, sharded or not.
        data_parallel: As the user gave it.

    Returns:
        The processes: those of the mesh of a sharded model, else those to average over; None if
        there are no others.

    Raises:
        ConfigError: There are other processes, parameters that are not sharded, and no answer
            to whether to average.
        ParameterError: Parameters are sharded over different processes.
    """
    meshes = {
        tuple(sorted(parameter.device_mesh.mesh.flatten().tolist()))  # type: ignore[attr-defined]
        for parameter in model.parameters()
        if is_sharded(parameter)
    }
    if len(meshes) > 1:
        raise ParameterError(
            f"model: expected all parameters to be sharded over the same processes, found "
            f"{sorted(meshes)}",
            hint="give fully_shard one mesh",
        )
    members = next(iter(meshes), None)
    if world_size() == 1 or (members is not None and len(members) == 1):
        return None
    plain = next((n for n, p in model.named_parameters() if not is_sharded(p)), None)
    if data_parallel is None and plain is not None:
        raise ConfigError(
            f"data_parallel: expected an answer to whether {world_size()} processes average their "
            f"gradients, since parameter {plain} is not sharded, found none",
            hint=_REMEDY,
        )
    if members is not None:
        return Peers(None, members=members)
    if data_parallel is False:
        return None
    return Peers(None if data_parallel is True or data_parallel is None else data_parallel)
