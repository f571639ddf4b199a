"""Batches: small things worked on together, with the errors of one after the other.

A call for each of a thousand small tensors takes longer than what it does, and the threads of a
pool wait for one another between the calls. What is done to a batch at once must still be told as
it is where each is done by itself: of the things that fail it is the first that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from sparsedelta.errors import RemoteError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

BATCH_BYTES: Final = 1 << 21
"""Bytes of words that are worked on together."""


def batched(
    items: Iterable[_Item], size: Callable[[_Item], int], enough: int
) -> Iterator[list[_Item]]:
    """Neighbours together, in their order; a batch ends with the item that fills it.

    Args:
        items: The items.
        size: Size of an item.
        enough: Size of a full batch.
    """
    batch: list[_Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= enough:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def together(
    work: Callable[[Sequence[_Item]], list[_Result]], items: Sequence[_Item]
) -> list[_Result]:
    """Work on several items at once; where that fails, on one after the other.

    Args:
        work: Gives a result per item. It raises if it cannot do any of the items, whatever it has
            done to the others, and may be called for them again.
        items: The items.

    Raises:
        Exception: What ``work`` raises of the first item that it cannot do by itself; of a file
            that is out of reach at once, as every attempt takes long.
    """
    if len(items) > 1:
        try:
            return work(items)
        except RemoteError:
            raise
        except Exception:  # noqa: BLE001, S110 (one by one tells what it is, and of which item)
            pass
    return [result for item in items for result in work([item])]
