"""The manifest of a delta file: its JSON, and the rules SD204 to SD216 (spec section 3.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Final

from sparsedelta.attachments import Attachments, attachment_problems, parse_attachments
from sparsedelta.errors import UPGRADE, FormatError, UnsupportedError
from sparsedelta.file_names import file_name_problem, same_ignoring_case
from sparsedelta.limits import (
    COMPACT_VERSION,
    FORMAT_VERSION,
    MAX_NAME_BYTES,
    MAX_NAMES,
    MAX_PROBLEMS,
    MAX_SET_PARTS,
    PORTABLE_VERSION,
)
from sparsedelta.manifest_schema import check_schema
from sparsedelta.record_rules import (
    check_dtypes,
    check_sequence,
    count_problem,
    parse_ends,
    parse_part,
)
from sparsedelta.records import TensorRecord
from sparsedelta.strict_json import Json

PORTABLE: Final = "portable"
COMPACT: Final = "compact"
PROFILES: Final[Mapping[str, str]] = {PORTABLE: PORTABLE_VERSION, COMPACT: COMPACT_VERSION}
"""Profiles that are written, and the version that defines each."""

RANKED: Final = "ranked@1.1"
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({RANKED})
"""Entries of ``must_understand`` that this release knows."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SetPart:
    """A part file as the root of its set lists it: file name, bytes, B3 of its manifest (hex)."""

    name: str
    size: int
    manifest: str

    def to_json(self) -> Json:
        """The part file's object in the manifest."""
        return {"name": self.name, "size": self.size, "manifest": self.manifest}


