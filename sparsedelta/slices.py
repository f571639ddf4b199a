"""A run of words of a target tensor, what leads to it, and how its parts are applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsedelta.delta import ADD, DIFFERENCE, Part
from sparsedelta.errors import DAMAGED, FormatError
from sparsedelta.locations import Location
from sparsedelta.rounding import add_scaled
from sparsedelta.words import Indices, TensorSpec, Words


@dataclass(frozen=True, slots=True, eq=False)
class TensorSlice:
    """What leads to the words ``[start, stop)`` of a target tensor.

    Attributes:
        spec: The target tensor.
        start: First word.
        stop: Word behind the last.
        given: Words of the target tensor that come from a source tensor: all of them, the surviving
            ones after a ``resize``, none of a tensor that is new.
        entries: Sparse parts, with flat indices of the tensor, all within the slice.
        carried: The words of the slice at and behind ``given``.
    """

    spec: TensorSpec
    start: int
    stop: int
    given: int
    entries: tuple[Part, ...]
    carried: Words

    @property
    def nnz(self) -> int:
        """Number of entries within the slice."""
        return sum(part.nnz for part in self.entries)

    def apply(self, source: Words) -> Words:
        """The target words of the slice.

        Args:
            source: Words of the source tensor, those of ``[start, min(stop, given))``. Nothing is
                known of them here: :func:`sparsedelta.read_rows` also verifies them.

        Returns:
            Words ``[stop - start]``.

        Raises:
            ValueError: Another number of words.
            NotFiniteError: An ``add`` meets or gives a number that is not finite (SD505).
        """
        expected = max(0, min(self.stop, self.given) - self.start)
        if source.size != expected:
            raise ValueError(f"{source.size} source words, expected {expected}")
        words = np.concatenate([source, self.carried])
        apply_parts(self.spec, words, self.start, self.entries)
        return words


def apply_parts(
    spec: TensorSpec, words: Words, start: int, parts: tuple[Part, ...] | list[Part]
) -> None:
    """Apply sparse parts with flat indices to a run of words, in place.

    Args:
        spec: The tensor.
        words: Its words from ``start`` on.
        start: Flat index of the first.
        parts: Sparse parts whose indices lie within the run.

    Raises:
        NotFiniteError: SD505.
    """
    for part in parts:
        assert part.indices is not None  # noqa: S101 (sparse)
        at = part.indices - start
        words[at] = new_words(spec, words[at], part)


def new_words(spec: TensorSpec, old: Words, part: Part) -> Words:
    """What a sparse part makes of the words at its indices.

    Args:
        spec: The tensor.
        old: Words ``[nnz]`` at the part's indices.
        part: The part.

    Raises:
        NotFiniteError: SD505.
    """
    assert part.words is not None  # noqa: S101 (sparse)
    if part.op == ADD:
        return add_scaled(spec, old, part)
    return old + part.words if part.op == DIFFERENCE else part.words


def check_disjoint(path: Location, name: str, indices: Sequence[Indices]) -> None:
    """Rule SD409: the parts of a tensor do not share an index."""
    merged = np.sort(np.concatenate(indices)) if len(indices) > 1 else np.empty(0, np.int64)
    both = merged[1:][merged[1:] == merged[:-1]]
    if both.size:
        raise FormatError(
            "SD409", f"{path}: tensor {name!r}: two parts hold index {both[0]}", hint=DAMAGED
        )
