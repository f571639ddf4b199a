"""Invalid vectors of `ranked` that need no base: SD210, SD212, SD217, SD304, SD402 and SD417."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ranked_encoder import BITMASK, FLAT, GAPS, WORDS, Pieces, varint
from stream_encoder import shrink, zstd
from valid_ranked import record
from vector_encoder import Hook, build
from vector_records import P, R, X, edited, ranked, whole
from vector_samples import Invalid, at_block, put, stream, tensor
from vector_sets import build_set

Change = Mapping[str, bytes | Callable[[bytes], bytes]]
MANY, FEW = 300, 40
CLASSES = ((124, 124, GAPS, 2), (125, 125, GAPS, WORDS), (126, 126, BITMASK, 1))
EXPONENTS = {"BF16": (0x3E11, 0x3E92, 0x3F13), "F16": (0x3411, 0x3822, 0x3C33)}


def in_turn(dtype: str, n: int) -> X:
    """Words of three exponents in turn (BF16: 124, 125, 126)."""
    return X(dtype, [n], struct.pack(f"<{n}H", *(EXPONENTS[dtype][i % 3] for i in range(n))))


def sample() -> list[R]:
    """A tensor of one block: three classes of 10, 7 and 20 entries, and ten rows of 30 elements."""
    given: dict[int, int] = {i: (1, 0xFFFE, 9)[i // 6 % 3] for i in range(0, 60, 6)}
    given |= dict.fromkeys(range(91, 300, 30), 0x0101) | dict.fromkeys(range(2, 60, 3), 1)
    return [record("w", in_turn("BF16", MANY), ranked(given, *CLASSES, length=30, block=9))]


def few(given: dict[int, int], *classes: tuple[int, int, int, int], dtype: str = "BF16") -> list[R]:
    """A tensor of 40 words of three exponents, without rows."""
    return [record("w", in_turn(dtype, FEW), ranked(given, *classes))]


def replaced(change: Change, block: int = 0) -> Hook:
    """A hook that changes some pieces of a block."""

    def hook(pieces: Pieces, _name: str, _part: int, number: int) -> Pieces:
        if number != block:
            return pieces
        if missing := change.keys() - pieces.keys():
            raise ValueError(missing)
        found = {}
        for key, old in pieces.items():
            new = change.get(key, old)
            found[key] = new if isinstance(new, bytes) else new(old)
        return found

    return hook


def ranks(new: bytes, number: int = 0) -> Change:
    """Another IDX of a class, and its length."""
    return {f"IDX{number}": new, f"SIZE{number}": varint(len(new))}


def bad(name: str, why: str, records: list[R] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
    """An invalid vector."""
    return name, why, build(records or sample(), **how)


def broken(name: str, why: str, change: Change, records: list[R] | None = None) -> Invalid:
    """An invalid vector of SD417, by a change of the sample or of other records."""
    return bad(f"sd417-{name}", why, records, pieces=replaced(change))


def invalid_claims() -> Iterator[Invalid]:
    """Rules SD210, SD212 and SD217."""
    one, codes = {3: 1}, {"index": {"id": "ranked"}, "value": {"id": "ranked"}}
    for name, why, labels in (
        ("value", "gaps, and the values of ranked", {"index": {"id": "gap8"}}),
        ("index", "ranked, and other values", {"value": {"id": "zigzag"}}),
        ("parameter", "a parameter of no codec", {"index": {"id": "ranked", "width": 4}}),
        ("value-parameter", "a parameter of no codec", {"value": {"id": "ranked", "x": 0}}),
    ):
        part = ranked(one, (0, 255, GAPS, 1))
        part.labels = labels
        yield bad(f"sd210-ranked-{name}", why, [record("w", in_turn("BF16", FEW), part)])
    for dtype in ("U16", "I16", "F32", "F8_E4M3"):
        part = P("difference", one, "raw", "raw", labels=codes)
        why = f"ranked for {dtype}"
        yield bad(f"sd210-ranked-{dtype.lower()}", why, [tensor("w", dtype, FEW, part)])
    base = in_turn("BF16", FEW)
    for op, dtype, scale in (("replace", "", ""), ("add", "BF16", "3ff0000000000000")):
        part = P(op, {3: 0x3F81}, "raw", "raw", labels=codes, dtype=dtype, scale=scale)
        t = edited("w", "BF16", [FEW], base.data, [part])
        yield bad(f"sd210-ranked-{op}", f"{op} with ranked", [t])
    young = [R("w", None, base, [whole("new", labels=codes)])]
    yield bad("sd210-ranked-new", "new with ranked", young)

    true = put(True, "invertible")
    yield bad("sd212-ranked", "true, and ranks of the base", facts=true)

    yield bad("sd217-version", "version 1.0", version="1.0")
    yield bad("sd217-profile", "the profile portable", profile="portable")
    nothing = put([], "must_understand")
    yield bad("sd217-feature", "the feature is not listed", manifest=nothing)
    groups = [sample(), [tensor("z", "U8", FEW, P("difference", one))]]
    files = build_set(groups, [], name="sd217-set", parts={1: {"manifest": nothing}})
    yield "sd217-set", "the feature is listed in the root only", files


def invalid_lengths() -> Iterator[Invalid]:
    """Rule SD304."""

    def of_length(length: int) -> Hook:
        return at_block(0, lambda s: [s[0][:length].ljust(length, b"\0")])

    entries = len(sample()[0].parts[0].given)
    yield bad("sd304-ranked-short", "9 bytes", streams=of_length(9))
    yield bad("sd304-ranked-empty", "no byte for 37 entries", streams=of_length(0))
    most = 2**15 + MANY + 5 * entries
    yield bad("sd304-ranked-long", "a byte too many", streams=of_length(most + 1))
    sparse = [record("w", in_turn("BF16", 600), ranked({0: 1, 599: 1}, (0, 255, GAPS, 1)))]
    filled = at_block(1, lambda _: [bytes(10)])
    yield bad("sd304-ranked-empty-block", "10 bytes without an entry", sparse, streams=filled)


def invalid_frames() -> Iterator[Invalid]:
    """Rule SD402: the frame of a block is that of a stream."""
    part = ranked(dict.fromkeys(range(0, 400, 2), 1), (0, 255, BITMASK, 4), block=9, compress=True)
    steady = [record("w", in_turn("BF16", 400), part)]
    for name, why, new in (
        ("trailing", "a byte behind the frame", lambda f: f + b"\0"),
        ("truncated", "its last byte is missing", lambda f: f[:-1]),
        ("two", "an empty frame behind it", lambda f: f + zstd((b"", 0), declared=0)),
        ("other", "a frame of other length", lambda _: shrink(bytes(400))),
    ):
        yield bad(f"sd402-ranked-{name}", why, steady, frames=stream(0, new))


LARGEST = b"\xff" * 8 + b"\x7f"  # 2^63 - 1
HEADS: tuple[tuple[str, str, Change], ...] = (
    ("number-padded", "30 in two bytes", {"L": b"\x9e\0"}),
    ("number-2-63", "2^63", {"L": b"\x80" * 9 + b"\1"}),
    ("number-count-padded", "a count in two bytes", {"COUNT0": b"\x8a\0"}),
    ("number-size-padded", "a length in two bytes", {"SIZE0": b"\x8a\0"}),
    ("number-size-2-63", "a length of 2^63", {"SIZE0": b"\x80" * 9 + b"\1"}),
    ("rows-few", "8 bits for 10 rows", {"ROWS": lambda s: s[:1]}),
    ("rows-many", "24 bits for 10 rows", {"ROWS": lambda s: s + b"\0"}),
    ("rows-spare", "a spare bit", {"ROWS": lambda s: s[:1] + bytes([s[1] | 0x80])}),
    ("rows-first-spare", "a spare bit", {"ROWS": lambda s: s[:1] + bytes([s[1] | 4])}),
    ("rows-none", "no live row", {"ROWS": bytes(2)}),
    ("rows-of-one", "10 bits for 300 rows", {"L": b"\1"}),
    ("rows-and-no-length", "rows, and L is 0", {"L": b"\0"}),
    ("classes-none", "no class", {"CLASSES": b"\0"}),
    ("classes-more", "a class more than there are", {"CLASSES": b"\4"}),
    ("classes-fewer", "a class fewer than there are", {"CLASSES": b"\2"}),
    ("classes-255", "255 classes", {"CLASSES": b"\xff"}),
    ("range-reversed", "from 124 to 123", {"CLASS0": b"\x7c\x7b\2"}),
    ("range-twice", "a range twice", {"CLASS1": lambda s: b"\x7c\x7c" + s[2:]}),
    ("range-overlap", "124 to 125, and 125", {"CLASS0": b"\x7c\x7d\2"}),
    ("range-order", "127 before 125", {"CLASS0": b"\x7f\x7f\2"}),
    ("range-255-1", "from 255 to 1", {"CLASS2": lambda s: b"\xff\1" + s[2:]}),
    ("flat-first", "a class behind FLAT", {"CLASS1": lambda s: b"\xff\0" + s[2:]}),
    ("flat-bitmask", "FLAT with a bitmask", {"CLASS2": lambda s: b"\xff\0" + s[2:]}),
    ("index-code", "index code 2", {"CLASS0": b"\x7c\x7c\x22"}),
    ("index-code-15", "index code 15", {"CLASS0": b"\x7c\x7c\xf2"}),
    ("value-code", "value code 6", {"CLASS0": b"\x7c\x7c\6"}),
    ("value-code-15", "value code 15", {"CLASS0": b"\x7c\x7c\x0f"}),
    ("count-zero", "a class without entries", {"COUNT0": b"\0"}),
    ("count-less", "36 entries of 37", {"COUNT0": b"\x09"}),
    ("count-more", "38 entries of 37", {"COUNT0": b"\x0b"}),
    ("count-huge", "2^63 - 1 entries", {"COUNT0": LARGEST}),
    ("size-zero", "no byte for 10 gaps", ranks(b"")),
    ("size-fewer", "9 bytes for 10 gaps", ranks(bytes(9))),
    ("size-more", "12 bytes for 10 gaps among 270 elements", ranks(b"\xff\xff" + bytes(10))),
    ("size-huge", "2^63 - 1 bytes", {"SIZE0": LARGEST}),
    ("size-bits-zero", "no byte for 20 bits", ranks(b"", 2)),
    ("size-bits-more", "35 bytes for 270 elements", ranks(b"\xff\xff\x0f" + bytes(32), 2)),
    ("size-bits-huge", "2^63 - 1 bytes", {"SIZE2": LARGEST}),
    ("signs-more", "a byte more", {"SIGNS": lambda s: s + b"\0"}),
    ("signs-fewer", "a byte fewer", {"SIGNS": lambda s: s[:-1]}),
    ("signs-spare", "a spare bit", {"SIGNS": lambda s: s[:-1] + bytes([s[-1] | 0x80])}),
    ("signs-first-spare", "a spare bit", {"SIGNS": lambda s: s[:-1] + bytes([s[-1] | 0x40])}),
)


def invalid_head() -> Iterator[Invalid]:
    """Rule SD417: numbers, the table of classes, rows, signs."""
    cut = at_block(0, lambda _: [b"\0\1\0\xff\1\xff\xff\xff\xff\xff"])
    yield bad("sd417-number-cut", "the block ends inside of a number", streams=cut)
    all_on = at_block(0, lambda _: [b"\0\1\0\xff\1" + b"\xff" * 20])
    yield bad("sd417-number-without-end", "20 bytes that all go on", streams=all_on)
    for name, why, change in HEADS:
        yield broken(name, why, change)
    given = {0: 1, 1: 2, 2: 3, 3: 4}
    two = few(given, (124, 124, GAPS, 1), (*FLAT, GAPS, 1))
    twice: Change = {"CLASS0": b"\xff\0\1"}
    yield broken("flat-twice", "FLAT twice", twice, two)
    half = few(given, (0, 31, GAPS, 1), dtype="F16")
    yield broken("range-f16", "exponent 32 of F16", {"CLASS0": b"\0\x20\1"}, half)
    part = ranked(dict.fromkeys(range(15), 1), (0, 255, GAPS, 1), length=10)
    rows = [record("w", in_turn("BF16", FEW), part)]
    yield broken("rows-too-few", "15 entries among 10 elements", {"ROWS": b"\1"}, rows)
    part = ranked(dict.fromkeys(range(0, 60, 3), 1), (124, 124, BITMASK, 1), block=9)
    bits = [record("w", in_turn("BF16", MANY), part)]
    why = "38 bytes in a block that ends before"
    yield broken("size-behind", why, {"SIZE0": b"\x26"}, bits)
    three = few(dict.fromkeys((0, 3, 30), 1), (124, 124, GAPS, 1))
    for name, codes, size, idx in (("gaps", 0x01, 0, b""), ("bits", 0x11, 1, b"\0")):
        empty: Change = {
            "CLASSES": b"\2",
            "CLASS0": bytes([124, 124, 1, 125, 125, codes]),
            "SIZE0": bytes([3, 0, size]),
            "IDX0": b"\0\0\x08" + idx,
        }
        why = "a class without entries behind one that has them all"
        yield broken(f"count-zero-{name}", why, empty, three)
    for count, gaps in ((2, b"\0\0"), (4, b"\0\0\0\0")):
        why = f"a block of {count} entries for a count of 3"
        yield broken(f"count-{count}-of-3", why, {"COUNT0": bytes([count]), **ranks(gaps)}, three)


def cut_in(field: str) -> Hook:
    """A hook that ends a block a byte before the end of a field."""

    def hook(pieces: Pieces, *_: object) -> Pieces:
        names = list(pieces)
        kept = {name: pieces[name] for name in names[: names.index(field)]}
        return kept | {field: pieces[field][:-1]}

    return hook


def invalid_ends() -> Iterator[Invalid]:
    """Rule SD417: a block that ends inside of a field, or behind its last one."""
    fields = ("CLASS2", "COUNT0", "SIZE2", "ROWS", "SIGNS", "IDX0", "IDX2")
    for field in (*fields, "SYM0", "HIGH1", "LOW1", "SYM2", "EXC"):
        name = f"sd417-cut-{field.lower()}"
        yield bad(name, f"the block ends inside of {field}", pieces=cut_in(field))
    yield broken("behind", "a byte behind the block", {"EXC": lambda s: s + b"\0"})


def invalid_index_inside() -> Iterator[Invalid]:
    """Rule SD417: gaps and bitmasks."""
    given = dict.fromkeys((0, 3, 30), 1)
    gaps = few(given, (0, 255, GAPS, 1))  # of 0, 2 and 26
    for name, why, new in (
        ("fewer", "a gap fewer", b"\0\2"),
        ("fewer-and-long", "a gap fewer, one in two bytes", b"\0\xff\2"),
        ("more", "a gap more", b"\0\2\2\2"),
        ("open", "the last gap does not end", b"\0\2\xff"),
        ("outside", "rank 40 of 40 elements", b"\0\2\x24"),
        ("long", "longer than gaps can be", b"\0\2\xff\xff\0"),
    ):
        yield broken(f"gaps-{name}", why, ranks(new), gaps)
    why = "11 gaps for 10 entries of 270 elements"
    yield broken("gaps-one-more", why, ranks(bytes(11)))
    bits = few(given, (0, 255, BITMASK, 1))
    for name, why, new in (
        ("fewer", "a bit fewer", b"\1\0\0\x40\0"),
        ("more", "a bit more", b"\x0b\0\0\x40\0"),
        ("long", "48 bits for 40 elements", b"\x09\0\0\x40\0\0"),
    ):
        yield broken(f"bits-{name}", why, ranks(new), bits)
    wide = few(given, (0, 255, BITMASK, 4))
    yield broken("bits-no-byte", "no byte", ranks(b""), wide)
    both = few({0: 1, 1: 1}, (124, 124, BITMASK, 1), (125, 126, BITMASK, 1))
    long = {**ranks(b"\1\0\0"), **ranks(b"\1\0\0\0", 1)}
    yield broken("bits-of-too-many", "at least 17 and 25 elements of 40", long, both)
    entries = {0: 1} | dict.fromkeys(range(1, 40, 3), 1)
    beside = few(entries, (124, 124, BITMASK, 1), (125, 126, GAPS, 1))
    why = "at least 33 elements and 13 entries of 40"
    yield broken("bits-beside-gaps", why, ranks(b"\1\0\0\0\0"), beside)


def invalid_values_inside() -> Iterator[Invalid]:
    """Rule SD417: symbols, exceptions, magnitudes, and new words."""
    given = dict.fromkeys((0, 3, 30), 1)
    for value, name, spare in (
        (1, "1", b"\x08"),
        (1, "1-last", b"\x80"),
        (2, "2", b"\x40"),
        (2, "2-last", b"\x80"),
        (3, "4", b"\0\x10"),
        (3, "4-last", b"\0\x80"),
    ):
        records = few(given, (0, 255, GAPS, value))
        yield broken(f"symbols-spare-{name}", "a spare bit", {"SYM0": spare}, records)
    none, one = few(given, (0, 255, GAPS, 0)), few(given, (0, 255, GAPS, 1))
    for name, why, exceptions, records in (
        ("none", "none for 3 symbols", b"", none),
        ("fewer", "2 for 3 symbols", bytes(4), none),
        ("odd", "7 bytes for 3 symbols", bytes(7), none),
        ("short", "5 bytes for 3 symbols", bytes(5), none),
        ("most", "4 for 3 symbols", bytes(8), none),
        ("needless", "1 for no symbol", bytes(2), one),
        ("byte", "a byte for no symbol", b"\0", one),
        ("many", "2^14 for no symbol", bytes(2**15), one),
    ):
        yield broken(f"exceptions-{name}", why, {"EXC": exceptions}, records)
    yield broken("exceptions-missing", "none for a symbol of 1", {"SYM0": b"\1"}, one)
    for name, why, step, value, exception in (
        ("positive", "2^15, and sign 0", 0x7FFF, 0, b"\xff\x7f"),
        ("negative", "2^15 + 1, and sign 1", 0x8000, 0, b"\0\x80"),
        ("sum", "255 + 32,512 + 1, and sign 0", 0x7FFF, 4, b"\0\x7f"),
        ("wraps", "255 + 65,535 + 1", 0x7FFF, 4, b"\xff\xff"),
    ):
        records = few({0: step}, (0, 255, GAPS, value))
        yield broken(f"magnitude-{name}", why, {"EXC": exception}, records)
    words = few(given, (0, 255, GAPS, WORDS))
    for key in ("HIGH0", "LOW0"):
        name, why = f"words-{key[:-1].lower()}", "not a byte for each new word"
        yield broken(f"{name}-short", why, {key: lambda s: s[1:]}, words)
        yield broken(f"{name}-long", why, {key: lambda s: s + b"\0"}, words)


def invalid_ranked() -> Iterator[Invalid]:
    """All of them."""
    for group in (
        *(invalid_claims, invalid_lengths, invalid_frames, invalid_head, invalid_ends),
        *(invalid_index_inside, invalid_values_inside),
    ):
        yield from group()
