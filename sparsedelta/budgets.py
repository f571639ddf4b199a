"""What reading a delta without its base may take: work, and memory (rule SD504)."""

from __future__ import annotations

from collections.abc import Iterable

from sparsedelta.delta import SPARSE_OPS
from sparsedelta.errors import FormatError
from sparsedelta.locations import Location
from sparsedelta.records import TensorRecord


def check_memory(path: Location, records: Iterable[TensorRecord], budget: int) -> None:
    """Refuse entries that would take more memory than that.

    Args:
        path: The delta.
        records: What is to be read of it.
        budget: Bytes.

    Raises:
        FormatError: They would.
    """
    needed = sum(
        part.nnz * (record.word_bytes(number) + 8 * (part.op in SPARSE_OPS))
        for record in records
        for number, part in record.coded
    )
    if needed > budget:
        raise FormatError(
            "SD504",
            f"{path}: the entries take {needed} bytes of memory, the budget is {budget}",
            hint="blocks() reads a part at a time; read(budget=…) allows more",
        )


class WorkLeft:
    """The work that a reader without a base is still willing to do for a delta.

    Args:
        path: The delta.
        budget: Bytes that it decodes at most.
        known: Bytes that it will decode in any case.

    Raises:
        FormatError: That is too much.
    """

    def __init__(self, path: Location, budget: int, known: int = 0) -> None:
        self._path = path
        self._budget = budget
        self._taken = 0
        self.take(known)

    def take(self, nbytes: int) -> None:
        """Count what is decoded.

        Raises:
            FormatError: It is too much, with what was counted before.
        """
        self._taken += nbytes
        if self._taken > self._budget:
            raise FormatError(
                "SD504",
                f"{self._path}: decoding needs {self._taken} bytes or more, the budget without a "
                f"base is {self._budget}",
                hint=f"sparsedelta validate {self._path} --base BASE",
            )
