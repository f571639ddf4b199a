"""Blocks of ``ranked`` decoded on an accelerator, where their base words lie.

The host takes a block apart as far as that goes without the base, into ranks and values; these are
sent to the device, which knows the exponents of the base words, and finds the entries. Every step
is an ``index_select`` or a ``nonzero``, or goes element by element, on bytes and integers of 16, 32
and 64 bits, whose sums wrap around (spec/codecs/ranked.md). Of the base only the sizes of its
classes become known to the host, and whether a rule is broken.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparsedelta.codecs.base import Block, CodedBlock, StreamError
from sparsedelta.codecs.ranked_classes import EXPONENTS, Range
from sparsedelta.codecs.ranked_layout import FLAT, MASK, ClassEntry
from sparsedelta.codecs.ranked_places import BASE_RULE, ElementSet
from sparsedelta.codecs.ranked_streams import read_entries
from sparsedelta.codecs.ranked_values import NEW_WORDS
from sparsedelta.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsedelta.codecs.ranked_rows import LiveRows

_EXPONENTS: Final = 256


class RankedOnHost(NamedTuple):
    """A block taken apart on the host, without its base words.

    Attributes:
        block: The block; it has no base words.
        table: Its classes.
        live: Its live rows, or None if all are.
        mask_bytes: Of each class the length of its bitmask, or 0.
        ranks: int32 ``[count]``, class by class.
        words: Differences of the entries, or new words where the class says so.
    """

    block: Block
    table: Sequence[ClassEntry]
    live: LiveRows | None
    mask_bytes: Sequence[int]
    ranks: NDArray[np.int32]
    words: Words

    @property
    def nbytes(self) -> int:
        """Bytes that are sent to the device of ranks and values."""
        return self.ranks.nbytes + self.words.nbytes


def take_apart(coded: CodedBlock) -> RankedOnHost:
    """What a block holds, as far as that goes without its base words.

    Args:
        coded: BLOCK, with at least one entry; base words in it are not looked at.

    Raises:
        StreamError: SD417.
    """
    entries = read_entries([coded])
    (stored,) = entries.blocks
    masks = [
        len(part) if entry.index == MASK else 0
        for entry, part in zip(stored.table, stored.ranks, strict=True)
    ]
    # A block has at most 2^24 words.
    ranks = entries.ranks.astype(np.int32)
    return RankedOnHost(coded.block, stored.table, stored.live, masks, ranks, entries.words)


def decode_on_device(stored: RankedOnHost, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries of a block, on the device of its base words: those that the codec gives.

    Args:
        stored: The block, taken apart.
        base: Its base words, verified: int16 ``[words]``, on any device.

    Returns:
        Indices, int64 ``[count]``, relative to the first word of the block and in the order of the
        classes; and differences, int16 ``[count]``, modulo 2^16.

    Raises:
        StreamError: SD418: the base words are not what the block was made for.
    """
    device = base.device
    ranks = torch.from_numpy(stored.ranks).to(device)
    # A copy also where the device is the host: new words become differences in it.
    words = torch.from_numpy(stored.words.view(np.int16)).to(device, copy=True)
    elements = None if stored.live is None else live_elements(stored.live, device)
    ranked = base if elements is None else base.index_select(0, elements)
    fields = exponents_on_device(ranked, stored.block.dtype)
    found = []
    stops = list(accumulate(entry.count for entry in stored.table))
    for entry, mask_bytes, stop in zip(stored.table, stored.mask_bytes, stops, strict=True):
        own = slice(stop - entry.count, stop)
        if entry.range == FLAT:
            found.append(ranks[own].long())
            _check_flat(fields.index_select(0, ranks[own]), stored.table)
            continue
        members = _within(fields, entry.range).nonzero().view(-1)
        last = int(stored.ranks[stop - 1])
        ElementSet(entry.range, own, last, mask_bytes).check(members.numel())
        found.append(members.index_select(0, ranks[own]))
    at = torch.cat(found)
    if elements is not None:
        at = elements.index_select(0, at)
    for entry, stop in zip(stored.table, stops, strict=True):
        if entry.value == NEW_WORDS:
            own = slice(stop - entry.count, stop)
            words[own] -= base.index_select(0, at[own])
            if (words[own] == 0).nonzero().numel():
                raise StreamError(BASE_RULE, "a new word is the old one")
    return at, words


def exponents_on_device(words: torch.Tensor, dtype: str) -> torch.Tensor:
    """The exponent field of each word, uint8, on its device.

    Args:
        words: int16.
        dtype: ``BF16`` or ``F16``.
    """
    shift, top = EXPONENTS[dtype]
    # The shift brings copies of the sign, which are cut off.
    return ((words >> shift) & top).to(torch.uint8)


def live_elements(live: LiveRows, device: torch.device) -> torch.Tensor:
    """Which words of a block are in live rows: int64, ascending, on a device.

    What is sent there is a number per live row: how many words are passed over up to it.
    """
    skipped = (live.rows - np.arange(live.rows.size)) * live.length - live.offset
    is_cut = live.rows.size and not live.rows[0]
    at = torch.arange(live.elements, device=device)
    at += live.offset if is_cut else 0
    row = torch.div(at, live.length, rounding_mode="floor")
    return at + torch.from_numpy(skipped).to(device).index_select(0, row)


def _within(fields: torch.Tensor, each: Range) -> torch.Tensor:
    """Whether each exponent lies in a range."""
    if each.low == each.high:
        return fields == each.low
    return (fields >= each.low) & (fields <= each.high)


def _check_flat(fields: torch.Tensor, table: Sequence[ClassEntry]) -> None:
    """No entry of the flat class has the exponent of another class; raises StreamError."""
    taken = np.zeros(_EXPONENTS, np.bool_)
    for entry in table[:-1]:
        taken[entry.range.low : entry.range.high + 1] = True
    marks = torch.from_numpy(taken).to(fields.device).index_select(0, fields.int())
    if marks.nonzero().numel():
        raise StreamError(BASE_RULE, "an entry of the flat class belongs to another")
