"""Entries of a delta in a live tensor, the base words under them, and how words are put there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

_UNSIGNED: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

_SHORT: Final = 1 << 31


class Placed:
    """An array where it was made, and copies of it where it was needed: on the host, on devices.

    Args:
        made: The array, on the host; or on a device, as signed words.
        dtype: Its dtype on the host, if it was made on a device.
    """

    def __init__(
        self, made: NDArray[Any] | torch.Tensor, dtype: np.dtype[Any] | None = None
    ) -> None:
        self._host: NDArray[Any] | None = None
        self._copies: dict[torch.device, torch.Tensor] = {}
        if isinstance(made, np.ndarray):
            self._host, self._dtype, self.size = made, made.dtype, made.size
        else:
            assert dtype is not None  # noqa: S101 (see above)
            self._dtype, self.size = dtype, made.numel()
            self._copies[made.device] = made

    @property
    def host(self) -> NDArray[Any]:
        """The array on the host; fetched from a device when it is first needed here."""
        if self._host is None:
            made = next(iter(self._copies.values()))
            self._host = made.cpu().numpy().view(self._dtype)
        return self._host

    def on(self, device: torch.device) -> torch.Tensor:
        """The array on a device, as signed words; on the host it is the array itself."""
        import torch  # noqa: PLC0415 (the package works without torch)

        if device.type == "cpu":
            return torch.from_numpy(self.host.view(_SIGNED[self.host.itemsize]))
        if device not in self._copies:
            self._copies[device] = self.on(torch.device("cpu")).to(device)
        return self._copies[device]

    def rest(self) -> None:
        """Keep it on the host alone, until it is needed elsewhere."""
        self._host = self.host
        self._copies.clear()

    @property
    def nbytes(self) -> int:
        """Bytes on the host and on devices."""
        places = len(self._copies) + (self._host is not None)
        return self.size * self._dtype.itemsize * places


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

        if not self.where.size:
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
        where: Words of the box that change, ascending, ``[n]``: int32 where that is enough.
        base: What they are in the base, ``[n]``.
        words: What the delta makes of them, ``[n]``: never what they were.
    """

    def __init__(self, box: Box, where: Placed, base: Placed, words: Placed) -> None:
        self.box = box
        self._where, self._base, self._words = where, base, words
        self.back = Patch(self._where, self._base)
        self.forth = Patch(self._where, self._words)

    @classmethod
    def on_host(cls, box: Box, where: Indices, base: Words, words: Words) -> LiveEntries:
        """Entries that were found on the host; the arguments are those of the class."""
        short = where.astype(np.int32) if box.words < _SHORT else where
        return cls(box, Placed(short), Placed(base), Placed(words))

    @classmethod
    def on_device(
        cls, box: Box, where: torch.Tensor, base: torch.Tensor, words: torch.Tensor
    ) -> LiveEntries:
        """Entries that were found on a device: they stay there, and the host has none of them.

        Args:
            box: See the class.
            where: int64.
            base: Signed words.
            words: Signed words.
        """
        is_short = box.words < _SHORT
        short = where.int() if is_short else where
        dtype = np.dtype(f"<u{base.element_size()}")
        placed = Placed(short, np.dtype("<i4" if is_short else "<i8"))
        return cls(box, placed, Placed(base, dtype), Placed(words, dtype))

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

    @property
    def nnz(self) -> int:
        """How many they are."""
        return self._where.size

    @property
    def nbytes(self) -> int:
        """Bytes that they take, on the host and on devices."""
        return self._where.nbytes + self._base.nbytes + self._words.nbytes

    def is_same(self, other: LiveEntries) -> bool:
        """Whether other entries change the same words in the same way."""
        return np.array_equal(self.where, other.where) and np.array_equal(self.words, other.words)

    def rest(self) -> None:
        """Keep them on the host alone, until they are needed elsewhere."""
        for placed in (self._where, self._base, self._words):
            placed.rest()

    def overlay_on_device(self, words: torch.Tensor, start: int) -> None:
        """As :meth:`overlay`, where the words are.

        Args:
            words: A run of the words that are here, as signed words.
            start: Which is the first of them.
        """
        where = self._where.on(words.device)
        own = ((where >= start) & (where < start + words.numel())).nonzero().view(-1)
        at = where.index_select(0, own).long() - start
        words.scatter_(0, at, self._base.on(words.device).index_select(0, own))

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
    if len(active) == len(plain) == 1:  # nothing is shared: what is on a device stays there
        return plain
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
