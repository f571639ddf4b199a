"""Fuzz blocks of `ranked`: with the base or without, both readers name the same rule or words.

An input is the number of a case (a base, and the count of a block upon it) and the bytes of the
block. The cases are the blocks of the vectors, and some that the package writes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import harness

with harness.instrumented():
    from sparsedelta.codecs import Block, CodedBlock, StreamError
    from sparsedelta.codecs.encoding import Encoding

import numpy as np
from block_codecs import Coded, lengths_fit
from ranked import EXPONENTS, entries_of, read_ranked
from sections import unframed
from sources import Source, names, source
from terms import Array, RuleError

RANKED: Final = Encoding.from_json("difference", {"id": "ranked"}, {"id": "ranked"})
HEAD: Final = struct.Struct("<H")
WRITTEN: Final = 40
"""Cases that the package writes."""


@dataclass(frozen=True)
class Case:
    """A block and what it lies upon.

    Attributes:
        dtype: Dtype of the tensor.
        first: Index of the block's first word.
        base: Words of the block.
        count: Number of entries.
        stream: The block.
    """

    dtype: str
    first: int
    base: Array
    count: int
    stream: bytes


def _of_vector(origin: Source) -> Iterator[Case]:
    numbers: dict[tuple[str, int, int], int] = {}
    for cell in origin.cells:
        each = origin.sections[cell.file]
        record = each.manifest["tensors"][cell.record]
        part = record["parts"][cell.part]
        place = cell.file, cell.record, cell.part
        number = numbers[place] = numbers.get(place, -1) + 1
        if part.get("index") != {"id": "ranked"} or not cell.encoded:
            continue
        copies = [p["from"] for p in record["parts"][: cell.part] if "from" in p]
        name = copies[0] if copies else record["from"] or record["name"]
        dtype, _, data = origin.base_tensors[name]
        size = 1 << part["block"]
        (count,) = struct.unpack_from("<I", each.tables, cell.cell - 4)
        words = np.frombuffer(data, "<u2")
        ends = [e["shape"] for e in (record["base"], record["target"]) if e]
        domain = min(int(np.prod(shape)) for shape in ends)
        base = words[number * size : min(domain, (number + 1) * size)]
        stream = unframed(each.data[cell.start : cell.start + cell.encoded], cell.decoded)
        yield Case(dtype, number * size, base, count, stream)


def _written(number: int) -> Case:
    """A block as the package writes it, of words as they are found in weights."""
    rng = np.random.default_rng(number)
    dtype = tuple(EXPONENTS)[number % 2]
    n, row = int(rng.integers(20, 1500)), int(rng.choice([0, 1, 7, 64]))
    shift, mask = EXPONENTS[dtype]
    exponents = mask // 2 - rng.geometric(0.4, n).clip(max=mask // 2)
    base = (
        rng.integers(0, 2, n) << 15 | exponents << shift | rng.integers(0, 1 << shift, n)
    ).astype("<u2")
    share = rng.choice([0.02, 0.1, 0.5])
    places = np.flatnonzero(rng.random(n) < share * (1 + exponents % 3) / 2)
    places = places if places.size else np.array([n // 2])
    spread = int(rng.choice([1, 3, 20, 400, 40000]))
    steps = (rng.integers(1, spread + 1, places.size) * rng.choice([-1, 1], places.size)) % 65536
    steps = np.where(steps, steps, 1).astype("<u2")
    first = int(rng.choice([0, 256, 1 << 20]))
    block = Block(n, 2, base, dtype, first, row)
    (stream,) = RANKED.encode(places, steps, block)
    return Case(dtype, first, base, places.size, stream.tobytes())


@cache
def cases() -> tuple[Case, ...]:
    """All of them."""
    found = [case for name in names() if "ranked" in name for case in _of_vector(source(name))]
    return (*found, *map(_written, range(WRITTEN)))


def one_input(data: bytes) -> None:
    """The law, for one input."""
    if len(data) < HEAD.size:
        return
    case = cases()[HEAD.unpack_from(data)[0] % len(cases())]
    check(case, data[HEAD.size :])


def check(case: Case, stream: bytes) -> None:
    """Both readers read a block alike, without its base and with it, alone and beside another."""
    n = case.base.size
    counts, sizes = np.array([case.count]), np.array([n])
    lengths = np.array([[len(stream)]], np.int64)
    part = Coded("difference", "ranked", "ranked", 0, n, 2, case.count, 24, 0, tensor=case.dtype)
    fits = not list(RANKED.length_faults(counts, sizes, lengths, lengths, 2))
    assert fits == lengths_fit(part, counts, sizes, lengths), f"SD304 of {len(stream)} bytes"
    if not fits:
        return
    seen = coded(case, stream)
    blind = replace(seen, block=seen.block._replace(base=None))
    code = ""
    expected: tuple[Any, Any] = (None, None)
    try:
        expected = entries_of(
            read_ranked(stream, n, case.first, case.count, case.dtype), case.base, case.dtype
        )
    except RuleError as error:
        code = error.code
    rule = ""
    try:
        RANKED.check(blind)
    except StreamError as error:
        rule = error.rule
    assert rule == (code if code == "SD417" else ""), f"check says {rule!r}, expected {code!r}"
    beside = coded(case, case.stream)
    for at, batch in ((0, [seen]), (1, [beside, seen]), (0, [seen, beside])):
        rule = ""
        found: tuple[Any, Any] = (None, None)
        try:
            found = RANKED.decode_all(batch)[at]
        except StreamError as error:
            rule = error.rule
        assert rule == code, f"the package says {rule!r} of {len(batch)}, the reference {code!r}"
        if not rule:
            assert np.array_equal(found[0], expected[0])
            assert np.array_equal(found[1], expected[1])


def coded(case: Case, stream: bytes) -> CodedBlock:
    """A block as the package takes it."""
    block = Block(case.base.size, 2, case.base, case.dtype, case.first)
    return CodedBlock([np.frombuffer(stream, np.uint8)], case.count, block)


def seeds() -> Iterator[bytes]:
    """True blocks."""
    for number, case in enumerate(cases()):
        yield HEAD.pack(number) + case.stream


def inflated(rng: random.Random, data: bytes) -> bytes:
    """A byte set to what numbers, lengths and codes of a block turn on."""
    changed = bytearray(data)
    at = rng.randrange(HEAD.size, len(changed))
    changed[at] = rng.choice((0, 1, 2, 3, 5, 16, 21, 127, 128, 129, 255, changed[at] ^ 1))
    return bytes(changed)


if __name__ == "__main__":
    harness.main(one_input, seeds)
