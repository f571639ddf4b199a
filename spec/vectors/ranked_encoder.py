"""Encodes blocks of `ranked` one entry at a time, as named pieces of which one may be broken.

Shares nothing with a real writer, nor with the reference. A plan says which classes there are: it
is made by hand here, and chooses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_encoder import bits_of, byte_planes, gaps_in_bytes, shrink

FIELDS = {"BF16": (7, 0xFF), "F16": (10, 0x1F)}  # the lowest bit of the exponent, and its mask
FLAT = (255, 0)
WIDTHS = (0, 1, 2, 4, 8)
GAPS, BITMASK = 0, 1
WORDS = 5  # the value code of new words
Pieces = dict[str, bytes]


@dataclass(frozen=True)
class Plan:
    """How the blocks of a part are written.

    Attributes:
        classes: Least and greatest exponent, index code and value code of each. Those without an
            entry in a block are left out of it.
        length: L: the elements of a row, 0 for no rows.
        live: Rows that are live without an entry, by their numbers in the tensor.
        compress: Whether frames are compressed where that is smaller.
    """

    classes: tuple[tuple[int, int, int, int], ...]
    length: int = 0
    live: tuple[int, ...] = ()
    compress: bool = False


def varint(number: int) -> bytes:
    """A number as LEB128."""
    out = b""
    while number > 127:  # noqa: PLR2004 - 7 bits to a byte
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def stored(content: bytes) -> bytes:
    """A frame that is not compressed."""
    return varint(len(content) << 1) + content


def compressed(content: bytes, small: bytes | None = None) -> bytes:
    """A frame that is compressed (to these bytes), whether that is smaller or not."""
    small = shrink(content) if small is None else small
    return varint(len(small) << 1 | 1) + varint(len(content)) + small


def frame(content: bytes, plan: Plan) -> bytes:
    """A frame as the plan wants it."""
    smaller = plan.compress and len(shrink(content)) < len(content)
    return compressed(content) if smaller else stored(content)


def packed(symbols: list[int], width: int) -> bytes:
    """Symbols of some bits: symbols i, i + q, i + 2q ... in byte i."""
    out = bytearray(-(-len(symbols) * width // 8))
    for i, symbol in enumerate(symbols):
        out[i % len(out)] |= symbol << (i // len(out) * width)
    return bytes(out)


def encode_ranked(
    inside: dict[int, int], old: list[int], first: int, dtype: str, plan: Plan
) -> Pieces:
    """The pieces of a block, in order; joined, they are its stream.

    Args:
        inside: Place in the block and difference of each entry.
        old: The words of the base in the block.
        first: The index of the first of them in the domain.
        dtype: BF16 or F16.
        plan: The classes, and the rows.
    """
    if not inside:
        return {"BLOCK": b""}
    shift, mask = FIELDS[dtype]
    pieces: Pieces = {"L": varint(plan.length)}
    elements = list(range(len(old)))
    if plan.length:
        rows = [(first + i) // plan.length for i in elements]
        live = {rows[i] for i in inside} | set(plan.live)
        marks = [row in live for row in range(rows[0], rows[-1] + 1)]
        pieces["ROWS"] = frame(bits_of(marks), plan)
        elements = [i for i in elements if rows[i] in live]
    members: list[list[int]] = []
    taken: set[int] = set()
    for low, high, _, _ in plan.classes:
        listed = [i for i in elements if low <= old[i] >> shift & mask <= high]
        members.append(elements if (low, high) == FLAT else listed)
        taken |= set(listed)
    chosen = []
    for found, (low, high, index, value) in zip(members, plan.classes, strict=True):
        flat = (low, high) == FLAT
        own = [i for i in found if i in inside and not (flat and i in taken)]
        if own:
            chosen.append((found, own, low, high, index, value))
    pieces["CLASSES"] = bytes([len(chosen)])
    for number, (_, own, low, high, index, value) in enumerate(chosen):
        pieces[f"CLASS{number}"] = bytes([low, high, index << 4 | value]) + varint(len(own))
    steps = [inside[i] for _, own, *_, value in chosen if value != WORDS for i in own]
    signed = [step - 65536 if step >= 32768 else step for step in steps]  # noqa: PLR2004 - 2^15
    signs = bits_of([step < 0 for step in signed])
    pieces["NS"] = varint(len(signs))
    pieces["SIGNS"] = signs
    pieces["EXC"] = b""  # takes its place in the order
    rest: list[int] = []
    for number, (found, own, *_, index, value) in enumerate(chosen):
        ranks = [found.index(i) for i in own]
        gaps = [rank - last - 1 for last, rank in zip([-1, *ranks], ranks, strict=False)]
        bits = bits_of([i in own for i in found])
        marks_of = bits if index == BITMASK else gaps_in_bytes(gaps)
        pieces[f"IDX{number}"] = frame(marks_of, plan)
        if value == WORDS:
            words = [(old[i] + inside[i]) % 65536 for i in own]
            pieces[f"HIGH{number}"] = frame(bytes(word >> 7 & 255 for word in words), plan)
            low_bytes = bytes(word >> 15 << 7 | word & 127 for word in words)
            pieces[f"LOW{number}"] = frame(low_bytes, plan)
            continue
        top = 2 ** WIDTHS[value] - 1
        sizes = [abs(step) - 1 for step in signed[: len(own)]]
        signed = signed[len(own) :]
        if value:
            symbols = [min(size, top) for size in sizes]
            pieces[f"SYM{number}"] = frame(packed(symbols, WIDTHS[value]), plan)
        rest += [size - top for size in sizes if size >= top]
    pieces["EXC"] = frame(b"".join(byte_planes(rest, 2)), plan)
    return pieces
