"""The manifest of a delta: typed records, their JSON, and the rules SD204 to SD212."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sparsedelta.codecs import INDEX_CODECS, VALUE_CODECS, Encoding
from sparsedelta.delta import DIFFERENCE, OPS, REPLACE
from sparsedelta.errors import FormatError, UnsupportedError
from sparsedelta.limits import (
    FORMAT_VERSION,
    MAX_BLOCK_LOG2,
    MAX_JSON_INTEGER,
    MAX_NAME_BYTES,
    MAX_NAMES,
    MIN_BLOCK_LOG2,
)
from sparsedelta.strict_json import Json
from sparsedelta.words import TensorSpec

PORTABLE: Final = "portable"
PROFILES: Final = (PORTABLE,)

KNOWN_FEATURES: Final[frozenset[str]] = frozenset()
"""Entries of ``must_understand`` that this release knows."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_PART_SEQUENCES: Final = ([DIFFERENCE], [REPLACE], [DIFFERENCE, REPLACE])


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part as the manifest describes it.

    Attributes:
        nnz: Number of entries.
        block_log2: Base-2 logarithm of the words of a block.
        encoding: Op and codecs.
        nbytes: Length of all its frames in ``sd.data``.
    """

    nnz: int
    block_log2: int
    encoding: Encoding
    nbytes: int

    @property
    def op(self) -> str:
        """``difference`` or ``replace``."""
        return self.encoding.op

    def block_count(self, words: int) -> int:
        """Blocks of a tensor of ``words`` words."""
        return -(-words >> self.block_log2)

    def row_bytes(self, word_bytes: int) -> int:
        """Length of a row of the block table."""
        return 4 + 16 * self.encoding.stream_count(word_bytes)

    def to_json(self) -> Json:
        """The part's object in the manifest."""
        return {
            "op": self.op,
            "nnz": self.nnz,
            "block": self.block_log2,
            "bytes": self.nbytes,
            **self.encoding.to_json(),
        }


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A touched tensor as the manifest describes it."""

    spec: TensorSpec
    parts: tuple[PartRecord, ...]

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(part.nnz for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Length of all its frames in ``sd.data``."""
        return sum(part.nbytes for part in self.parts)

    def to_json(self) -> Json:
        """The tensor's object in the manifest."""
        return {
            "name": self.spec.name,
            "dtype": self.spec.dtype,
            "shape": list(self.spec.shape),
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a delta says about itself but the digests of its segments and its streams."""

    base: str
    target: str
    content: str
    profile: str
    metadata: Mapping[str, str]
    tables: str
    tensors: tuple[TensorRecord, ...]
    untouched: tuple[str, ...]

    @property
    def nnz(self) -> int:
        """Number of entries of all tensors."""
        return sum(tensor.nnz for tensor in self.tensors)

    @property
    def invertible(self) -> bool:
        """Whether no part is a ``replace``."""
        return all(part.op == DIFFERENCE for t in self.tensors for part in t.parts)

    def to_json(self) -> dict[str, Json]:
        """The manifest's object."""
        return {
            "base": self.base,
            "target": self.target,
            "content": self.content,
            "invertible": self.invertible,
            "metadata": dict(self.metadata),
            "must_understand": [],
            "nnz": self.nnz,
            "profile": self.profile,
            "tables": self.tables,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "untouched": list(self.untouched),
            "version": FORMAT_VERSION,
        }

    def header_facts(self) -> dict[str, str]:
        """What header and manifest both say (rule SD205), as the header's strings."""
        return {
            "sd.base": self.base,
            "sd.target": self.target,
            "sd.content": self.content,
            "sd.invertible": "true" if self.invertible else "false",
            "sd.nnz": str(self.nnz),
            "sd.profile": self.profile,
            "sd.version": FORMAT_VERSION,
        }


def parse_manifest(document: Json, header: Mapping[str, str]) -> Manifest:
    """The typed manifest.

    Args:
        document: What the canonical JSON of ``sd.manifest`` holds.
        header: ``__metadata__`` of the header, already checked (SD104 to SD106).

    Raises:
        FormatError: The first broken rule of SD204 to SD212.
        UnsupportedError: A feature or a codec that this release does not know.
    """
    _check_schema(document)
    _check_agreement(document, header)
    unknown = sorted(set(document["must_understand"]) - KNOWN_FEATURES)
    if unknown:
        raise UnsupportedError(
            "SD206",
            f"the delta needs the features {unknown}, this release knows {sorted(KNOWN_FEATURES)}",
            hint="install a newer release: pip install --upgrade sparsedelta",
        )
    for problem in name_problems([t["name"] for t in document["tensors"]], document["untouched"]):
        raise problem
    specs = [_spec(tensor) for tensor in document["tensors"]]
    for tensor in document["tensors"]:
        _check_ops(tensor)
    records = tuple(
        TensorRecord(spec, tuple(_part(part, spec.name) for part in tensor["parts"]))
        for spec, tensor in zip(specs, document["tensors"], strict=True)
    )
    manifest = Manifest(
        base=document["base"],
        target=document["target"],
        content=document["content"],
        profile=document["profile"],
        metadata=document["metadata"],
        tables=document["tables"],
        tensors=records,
        untouched=tuple(document["untouched"]),
    )
    for problem in _count_problems(manifest, document["nnz"]):
        raise problem
    if document["invertible"] != manifest.invertible:
        raise FormatError(
            "SD212", f"'invertible' is {document['invertible']}, the parts say otherwise"
        )
    return manifest


def is_hex64(value: Json) -> bool:
    """Whether a value is a digest: 64 lower-case hex digits."""
    return isinstance(value, str) and _HEX64.fullmatch(value) is not None


def _is_count(value: Json) -> bool:
    return type(value) is int and 0 <= value <= MAX_JSON_INTEGER


def _is_strings(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_string_map(value: Json) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_codec(value: Json) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


_MANIFEST_SCHEMA: Final = {
    "base": is_hex64,
    "target": is_hex64,
    "content": is_hex64,
    "tables": is_hex64,
    "invertible": lambda value: isinstance(value, bool),
    "metadata": _is_string_map,
    "must_understand": _is_strings,
    "nnz": _is_count,
    "profile": lambda value: value in PROFILES,
    "tensors": lambda value: isinstance(value, list),
    "untouched": _is_strings,
    "version": lambda value: value == FORMAT_VERSION,
}
_TENSOR_SCHEMA: Final = {
    "name": lambda value: isinstance(value, str),
    "dtype": lambda value: isinstance(value, str),
    "shape": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "parts": lambda value: isinstance(value, list),
}
_PART_SCHEMA: Final = {
    "op": lambda value: isinstance(value, str),
    "nnz": _is_count,
    "block": _is_count,
    "bytes": _is_count,
    "index": _is_codec,
    "value": _is_codec,
}


def _check_object(where: str, document: Json, schema: Mapping[str, object]) -> None:
    if not isinstance(document, dict):
        raise FormatError("SD204", f"{where} is no object")
    missing = sorted(schema.keys() - document.keys())
    unknown = sorted(document.keys() - schema.keys())
    if missing or unknown:
        raise FormatError("SD204", f"{where}: missing keys {missing}, unknown keys {unknown}")
    for key, is_valid in schema.items():
        if not is_valid(document[key]):  # type: ignore[operator]
            raise FormatError("SD204", f"{where}: {key!r} has the value {document[key]!r:.80}")


def _check_schema(document: Json) -> None:
    _check_object("the manifest", document, _MANIFEST_SCHEMA)
    for number, tensor in enumerate(document["tensors"]):
        _check_object(f"tensor record {number}", tensor, _TENSOR_SCHEMA)
        for part in tensor["parts"]:
            _check_object(f"a part of tensor {tensor['name']!r:.80}", part, _PART_SCHEMA)


def _check_agreement(document: Json, header: Mapping[str, str]) -> None:
    facts = {
        "sd.base": document["base"],
        "sd.target": document["target"],
        "sd.content": document["content"],
        "sd.invertible": "true" if document["invertible"] else "false",
        "sd.nnz": str(document["nnz"]),
        "sd.profile": document["profile"],
        "sd.version": document["version"],
    }
    for key, value in facts.items():
        if header[key] != value:
            raise FormatError(
                "SD205", f"{key} is {header[key]!r} in the header, {value!r} in the manifest"
            )


def name_problems(touched: Iterable[str], untouched: Iterable[str]) -> Iterator[FormatError]:
    """Broken clauses of rule SD207."""
    lists = {"tensors": list(touched), "untouched": list(untouched)}
    total = sum(map(len, lists.values()))
    if total > MAX_NAMES:
        yield FormatError("SD207", f"{total} names, at most {MAX_NAMES} are allowed")
    for key, names in lists.items():
        for name in names:
            problem = name_problem(name)
            if problem:
                yield FormatError("SD207", f"{key!r}: the name {name!r:.100} {problem}")
        for before, after in pairwise(names):
            if before >= after:
                yield FormatError(
                    "SD207", f"{key!r}: {after!r:.100} must not follow {before!r:.100}"
                )
    for name in sorted(set(lists["tensors"]).intersection(lists["untouched"])):
        yield FormatError("SD207", f"{name!r:.100} is both touched and untouched")


def name_problem(name: str) -> str | None:
    """What makes a tensor's name unfit for a delta, or None (rule SD207)."""
    length = len(name.encode("utf-8", "surrogatepass"))
    if not 1 <= length <= MAX_NAME_BYTES:
        return f"is {length} bytes long, 1 to {MAX_NAME_BYTES} are allowed"
    if any(unicodedata.category(char) == "Cc" for char in name):
        return "holds a control character"
    return None


def _spec(tensor: Json) -> TensorSpec:
    try:
        return TensorSpec(tensor["name"], tensor["dtype"], tuple(tensor["shape"]))
    except ValueError as error:
        raise FormatError("SD208", f"tensor {tensor['name']!r}: {error}") from None


def _check_ops(tensor: Json) -> None:
    ops = [part["op"] for part in tensor["parts"]]
    unknown = sorted(set(ops) - set(OPS))
    if unknown:
        raise UnsupportedError(
            "SD209",
            f"tensor {tensor['name']!r}: unknown operations {unknown}, this release knows {OPS}",
            hint="install a newer release: pip install --upgrade sparsedelta",
        )
    if ops not in _PART_SEQUENCES:
        raise FormatError("SD209", f"tensor {tensor['name']!r}: parts {ops} may not come together")


def _part(part: Json, name: str) -> PartRecord:
    for key, codecs in (("index", INDEX_CODECS), ("value", VALUE_CODECS)):
        if part[key]["id"] not in codecs:
            raise UnsupportedError(
                "SD210",
                f"tensor {name!r}: unknown {key} codec {part[key]['id']!r}, this release knows "
                f"{sorted(codecs)}",
                hint="install a newer release: pip install --upgrade sparsedelta",
            )
    if not MIN_BLOCK_LOG2 <= part["block"] <= MAX_BLOCK_LOG2:
        raise FormatError(
            "SD210",
            f"tensor {name!r}: block {part['block']}, expected {MIN_BLOCK_LOG2} to "
            f"{MAX_BLOCK_LOG2}",
        )
    try:
        encoding = Encoding.from_json(part["op"], part["index"], part["value"])
    except ValueError as error:
        raise FormatError("SD210", f"tensor {name!r}: {error}") from None
    return PartRecord(part["nnz"], part["block"], encoding, part["bytes"])


def _count_problems(manifest: Manifest, nnz: int) -> Iterator[FormatError]:
    for tensor in manifest.tensors:
        if any(not part.nnz for part in tensor.parts) or tensor.nnz > tensor.spec.words:
            yield FormatError(
                "SD211",
                f"tensor {tensor.spec.name!r}: parts of {[p.nnz for p in tensor.parts]} entries, "
                f"expected at least 1 each and at most {tensor.spec.words} in all",
            )
    if manifest.nnz != nnz:
        yield FormatError("SD211", f"'nnz' is {nnz}, the parts add up to {manifest.nnz}")
