"""What both readers say of a delta, and the law that binds them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import decode as reference
import pytest
from files import read_delta
from mutations import BROKEN, Draft, counted, mutate
from sections import Files, Sections
from sources import Source, Tensors
from streams import read_streams
from tables import ends_of, read_tables
from terms import Record, content_digest, fingerprint_of

import sparsedelta
from sparsedelta import DeltaReader, FormatError, SparseDeltaError
from sparsedelta.errors import StructureError

BLOB_RULES: Final = ("SD414", "SD415", "SD416")
APPLIED: Final = ("SD410", *BLOB_RULES)
"""What apply may leave unchecked (section 7)."""

REFUSALS: Final = ("SD306", "SD308", "SD409", "SD415", "SD418", "SD501", "SD502", "SD505")
"""What a checkpoint shows to be wrong, in no order: a reader meets its tensors as they come."""

TABLE_RULES: Final = ("SD301", "SD302", "SD303", "SD304", "SD305", "SD306")

BUDGET: Final = "SD504"
"""Each reader has a budget of its own."""


@dataclass
class Verdict:
    """What a reader found.

    Attributes:
        rule: The first rule that is broken, or "".
        content: The content digest of a delta that is not broken.
        decoded: What the reference read.
    """

    rule: str
    content: str = ""
    decoded: reference.Decoded | None = None

    @property
    def text(self) -> str:
        """A rule or a digest."""
        return self.rule or self.content


def of_reference(path: Path) -> Verdict:
    """The verdict of the reference."""
    try:
        decoded = reference.decode(path, work=2**32)
    except reference.RuleError as error:
        return Verdict(error.code)
    return Verdict("", decoded.content, decoded)


def of_package(path: Path) -> str:
    """The first rule of which ``validate`` says that it is broken, or ""."""
    report = sparsedelta.validate(path, threads=1)
    return report.problems[0].rule if report.problems else ""


def check_read(reader: DeltaReader, verdict: Verdict) -> None:
    """Reading into memory finds what was found, but for the rules of blobs.

    With parts that take the base to be read there is no reading into memory without it.
    """
    if reader.needs_base:
        with pytest.raises((StructureError, FormatError)):
            reader.read()
        return
    try:
        content, rule = reader.read().content, ""
    except FormatError as error:
        content, rule = "", error.rule
    expected = "" if verdict.rule in BLOB_RULES else verdict.rule
    assert rule == expected, f"read says {rule!r}, expected {verdict.text}"
    assert verdict.rule or content == verdict.content, "read finds another delta"


def load(folder: Path) -> Tensors:
    """The tensors of all files of a folder; the files are valid."""
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        file = path.read_bytes()
        (length,) = struct.unpack_from("<Q", file)
        header = json.loads(file[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, info in header.items():
            start, end = (8 + length + offset for offset in info["data_offsets"])
            assert name not in found, name
            found[name] = info["dtype"], tuple(info["shape"]), file[start:end]
    return found


class Place:
    """A folder for mutated files, the bases of vectors and results.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.delta = folder / "delta"
        self.delta.mkdir()
        self.out = folder / "out"
        self._bases: dict[str, Path] = {}

    def write(self, files: Files) -> None:
        """Put the files of a delta where nothing else is."""
        for path in self.delta.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.delta / name).write_bytes(data)

    def base(self, origin: Source) -> Path:
        """The base of a vector, as a folder."""
        if origin.name not in self._bases:
            path = self.folder / f"base-{origin.name}"
            path.mkdir()
            header: dict[str, Any] = {}
            offset = 0
            for name, (dtype, shape, data) in origin.base_tensors.items():
                offsets = [offset, offset + len(data)]
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
                offset += len(data)
            text = json.dumps(header).encode()
            data = b"".join(data for _, _, data in origin.base_tensors.values())
            file = struct.pack("<Q", len(text)) + text + data
            (path / "model.safetensors").write_bytes(file)
            self._bases[origin.name] = path
        return self._bases[origin.name]

    def clear(self) -> None:
        """Remove the results."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.out.with_name("back"), ignore_errors=True)


def same_refusal(rule: str, expected: str) -> bool:
    """Whether both refuse to follow a delta; which of two lies is met first is left open.

    The reference says SD410 of ranked entries before it looks at what they lead to; apply need not.
    """
    return rule == expected or (rule in REFUSALS and expected in (*REFUSALS, "SD410"))


def apply_rule(error: SparseDeltaError) -> str:
    """The rule that an operation states."""
    return getattr(error, "rule", None) or error.code


def _expected(
    tensors: Tensors, decoded: reference.Decoded | None, *, back: bool
) -> tuple[Tensors | None, str]:
    """The tensors to which the reference leads, or the rule that forbids it."""
    if decoded is None:
        return None, ""
    try:
        result = (reference.revert if back else reference.apply)(tensors, decoded)
        if decoded.base != decoded.target:
            reference.files_of(result, decoded, back=back)
    except reference.RuleError as error:
        return None, error.code
    return result, ""


def check_apply(place: Place, origin: Source, reader: DeltaReader, verdict: Verdict) -> str:
    """The law of apply: an error of ours, or exactly what the delta claims.

    Returns:
        The rule of the error, or "".
    """
    expected, code = _expected(origin.base_tensors, verdict.decoded, back=False)
    base = place.base(origin)
    refusal = None
    try:
        report = sparsedelta.apply(base, reader, place.out, threads=1)
    except SparseDeltaError as error:
        refusal = error
    if refusal is not None:
        rule = apply_rule(refusal)
        assert not place.out.exists()
        decoded = verdict.decoded
        is_alike = decoded is None or same_refusal(rule, code)
        # A lean delta may claim that both ends are one, and change something all the same.
        is_alike |= decoded is not None and decoded.base == decoded.target and rule in REFUSALS
        assert is_alike, f"{refusal.message}, the reference says {code!r}"
        return rule
    try:
        is_unused = code in ("SD409", "SD418") and _has_unused_blocks(reader)
        assert code in ("", "SD410") or is_unused, f"apply does it, the reference says {code}"
        if verdict.rule not in ("", *APPLIED):
            assert not report.changed or _has_unused_blocks(reader), f"in spite of {verdict.rule}"
        found = load(place.out)
        claimed = reader.manifest.target
        assert reference.fingerprint(found) == report.fingerprint == claimed
        if expected is not None and verdict.decoded is not None:
            assert found == expected
            if report.changed:
                _check_files(place.out, expected, verdict.decoded)
                _check_revert(place, reader, expected, verdict.decoded)
    finally:
        place.clear()
    return ""


def _check_files(out: Path, expected: Tensors, decoded: reference.Decoded) -> None:
    files = reference.files_of(expected, decoded)
    wanted = dict(files or {})
    wanted |= {n: data for n, data in reference.carried(decoded).items() if data is not None}
    for name, data in wanted.items():
        assert (out / name).read_bytes() == data, name


def _check_revert(
    place: Place, reader: DeltaReader, tensors: Tensors, decoded: reference.Decoded
) -> None:
    weights = [each for each in place.out.iterdir() if each.name.endswith(".safetensors")]
    if len(weights) != 1 or any(each.name.endswith(".json") for each in place.out.iterdir()):
        return  # files without an index are no checkpoint that a reader could find by itself
    expected, code = _expected(tensors, decoded, back=True)
    back = place.out.with_name("back")
    refusal = None
    try:
        sparsedelta.revert(place.out, reader, back, threads=1)
    except SparseDeltaError as error:
        refusal = error
    if refusal is not None:
        is_alike = same_refusal(apply_rule(refusal), code)
        assert is_alike, f"revert: {refusal.message}, the reference says {code!r}"
        return
    assert expected is not None, f"revert does it, the reference says {code}"
    assert load(back) == expected
    shutil.rmtree(back)


def _has_unused_blocks(reader: DeltaReader) -> bool:
    """Whether a block is of use only for the way back: apply need not look at it."""
    return any(
        record.base is not None
        and (record.split or (record.target and record.base.words > record.target.words))
        for record in reader.manifest.tensors
    )


def check(
    place: Place, origin: Source, files: Files, *, alone: str = "", rest: tuple[str, ...] = ()
) -> tuple[Verdict, str]:
    """The law: both readers agree, and apply does what the delta says, or nothing.

    Args:
        place: Where to write.
        origin: The vector that the delta was made from.
        files: The files of the delta.
        alone: Name of the file that is read, if not the first.
        rest: Rules at which nothing more is tried.

    Returns:
        The verdict, and the rule that apply stated.
    """
    place.write(files)
    path = place.delta / (alone or next(iter(files)))
    rule, expected = of_package(path), of_reference(path)
    if BUDGET in (rule, expected.rule):
        return Verdict(BUDGET), ""
    assert rule == expected.rule, f"the package says {rule!r}, the reference {expected.text}"
    if rule.startswith(("SD1", "SD2", "SD6")) or rule in rest:
        return expected, ""  # opening found it: there is no other way in
    with DeltaReader(path) as reader:
        check_read(reader, expected)
        if reader.is_part:
            return expected, ""  # a part of a delta leads nowhere
        return expected, check_apply(place, origin, reader, expected)


# --- Repairs: what makes the next reading go deeper ---


def repaired(draft: Draft, path: Path, rule: str) -> Draft | None:
    """The same delta without the broken rule, if that is known how; else None."""
    root = draft.source.root
    try:
        sections = (
            draft.sections
            if draft.files is None
            else {name: Sections.of(data) for name, data in draft.files.items()}
        )
        if rule in ("SD201", "SD202", "SD302", "SD601", "SD602"):
            new = {name: each.edited(each.copied()) for name, each in sections.items()}
        elif rule == "SD205":
            new = {name: each.agreeing() for name, each in sections.items()}
        elif rule in ("SD211", "SD212"):
            new = {name: counted(each) for name, each in sections.items()}
        elif rule == "SD306":
            new = _with_ends(sections, path)
        elif rule == "SD410":
            new = _with_contents(sections, path, root)
        else:
            return None
        return Draft(draft.source, new)
    except (*BROKEN, reference.RuleError):
        return None  # it is broken in more ways than one


def _with_ends(sections: dict[str, Sections], path: Path) -> dict[str, Sections]:
    files = read_delta(path)
    for file in files:
        read_tables(file)
    ends = [fingerprint_of(end.items()) for end in ends_of(files)]
    new = {}
    for name, each in sections.items():
        manifest = each.copied()
        manifest |= {"base": ends[0], "target": ends[1]}
        new[name] = each.edited(manifest).agreeing()
    return new


def _with_contents(sections: dict[str, Sections], path: Path, root: str) -> dict[str, Sections]:
    files = read_delta(path)
    records: list[Record] = []
    new = {}
    for file, (name, each) in zip(files, sections.items(), strict=True):
        read_tables(file)
        own = read_streams(file.plans, io.BytesIO(file.data))
        records += own
        manifest = each.copied()
        manifest["content"] = content_digest(manifest["base"], manifest["target"], own)
        new[name] = each.edited(manifest).agreeing()
    manifest = new[root].copied()
    manifest["content"] = content_digest(manifest["base"], manifest["target"], records)
    new[root] = new[root].edited(manifest).agreeing()
    return new


# --- A run ---

MAX_REPAIRS: Final = 4


@dataclass
class Tally:
    """What a run has seen.

    Attributes:
        files: Number of mutated deltas that both readers have read.
        rules: How often each rule was the first that is broken; "" for valid deltas.
        applied: How often each rule was what apply stated; "" for success.
    """

    files: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)

    def count(self, verdict: Verdict, applied: str) -> None:
        """Take note of a verdict."""
        self.files += 1
        self.rules[verdict.rule] = self.rules.get(verdict.rule, 0) + 1
        self.applied[applied] = self.applied.get(applied, 0) + 1


def run(rng: random.Random, place: Place, tally: Tally) -> None:
    """A mutation and its repairs, each under the law."""
    draft = mutate(rng)
    origin = draft.source
    seen = set()
    for _ in range(1 + MAX_REPAIRS):
        files = draft.build()
        alone = ""
        if len(files) > 1 and rng.random() < 0.15:
            alone = rng.choice(list(files)[1:])
        key = hashlib.blake2b(b"".join(files.values())).digest()
        if files == origin.files or key in seen:
            return
        seen.add(key)
        try:
            rest = TABLE_RULES if rng.random() < 0.75 else ()  # these stop every way in at once
            verdict, applied = check(place, origin, files, alone=alone, rest=rest)
        except BaseException as error:
            error.add_note(f"a mutation of {origin.name} ({', '.join(sorted(files))}; {alone!r})")
            raise
        tally.count(verdict, applied)
        if alone or not verdict.rule:
            return
        better = repaired(draft, place.delta / origin.root, verdict.rule)
        if better is None:
            return
        draft = better
