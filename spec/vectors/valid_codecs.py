"""Valid vectors: each op with each codec at each word width, and the edges of the new codecs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dice import Dice
from expected_json import Vector, case
from terms import word_bytes
from vector_records import CODES, P, R, X, edited, whole
from vector_samples import WIDTHS, bias, tensor

BLOCKY = (0, 1, 255, 700, 701, 767, 768, 1023, 1029)  # of 1030 words: blocks 1 of 0..4 is empty
RUNS = (*range(5, 91), *range(700, 761), *range(768, 1024), 1029)
FULL = (*range(256), *range(768, 1030))  # blocks 1 and 2 are empty
FLOATS = {"F16": "3c00", "BF16": "3f80", "F32": "3f800000", "F64": "3ff0000000000000"}  # of 1.0
HALF, MINUS_TWO = "3fe0000000000000", "c000000000000000"


def combinations() -> Iterator[tuple[str, str, str]]:
    """The allowed combinations of op, index codec and value codec."""
    for index in ("gap8", "gap8-split", "bitmask", "raw", "range", "dense"):
        for value in ("packed", "zigzag", "planes", "raw"):
            if index not in ("range", "dense") or value != "packed":
                yield "difference", index, value
        for op in ("replace", "add"):
            for value in ("planes", "raw"):
                yield op, index, value
    for op in ("new", "drop", "resize"):
        for value in ("planes", "raw"):
            yield op, "dense", value


def places_of(op: str, index: str) -> tuple[int, ...]:
    """Entries among 1030 words that the index codec can hold."""
    if op != "difference":
        return {"range": RUNS, "dense": FULL}.get(index, BLOCKY)
    return BLOCKY


def floats(dtype: str, n: int) -> bytes:
    """Words of small numbers, the same again after 16 bytes, so that the recipe is short."""
    numbers = [(i % (16 // word_bytes(dtype)) - 1.5) / 4 for i in range(n)]
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    return b"".join(struct.pack(CODES[dtype], number) for number in numbers)


def dense_op(op: str, value: str) -> list[R]:
    """A record of a dense op at each width, over several blocks of which the last is short."""
    records = [bias()]
    for dtype, width in WIDTHS.items():
        dice = Dice(width)
        data = bytes(dice.below(256) for _ in range(400 * width))
        short, long = X(dtype, [3, 10], data[: 30 * width]), X(dtype, [40, 10], data)
        name, part = f"w{8 * width}", whole(op, value)
        if op == "resize":
            records.append(R(f"{name}.cut", long, short, [part]))
            records.append(R(f"{name}.grown", short, long, [whole(op, value)]))
        else:
            new, old = (long, None) if op == "new" else (None, long)
            records.append(R(name, old, new, [part]))
    return records


def valid_combinations() -> Iterator[Vector]:
    """Each allowed combination, at every word width, over empty and short blocks."""
    n = 1030
    for op, index, value in combinations():
        if op in ("new", "drop", "resize"):
            yield case(f"{op}-{index}-{value}", dense_op(op, value))
            continue
        records, places = [bias()], places_of(op, index)
        if op == "add":
            for dtype, one in FLOATS.items():
                given = dict.fromkeys(places, int(one, 16))
                part = P(op, given, index, value, ks=(4,), dtype=dtype, scale=HALF)
                records.append(edited(dtype.lower(), dtype, [n], floats(dtype, n), [part]))
        for dtype, width in WIDTHS.items() if op != "add" else ():
            values = Dice(width).small(n, n, width, 100)
            part = P(op, {i: values[i] for i in places}, index, value, 4, ks=(4,))
            records.append(tensor(f"w{8 * width}", dtype, n, part))
        yield case(f"{op}-{index}-{value}", records)


def valid_split() -> Iterator[Vector]:
    """`gap8-split`: k from 0 to 24, quotients of several bytes, planes that end inside a byte."""
    for k in (0, 1, 2, 7, 8, 24):
        records = []
        for count in (1, 7, 8, 9, 60):
            given = Dice(count).small(3000, count, 2)
            part = P("difference", given, "gap8-split", "zigzag", block=12, ks=(k,))
            records.append(tensor(f"n{count:02}", "BF16", 3000, part))
        every = P("difference", {i: 1 + i % 3 for i in range(300)}, "gap8-split", "packed", 2)
        every.ks = (k,)
        records.append(tensor("every", "BF16", 300, every))
        yield case(f"gap8-split-k-{k}", records)
    given = Dice(77).small(2000, 120, 2)
    part = P("difference", given, "gap8-split", "zigzag", ks=(0, 3, 1, 24, 5))
    yield case("gap8-split-k-of-each-block", [tensor("w", "BF16", 2000, part)])
    places = {0: 1, 510: 1, 1021: 1, 1022: 1, 2043: 1, 4095: 1}  # quotients 0, 254, 255, 0, 510...
    part = P("difference", places, "gap8-split", "planes", block=13, ks=(1,))
    yield case("gap8-split-long-quotients", [tensor("w", "U8", 4096, part)])
    given = {0: 1, 2**20 - 1: 255}
    part = P("difference", given, "gap8-split", block=24, compress=True, ks=(18,))
    yield case("gap8-split-block-24", [edited("w", "U8", [2**20], bytes(2**20), [part])])


def valid_range() -> Iterator[Vector]:
    """`range`: runs of one word, of a whole block, with padding, with compressed frames."""
    singles = {0: 1, 511: 2, 600: 65535}
    rows = {i: 1 + i % 2 for i in range(256, 512)}
    padded = {i: 1 for i in range(20, 200) if i % 9 in (2, 5)} | {299: 65535}
    zeros = dict.fromkeys(range(290, 300), 0)
    for value in ("zigzag", "planes", "raw"):
        packed = value != "raw"
        records = [
            tensor("padded", "BF16", 300, P("difference", padded, "range", value)),
            tensor("rows", "BF16", 700, P("difference", rows, "range", value, compress=packed)),
            tensor("singles", "BF16", 601, P("difference", singles, "range", value)),
        ]
        if value != "zigzag":  # in a replace, a word of 0 is an entry
            records += [tensor("zeros", "BF16", 300, P("replace", zeros, "range", value))]
        yield case(f"range-runs-{value}", records)
    ends = {3: 0x8000, 7: 0x7FFF, 8: 0xFF80, 9: 0x0080, 12: 0x7F80}
    part = P("difference", ends, "range", "zigzag", block=24)
    yield case("range-exceptions", [tensor("w", "BF16", 100, part)])


def valid_raw() -> Iterator[Vector]:
    """`raw`: the ends of a block, every word, and blocks of 2^24."""
    records = [
        tensor("ends", "F32", 300, P("difference", {0: 1, 255: 2, 256: 3, 299: 4}, "raw", "raw")),
        tensor("every", "F32", 300, P("replace", dict.fromkeys(range(300), 0), "raw", "raw")),
        tensor("large", "U8", 70000, P("difference", {69999: 255}, "raw", "raw", block=24)),
    ]
    yield case("raw-ends", records)
    part = P("difference", dict.fromkeys(range(0, 3000, 3), 1), "raw", "zigzag", compress=False)
    yield case("raw-index-zigzag", [tensor("w", "BF16", 3000, part)])


def valid_codecs() -> Iterator[Vector]:
    """All of them."""
    for group in (valid_combinations, valid_split, valid_range, valid_raw):
        yield from group()
