"""Where two runs of words differ.

Both are looked at eight bytes at a time, in pieces that stay in the cache: most words do not
change, and what is made of those that do is small.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Indices, Words, difference

_LANE_BYTES: Final = 8
_PIECE_LANES: Final = 1 << 16
"""Lanes compared at a time: half a MiB of each run."""


class Differing(NamedTuple):
    """The words in which two runs differ.

    Attributes:
        offsets: uint32 ``[count]``, their places, ascending.
        values: Words ``[count]``: what is there in the second run, or the difference mod 2^w.
    """

    offsets: NDArray[np.uint32]
    values: Words


def differing_words(old: Words, new: Words, *, as_difference: bool) -> Differing:
    """The places in which two runs of equally many words differ, and what is there.

    Args:
        old: Words ``[n]``, contiguous; at most 2^32.
        new: Words ``[n]`` of the same dtype, contiguous.
        as_difference: Whether values are ``(new - old) mod 2^w``, not the new words.
    """
    per_lane = _LANE_BYTES // old.itemsize
    shift = per_lane.bit_length() - 1
    whole = old.size >> shift << shift
    lanes = old[:whole].view(np.uint64), new[:whole].view(np.uint64)
    found = Differing(np.empty(old.size, np.uint32), np.empty(old.size, old.dtype))
    count = 0

    def add(offsets: Indices, before: Words, after: Words) -> None:
        nonlocal count
        stop = count + offsets.size
        found.offsets[count:stop] = offsets
        found.values[count:stop] = difference(after, before) if as_difference else after
        count = stop

    def add_plainly(first: int, last: int) -> None:
        one, other = old[first:last], new[first:last]
        picked = np.flatnonzero(one != other)
        add(picked + first, one[picked], other[picked])

    for start in range(0, lanes[0].size, _PIECE_LANES):
        stop = start + _PIECE_LANES
        here = np.flatnonzero(lanes[0][start:stop] != lanes[1][start:stop])
        if not here.size:
            continue
        first, last = start << shift, min(stop << shift, whole)
        if here.size * 4 > last - first or not shift:
            # Many lanes differ: picking them out would cost more than it saves.
            add_plainly(first, last)
        else:
            here += start
            one, other = lanes[0][here].view(old.dtype), lanes[1][here].view(old.dtype)
            picked = np.flatnonzero(one != other)
            offsets = (here[picked >> shift] << shift) + (picked & (per_lane - 1))
            add(offsets, one[picked], other[picked])
    if whole < old.size:
        add_plainly(whole, old.size)
    # Of memory that was asked for, only what is used is had: room for all costs nothing. It is let
    # go where most of it would be kept for little.
    offsets, values = found.offsets[:count], found.values[:count]
    if 2 * count > old.size:
        return Differing(offsets, values)
    return Differing(offsets.copy(), values.copy())
