"""Entries of a delta in a live tensor, the base words under them, and how words are put there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.boxes import Box
from sparsedelta.merging.aligned import Aligned
from sparsedelta.merging.summing import summed
from sparsedelta.words import Indices, TensorSpec, Words

if TYPE_CHECKING:
    import torch

_SIGNED: Final = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
"""What torch can index, by bytes: words are never looked at as numbers there."""

_SHORT: Final = 1 << 31


class Placed:
    """An array, and copies of it on the devices where it was needed."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.host = array
        self._copies: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """The array on a device, as signed words; on the host it is the array itself."""
        import torch  # noqa: PLC0415 (the package works without torch)

        if device.type == "cpu":
            return torch.from_numpy(self.host.view(_SIGNED[self.host.itemsize]))
        if device not in self._copies:
            self._copies[device] = self.on(torch.device("cpu")).to(device)
        return self._copies[device]

    @property
    def nbytes(self) -> int:
        """Bytes on the host and on devices."""
        return self.host.nbytes * (1 + len(self._copies))


class Patch:
    """Words and where they are put in the words that are here of a tensor.

    Args:
        where: Words of the box, ascending, ``[n]``.
        words: What they become, ``[n]``.
    """

    def __init__(self, where: Placed, words: Placed) -> None:
        self.where = where
        self.words = words

    def put(self, tensor: torch.Tensor) -> None:
        """Write the words into a tensor, on its device, whatever its strides."""
        import torch  # noqa: PLC0415

        if not self.where.host.size:
            return
        where = self.where.on(tensor.device).long()
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            flat, where = _flat(tensor, where)
            flat.scatter_(0, where, self.words.on(tensor.device))


def _flat(tensor: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor's memory as flat words, and where in it some words of the tensor are."""
    import torch  # noqa: PLC0415

    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    if tensor.is_contiguous():
        return tensor.view(-1).view(kind), where
    reach = 1 + sum((s - 1) * step for s, step in zip(tensor.shape, tensor.stride(), strict=True))
    moved = torch.zeros_like(where)
    for size, step in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        moved += where % size * step
        where = where // size
    return tensor.as_strided((reach,), (1,), tensor.storage_offset()).view(kind), moved


class LiveEntries:
    """What a delta changes in the part of a tensor that is here.

    Args:
        box: That part.
        where: Words of the box that change, ascending, ``[n]``.
        base: What they are in the base, ``[n]``.
        words: What the delta makes of them, ``[n]``: never what they were.
    """

    def __init__(self, box: Box, where: Indices, base: Words, words: Words) -> None:
        self.box = box
        short = where.astype(np.int32) if box.words < _SHORT else where
        self._where, self._base, self._words = Placed(short), Placed(base), Placed(words)
        self.back = Patch(self._where, self._base)
        self.forth = Patch(self._where, self._words)

    @property
    def where(self) -> NDArray[Any]:
        """Words of the box that change, ascending."""
        return self._where.host

    @property
    def base(self) -> Words:
        """Their words in the base."""
        return self._base.host

    @property
    def words(self) -> Words:
        """Their words in the target."""
        return self._words.host

    @cached_property
    def nnz(self) -> int:
        """How many they are."""
        return int(self.where.size)

    @property
    def nbytes(self) -> int:
        """Bytes that they take, on the host and on devices."""
        return self._where.nbytes + self._base.nbytes + self._words.nbytes

    def is_same(self, other: LiveEntries) -> bool:
        """Whether other entries change the same words in the same way."""
        return np.array_equal(self.where, other.where) and np.array_equal(self.words, other.words)

    def overlay(self, words: Words, start: int) -> None:
        """Put the base words over a run of the words that are here, from ``start`` on."""
        low, high = np.searchsorted(self.where, [start, start + words.size])
        words[self.where[low:high] - start] = self.base[low:high]


def patches_of(
    spec: TensorSpec, box: Box, active: Sequence[tuple[LiveEntries, float]]
) -> tuple[Patch, ...]:
    """What is put into a tensor of the base to have the sum of several deltas.

    Where one delta of weight 1 alone changes a word, it is that delta's, as it stands; only the
    others are computed, by the rule of :mod:`sparsedelta.merging.summing`.

    Args:
        spec: The whole tensor.
        box: Which part of it is here.
        active: The deltas that have part in it, and their weights.

    Returns:
        Patches, to be put in this order.

    Raises:
        NotFiniteError: A number that is met or made is not finite.
        StructureError: Deltas exclude each other.
    """
    plain = tuple(entries.forth for entries, weight in active if weight == 1)
    weighted = [entries.where for entries, weight in active if weight != 1]
    where = _shared([entries.where for entries, _ in active])
    if weighted:
        where = np.unique(np.concatenate([where, *weighted]))
    if not where.size:
        return plain
    shape = (len(active), where.size)
    base = np.empty(where.size, spec.word_dtype)
    words, present = np.empty(shape, spec.word_dtype), np.zeros(shape, np.bool_)
    for task, (entries, _) in enumerate(active):
        at = np.searchsorted(entries.where, where)
        at[at == entries.nnz] = 0
        here = entries.where[at] == where if entries.nnz else present[task]
        present[task] = here
        words[task, here] = entries.words[at[here]]
        base[here] = entries.base[at[here]]
    words[~present] = np.broadcast_to(base, shape)[~present]
    aligned = Aligned(spec, box.indices(where.astype(np.int64)), base, words, present)
    made = summed(aligned, [weight for _, weight in active])
    return (*plain, Patch(Placed(where), Placed(np.ascontiguousarray(made))))


def _shared(wheres: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """What is in more than one of several ascending arrays, ascending."""
    merged = np.concatenate(list(wheres))
    merged.sort(kind="stable")  # of runs that are sorted: a merge
    return np.unique(merged[1:][merged[1:] == merged[:-1]])
