"""Tensors, records and parts as the vectors state them, and what parts lead to, word by word."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from ranked_encoder import Plan
from terms import BITS, End, b3, tensor_digest, word_bytes

SEGMENT = 2**22
DENSE = ("new", "drop", "resize")


class X(NamedTuple):
    """A tensor."""

    dtype: str
    shape: list[int]
    data: bytes

    @property
    def width(self) -> int:
        """The bytes of a word (1 for a dtype that only an invalid vector has)."""
        return word_bytes(self.dtype) if self.dtype in BITS else 1

    @property
    def words(self) -> list[int]:
        """The words."""
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[self.width]
        return list(struct.unpack(f"<{self.number}{code}", self.data[: self.number * self.width]))

    @property
    def number(self) -> int:
        """The number of words, as the data has them (the shape may be wrong)."""
        return len(self.data) // self.width

    def segments(self) -> list[bytes]:
        """The digests of the segments."""
        step = SEGMENT * self.width
        return [b3(self.data[k : k + step], "segment") for k in range(0, len(self.data), step)]

    def digest(self) -> bytes:
        """The tensor digest."""
        return tensor_digest(self.dtype, tuple(self.shape), self.segments())


def identity_of(x: X | None) -> End | None:
    """A tensor without its words."""
    return x and End(x.dtype, tuple(x.shape))


@dataclass
class P:
    """A part: its entries and how to encode them.

    Attributes:
        op: The operation.
        given: Index to value; of a dense op nothing, since its words follow from its record.
        index: The index codec.
        value: The value codec.
        width: Of `packed`.
        block: The base-2 logarithm of the block.
        compress: Whether frames are compressed.
        labels: Written in place of the codecs, or beside the keys of a bare part.
        ks: Of `gap8-split`, for each block, and then again from the first.
        bare: Whether the part has no words.
        of: The name in `from` or `to`.
        copy: The tensor of that name.
        dtype: Of `add`.
        scale: Of `add`, in hex.
        plan: Of `ranked`: classes and rows.
    """

    op: str
    given: dict[int, int] = field(default_factory=dict)
    index: str = "gap8"
    value: str = "zigzag"
    width: int = 0
    block: int = 8
    compress: bool = False
    labels: dict[str, Any] = field(default_factory=dict)
    ks: tuple[int, ...] = (0,)
    bare: bool = False
    of: str = ""
    copy: X | None = None
    dtype: str = ""
    scale: str = ""
    plan: Plan = Plan(())  # noqa: RUF009 - it is frozen

    def codecs(self) -> dict[str, Any]:
        """The codecs as the manifest names them, and what an `add` has beside them."""
        value = {"id": self.value} | ({"width": self.width} if self.value == "packed" else {})
        add = {"dtype": self.dtype, "scale": self.scale} if self.op == "add" else {}
        return {"index": {"id": self.index}, "value": value} | add | self.labels

    def bare_keys(self) -> dict[str, Any]:
        """The keys of a bare part."""
        key = {"new": "from", "drop": "to"}.get(self.op, "from")
        return {"op": self.op} | ({key: self.of} if self.of else {})


def whole(op: str, value: str = "planes", **how: Any) -> P:  # noqa: ANN401 - the options of build
    """A coded `new`, `drop` or `resize`."""
    return P(op, {}, "dense", value, **how)


def bare(op: str, of: str = "", copy: X | None = None) -> P:
    """A bare part; the tensor is that of the name."""
    return P(op, bare=True, of=of, copy=copy)


def no_inverse(part: P) -> bool:
    """Whether a part forgets words, or asks for those of the base."""
    forgets = part.bare and part.op != "new" and not part.of
    return forgets or part.op in ("replace", "add") or part.index == "ranked"


def ranked(given: dict[int, int], *classes: tuple[int, int, int, int], **how: Any) -> P:  # noqa: ANN401
    """A `difference` by ranks, with the options of a plan; and `block`."""
    own = {key: how.pop(key) for key in ("block", "compress") if key in how}
    return P("difference", given, "ranked", "ranked", **own, plan=Plan(classes, **how))


@dataclass
class R:
    """A tensor of base and target, and the parts that lead from one to the other."""

    name: str
    base: X | None
    target: X | None
    parts: list[P] = field(default_factory=list)
    source: str | None = None

    @property
    def base_name(self) -> str:
        """The name in the base."""
        return self.source or self.name

    @property
    def touched(self) -> bool:
        """Whether it has a record."""
        here = self.base is not None and self.base == self.target
        return bool(self.parts) or self.source is not None or not here

    @property
    def nnz(self) -> int:
        """The entries of all parts."""
        return sum(len(p.given) for p in self.parts if p.op not in DENSE)

    def old(self, number: int) -> bool:
        """Whether a part is of the base tensor: a drop, or before one."""
        return any(p.op == "drop" for p in self.parts[number:])

    def end(self, number: int) -> X:
        """The tensor that a part is about."""
        x = self.base if self.old(number) else self.target
        return x or X("U8", [0], b"")

    def applied_to(self, number: int) -> list[int]:
        """The words that a `difference` is applied to."""
        copies = [p.copy for p in self.parts[:number] if p.op == "new" and p.copy]
        x = copies[0] if copies and not self.old(number) else self.base
        return x.words[: self.domain(number)] if x else []

    def domain(self, number: int) -> int:
        """The words that a part covers."""
        counts = [x.number for x in (self.base, self.target) if x]
        if self.parts[number].op == "resize":
            return max(counts) - min(counts)
        resized = any(p.op == "resize" for p in self.parts)
        return min(counts) if resized else self.end(number).number

    def part_width(self, number: int) -> int:
        """The bytes of a value word."""
        dtype = self.parts[number].dtype
        return word_bytes(dtype) if dtype in BITS else self.end(number).width

    def entries(self, number: int) -> dict[int, int]:
        """The entries of a part; of a dense op, all the words of its domain."""
        part = self.parts[number]
        if part.op not in DENSE or part.bare:
            return part.given
        words = self.end(number).words
        if part.op == "resize":
            sides = [x.words for x in (self.base, self.target) if x]
            words = max(sides, key=len)[min(map(len, sides)) :]
        return dict(enumerate(words))


# --- What parts lead to ---


def changed(x: X, parts: list[P]) -> X:
    """A tensor after `difference`, `replace` and `add`."""
    out, w, full = bytearray(x.data), x.width, 256**x.width
    for part in parts:
        for i, value in part.given.items():
            old = int.from_bytes(out[i * w : i * w + w], "little")
            if part.op == "add":
                new = sum_of(x.dtype, old, part, value)
            else:
                new = value if part.op == "replace" else (old + value) % full
            out[i * w : i * w + w] = new.to_bytes(w, "little")
    return X(x.dtype, x.shape, bytes(out[: len(x.data)]))  # what is behind the end is not there


def edited(  # noqa: PLR0917 - as R
    name: str,
    dtype: str,
    shape: list[int],
    data: bytes,
    parts: list[P] | None = None,
    source: str | None = None,
) -> R:
    """A tensor that keeps its dtype and shape (without parts and another name: untouched)."""
    base, parts = X(dtype, shape, data), parts or []
    known = [p for p in parts if p.op in ("difference", "replace", "add")]
    return R(name, base, changed(base, known), parts, source)


LAST_BF16 = 0x7F7F
CODES = {"F16": "<e", "F32": "<f", "F64": "<d"}  # Python packs by one rounding, ties to even


def number_of(dtype: str, word: int) -> float:
    """A word of a float dtype as a float64."""
    if dtype == "BF16":
        return number_of("F32", word << 16)
    (number,) = struct.unpack(CODES[dtype], word.to_bytes(word_bytes(dtype), "little"))
    return float(number)


def bf16_word(number: float) -> int:
    """The bf16 word nearest to a number, ties to the even word: by exact comparison."""
    sign, size = struct.pack(">d", number)[0] >> 7, Fraction(abs(number))
    low, high = 0, LAST_BF16
    while low < high:  # the greatest word whose number is at most the size
        middle = (low + high + 1) // 2
        if Fraction(number_of("BF16", middle)) <= size:
            low = middle
        else:
            high = middle - 1
    below = size - Fraction(number_of("BF16", low))
    # The next after the last is 2^128, which stands for infinity.
    after = number_of("BF16", low + 1) if low < LAST_BF16 else 2.0**128
    above = Fraction(after) - size
    up = above < below or (above == below and low % 2 == 1)
    return sign << 15 | low + up


def sum_of(dtype: str, word: int, part: P, value: int) -> int:
    """The word that an `add` leads to."""
    (scale,) = struct.unpack(">d", bytes.fromhex(part.scale))
    total = number_of(dtype, word) + scale * number_of(part.dtype, value)
    if dtype == "BF16":
        return bf16_word(total)
    return int.from_bytes(struct.pack(CODES[dtype], total), "little")
