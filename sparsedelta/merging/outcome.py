"""What a merge method makes of the tasks in one tensor, and what it has to see for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sparsedelta.merging.aligned import Aligned
from sparsedelta.words import Words


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a method makes of a tensor.

    Attributes:
        words: Words ``[n]`` of the elements that a task changes.
        elsewhere: What the words of all other elements become; None: they stay, bit for bit.
    """

    words: Words
    elsewhere: Callable[[Words], Words] | None = None


class TensorMethod(Protocol):
    """How tasks are put together in one tensor."""

    @property
    def is_whole(self) -> bool:
        """Whether the entries of the whole tensor have to be seen at once."""

    @property
    def moves_all(self) -> bool:
        """Whether it changes tensors, too, that no task changes."""

    @property
    def needs_norm(self) -> bool:
        """Whether the sum of the squares of the base has to be known."""

    def __call__(self, aligned: Aligned, base_square: float) -> Outcome:
        """Put tasks together.

        Args:
            aligned: Their entries, of the whole tensor or of a run of it.
            base_square: Sum of the squares of the base, if it is needed.
        """
