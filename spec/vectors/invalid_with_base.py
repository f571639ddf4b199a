"""Vectors of `ranked` that are valid without the base: SD418, and SD409 and SD5xx of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expected_json import bases, targets
from invalid_operations import Operation
from invalid_ranked import Change, few, ranks, replaced, sample
from ranked_encoder import BITMASK, FLAT, GAPS, WORDS
from valid_ranked import classes_of, record, weights
from vector_encoder import build
from vector_records import P, R, X, bare, edited, ranked


def on_base(
    name: str,
    why: str,
    records: list[R],
    change: Change | None = None,
    block: int = 0,
    **how: Any,  # noqa: ANN401 - the options of build
) -> Operation:
    """A delta, some pieces of which do not fit its base, and that base."""
    hooks = how if change is None else {"pieces": replaced(change, block)}
    return name, "apply", why, bases(records), build(records, **hooks)


def words_that_stay(records: list[R], *places: int) -> Change:
    """The pieces of a class of new words that has the old words at these places."""
    words = [base.words[i] for i in places for base in [records[0].base] if base]
    high = bytes(word >> 7 & 255 for word in words)
    low = bytes(word >> 15 << 7 | word & 127 for word in words)
    return {"HIGH0": high, "LOW0": low}


def wrong_ranks() -> Iterator[Operation]:
    """Rule SD418."""
    three = dict.fromkeys((0, 3, 6), 1)
    gaps = few(three, (124, 124, GAPS, 1))  # of 14 elements
    for name, why, new in (
        ("rank", "rank 14 of 14 elements", ranks(b"\0\0\x0c")),
        ("rank-39", "rank 39 of 14 elements", ranks(b"\0\0\x25")),
        ("no-element", "a class without elements", {"CLASS0": b"\1\2\1"}),
    ):
        yield on_base(f"sd418-{name}", why, gaps, new)
    bits = few(three, (124, 124, BITMASK, 1))
    for name, why, mask in (
        ("short", "8 bits for 14 elements", b"\7"),
        ("long", "24 bits for 14 elements", b"\7\0\0"),
        ("spare", "a spare bit in the place of an entry", b"\3\x40"),
        ("last-spare", "the last spare bit in the place of an entry", b"\3\x80"),
    ):
        yield on_base(f"sd418-bits-{name}", why, bits, ranks(mask))
    flat = few({0: 1, 1: 1, 2: 1}, (124, 124, GAPS, 1), (*FLAT, GAPS, 1))
    why = "an element of a listed class in FLAT"
    yield on_base("sd418-flat", why, flat, ranks(b"\0\1", 1))
    yield on_base("sd418-flat-last", why, flat, ranks(b"\1\1", 1))
    for name, ends in (("", (0, 255)), ("-flat", FLAT)):
        words = few({0: 1, 1: 1}, (*ends, GAPS, WORDS))
        same = words_that_stay(words, 0, 1)
        yield on_base(f"sd418-same-word{name}", "new words that are the old ones", words, same)
    part = ranked({0: 1, 400: 1}, (0, 255, GAPS, WORDS))
    second = [record("w", weights("BF16", [600], 2), part)]
    same = words_that_stay(second, 400)
    yield on_base("sd418-second-block", "a new word that is the old one", second, same, 1)


def wrong_company() -> Iterator[Operation]:
    """Rules SD409 and SD501 to SD503."""
    base = weights("BF16", [40], 4)
    step = ranked({0: 1, 5: 1}, *classes_of("BF16", (GAPS, 1)))
    parts = [step, P("replace", {5: 7}, value="planes")]
    both = [edited("w", "BF16", [40], base.data, parts)]
    yield on_base("sd409-ranked", "word 5 in both parts", both)
    records = sample()
    file, w = build(records), bases(records)["w"]
    moved = X(w.dtype, w.shape, w.data[2:] + w.data[:2])
    yield "sd501-ranked", "apply", "the same words in another order", {"w": moved}, file
    promised = [R("w", w, moved, records[0].parts)]
    yield on_base("sd502-ranked", "another tensor than promised", promised)
    why = "ranks among words that are gone"
    yield "sd503-ranked", "revert", why, targets(records), file
    copy = [R("a", w, w), R("b", None, targets(records)["w"], [bare("new", "a", w)])]
    copy[1].parts += records[0].parts
    yield "sd503-ranked-copy", "revert", "ranks in a copy", targets(copy), build(copy)


def ranked_operations() -> Iterator[Operation]:
    """All of them."""
    yield from wrong_ranks()
    yield from wrong_company()
