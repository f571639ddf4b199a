"""How the processes that train one model share its chosen entries, and average their gradients.

Shards of FSDP2 arrive with gradients that are averaged already; each process keeps the entries
that lie in its shards. Parameters that every process holds as a whole are averaged here: ``k``
values travel, never a dense gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gallop.collectives import DataParallel, Peers
from gallop.compiled import named_parameters
from gallop.errors import MaskError, OptimizerError, ParameterError
from gallop.mask import CompactArray, Mask
from gallop.shards import is_sharded, shard_of
from gallop.state import Entries
from gallop.targets import Target
from gallop.visibility import Visibility

__all__ = [
    "Parallelism",
    "average_gradients",
    "require_same_start",
    "require_taken",
    "share_out",
    "word_sum",
]


def share_out(
    model: nn.Module, mask: Mask, peers: Peers | None
) -> list[tuple[Target, CompactArray]]:
    """Find what this process trains of a mask.

    Args:
        model: The model.
        mask: On every process the whole mask, or what :func:`gallop.select` returned there.
        peers: The processes that hold the model.

    Returns:
        In the order of the model, the parameters of which some process trains entries, and the
        positions of those that this one holds; see :class:`gallop.shards.Shard`.

    Raises:
        MaskError: The mask does not fit the model, or the processes have masks that do not belong
            together.
        RankError: That is so on another process.
    """
    if peers is None:
        return [
            _positions(name, parameter, mask.compact(name))
            for name, parameter in mask.resolve(model).items()
        ]
    with peers.together():
        resolved = mask.resolve(model)
    everywhere: dict[str, tuple[int, ...]] = {}
    for shapes in peers.gather(dict(mask.shapes)):
        everywhere |= shapes
    held = dict(named_parameters(model, tied=True))
    chosen = []
    given = found = counted = 0
    for name, parameter in held.items():
        if name not in everywhere:
            continue
        indices: CompactArray = np.empty(0, dtype=np.int64)
        if name in resolved:
            indices = mask.compact(name)
        elif parameter.numel() < 2**31:
            indices = np.empty(0, dtype=np.int32)
        target, positions = _positions(name, parameter, indices)
        chosen.append((target, positions))
        given += indices.size
        found += positions.size
        # A plain parameter is held by all, and counted by the first.
        counts = peers.rank == 0 if target.shard is None else target.shard.counted
        counted += positions.size if counts else 0
    _require_one_mask(peers, mask, given=given, found=found, counted=counted)
    return chosen


def _positions(
    name: str, parameter: nn.Parameter, indices: CompactArray
) -> tuple[Target, CompactArray]:
    target = Target(name, parameter, shard=shard_of(name, parameter))
    if target.shard is None:
        return target, indices
    _, positions = target.shard.find(indices)
    return target, np.ascontiguousarray(positions)


def _require_one_mask(peers: Peers, mask: Mask, *, given: int, found: int, counted: int) -> None:
    # Either every process was given its own slice, or all of them the same whole.
    sums = peers.total(np.array([given != found, counted], dtype=np.int64))
    if not sums[0]:
        return
    digests = peers.gather(mask.digest)
    if len(set(digests)) > 1 or int(sums[1]) != given:
        raise MaskError(
            f"mask: expected the whole mask on every rank, or on each the slice that select() "
            f"returned there, found {given} entries on rank {peers.rank}, of which it holds "
            f"{found}",
            hint="a mask that was saved by one of many ranks is a slice: save and load "
            "gallop.gather_mask(model, mask) instead",
        )


class Parallelism:
    """Averages gradients, and norms of them, over the processes that hold a model.

    Args:
        peers: Those processes.
        entries: What this one trains.
        data_parallel: Whether gradients of parameters that are not sharded are to be averaged.
    """

    __slots__ = ("_averaged", "_sharded", "peers")

    def __init__(
        self, peers: Peers, entries: Sequence[Entries], *, data_parallel: DataParallel
    ) -> None:
        self.peers = peers
        plain = [each for each in entries if each.target.shard is None]
        self._averaged = plain if data_parallel not in (None, False) else []
        self._sharded = len(plain) < len(entries)

    def average(self) -> None:
        """Average what was gathered since the last call, over the processes; collective.

        A tensor that only some of them reached counts as zero on the others.
        """
        if not self._averaged:
            return
        flags = [each.gathered and not each.averaged for each in self._averaged]
        reached = self.peers.total(np.array(flags, dtype=np.int64))
        ready = [each for each, count in zip(self._averaged, reached, strict=True) if count]
        for each in ready:
            if not each.gathered:
                each.gradient.zero_()
        self.peers.add_up([each.gradient for each in ready])
        for each in ready:
            each.gradient.div_(self.peers.size)
            each.gathered = each.averaged = True

    def norm(self, ready: Sequence[Entries], norms: Sequence[Tensor]) -> Tensor | None:
        """Return the 2-norm over all processes, with the same bits on each; collective.

        Args:
            ready: Entries with a gradient.
            norms: The norm of what this process holds of each.

        Returns:
            The norm, float32; None if this process holds all of it.
        """
        if not self._sharded:
            return None
        squares = math.fsum(
            float(norm) ** 2
            for each, norm in zip(ready, norms, strict=True)
            if _counts(each, self.peers)
        )
        total = self.peers.sum_in_order(squares)
        return torch.tensor(math.sqrt(total) if total >= 0 else total, device=norms[0].device)

    def counted(self, entries: Sequence[Entries]) -> list[Entries]:
        """Leave out what another process counts, of what is held by shards."""
        return [each for each in entries if not self._sharded or _counts(each, self.peers)]

    def visibility(self, here: Visibility) -> Visibility:
        """Return what became of the entries of all processes; collective where there are shards.

        Args:
            here: What became of those that this process counts.
        """
        if not self._sharded:
            return here
        first, *others = self.peers.gather(here)
        return sum(others, start=first)


def average_gradients(parameters: Sequence[nn.Parameter], peers: Peers) -> None:
    """Average ``.grad`` over processes that hold the same parameters; collective.

    One that only some of them reached counts as zero on the others; one that none reached has no
    gradient.

    Args:
        parameters: The same ones in the same order on every process.
        peers: The processes.
    """
    flags = [parameter.grad is not None for parameter in parameters]
    reached = peers.total(np.array(flags, dtype=np.int64))
    gradients = []
    for parameter, count in zip(parameters, reached, strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    peers.add_up(gradients)
    for gradient in gradients:
        gradient.div_(peers.size)


def _counts(each: Entries, peers: Peers) -> bool:
    shard = each.target.shard
    return peers.rank == 0 if shard is None else shard.counted


def require_same_start(model: nn.Module, mask: Mask, peers: Peers) -> None:
    """Check that processes that are about to average begin with the same model and mask.

    Args:
        model: The model; what is not sharded is compared, by the sum of its words.
        mask: What is to be trained.
        peers: The processes.

    Raises:
        MaskError: Their masks differ.
        ParameterError: Their weights differ; the message names the first parameter that does.
    """
    mine = {
        name: word_sum(parameter)
        for name, parameter in named_parameters(model)
        if not is_sharded(parameter)
    }
    # What select() returns for shards is a slice, another one on each rank.
    digest_here = mask.digest if len(mine) == len(list(model.parameters())) else ""
    for rank, (digest, sums) in enumerate(peers.gather((digest_here, mine))):
        if rank == 0:
            first_digest, first = digest, sums
        if sums.keys() != first.keys() or sums != first:
            odd = next(name for name in [*first, *sums] if first.get(name) != sums.get(name))
            raise ParameterError(
                f"parameter {odd}: expected the same weights on all ranks that average their "
                f"gradients, found others on rank {peers.members[rank]} than on rank "
                f"{peers.members[0]}",
                hint="load the same checkpoint on every rank, or broadcast the parameters of one "
                "before creating the optimizer",
            )
        if digest != first_digest:
            raise MaskError(
                f"mask: expected the same mask on all ranks that average their gradients, found "
                f"{digest[:12]} on rank {peers.members[rank]}, {first_digest[:12]} on rank "
                f"{peers.members[0]}",
                hint="select with data_parallel=True, or load the same mask on every rank",
            )


def word_sum(tensor: Tensor) -> int:
    """Sum the words of a tensor as integers: equal for equal bits."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().reshape(-1)
    return int(flat.view(words[flat.element_size()]).sum(dtype=torch.int64))


def require_taken(model: nn.Module | None, entries: Sequence[Entries]) -> None:
    """Check that gradients go where the optimizer takes them.

    Args:
        model: The model that it was made for, if that is still there.
        entries: What it trains.

    Raises:
        OptimizerError: A parameter was replaced, as ``fully_shard`` does, or has a gradient that
            was not taken, as with ``DistributedDataParallel``.
    """
    there = None if model is None else {id(parameter) for parameter in model.parameters()}
    for each in entries:
        # Between forward and backward, FSDP puts whole parameters in the place of its shards.
        replaced = there is not None and id(each.parameter) not in there
        if replaced and not is_sharded(each.parameter):
            raise OptimizerError(
                f"parameter {each.name}: expected the parameter that the optimizer was created "
                "for, found another in its place, whose gradients nobody takes",
                hint="shard the model first (fully_shard), or load its weights, and create the "
                "optimizer after that",
            )
        if each.parameter.grad is not None:
            raise OptimizerError(
                f"parameter {each.name}: expected its gradient to be taken as soon as it is there, "
                "found a dense one that was put back later",
                hint="DistributedDataParallel does that: train the plain module, and pass "
                "data_parallel=True to SparseAdamW, which averages the chosen values",
            )
