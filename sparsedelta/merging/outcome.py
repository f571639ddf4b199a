"""What a merge method makes of the tasks in one tensor, and what it has to see for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sparsedelta.merging.aligned import Aligned
from sparsedelta.words import Words


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a method makes of a tensor.

    Attributes:
        words: Words ``[n]`` of the elements that a task changes.
        scale: What all other elements are multiplied with; 1: they stay, bit for bit.
    """

    words: Words
    scale: float = 1.0


class TensorMethod(Protocol):
    """How tasks are put together in one tensor."""

    @property
    def is_whole(self) -> bool:
        """Whether the entries of the whole tensor have to be seen at once."""

    @property
    def needs_norm(self) -> bool:
        """Whether the sum of the squares of the base has to be known."""

    def __call__(self, aligned: Aligned, base_square: float) -> Outcome:
        """Put tasks together.

        Args:
            aligned: Their entries, of the whole tensor or of a run of it.
            base_square: Sum of the squares of the base, if it is needed.
        """
