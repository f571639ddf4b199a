"""Valid vectors of `ranked`: each code of index and value, rows, blocks, FLAT, and what is beside.

What a reader finds in them it finds with the base.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zstandard
from dice import Dice
from expected_json import Vector, case
from ranked_encoder import BITMASK, FIELDS, FLAT, GAPS, WORDS
from valid_beside import also
from vector_records import P, R, X, bare, changed, edited, ranked, whole
from vector_samples import bias, tensor
from vector_sets import set_case

EXTREMES = (0x8000, 0x7FFF, 0x8001, 1, 0xFFFF, 2, 3, 4, 5, 16, 17, 0xFFF0, 0xFFEF, 255, 256, 257)
SPECIAL = {  # zeros, infinities, NaNs, subnormals
    "BF16": (0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x0001, 0x807F, 0x7F7F, 0x0080),
    "F16": (0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x0001, 0x83FF, 0x7BFF, 0x0400),
}
Class = tuple[int, int, int, int]


def weights(dtype: str, shape: list[int], seed: int, exponents: int = 9) -> X:
    """Numbers with so many exponents, the greater ones more often, as weights have them."""
    dice, number = Dice(seed), 1
    for size in shape:
        number *= size
    shift, mask = FIELDS[dtype]
    words = []
    for _ in range(number):
        exponent = mask // 2 - min(dice.below(exponents), dice.below(exponents))
        words.append(dice.below(2) << 15 | exponent << shift | dice.below(2**shift))
    return X(dtype, shape, struct.pack(f"<{number}H", *words))


def record(name: str, base: X, part: P) -> R:
    """A tensor with one part."""
    return edited(name, base.dtype, base.shape, base.data, [part])


def classes_of(dtype: str, *codes: tuple[int, int]) -> list[Class]:
    """Two classes that meet, over all exponents that weights have, and one of the rest."""
    middle = FIELDS[dtype][1] // 2 - 3
    ranges = ((0, middle), (middle + 1, FIELDS[dtype][1]))
    return [(*ends, *codes[k % len(codes)]) for k, ends in enumerate(ranges)]


def in_zstd_blocks(streams: list[bytes], *_: object) -> list[bytes]:
    """A frame of several Zstandard blocks, which begin anywhere in the stream."""
    frames = []
    for content in streams:
        made = zstandard.ZstdCompressor(level=9, write_checksum=False).compressobj(len(content))
        frame = b""
        for at in range(0, len(content), 60):
            frame += made.compress(content[at : at + 60])
            frame += made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        frames.append(min(frame + made.flush(), content, key=len))
    return frames


def valid_codes() -> Iterator[Vector]:
    """Each index code with each value code, small steps and extreme ones."""
    for dtype in FIELDS:
        records = [bias()]
        for index in (GAPS, BITMASK):
            for value in range(WORDS + 1):
                base = weights(dtype, [300], 6 * index + value)
                steps = Dice(value).small(300, 40, 2, (1, 2, 3, 16, 300, 300)[value])
                extremes = dict(zip(range(0, 300, 19), EXTREMES, strict=False))
                classes = classes_of(dtype, (index, value))
                for name, given in (("steps", steps), ("extremes", extremes)):
                    part = ranked(given, *classes, block=9)
                    records.append(record(f"{name}.i{index}.v{value}", base, part))
        yield case(f"ranked-codes-{dtype.lower()}", records)
    base, every = weights("BF16", [4, 70], 1), {i: 1 + i % 3 for i in range(280)}
    records = []
    for name, codes in (
        ("gaps", ((GAPS, 2), (GAPS, 0))),
        ("bits", ((BITMASK, 1), (BITMASK, 3))),
        ("both", ((GAPS, WORDS), (BITMASK, 4))),
    ):
        records.append(record(name, base, ranked(every, *classes_of("BF16", *codes))))
    yield case("ranked-every-word", records)
    special = [
        record(dtype.lower(), base, ranked({i: 1 + i for i in range(len(words))}, *classes))
        for dtype, words in SPECIAL.items()
        for base in [X(dtype, [len(words)], struct.pack(f"<{len(words)}H", *words))]
        for classes in [classes_of(dtype, (GAPS, 3))]
    ]
    yield case("ranked-zeros-and-nans", special)
    least = [
        record(f"{name}.{dtype.lower()}", weights(dtype, [1], 9), ranked({0: 1}, of_all))
        for dtype, (_, mask) in FIELDS.items()
        for name, of_all in (
            ("gaps", (0, mask, GAPS, 1)),
            ("bits", (0, mask, BITMASK, WORDS)),
            ("flat", (*FLAT, GAPS, WORDS)),
        )
    ]
    yield case("ranked-least", least)  # blocks of 10 bytes


def valid_classes() -> Iterator[Vector]:
    """Classes of one exponent, gaps between them, FLAT alone and with others, as many as fit."""
    base = weights("BF16", [600], 5)
    given = Dice(50).small(600, 90, 2)
    single = [(e, e, e % 2, e % (WORDS + 1)) for e in range(119, 128)]
    holed = [(121, 121, GAPS, 1), (124, 126, BITMASK, 2)]
    records = [
        record("single", base, ranked(given, *single, block=10)),
        record("all", base, ranked(given, (0, 255, GAPS, 4), block=10)),
        record("flat", base, ranked(given, (*FLAT, GAPS, 2), block=10)),
        record("flat-words", base, ranked(given, (*FLAT, GAPS, WORDS), block=10)),
        record("holes", base, ranked(given, *holed, (*FLAT, GAPS, 3), block=10)),
    ]
    half = weights("F16", [600], 6)
    every = [(e, e, GAPS, 2) for e in range(32)]
    records += [
        record("f16-single", half, ranked(given, *every, block=10)),
        record("f16-flat", half, ranked(given, (9, 13, BITMASK, 0), (*FLAT, GAPS, 1), block=10)),
    ]
    yield case("ranked-classes", records)
    words = [e << 7 for e in range(256)]
    most = X("BF16", [256], struct.pack("<256H", *words))
    classes = [(e, e, BITMASK if e % 2 else GAPS, 1) for e in range(254)]
    part = ranked(dict.fromkeys(range(256), 1), *classes, (*FLAT, GAPS, 1))
    yield case("ranked-255-classes", [record("w", most, part)])
    # Gaps of 254, 255 and 510 ranks, in a class that has every second element.
    alternate = X("BF16", [4000], struct.pack("<2H", 0x3F80, 0x3E80) * 2000)
    places = {0: 1, 510: 1, 1022: 1, 2044: 1, 3998: 1, 1: 1, 3: 1}
    part = ranked(places, (124, 126, GAPS, 1), (127, 127, GAPS, 1), block=12)
    yield case("ranked-long-gaps", [record("w", alternate, part)])


def valid_rows() -> Iterator[Vector]:
    """Live rows: one element each, longer than a block, across blocks, of no use, and huge."""
    base, classes = weights("BF16", [1000], 8), classes_of("BF16", (GAPS, 2), (BITMASK, WORDS))
    given = {i: 1 + i % 5 for start in (33, 260, 700, 990) for i in range(start, start + 9)}
    records = [
        record(f"l{length}", base, ranked(given, *classes, length=length))
        for length in (1, 7, 16, 100, 255, 256, 257, 1000, 2**40, 2**63 - 1)
    ]
    more = ranked(given, *classes, length=50, live=(0, 3, 19))
    records.append(record("more-live", base, more))
    flat = ranked(given, (0, 120, GAPS, 0), (*FLAT, GAPS, 1), length=16, block=10)
    records.append(record("flat", base, flat))
    yield case("ranked-rows", records)


def valid_blocks() -> Iterator[Vector]:
    """Blocks without entries, a short last one, other classes in each; blocks in a frame."""
    base = weights("F16", [1030], 9)
    given = {i: (1, 65535, 700)[i % 3] for i in (0, 1, 255, 700, 701, 767, 768, 1023, 1029)}
    classes = classes_of("F16", (GAPS, 2), (BITMASK, 1))
    large = {5: 1, 1029: 2}
    records = [
        bias(),
        record("several", base, ranked(given, *classes, length=10)),
        record("large", base, ranked(large, *classes, block=24)),
        tensor("portable", "F32", 1030, P("difference", given)),
    ]
    yield case("ranked-blocks", records)
    steady = X("BF16", [64, 64], struct.pack("<2H", 0x3F80, 0x3E80) * 2048)
    often = {i: 1 + (i % 7 == 0) for row in (1, 2, 40) for i in range(64 * row, 64 * row + 64)}
    classes = [(125, 125, GAPS, 2), (127, 127, BITMASK, WORDS)]
    part = ranked(often, *classes, length=64, block=12, compress=True)
    far = dict.fromkeys(range(0, 4096, 7), 0x0100)
    wide = ranked(far, (125, 127, GAPS, 4), block=12, compress=True)
    records = [record("rows", steady, part), record("wide", steady, wide)]
    yield case("ranked-compressed", records)
    yield case("ranked-zstd-blocks", records, frames=in_zstd_blocks)


def valid_company() -> Iterator[Vector]:
    """`ranked` beside other parts, in records of all kinds, and in sets."""
    base, classes = weights("BF16", [30, 10], 11), classes_of("BF16", (GAPS, 2))
    given = Dice(3).small(300, 30, 2)
    words = {i: 0x4000 + i for i in range(300) if i not in given and i % 11 == 0}
    step, fixed = ranked(given, *classes, length=10), P("replace", words, value="planes")
    after = changed(base, [step])
    grown = X("BF16", [40, 10], base.data + base.data[:200])
    short = X("BF16", [10, 10], base.data[:200])
    rows = {i: 1 + i % 4 for i in range(3, 100, 9)}
    edit = ranked(rows, *classes)
    records = [
        edited("and-replace", "BF16", base.shape, base.data, [step, fixed]),
        edited("from", "BF16", base.shape, base.data, [step], source="renamed"),
        R("copy", None, after, [bare("new", "kept", base), step]),
        R("gone", base, None, [step, bare("drop", "other", after)]),
        R("grown", base, changed(grown, [step]), [whole("resize"), step]),
        R("cut", base, changed(short, [edit]), [bare("resize"), edit]),
        R("kept", base, base),
        R("other", after, after),
        bias(),
    ]
    yield case("ranked-records", records)
    yield case("ranked-lean", records, lean=True)
    one = record("w", base, step)
    two = [[one], [tensor("z", "F32", 300, P("difference", given))]]
    yield set_case("ranked-set", two, [bias()])
    yield set_case("ranked-set-lean", two, [bias()], lean=True)
    portable = [bias(), tensor("w", "BF16", 30, P("difference", {3: 1}))]
    yield case("compact-of-portable-parts", portable, version="1.1", profile="compact")
    hook = {"manifest": lambda m: m | {"must_understand": ["ranked@1.1"]}}
    yield case("compact-feature-without-use", portable, version="1.1", profile="compact", **hook)
    yield case("ranked-of-version-1.7", [one], version="1.7", manifest=also(()))


def valid_ranked() -> Iterator[Vector]:
    """All of them."""
    for group in (valid_codes, valid_classes, valid_rows, valid_blocks, valid_company):
        yield from group()
