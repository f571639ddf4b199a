"""``load_state_dict``: a base and its deltas as tensors in memory; nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import CheckpointError, DeltaGivenError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.locations import LocationLike
from sparsedelta.operations.made_tensors import MadeTensors, Recipe, Verify, made_tensors
from sparsedelta.parallel import OrderedMap
from sparsedelta.state_dict import torch_dtype
from sparsedelta.words import Bytes, TensorSpec

if TYPE_CHECKING:
    import torch


def load_state_dict(
    base: LocationLike,
    deltas: Sequence[LocationLike | DeltaReader],
    *,
    weights: Sequence[float] | None = None,
    method: str = "sum",
    parameters: Mapping[str, object] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    verify: Verify = "full",
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors that deltas make of a base, by name: those that ``apply`` would write, bit for bit.

    They are made one after the other, each on its way to the device, and nothing is written: beside
    the result there is at most one tensor in memory. Without ``weights`` the deltas are a chain, as
    for :func:`sparsedelta.apply`, in any order; ``base`` may be any checkpoint on it. With
    ``weights`` they all start at the base and are put together, as by :func:`sparsedelta.compose`.

    Args:
        base: The base: a file, a directory or an index; sharded or not, local or by URL.
        deltas: The deltas.
        weights: A weight per delta of one base; one of weight 0 is left out.
        method: See :func:`sparsedelta.compose`; only with ``weights``.
        parameters: See there.
        seed: See there.
        device: Where the tensors go; None: host memory.
        verify: ``"full"``: all tensors of the base, and its fingerprint; ``"touched"``: those that
            a delta changes.
        threads: Worker threads; None for the cores of this process.

    Returns:
        Tensors in the order of their names in the base; each has memory of its own.

    Raises:
        UsageError: The deltas are neither a chain nor given weights; or a bad weight or method.
        WrongBaseError: ``base`` is not the base of the deltas.
        VerificationError: The result is not the target: a delta lies about it.
        StructureError: Deltas of one base exclude each other.
        NotFiniteError: A number that is met or made is not finite.
        FormatError: A delta breaks a rule.
        CheckpointError: ``base`` cannot be read, or has a dtype that torch does not know.
    """
    recipe = Recipe(deltas, weights, method, parameters or {}, seed, verify)
    with opened(base, recipe, threads) as made:
        found = {}
        for name, spec in made.specs.items():
            tensor = as_tensor(spec, made.whole(name))
            found[name] = tensor if device is None else tensor.to(device)
            del tensor
        made.finish()
        return found


@contextmanager
def opened(base: LocationLike, recipe: Recipe, threads: int | None) -> Iterator[MadeTensors]:
    """What deltas make of a base, while the block runs; raises as :func:`load_state_dict`."""
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(FileCheckpoint(at_named_commit(base, recipe.deltas)))
        except DeltaGivenError as error:
            error.hint = "the base comes first: load_state_dict(base, [delta, …])"
            raise
        pool = stack.enter_context(OrderedMap(threads))
        yield made_tensors(checkpoint, recipe, pool, stack)


def as_tensor(spec: TensorSpec, data: Bytes) -> torch.Tensor:
    """A tensor of words, over the same memory.

    Raises:
        CheckpointError: A dtype that torch does not know.
    """
    import torch  # noqa: PLC0415 (the package works without torch)

    dtype = torch_dtype(spec.dtype)
    if dtype is None:
        raise CheckpointError(f"tensor {spec.name!r} is {spec.dtype}: torch has no such dtype")
    if not data.size:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.from_numpy(data).view(dtype).view(spec.shape)