@dataclass(frozen=True, slots=True)
class SetPlace:
    """A file's place in a set (spec section 3.8).

    Attributes:
        id: The same in all files of the set, hex.
        part: Number of the file, 0 for the root.
        parts: All part files, in the root only.
    """

    id: str
    part: int
    parts: tuple[SetPart, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether the file lists the others."""
        return self.part == 0

    def to_json(self) -> Json:
        """The object in the manifest."""
        return {"id": self.id, "part": self.part, "parts": [p.to_json() for p in self.parts]}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a delta says about itself but the digests of its segments and its streams.

    ``nnz``, ``invertible`` and ``features`` are stated, since the root of a set speaks for all its
    parts.
    """

    base: str
    target: str
    content: str
    profile: str
    metadata: Mapping[str, str]
    tables: str
    nnz: int
    invertible: bool
    tensors: tuple[TensorRecord, ...]
    untouched: tuple[str, ...]
    lean: bool = False
    attachments: Attachments = field(default_factory=Attachments)
    place: SetPlace | None = None
    version: str = PORTABLE_VERSION
    features: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The manifest's object."""
        return {
            "base": self.base,
            "target": self.target,
            "content": self.content,
            "invertible": self.invertible,
            "lean": self.lean,
            "metadata": dict(self.metadata),
            "must_understand": list(self.features),
            "nnz": self.nnz,
            "profile": self.profile,
            "set": self.place and self.place.to_json(),
            "tables": self.tables,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "untouched": list(self.untouched),
            "version": self.version,
            **self.attachments.to_json(),
        }

    def header_facts(self) -> dict[str, str]:
        """What header and manifest both say (rule SD205), as the header's strings."""
        return _header_facts(self.to_json() | {"tensors": [], "untouched": []})


def _header_facts(document: Json) -> dict[str, str]:
    facts = {f"sd.{key}": document[key] for key in ("base", "target", "content")}
    facts |= {f"sd.{key}": document[key] for key in ("profile", "version")}
    facts["sd.invertible"] = "true" if document["invertible"] else "false"
    facts["sd.nnz"] = str(document["nnz"])
    if document["set"] is not None:
        facts["sd.set_id"] = document["set"]["id"]
        facts["sd.part"] = str(document["set"]["part"])
    return facts


def parse_manifest(document: Json, header: Mapping[str, str]) -> Manifest:
    """The typed manifest.

    Args:
        document: What the canonical JSON of ``sd.manifest`` holds.
        header: ``__metadata__`` of the header, already checked (SD104 to SD106).

    Raises:
        FormatError: The first broken rule of SD204 to SD216; ``others`` are those found beside it.
        UnsupportedError: A feature, an op or a codec that this release does not know.
    """
    check_schema(document)
    _check_agreement(document, header)
    _check_features(document["must_understand"])
    _raise_first(_names_problems(document))
    ends = _collected(document["tensors"], parse_ends)
    _collected(
        list(zip(document["tensors"], ends, strict=True)),
        lambda item: check_sequence(item[0], *item[1]),
    )
    parts = _collected(
        document["tensors"], lambda t: tuple(parse_part(part, t["name"]) for part in t["parts"])
    )
    records = tuple(
        TensorRecord(base, target, found) for (base, target), found in zip(ends, parts, strict=True)
    )
    _collected(records, check_dtypes)
    place = document["set"]
    manifest = Manifest(
        base=document["base"],
        target=document["target"],
        content=document["content"],
        profile=document["profile"],
        metadata=document["metadata"],
        tables=document["tables"],
        nnz=document["nnz"],
        invertible=document["invertible"],
        tensors=records,
        untouched=tuple(document["untouched"]),
        lean=document["lean"],
        attachments=parse_attachments(document),
        place=place and _place(place),
        version=document["version"],
        features=tuple(document["must_understand"]),
    )
    _raise_first(_manifest_problems(manifest))
    return manifest


def _collected(items: Iterable[Json], check: Callable[[Json], Json]) -> list[Json]:
    found: list[Json] = []
    problems: list[FormatError] = []
    for item in items:
        try:
            found.append(check(item))
        except FormatError as error:
            problems.append(error)
            if len(problems) == MAX_PROBLEMS:
                break
    _raise_first(problems)
    return found


def _raise_first(problems: Iterable[FormatError]) -> None:
    """Raise the first of several problems, which knows the others."""
    found = list(islice(problems, MAX_PROBLEMS))
    if found:
        found[0].others = tuple(found[1:])
        raise found[0]


def _place(document: Json) -> SetPlace:
    parts = (SetPart(p["name"], p["size"], p["manifest"]) for p in document["parts"])
    return SetPlace(document["id"], document["part"], tuple(parts))


def _check_agreement(document: Json, header: Mapping[str, str]) -> None:
    facts = _header_facts(document)
    keys = [*facts, *(key for key in ("sd.set_id", "sd.part") if key in header)]
    _raise_first(
        FormatError(
            "SD205",
            f"{key} is {header.get(key)!r:.80} in the header, {facts.get(key)!r:.80} in the "
            "manifest",
        )
        for key in dict.fromkeys(keys)
        if header.get(key) != facts.get(key)
    )


def _check_features(features: list[str]) -> None:
    unknown = sorted(set(features) - KNOWN_FEATURES)
    if not unknown:
        return
    versions = sorted({version for _, at, version in (f.rpartition("@") for f in unknown) if at})
    since = f" (defined by format version {', '.join(versions):.80})" if versions else ""
    raise UnsupportedError(
        "SD206",
        f"the delta needs the features {unknown!r:.200}{since}; this release reads version "
        f"{FORMAT_VERSION} and knows {sorted(KNOWN_FEATURES)}",
        hint=UPGRADE,
    )


def _names_problems(document: Json) -> Iterator[FormatError]:
    untouched, tensors = document["untouched"], document["tensors"]
    names = [tensor["name"] for tensor in tensors]
    bases = [tensor["from"] or tensor["name"] for tensor in tensors]
    problems = [
        *map(_source_problem, tensors),
        *(_name_problem(name, reference) for name, reference in _references(tensors)),
        *(_name_problem("tensors", name) for name in names),
        *(_name_problem("untouched", name) for name in untouched),
        *_order_problems("tensors", names),
        *_order_problems("untouched", untouched),
        *clashes(names, bases, untouched),
    ]
    if document["lean"] and untouched:
        problems.append(f"a lean delta that lists {len(untouched)} untouched tensors")
    return (FormatError("SD207", problem) for problem in problems if problem is not None)


def _source_problem(tensor: Json) -> str | None:
    name, source = tensor["name"], tensor["from"]
    if source is None:
        return None
    if tensor["base"] is None or tensor["target"] is None:
        return f"tensor {name!r:.100} has a 'from', but is not in both ends"
    if source == name:
        return f"tensor {name!r:.100} has a 'from' of the same name"
    return _name_problem(name, source)


def _name_problem(where: str, name: str) -> str | None:
    problem = name_problem(name)
    return None if problem is None else f"{where!r:.100}: the name {name!r:.100} {problem}"


def _order_problems(key: str, names: Iterable[str]) -> Iterator[str]:
    for before, after in pairwise(names):
        if before >= after:
            yield f"{key!r}: {after!r:.100} must not follow {before!r:.100}"


def _references(tensors: Json) -> Iterator[tuple[str, str]]:
    for tensor in tensors:
        for part in tensor["parts"]:
            for key in ("from", "to"):
                if key in part:
                    yield tensor["name"], part[key]


def clashes(
    names: Iterable[str], base_names: Iterable[str], untouched: Iterable[str]
) -> Iterator[str]:
    """What names of records, of base tensors and of untouched tensors share that they must not."""
    stay = set(untouched)
    total = len(stay)
    for kind, listed in (("name", list(names)), ("base name", list(base_names))):
        total += len(listed) if kind == "name" else 0
        seen: set[str] = set()
        for name in listed:
            if name in seen:
                yield f"two records have the {kind} {name!r:.100}"
            if name in stay:
                yield f"{name!r:.100} is a {kind} of a record and untouched"
            seen.add(name)
    if total > MAX_NAMES:
        yield f"{total} names, at most {MAX_NAMES} are allowed"


def name_problem(name: str) -> str | None:
    """What makes a tensor's name unfit for a delta, or None (rule SD207)."""
    length = len(name.encode("utf-8", "surrogatepass"))
    if not 1 <= length <= MAX_NAME_BYTES:
        return f"is {length} bytes long, 1 to {MAX_NAME_BYTES} are allowed"
    if _CONTROL.search(name):
        return "holds a control character"
    if _SURROGATE.search(name):
        return "is no text that UTF-8 can hold"
    return None


def _manifest_problems(manifest: Manifest) -> Iterator[FormatError]:
    place = manifest.place
    speaks_for_itself = place is None or not place.is_root
    for record in manifest.tensors:
        problem = count_problem(record)
        if problem:
            yield FormatError("SD211", f"tensor {record.name!r}: {problem}")
    nnz = sum(record.nnz for record in manifest.tensors)
    if speaks_for_itself and nnz != manifest.nnz:
        yield FormatError("SD211", f"'nnz' is {manifest.nnz}, the parts add up to {nnz}")
    if speaks_for_itself and manifest.invertible != are_invertible(manifest.tensors):
        yield FormatError(
            "SD212", f"'invertible' is {manifest.invertible}, the parts say otherwise"
        )
    yield from attachment_problems(manifest.attachments)
    if place is not None:
        for message in _set_problems(manifest, place):
            yield FormatError("SD216", message)
    if any(record.needs_base for record in manifest.tensors):
        for message in _profile_problems(manifest):
            yield FormatError("SD217", message)


def _profile_problems(manifest: Manifest) -> Iterator[str]:
    what = "a file with parts that only their base decodes"
    if manifest.version == PORTABLE_VERSION:
        yield f"{what} has version {manifest.version}, expected {COMPACT_VERSION} or later"
    if manifest.profile != COMPACT:
        yield f"{what} has the profile {manifest.profile!r}, expected {COMPACT!r}"
    if RANKED not in manifest.features:
        yield f"{what} does not list {RANKED!r} in 'must_understand'"


def features_of(records: Iterable[TensorRecord]) -> tuple[str, ...]:
    """What a reader must understand of some records."""
    return (RANKED,) if any(record.needs_base for record in records) else ()


def are_invertible(records: Iterable[TensorRecord]) -> bool:
    """Whether every record can be undone."""
    return all(record.invertible for record in records)


def _set_problems(manifest: Manifest, place: SetPlace) -> Iterator[str]:
    return _root_problems(manifest, place) if place.is_root else _part_problems(manifest, place)


def _root_problems(manifest: Manifest, place: SetPlace) -> Iterator[str]:
    if manifest.tensors:
        yield "the root of a set has records"
    if not 1 <= len(place.parts) <= MAX_SET_PARTS:
        yield f"a set of {len(place.parts)} part files, 1 to {MAX_SET_PARTS} are allowed"
    for part in place.parts:
        problem = file_name_problem(part.name)
        if problem:
            yield f"the part file {part.name!r:.300} {problem}"
    twice = same_ignoring_case(part.name for part in place.parts)
    if twice is not None:
        yield f"the part file {twice!r} stands there twice, if case is ignored"


def _part_problems(manifest: Manifest, place: SetPlace) -> Iterator[str]:
    attachments = manifest.attachments
    if place.parts:
        yield "a part file lists part files"
    if place.part > MAX_SET_PARTS:
        yield f"part file {place.part}, at most {MAX_SET_PARTS} are allowed"
    if not manifest.tensors:
        yield "a part file without records"
    if manifest.untouched or attachments.blobs or attachments.layout or attachments.files:
        yield "a part file has untouched tensors, blobs, a layout or files: they belong to the root"
