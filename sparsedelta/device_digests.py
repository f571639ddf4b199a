"""Digests of segments that lie on an accelerator: BLAKE3, over all of their chunks at once.

A digest that is computed where the words are needs no copy of them on the host. BLAKE3 cuts its
input into chunks of 1,024 bytes, compresses each by itself, and joins the results in pairs: here
each step of the compression is one operation on a row of 32-bit integers, with a column per chunk.
Sums wrap around at 2^32, as torch's integers do on every device. Source: the BLAKE3 specification
(O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), sections 2.1 to 2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Final, NamedTuple

import torch

from sparsedelta.digests import SEGMENT_CONTEXT, Digest

CHUNK_BYTES: Final = 1024
"""What is compressed by itself: segments begin at multiples of it."""

_BLOCK_BYTES: Final = 64
_BLOCK_WORDS: Final = 16

_CHUNK_START: Final = 1 << 0
_CHUNK_END: Final = 1 << 1
_PARENT: Final = 1 << 2
_ROOT: Final = 1 << 3
_KEY_CONTEXT: Final = 1 << 5
_KEY_MATERIAL: Final = 1 << 6

_IV: Final = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)
_PERMUTATION: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_ROUNDS: Final = 7
_TURNS: Final = ([1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2])

Row = torch.Tensor
"""int32, with a column per chunk: ``[rows, chunks]``."""


def padded(nbytes: int) -> int:
    """Bytes that a segment takes: whole chunks."""
    return -(-nbytes // CHUNK_BYTES) * CHUNK_BYTES


def digest_segments(data: torch.Tensor, lengths: Sequence[int]) -> list[Digest]:
    """Segment digests (spec section 4), computed where the data lies.

    Only the digests come to the host, 32 bytes each.

    Args:
        data: uint8, the segments one after the other, each followed by zeros to whole chunks.
        lengths: Bytes of each segment, 1 or more.
    """
    if not lengths:
        return []
    key = _sent(_key(SEGMENT_CONTEXT), data.device)
    return _digests(data, lengths, key, _KEY_MATERIAL)


@cache
def _key(context: str) -> list[int]:
    """The key that a context stands for: eight signed words."""
    text = context.encode("utf-8")
    data = torch.zeros(padded(len(text)), dtype=torch.uint8)
    data[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
    iv = _sent(_signed(_IV), data.device)
    (digest,) = _digests(data, [len(text)], iv, _KEY_CONTEXT)
    words = (int.from_bytes(digest[at : at + 4], "little") for at in range(0, 32, 4))
    return _signed(words)


def _signed(words: Iterable[int]) -> list[int]:
    return [word - ((word & 1 << 31) << 1) for word in words]


def _sent(
    numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int32
) -> torch.Tensor:
    """Some numbers, on a device."""
    return torch.tensor(numbers, dtype=dtype).to(device)


def _digests(data: torch.Tensor, lengths: Sequence[int], key: Row, flags: int) -> list[Digest]:
    tree = _Tree(_Constants.on(data.device), key, flags)
    chunks = [padded(length) // CHUNK_BYTES for length in lengths]
    leaves = tree.leaves(data, lengths, chunks)
    roots = tree.roots(list(leaves.split_with_sizes(chunks, 1)))
    found = roots.t().contiguous().view(torch.uint8).cpu().numpy()
    return [row.tobytes() for row in found]


@dataclass(frozen=True, slots=True)
class _Tree:
    """The hash trees of some segments.

    Attributes:
        known: The constants.
        key: What every chunk and every parent begins with, ``[8]``.
        flags: Flags of the mode.
    """

    known: _Constants
    key: Row
    flags: int

    def leaves(self, data: torch.Tensor, lengths: Sequence[int], chunks: Sequence[int]) -> Row:
        """The chaining value of each chunk, ``[8, chunks]``: of an only one the digest."""
        device, total = data.device, sum(chunks)
        words = data.view(torch.int32).view(total, CHUNK_BYTES // 4)
        sizes = torch.full((total,), CHUNK_BYTES, dtype=torch.int32, device=device)
        ending = torch.full_like(sizes, _CHUNK_END)
        last = [stop - 1 for stop in accumulate(chunks)]
        cut = [
            length - (count - 1) * CHUNK_BYTES
            for length, count in zip(lengths, chunks, strict=True)
        ]
        at = _sent(last, device, torch.int64)
        sizes.index_copy_(0, at, _sent(cut, device))
        ends = [_CHUNK_END | (_ROOT if count == 1 else 0) for count in chunks]
        ending.index_copy_(0, at, _sent(ends, device))
        number = torch.cat(
            [torch.arange(count, dtype=torch.int32, device=device) for count in chunks]
        )
        chain = self.key.unsqueeze(1).expand(8, total)
        shortest = min(cut)
        longest = max(
            CHUNK_BYTES if count > 1 else left for count, left in zip(chunks, cut, strict=True)
        )
        for block in range(-(-longest // _BLOCK_BYTES)):
            start = block * _BLOCK_BYTES
            message = words[:, block * _BLOCK_WORDS : (block + 1) * _BLOCK_WORDS].t().contiguous()
            left = (sizes - start).clamp(0, _BLOCK_BYTES)
            is_last = sizes <= start + _BLOCK_BYTES
            told = torch.where(is_last, ending, torch.zeros_like(ending))
            told = told + (self.flags | (0 if block else _CHUNK_START))
            made = _compress(self.known, chain, message, (number, left, told))
            # A chunk that has ended keeps what it has; an empty one does not occur.
            chain = made if shortest > start else torch.where(sizes > start, made, chain)
        return chain

    def roots(self, parts: list[Row]) -> Row:
        """Join the chaining values of each segment in pairs, level by level: ``[8, segments]``."""
        device = parts[0].device
        while any(part.shape[1] > 1 for part in parts):
            pairs = [part.shape[1] // 2 for part in parts]
            message = torch.cat(
                [
                    torch.cat(
                        [part[:, side : 2 * n : 2] for part, n in zip(parts, pairs, strict=True)], 1
                    )
                    for side in (0, 1)
                ]
            )
            total = message.shape[1]
            told = torch.full((total,), self.flags | _PARENT, dtype=torch.int32, device=device)
            roots = [
                stop - 1
                for stop, part in zip(accumulate(pairs), parts, strict=True)
                if part.shape[1] == 2  # noqa: PLR2004 (a pair)
            ]
            if roots:
                told.index_fill_(0, _sent(roots, device, torch.int64), self.flags | _PARENT | _ROOT)
            number = torch.zeros_like(told)
            size = torch.full_like(told, _BLOCK_BYTES)
            key_rows = self.key.unsqueeze(1).expand(8, total)
            above = _compress(self.known, key_rows, message, (number, size, told))
            # The last of an odd number goes on alone: so the left of a pair is a whole subtree.
            parts = [
                torch.cat([made, part[:, -1:]], 1) if part.shape[1] % 2 else made
                for made, part in zip(above.split_with_sizes(pairs, 1), parts, strict=True)
            ]
        return torch.cat(parts, 1)


class _Constants(NamedTuple):
    """What every compression needs, on a device.

    Attributes:
        start: The four words that the third row of the state begins with, ``[4, 1]``.
        rounds: For each round, of columns and of diagonals: which message words, the first of
            each G and then the second.
        turns: Rows of four, turned by one, two and three.
    """

    start: Row
    rounds: list[list[torch.Tensor]]
    turns: list[torch.Tensor]

    @classmethod
    def on(cls, device: torch.device) -> _Constants:
        """The constants on a device."""
        start = _sent(_signed(_IV[:4]), device).unsqueeze(1)
        order = list(range(_BLOCK_WORDS))
        rounds = []
        for _ in range(_ROUNDS):
            halves = [order[at : at + 8] for at in (0, 8)]
            rounds.append([_sent(h[::2] + h[1::2], device) for h in halves])
            order = [order[at] for at in _PERMUTATION]
        turns = [_sent(row, device) for row in _TURNS]
        return cls(start, rounds, turns)


def _compress(known: _Constants, chain: Row, message: Row, told: tuple[torch.Tensor, ...]) -> Row:
    """The compression function for every column.

    Args:
        known: The constants.
        chain: Chaining values, ``[8, columns]``.
        message: Message words, ``[16, columns]``.
        told: Of each the number of its chunk, below 2^31, the bytes of its block, and its flags.
    """
    number, size, flags = told
    a, b = chain[:4].clone(), chain[4:].clone()
    c = known.start.expand_as(a).clone()
    d = torch.stack([number, torch.zeros_like(number), size, flags])
    one, two, three = known.turns
    for columns, diagonals in known.rounds:
        _mix(a, b, c, d, message.index_select(0, columns))
        b, c, d = b.index_select(0, one), c.index_select(0, two), d.index_select(0, three)
        _mix(a, b, c, d, message.index_select(0, diagonals))
        b, c, d = b.index_select(0, three), c.index_select(0, two), d.index_select(0, one)
    return torch.cat([a ^ c, b ^ d])


def _mix(a: Row, b: Row, c: Row, d: Row, message: Row) -> None:
    """The function G on four columns of the state, in place."""
    for part, away, back in ((message[:4], 16, 12), (message[4:], 8, 7)):
        a += b
        a += part
        d ^= a
        _turn(d, away)
        c += d
        b ^= c
        _turn(b, back)


def _turn(row: Row, bits: int) -> None:
    """Rotate words to the right, in place: a shift of signed words brings copies of the sign."""
    low = row << (32 - bits)
    row >>= bits
    row &= (1 << (32 - bits)) - 1
    row |= low
