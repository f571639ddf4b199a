"""The inverse of a delta, the squash of a chain, and the sum of tasks (`algebra.md`)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from delta import FORMATS, Decoded, apply, numbers, rounded
from terms import (
    Array,
    End,
    Part,
    Record,
    Tensors,
    content_digest,
    fingerprint,
    need,
    word_bytes,
)

OPPOSITE = {"new": "drop", "drop": "new", "resize": "resize", "difference": "difference"}


def inverse(delta: Decoded) -> tuple[str, tuple[Record, ...]]:
    """Content digest and records of the inverse of an invertible delta (section 2)."""
    records = tuple(sorted(map(_inverse, delta.records), key=lambda record: record.name))
    return content_digest(delta.target, delta.base, records), records


def _inverse(record: Record) -> Record:
    goes = [part.op for part in record.parts].index("drop") + 1 if _drops(record) else 0
    away, made = record.parts[:goes], record.parts[goes:]
    if away or (made[:1] and made[0].op == "new"):
        # What was made goes, its changes first; what went is made, its changes last.
        parts = (*made[1:], *made[:1], *away[-1:], *away[:-1])
    else:
        parts = made
    name = record.name if record.target is None or record.base is None else record.base_name
    source = record.name if name != record.name else None
    undone = tuple(map(_undone, parts))
    return Record(name, source, record.target, record.base, undone)


def _drops(record: Record) -> bool:
    return any(part.op == "drop" for part in record.parts)


def _undone(part: Part) -> Part:
    if part.op == "difference" and part.words is not None:
        return replace(part, words=np.negative(part.words))
    return replace(part, op=OPPOSITE[part.op])


def squash(chain: Iterable[Iterable[Part]]) -> dict[int, tuple[str, int]]:
    """What a chain of `difference` and `replace` parts does to each word (section 3).

    Args:
        chain: The parts of one tensor, delta by delta.

    Returns:
        Op and value of each entry, by its index.
    """
    found: dict[int, tuple[str, int]] = {}
    for parts in chain:
        for part in parts:
            if part.words is None:
                continue
            width = 1 << (8 * part.words.itemsize)
            for index, value in zip(part.indices.tolist(), part.words.tolist(), strict=True):
                op, before = found.get(index, ("difference", 0))
                if part.op == "difference":
                    found[index] = op, (before + value) % width
                else:
                    found[index] = "replace", value
    return {index: entry for index, entry in found.items() if entry != ("difference", 0)}


# --- The squash of a chain (section 4), of records without `resize` and without copies ---


@dataclass
class _Way:
    """A tensor on its way along a chain: where it comes from, and what has been done to it."""

    name: str | None
    base: End | None
    now: End
    words: Array | None = None
    done: list[tuple[Part, ...]] = field(default_factory=list)


def squash_chain(chain: Sequence[Decoded]) -> tuple[str, list[Record]]:
    """Content digest and records of the one delta that does what a chain does.

    Args:
        chain: Deltas in their order, each of `difference`, `replace`, coded `new` and coded `drop`.

    Raises:
        RuleError: `chain`: one does not follow the one before; `words`: words of the first base
            that would be needed are nowhere, or an `add` is among the parts.
    """
    for one, other in pairwise(chain):
        need("chain", one.target == other.base, "one does not follow the one before")
    ways: dict[str, _Way] = {}
    gone: dict[str, tuple[End, Array]] = {}
    for delta in chain:
        made: dict[str, _Way] = {}
        for record in delta.records:
            need("words", all(p.op != "add" for p in record.parts), "an `add`")
            way = ways.pop(record.base_name, None)
            if way is None and record.base is not None:
                way = _Way(record.base_name, record.base, record.base)
            goes = [part.op for part in record.parts].index("drop") + 1 if _drops(record) else 0
            if goes and way is not None and way.name is not None:
                gone[way.name] = way.now, _before(record.parts[goes - 1], way)
            if record.target is None:
                continue
            if goes or record.base is None:
                words = record.parts[goes].words
                way = _Way(None, None, record.target, None if words is None else words.copy())
            else:
                way = way or _Way(record.base_name, record.base, record.target)
                way.done.append(record.parts)
                if way.words is not None:
                    _edit(way.words, record.parts)
            made[record.name] = way
        ways |= made
    records = [r for name, way in ways.items() if (r := _record(name, way, gone)) is not None]
    for name, (end, words) in gone.items():
        records.append(Record(name, None, end, None, (_whole("drop", words),)))
    records.sort(key=lambda record: record.name)
    return content_digest(chain[0].base, chain[-1].target, records), records


def _before(dropped: Part, way: _Way) -> Array:
    """The words in the first base of a tensor that is dropped."""
    need("words", dropped.words is not None, "the words of a tensor that goes are not carried")
    assert dropped.words is not None  # noqa: S101 - just checked
    words = dropped.words.copy()
    for index, (op, value) in squash(way.done).items():
        need("words", op == "difference", "words were replaced before they went")
        words[index] = (int(words[index]) - value) % (1 << 8 * words.itemsize)
    return words


def _edit(words: Array, parts: Iterable[Part]) -> None:
    for index, (op, value) in squash([parts]).items():
        old = int(words[index]) if op == "difference" else 0
        words[index] = (old + value) % (1 << 8 * words.itemsize)


def _record(name: str, way: _Way, gone: dict[str, tuple[End, Array]]) -> Record | None:
    if way.words is not None:
        if name in gone and gone[name][0] == way.now:  # it went, and is here again: a change
            parts = _difference(gone.pop(name)[1], way.words)
            return Record(name, None, way.now, way.now, parts) if parts else None
        new = _whole("new", way.words)
        if name not in gone:
            return Record(name, None, None, way.now, (new,))
        end, words = gone.pop(name)
        return Record(name, None, end, way.now, (_whole("drop", words), new))
    entries = sorted(squash(way.done).items())
    dtype = f"<u{word_bytes(way.now.dtype)}"
    parts = tuple(
        Part(op, np.array(list(found), "<u8"), np.array(list(found.values()), dtype))
        for op in ("difference", "replace")
        if (found := {index: value for index, (kind, value) in entries if kind == op})
    )
    source = None if way.name == name else way.name
    return Record(name, source, way.base, way.now, parts) if parts or source else None


def _whole(op: str, words: Array) -> Part:
    return Part(op, np.empty(0, "<u8"), words)


def _difference(old: Array, new: Array) -> tuple[Part, ...]:
    at = np.flatnonzero(old != new)
    return (Part("difference", at.astype("<u8"), new[at] - old[at]),) if at.size else ()


# --- The sum of tasks (section 5) ---


def total(base: Tensors, tasks: Sequence[tuple[Decoded, float]]) -> tuple[str, Tensors]:
    """What several deltas of a base make of it together, and the content digest of that delta.

    Args:
        base: The base.
        tasks: Deltas that start there, each with its weight.

    Raises:
        RuleError: `SD501`: one starts elsewhere; `SD505`: a number that is met or made is not
            finite; `tasks`: they exclude each other.
    """
    made = [(apply(base, delta), weight) for delta, weight in tasks if weight != 0]
    result: Tensors = {}
    for name in sorted({*base, *(name for tensors, _ in made for name in tensors)}):
        here = base.get(name)
        found = [(tensors.get(name), weight) for tensors, weight in made]
        moved = [(tensor, weight) for tensor, weight in found if tensor != here]
        plain = all(t is not None and here and t[:2] == here[:2] for t, _ in moved)
        if here is None or not plain:  # it comes, goes, or becomes another
            need("tasks", all(m == moved[0] and m[1] == 1 for m in moved), f"tensor {name}")
            if moved[0][0] is not None:
                result[name] = moved[0][0]
            continue
        dtype, shape, data = here
        code = f"<u{word_bytes(dtype)}"
        words = np.frombuffer(data, code).copy()
        others = [(np.frombuffer(t[2], code), weight) for t, weight in moved if t is not None]
        for index in range(len(words)):
            there = [(other[index], w) for other, w in others if other[index] != words[index]]
            if there:
                words[index] = _sum(dtype, words[index], there)
        result[name] = dtype, shape, words.tobytes()
    return content_digest(fingerprint(base), fingerprint(result), _changes(base, result)), result


def _sum(
    dtype: str, old: np.unsignedinteger, tasks: Sequence[tuple[np.unsignedinteger, float]]
) -> int:
    """One element: of the word in the base, and the words and weights of those that change it."""
    if len(tasks) == 1 and tasks[0][1] == 1:
        return int(tasks[0][0])
    if dtype not in {*FORMATS, "F64"}:
        need("tasks", all(task == (tasks[0][0], 1) for task in tasks), "no numbers to add")
        return int(tasks[0][0])

    def number(word: object) -> float:
        return float(numbers(dtype, np.array([word], f"<u{word_bytes(dtype)}"))[0])

    start = number(old)
    terms = [weight * (number(word) - start) for word, weight in tasks]
    terms.sort(key=_order)
    whole = terms[0]
    for term in terms[1:]:
        whole += term
    whole += start
    finite = np.isfinite([start, whole, *terms]).all()
    need("SD505", finite, "a number is not finite")
    word = rounded(dtype, np.array([whole]))
    need("SD505", np.isfinite(numbers(dtype, word)).all(), "a result is not finite")
    return int(word[0])


def _order(value: float) -> int:
    """A key that ascends with totalOrder of IEEE 754."""
    (bits,) = struct.unpack(">q", struct.pack(">d", value))
    return int(bits if bits >= 0 else bits ^ ((1 << 63) - 1))


def _changes(base: Tensors, target: Tensors) -> list[Record]:
    records = []
    for name in sorted({*base, *target}):
        old, new = base.get(name), target.get(name)
        if old == new:
            continue
        ends = [None if t is None else End(t[0], t[1]) for t in (old, new)]
        words = [
            np.frombuffer(t[2], f"<u{word_bytes(t[0])}") if t else np.empty(0, np.uint8)
            for t in (old, new)
        ]
        if ends[0] == ends[1]:
            parts = _difference(words[0], words[1])
        else:
            ops = zip(("drop", "new"), ends, words, strict=True)
            parts = tuple(_whole(op, found) for op, end, found in ops if end is not None)
        records.append(Record(name, None, ends[0], ends[1], parts))
    return records
