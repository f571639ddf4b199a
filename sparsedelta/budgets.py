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


def check_work(path: Location, needed: int, budget: int) -> None:
    """Refuse to decode more than a reader without a base is willing to.

    Args:
        path: The delta.
        needed: Bytes that its streams and blobs decode to.
        budget: Bytes that are decoded at most.

    Raises:
        FormatError: They are more.
    """
    if needed > budget:
        raise FormatError(
            "SD504",
            f"{path}: decoding needs {needed} bytes, the budget without a base is {budget}",
            hint=f"sparsedelta validate {path} --base BASE",
        )
