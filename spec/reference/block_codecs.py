"""The codecs: which streams they have, how long these are, and what they hold.

Section 6 of SPEC.md and the pages under codecs/: SD304 (lengths) and SD403 to SD413 (streams).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from terms import Array, need

ESCAPE, MAX_K, RUN_BYTES, LEAST_RANKED, MOST_RANKED = 255, 24, 8, 10, 2**15
INDEX_STREAMS = {"gap8": 1, "gap8-split": 2, "bitmask": 1, "range": 1, "dense": 0, "raw": 1}
INDEX_STREAMS["ranked"] = 1  # that holds the values too: see ranked.py
VALUE_STREAMS = {"packed": 3, "zigzag": 2, "raw": 1, "ranked": 0}  # and planes: W
# Each row: the least and greatest decoded length of a stream, and what it is a multiple of.
Lengths = list[tuple[Array, Array, int]]


@dataclass
class Coded:
    """A coded part as the manifest describes it.

    Attributes:
        op: The operation.
        index: The id of the index codec.
        value: The id of the value codec.
        p: The width of `packed`.
        n: The words of the domain.
        W: The bytes of a value word.
        nnz: The entries, or words carried.
        block: The base-2 logarithm of the words of a block.
        bytes: The length of all frames.
        dtype: Of `add`: the dtype of the values.
        scale: Of `add`: the bits of a float64.
        tensor: The dtype of the tensor.
        rows: The block table, once the tables are read.
    """

    op: str
    index: str
    value: str
    p: int
    n: int
    W: int
    nnz: int
    block: int
    bytes: int
    dtype: str = ""
    scale: int = 0
    tensor: str = ""

    def __post_init__(self) -> None:
        """Derive the type and number of the rows of the block table."""
        streams = INDEX_STREAMS[self.index] + VALUE_STREAMS.get(self.value, self.W)
        stream = [("encoded", "<u4"), ("decoded", "<u4"), ("checksum", "V8")]
        self.row: np.dtype[Any] = np.dtype([("count", "<u4"), ("streams", stream, (streams,))])
        self.blocks, self.rows = -(-self.n >> self.block), np.empty(0, self.row)

    def sizes(self) -> Array:
        """The words of each block; call it once the length of the tables is checked."""
        starts = np.arange(self.blocks) << self.block
        return cast("Array", np.minimum(self.n - starts, 1 << self.block))


@dataclass(frozen=True)
class Bare:
    """A bare part: its op, and the name in its `from` or `to`, if any."""

    op: str
    of: str


# --- Lengths ---


def index_lengths(part: Coded, count: Array, n: Array) -> Lengths:
    """The lengths of the index streams of blocks of n words with some counts above 0."""
    gaps, p = (count, count + n // ESCAPE, 1), -(-count // 8)
    rows: dict[str, Lengths] = {
        "gap8": [gaps],
        "gap8-split": [gaps, (1 + 0 * p, 1 + MAX_K * p, 1)],
        "bitmask": [(-(-n // 8), -(-n // 8), 1)],
        "range": [(RUN_BYTES + 0 * n, RUN_BYTES + 0 * n, 1)],
        "raw": [(4 * count, 4 * count, 1)],
        "ranked": [(LEAST_RANKED + 0 * n, MOST_RANKED + n + 5 * count, 1)],
    }
    return rows.get(part.index, [])


def value_lengths(part: Coded, m: Array) -> Lengths:
    """The lengths of the value streams of blocks with m values."""
    exceptions = (0 * m, m * part.W, part.W)
    if part.value == "packed":
        return [(-(-k // 8), -(-k // 8), 1) for k in (m, m * part.p)] + [exceptions]
    if part.value == "zigzag":
        return [(m, m, 1), exceptions]
    if part.value == "raw":
        return [(m * part.W, m * part.W, 1)]
    return [] if part.value == "ranked" else [(m, m, 1)] * part.W


def lengths_fit(part: Coded, count: Array, n: Array, decoded: Array) -> bool:
    """Whether the decoded lengths of all blocks (blocks x streams) are what SD304 asks for."""
    m = {"dense": n, "range": n}.get(part.index, count)
    fits = count <= n
    if part.index == "range":  # the first value stream tells m, and all of them have to agree
        m = decoded[:, 1] // (part.W if part.value == "raw" else 1)
        fits = (count <= m) & (m <= n)
    rows = index_lengths(part, count, n) + value_lengths(part, m)
    for k, (low, high, unit) in enumerate(rows):
        length = decoded[:, k]
        fits &= (low <= length) & (length <= high) & (length % unit == 0)
    return bool(np.where(count > 0, fits, ~decoded.any(axis=1)).all())


# --- Indices ---


def gaps_of(code: str, stream: Array, count: int) -> Array:
    """The gaps of a stream of `gap8`, as u64."""
    ends = stream != ESCAPE
    need(code, ends.sum() == count and ends[-1], "another number of gaps, or an open one")
    sums = np.cumsum(stream, dtype=np.uint64)[ends]
    return np.diff(sums, prepend=np.uint64(0))


def split_gaps(streams: list[Array], count: int) -> Array:
    """The gaps of the streams of `gap8-split`, as u64."""
    quotients = gaps_of("SD411", streams[0], count)
    k, p = int(streams[1][0]), -(-count // 8)
    need("SD411", k <= MAX_K and streams[1].size == 1 + k * p, "k, or the length of LOW")
    planes = streams[1][1:].reshape(k, p)
    bits = np.unpackbits(planes, axis=1, bitorder="little")
    need("SD411", not bits[:, count:].any(), "spare bits")
    low = np.zeros(count, np.uint64)
    for t in range(k):
        low |= bits[t, :count].astype(np.uint64) << np.uint64(t)
    return quotients << np.uint64(k) | low


def read_index(part: Coded, streams: list[Array], n: int, count: int) -> tuple[Array, int]:
    """The index streams of a block of n words.

    Returns:
        The indices of the words that have a value (with padding, for `dense` and `range`), in
        u64, and m, the number of values in the value streams.
    """
    if part.index == "dense":
        return np.arange(n, dtype=np.uint64), n
    if part.index == "bitmask":
        bits = np.unpackbits(streams[0], bitorder="little")
        need("SD404", bits.sum() == count and not bits[n:].any(), "count or spare bits")
        return np.flatnonzero(bits).astype(np.uint64), count
    if part.index == "range":
        first, length = (int(number) for number in streams[0].view("<u4"))
        exact = length == count or (part.op == "difference" and length > count)
        need("SD412", exact and first + length <= n, "the run and the count, or the block")
        return np.arange(first, first + length, dtype=np.uint64), length
    if part.index == "raw":
        places = streams[0].view("<u4").astype(np.uint64)
        ascending = bool((places[:-1] < places[1:]).all())
        need("SD413", ascending and places[-1] < n, "order, or an index outside the block")
        return places, count
    code = "SD403" if part.index == "gap8" else "SD411"
    gaps = gaps_of(code, streams[0], count) if part.index == "gap8" else split_gaps(streams, count)
    places = np.cumsum(gaps + np.uint64(1), dtype=np.uint64) - np.uint64(1)
    need(code, places[-1] < n, "an index outside the block")
    return places, count


# --- Values ---


def joined(planes: Array, width: int) -> Array:
    """Words from their byte planes."""
    array = planes.reshape(width, planes.size // width)
    return np.ascontiguousarray(array.T).view(f"<u{width}").ravel()


def present(part: Coded, streams: list[Array]) -> Array:
    """Which values of a `difference` are not 0, as far as the value streams tell before SD407."""
    if part.value == "raw":
        return cast("Array", streams[0].view(f"<u{part.W}") != 0)
    # A zigzag value is 0 exactly if its symbol is.
    return cast("Array", np.any(streams[:1] if part.value == "zigzag" else streams, axis=0))


def read_values(part: Coded, streams: list[Array], m: int) -> Array:
    """The m words of a block from its value streams."""
    if part.value == "raw":
        return streams[0].view(f"<u{part.W}")
    if part.value == "planes":
        return joined(np.concatenate(streams), part.W)
    code, bits, p = ("SD406" if part.value == "packed" else "SD407"), 8 * part.W, part.p
    rest = joined(streams[-1], part.W).astype(np.uint64)
    if part.value == "packed":
        sign = np.unpackbits(streams[0], bitorder="little")
        mag, top, limit = streams[1], 2**p - 1, 2 ** (bits - 1) - 1
        symbols = np.concatenate([mag >> k & top for k in range(0, 8, p)] if p else [sign[:m] * 0])
        need(code, not sign[m:].any() and not symbols[m:].any(), "spare bits")
    else:
        symbols, top, limit = streams[0], ESCAPE, 2**bits - 1
    number = symbols[:m].astype(np.uint64)
    need(code, rest.size == (number == top).sum(), "the number of exceptions")
    need(code, rest.size == 0 or int(rest.max()) + top <= limit, "an exception is too large")
    number[number == top] += rest
    if part.value == "packed":  # ~a is -(a + 1)
        need(code, (number + (sign[:m] == 0) <= limit).all(), "a magnitude is too large")
        number = np.where(sign[:m], ~number, number + 1)
    else:
        number = np.where(number & 1, ~(number >> 1), number >> 1)
    return cast("Array", number.astype(f"<u{part.W}"))
