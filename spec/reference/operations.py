"""The records: their ends, and which parts lead from one to the other (section 5, SD208 to SD212).

Only the manifest is read; the result is a plan of what the tables and the data hold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from block_codecs import INDEX_STREAMS, Bare, Coded
from encoding import canonical
from ranked import EXPONENTS
from terms import BITS, DENSE_OPS, FLOATS, End, need, word_bytes

FEATURE, PROFILE, MINOR = "ranked@1.1", "compact", 1  # what a file with `ranked` states
MAX_WORDS, MAX_DIMS, MIN_BLOCK, MAX_BLOCK, NOT_FINITE = 2**48, 64, 8, 24, 0x7FF

# Parts as letters, so that the sequences of section 5 are regular expressions.
CODED = {"difference": "d", "replace": "r", "add": "a", "new": "n", "drop": "x", "resize": "z"}
BARE = {("new", "from"): "c", ("drop", "to"): "t", ("drop", ""): "f", ("resize", ""): "s"}
EDITS, COPIED, DROPPED = "d?r?", "cd?r?|n", "d?t|x|f"

INDEX_CODECS: list[Any] = [{"id": name} for name in INDEX_STREAMS]
VALUE_CODECS: list[Any] = [{"id": name} for name in ("zigzag", "planes", "raw", "ranked")]
VALUE_CODECS += [{"id": "packed", "width": width} for width in (0, 1, 2, 4, 8)]


@dataclass
class Plan:
    """A record as the manifest describes it; the digests come from the tables.

    Attributes:
        name: The name in the target, or in the base if the target has none.
        source: The name in the base, if it is another.
        base: The tensor in the base.
        target: The tensor in the target.
        parts: Coded and bare parts, in order.
        base_segments: The segment digests of the base tensor.
        target_segments: Those of the target tensor.
        others: For each part, the segment digests of the tensor in its `from` or `to`.
    """

    name: str
    source: str | None
    base: End | None
    target: End | None
    parts: list[Coded | Bare] = field(default_factory=list)
    base_segments: list[bytes] = field(default_factory=list)
    target_segments: list[bytes] = field(default_factory=list)
    others: list[list[bytes]] = field(default_factory=list)

    @property
    def base_name(self) -> str:
        """The name in the base."""
        return self.source or self.name

    @property
    def coded(self) -> list[Coded]:
        """The coded parts."""
        return [part for part in self.parts if isinstance(part, Coded)]


def read_end(name: str, end: Any) -> End | None:  # noqa: ANN401 - JSON
    """Check SD208 for one end of a record."""
    if end is None:
        return None
    dtype, shape = end["dtype"], end["shape"]
    need("SD208", dtype in BITS and len(shape) <= MAX_DIMS, f"dtype or dimensions of {name}")
    bits = math.prod(shape) * BITS[dtype]
    small = bits % 8 == 0 and bits // 8 // word_bytes(dtype) <= MAX_WORDS
    need("SD208", small, f"the size of {name}")
    return End(dtype, tuple(shape))


def letter(part: Any) -> str:  # noqa: ANN401 - JSON
    """The letter of a part, or one that no sequence has."""
    extra = [key for key in ("from", "to", "dtype", "scale") if key in part]
    if "nnz" in part:
        wanted = ["dtype", "scale"] if part["op"] == "add" else []
        return CODED.get(part["op"], "?") if extra == wanted else "?"
    return BARE.get((part["op"], "".join(extra)), "?")


def sequences(plan: Plan) -> str:
    """The regular expression of the parts that may lead from one end of a record to the other."""
    base, target = plan.base, plan.target
    if base is None or target is None:
        return COPIED if target else DROPPED if base else "(?!)"  # a record without ends: none
    found = [] if plan.source else [f"({DROPPED})({COPIED})"]
    if base == target:
        found.append(EDITS if plan.source else f"(?=.){EDITS}")
        found += ["a"] if base.dtype in FLOATS else []
    rows = base.dtype == target.dtype and bool(base.shape) and bool(target.shape)
    if rows and base != target and base.shape[1:] == target.shape[1:]:
        # Bare only where words go: what is appended has to be stored, and no words are no loss.
        found.append(f"[zs]{EDITS}" if base.words > target.words else f"z{EDITS}")
    return "|".join(found) or "(?!)"


def domain(plan: Plan, letters: str, place: int) -> int:
    """The words that the part at some place of its record covers."""
    base, target = (end.words if end else 0 for end in (plan.base, plan.target))
    if letters[place] == "z":
        return abs(base - target)
    if re.search("[xtf]", letters[place:]):  # a drop, or before one
        return base
    return min(base, target) if letters[0] in "zs" else target


def read_part(plan: Plan, letters: str, place: int, part: Any) -> Coded | Bare:  # noqa: ANN401
    """Check SD210 for one part."""
    if "nnz" not in part:
        return Bare(part["op"], part.get("from", part.get("to", "")))
    op, index, value = part["op"], part["index"], part["value"]
    # As texts, since 1 == True.
    ok = canonical(index) in map(canonical, INDEX_CODECS)
    ok &= canonical(value) in map(canonical, VALUE_CODECS)
    ok &= op == "difference" or value["id"] in ("planes", "raw")
    ok &= (index["id"] == "ranked") == (value["id"] == "ranked")
    ok &= op not in DENSE_OPS or index["id"] == "dense"
    ok &= not (index["id"] in ("range", "dense") and value["id"] == "packed")
    ok &= MIN_BLOCK <= part["block"] <= MAX_BLOCK
    end = plan.base if re.search("[xtf]", letters[place:]) else plan.target
    tensor = end.dtype if end else "U8"
    ok &= index["id"] != "ranked" or tensor in EXPONENTS
    need("SD210", ok, f"the codecs or the block of {plan.name}")
    n, dtype = domain(plan, letters, place), part.get("dtype", "")
    width = word_bytes(dtype or tensor)
    codec = (index["id"], value["id"], value.get("width", 0))
    sizes = (n, width, part["nnz"], part["block"], part["bytes"])
    return Coded(op, *codec, *sizes, dtype, int(part.get("scale", "0"), 16), tensor)


def read_counts(plan: Plan, letters: str) -> None:
    """Check SD211 for one record."""
    entries: dict[bool, int] = {}  # before a drop, and of the rest: two tensors, two domains
    for place, part in enumerate(plan.parts):
        if isinstance(part, Bare):
            continue
        if part.op in DENSE_OPS:
            need("SD211", part.nnz == part.n, f"the words of {part.op} in {plan.name}")
            continue
        need("SD211", part.nnz > 0, f"a part of {plan.name} without entries")
        old = re.search("[xtf]", letters[place:]) is not None
        entries[old] = entries.get(old, 0) + part.nnz
        need("SD211", entries[old] <= part.n, f"more entries in {plan.name} than words")


def read_records(manifest: Any) -> list[Plan]:  # noqa: ANN401 - JSON
    """Check SD208 to SD212; return the plan of each record."""
    records = manifest["tensors"]
    plans = [
        Plan(r["name"], r["from"], read_end(r["name"], r["base"]), read_end(r["name"], r["target"]))
        for r in records
    ]
    spelled = ["".join(letter(part) for part in r["parts"]) for r in records]
    for r, plan, letters in zip(records, plans, spelled, strict=True):
        ops = [part["op"] for part in r["parts"]]
        ok = re.fullmatch(sequences(plan), letters)
        need("SD209", ok, f"the ends and parts of {plan.name}: {ops}")
        for part in (part for part in r["parts"] if part["op"] == "add"):
            finite = int(part["scale"], 16) >> 52 & NOT_FINITE != NOT_FINITE
            need("SD209", part["dtype"] in FLOATS and finite, f"dtype or scale of {plan.name}")
    for r, plan, letters in zip(records, plans, spelled, strict=True):
        parts = enumerate(r["parts"])
        plan.parts = [read_part(plan, letters, place, part) for place, part in parts]
    for plan, letters in zip(plans, spelled, strict=True):
        read_counts(plan, letters)
    if manifest["set"] is None or manifest["set"]["part"] != 0:  # of a root: SD603
        need("SD211", entries_of(plans) == manifest["nnz"], "the sum of all nnz")
        need("SD212", manifest["invertible"] is inverted(plans), "invertible, against its parts")
    return plans


def read_compact(manifest: Any, plans: list[Plan]) -> None:  # noqa: ANN401 - JSON
    """Check SD217."""
    if any(part.index == "ranked" for plan in plans for part in plan.coded):
        ok = int(manifest["version"].partition(".")[2]) >= MINOR
        ok &= manifest["profile"] == PROFILE and FEATURE in manifest["must_understand"]
        need("SD217", ok, "ranked, against version, profile or must_understand")


def entries_of(plans: list[Plan]) -> int:
    """The nnz of a delta."""
    return sum(p.nnz for plan in plans for p in plan.coded if p.op not in DENSE_OPS)


def inverted(plans: list[Plan]) -> bool:
    """Whether all parts have an inverse that the delta alone tells."""
    for part in (part for plan in plans for part in plan.parts):
        if part.op in ("replace", "add"):
            return False
        if isinstance(part, Coded) and part.index == "ranked":
            return False
        if isinstance(part, Bare) and part.op != "new" and not part.of:
            return False
    return True
