"""Encodes blocks of `ranked` one entry at a time, as named pieces of which one may be broken.

Shares nothing with a real writer, nor with the reference. A plan says which classes there are: it
is made by hand here, and chooses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_encoder import bits_of, byte_planes, gaps_in_bytes

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
    """

    classes: tuple[tuple[int, int, int, int], ...]
    length: int = 0
    live: tuple[int, ...] = ()


def varint(number: int) -> bytes:
    """A number as LEB128."""
    out = b""
    while number > 127:  # noqa: PLR2004 - 7 bits to a byte
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def packed(symbols: list[int], width: int) -> bytes:
    """Symbols of some bits, one after another from the lowest bit of each byte on."""
    out = bytearray(-(-len(symbols) * width // 8))
    for i, symbol in enumerate(symbols):
        out[i * width // 8] |= symbol << i * width % 8
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
    elements, rows = list(range(len(old))), b""
    if plan.length:
        row = [(first + i) // plan.length for i in elements]
        live = {row[i] for i in inside} | set(plan.live)
        rows = bits_of([each in live for each in range(row[0], row[-1] + 1)])
        elements = [i for i in elements if row[i] in live]
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
    lines: Pieces = {}
    sizes: Pieces = {}
    ranks: Pieces = {}
    values: Pieces = {}
    negative: list[bool] = []
    rest: list[int] = []
    for k, (found, own, low, high, index, value) in enumerate(chosen):
        at = [found.index(i) for i in own]
        gaps = [rank - last - 1 for last, rank in zip([-1, *at], at, strict=False)]
        bits = bits_of([i in own for i in found])
        ranks[f"IDX{k}"] = bits if index == BITMASK else gaps_in_bytes(gaps)
        lines[f"CLASS{k}"] = bytes([low, high, index << 4 | value])
        sizes[f"COUNT{k}"] = varint(len(own))
        sizes[f"SIZE{k}"] = varint(len(ranks[f"IDX{k}"]))
        if value == WORDS:
            words = [(old[i] + inside[i]) % 65536 for i in own]
            values[f"HIGH{k}"] = bytes(word >> 7 & 255 for word in words)
            values[f"LOW{k}"] = bytes(word >> 15 << 7 | word & 127 for word in words)
            continue
        steps = [inside[i] - 65536 if inside[i] >> 15 else inside[i] for i in own]
        negative += [step < 0 for step in steps]
        top = 2 ** WIDTHS[value] - 1
        magnitudes = [abs(step) - 1 for step in steps]
        if value:
            values[f"SYM{k}"] = packed([min(a, top) for a in magnitudes], WIDTHS[value])
        rest += [a - top for a in magnitudes if a >= top]
    pieces: Pieces = {"L": varint(plan.length), "CLASSES": bytes([len(chosen)]), **lines, **sizes}
    if plan.length:
        pieces["ROWS"] = rows
    pieces |= {"SIGNS": bits_of(negative), **ranks, **values}
    return pieces | {"EXC": b"".join(byte_planes(rest, 2))}
