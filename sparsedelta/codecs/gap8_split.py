"""``gap8-split``: low bits of gaps apart, quotients in bytes (spec/codecs/gap8-split.md).

A gap far above 255 costs ``gap8`` many bytes. Here its low k bits, which a random support fills
with noise that no coder shrinks, go into bit planes, and ``gap8`` has to hold the rest only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from sparsedelta.codecs.base import Block, Bounds, Counts, StreamError
from sparsedelta.codecs.entropy import FRACTION, entropies
from sparsedelta.codecs.gap8 import ESCAPE, check_last, gaps_of, read_sums, running_sums, write_gaps
from sparsedelta.words import Bytes, Indices

MAX_K: Final = 24

_SAMPLE: Final = 1 << 11
"""Gaps that the choice of k looks at, at least."""

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
        indices = (sums << k) + running_sums(remainders) + np.arange(count)
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
    # What a byte of QUO is of each k, and last the escapes.
    histograms = np.zeros((top + 1, ESCAPE + 1), np.int64)
    # The quotients of the next k are pairs of those of the last: one count of them serves all.
    first = max(0, top - _COUNTED_BITS)
    for k in range(first):  # whose quotients are too large to be counted each by itself
        escapes, rest = np.divmod(sample >> k, ESCAPE)
        histograms[k] = np.bincount(rest, minlength=ESCAPE + 1)
        histograms[k, ESCAPE] = escapes.sum()
    quotients = np.bincount(sample >> first)
    for k in range(first, top + 1):
        histograms[k] = _bytes_of(quotients)
        quotients = np.add.reduceat(quotients, np.arange(0, quotients.size, 2))
    kinds = np.count_nonzero(histograms, axis=1)
    columns = (kinds, histograms.sum(axis=1), entropies(histograms))
    sizes = []
    for k, (used, total, bits) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        plain = 8 * total * gaps.size // sample.size << FRACTION
        tables = _SYMBOL_BITS * used + _TABLE_COST_BITS << FRACTION
        planes = 8 * k * -(-gaps.size // 8) << FRACTION
        sizes.append(min(bits * gaps.size // sample.size + tables, plain) + planes)
    return sizes.index(min(sizes))


def _bytes_of(quotients: Counts) -> Counts:
    """How often each byte stands in QUO, int64 ``[256]``.

    Args:
        quotients: int64, how many gaps have each quotient.
    """
    rows = -(-quotients.size // ESCAPE)
    table = np.zeros((rows, ESCAPE), np.int64)
    table.reshape(-1)[: quotients.size] = quotients
    found = np.zeros(ESCAPE + 1, np.int64)
    found[:ESCAPE] = table.sum(axis=0) if rows > 1 else table[0]
    if rows > 1:
        found[ESCAPE] = table.sum(axis=1) @ np.arange(rows)
    return found
