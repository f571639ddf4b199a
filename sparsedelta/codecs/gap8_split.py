"""``gap8-split``: low bits of gaps apart, quotients in bytes (spec/codecs/gap8-split.md).

A gap far above 255 costs ``gap8`` many bytes. Here its low k bits, which a random support fills
with noise that no coder shrinks, go into bit planes, and ``gap8`` has to hold the rest only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.gap8 import ESCAPE, check_last, gaps_of, read_sums, write_gaps
from sparsedelta.words import Bytes, Indices

MAX_K: Final = 24

_SAMPLE: Final = 1 << 11
"""Gaps that the choice of k looks at, at least."""

_FRACTION: Final = 16
"""Binary digits of logarithms and sizes behind the point."""

_TABLE_BITS: Final = 12

_COUNTED_BITS: Final = 14
"""Quotients of so many bits are counted in one array."""

_SYMBOL_BITS: Final = 5
_TABLE_COST_BITS: Final = 200
"""What the table of a Huffman code costs, for each symbol and at all: found by trying every k on
random supports, where the choice is within 1 % of the best."""


@dataclass(frozen=True, slots=True)
class GapSplit:
    """A gap g is ``g >> k`` as ``gap8`` writes it, and its low k bits in bit planes."""

    id: ClassVar[str] = "gap8-split"
    needs_base: ClassVar[bool] = False
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD411"

    def stream_count(self, word_bytes: int) -> int:  # noqa: ARG002 (part of the protocol)
        """QUO, LOW."""
        return 2

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:  # noqa: ARG002
        """QUO as a stream of ``gap8``; LOW has at least k, at most 24 planes more."""
        return [
            Bounds(counts, counts + words // ESCAPE),
            Bounds(np.ones_like(counts), 1 + MAX_K * -(-counts // 8)),
        ]

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:  # noqa: ARG002
        """Streams of ascending indices, with the k of the least estimated size."""
        gaps = gaps_of(indices)
        return write_split(gaps, choose_k(gaps))

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """Indices by two sums in 64 bits: within the bounds they stay below 2^57."""
        quotients, low = streams
        sums = read_sums(quotients, count, self.rule)
        k, planes = int(low[0]), low[1:]
        if k > MAX_K:
            raise StreamError(self.rule, f"k = {k}, at most {MAX_K} is allowed")
        length = -(-count // 8)
        if planes.size != k * length:
            raise StreamError(
                self.rule, f"{k * length} bytes of bit planes expected, {planes.size} found"
            )
        # The sum of all gaps, but for their low bits, which are summed apart.
        remainders = np.zeros(count, np.uint32)
        for bit, plane in enumerate(planes.reshape(k, length)):
            marks = np.unpackbits(plane, bitorder="little")
            if marks[count:].any():
                raise StreamError(self.rule, f"a spare bit of plane {bit} is 1")
            remainders |= marks[:count].astype(np.uint32) << np.uint32(bit)
        indices = (sums << k) + np.cumsum(remainders, dtype=np.int64) + np.arange(count)
        check_last(indices, block, self.rule)
        return indices


def write_split(gaps: Indices, k: int) -> list[Bytes]:
    """QUO and LOW of gaps for a given k.

    Args:
        gaps: int64 ``[count]``, 0 or more, below 2^24.
        k: Number of low bits that go into planes, 0 to 24.
    """
    planes = [np.packbits((gaps & (1 << bit)) != 0, bitorder="little") for bit in range(k)]
    return [write_gaps(gaps >> k), np.concatenate([np.array([k], np.uint8), *planes])]


def choose_k(gaps: Indices) -> int:
    """The k of the least estimated size, the smallest of equals.

    The estimate is the entropy of the bytes of QUO, or their number where that is less, and k bits
    per gap. It looks at a few thousand gaps, evenly spaced, and counts in integers: every machine
    comes to the same k.
    """
    if not gaps.size:
        return 0
    sample = gaps[:: max(1, gaps.size // _SAMPLE)]
    top = min(int(sample.max()).bit_length(), MAX_K)
    # The quotients of the next k are pairs of those of the last: one count of them serves all.
    first = max(0, top - _COUNTED_BITS)
    quotients = np.bincount(sample >> first)
    sizes = [_estimate(np.bincount(sample >> k), gaps.size, k) for k in range(first)]
    for k in range(first, top + 1):
        sizes.append(_estimate(quotients, gaps.size, k))
        quotients = np.add.reduceat(quotients, np.arange(0, quotients.size, 2))
    return sizes.index(min(sizes))


def _estimate(quotients: Counts, count: int, k: int) -> int:
    """Bits, times 2^16, that ``count`` gaps take whose sample has these quotients.

    Args:
        quotients: int64, how many gaps of the sample have each quotient.
        count: Number of all gaps.
        k: Number of low bits that the quotients are without.
    """
    sampled = int(quotients.sum())
    rows = -(-quotients.size // ESCAPE)
    escapes = 0
    if rows > 1:  # the byte of a quotient is what is left of it after its escapes
        table = np.zeros((rows, ESCAPE), np.int64)
        table.reshape(-1)[: quotients.size] = quotients
        escapes = int(table.sum(axis=1) @ np.arange(rows))
        quotients = np.append(table.sum(axis=0), escapes)
    used = quotients[quotients > 0]
    total = sampled + escapes
    entropy = total * _log2_of(total) - int((used * _log2(used)).sum())
    plain = 8 * total * count // sampled << _FRACTION
    tables = _SYMBOL_BITS * used.size + _TABLE_COST_BITS << _FRACTION
    coded = entropy * count // sampled + tables
    planes = 8 * k * -(-count // 8) << _FRACTION
    return min(coded, plain) + planes


def _log2(numbers: Indices) -> Indices:
    """Base-2 logarithms of positive integers, times 2^16: near, and the same on every machine."""
    shifts = np.maximum(np.frexp(numbers)[1].astype(np.int64) - _TABLE_BITS, 0)
    logs: Indices = _logarithms()[numbers >> shifts] + (shifts << _FRACTION)
    return logs


def _log2_of(number: int) -> int:
    """The same of one number."""
    shift = max(number.bit_length() - _TABLE_BITS, 0)
    return int(_logarithms()[number >> shift]) + (shift << _FRACTION)


@cache
def _logarithms() -> Indices:
    """Those of 1 to 2^12 - 1, by integers: squaring a number in [1, 2) shows the next digit."""
    numbers = np.arange(1, 1 << _TABLE_BITS)
    whole = np.frexp(numbers)[1].astype(np.int64) - 1
    mantissas = numbers.astype(np.uint64) << (31 - whole).astype(np.uint64)
    logs = whole << _FRACTION
    for bit in reversed(range(_FRACTION)):
        mantissas = mantissas * mantissas >> np.uint64(31)
        doubled = mantissas >> np.uint64(32)
        logs += doubled.astype(np.int64) << bit
        mantissas >>= doubled
    return np.concatenate([[0], logs])
