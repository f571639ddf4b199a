"""The JSON types of a manifest (rule SD204). Keys that are not known are ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeAlias

from sparsedelta.errors import FormatError
from sparsedelta.limits import FORMAT_MAJOR, MAX_JSON_INTEGER, MAX_PROBLEMS
from sparsedelta.strict_json import Json

_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(rf"{FORMAT_MAJOR}\.(0|[1-9][0-9]*)", re.ASCII)
_ANY_VERSION: Final = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)", re.ASCII)
_SCALE: Final = re.compile(r"[0-9a-f]{16}")
_PROFILE: Final = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)

_Check: TypeAlias = Callable[[Json], bool]
_Schema: TypeAlias = Mapping[str, _Check]


def is_hex64(value: Json) -> bool:
    """Whether a value is a digest: 64 lower-case hex digits."""
    return isinstance(value, str) and _HEX64.fullmatch(value) is not None


def is_readable_version(value: Json) -> bool:
    """Whether a value is a format version of the major version that this release reads."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def is_version(value: Json) -> bool:
    """Whether a value is a format version at all."""
    return isinstance(value, str) and _ANY_VERSION.fullmatch(value) is not None


def is_profile(value: Json) -> bool:
    """Whether a value has the form of a profile's name."""
    return isinstance(value, str) and _PROFILE.fullmatch(value) is not None


def _is_count(value: Json) -> bool:
    return type(value) is int and 0 <= value <= MAX_JSON_INTEGER


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_list(value: Json) -> bool:
    return isinstance(value, list)


def _is_strings(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_string_map(value: Json) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_codec(value: Json) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def _or_null(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _is_object(value: Json) -> bool:
    return isinstance(value, dict)


_MANIFEST: Final[_Schema] = {
    "base": is_hex64,
    "target": is_hex64,
    "blobs": _is_list,
    "content": is_hex64,
    "files": _is_list,
    "invertible": lambda value: isinstance(value, bool),
    "layout": _or_null(_is_object),
    "lean": lambda value: isinstance(value, bool),
    "metadata": _is_string_map,
    "must_understand": _is_strings,
    "nnz": _is_count,
    "profile": is_profile,
    "set": _or_null(_is_object),
    "tables": is_hex64,
    "tensors": _is_list,
    "untouched": _is_strings,
    "version": is_version,
}
_RECORD: Final[_Schema] = {
    "name": _is_text,
    "from": _or_null(_is_text),
    "base": _or_null(_is_object),
    "target": _or_null(_is_object),
    "parts": _is_list,
}
_END: Final[_Schema] = {
    "dtype": _is_text,
    "shape": lambda value: isinstance(value, list) and all(map(_is_count, value)),
}
_CODED: Final[_Schema] = {
    "nnz": _is_count,
    "block": _is_count,
    "index": _is_codec,
    "value": _is_codec,
    "bytes": _is_count,
}
_OPTIONAL: Final[_Schema] = {
    "dtype": _is_text,
    "scale": lambda value: isinstance(value, str) and _SCALE.fullmatch(value) is not None,
    "from": _is_text,
    "to": _is_text,
}
_BLOB: Final[_Schema] = {"bytes": _is_count, "size": _is_count, "digest": is_hex64}
_LAYOUT: Final[_Schema] = {"base": _or_null(_is_object), "target": _or_null(_is_object)}
_LAYOUT_END: Final[_Schema] = {"files": _is_list, "index": _or_null(_is_object)}
_LAYOUT_FILE: Final[_Schema] = {
    "name": _is_text,
    "header": _is_count,
    "sha256": _or_null(is_hex64),
}
_INDEX: Final[_Schema] = {"name": _is_text, "blob": _is_count}
_FILE: Final[_Schema] = {
    "name": _is_text,
    "base": _or_null(_is_object),
    "target": _or_null(_is_object),
}
_FILE_END: Final[_Schema] = {"blob": _or_null(_is_count), "digest": is_hex64, "size": _is_count}
_SET: Final[_Schema] = {"id": is_hex64, "part": _is_count, "parts": _is_list}
_SET_PART: Final[_Schema] = {"name": _is_text, "size": _is_count, "manifest": is_hex64}


def check_schema(document: Json) -> None:
    """Insist on the keys of section 3.3 and their JSON types.

    Raises:
        FormatError: SD204; ``others`` are what else is wrong.
    """
    messages = islice(_problems(document), MAX_PROBLEMS)
    problems = [FormatError("SD204", message) for message in messages]
    if problems:
        problems[0].others = tuple(problems[1:])
        raise problems[0]


def _problems(document: Json) -> Iterator[str]:
    found = list(_mismatches("the manifest", document, _MANIFEST))
    if found:
        yield from found
        return
    for number, record in enumerate(document["tensors"]):
        if not _is_record(record):  # as most are: what is wrong takes longer to say
            yield from _record_problems(number, record)
    for number, blob in enumerate(document["blobs"]):
        yield from _mismatches(f"blob {number}", blob, _BLOB)
    yield from _layout_problems(document["layout"])
    for number, file in enumerate(document["files"]):
        where = f"carried file {number}"
        bad = list(_mismatches(where, file, _FILE))
        yield from bad
        for end in ("base", "target") if not bad else ():
            if file[end] is not None:
                yield from _mismatches(f"{where}, {end}", file[end], _FILE_END)
    if document["set"] is not None:
        bad = list(_mismatches("'set'", document["set"], _SET))
        yield from bad
        for number, part in enumerate(document["set"]["parts"] if not bad else ()):
            yield from _mismatches(f"part file {number + 1}", part, _SET_PART)


def _is_record(record: Json) -> bool:
    """Whether :func:`_record_problems` has nothing to say."""
    return (
        _fits(record, _RECORD)
        and all(record[end] is None or _fits(record[end], _END) for end in ("base", "target"))
        and all(map(_is_part, record["parts"]))
    )


def _is_part(part: Json) -> bool:
    return (
        isinstance(part, dict)
        and isinstance(part.get("op"), str)
        and (_CODED.keys().isdisjoint(part) or _fits(part, _CODED))
        and all(_OPTIONAL[key](part[key]) for key in _OPTIONAL.keys() & part.keys())
    )


def _record_problems(number: int, record: Json) -> Iterator[str]:
    bad = list(_mismatches(f"record {number}", record, _RECORD))
    yield from bad
    if bad:
        return
    where = f"tensor {record['name']!r:.80}"
    for end in ("base", "target"):
        if record[end] is not None:
            yield from _mismatches(f"{where}, {end}", record[end], _END)
    for part in record["parts"]:
        if not isinstance(part, dict) or not isinstance(part.get("op"), str):
            yield f"{where}: a part is {part!r:.80}, expected an object with an 'op'"
            continue
        if any(key in part for key in _CODED):
            yield from _mismatches(f"{where}, {part['op']!r:.40}", part, _CODED)
        known = {key: check for key, check in _OPTIONAL.items() if key in part}
        yield from _mismatches(f"{where}, {part['op']!r:.40}", part, known)


def _layout_problems(layout: Json) -> Iterator[str]:
    if layout is None:
        return
    bad = list(_mismatches("'layout'", layout, _LAYOUT))
    yield from bad
    for end in ("base", "target") if not bad else ():
        if layout[end] is None:
            continue
        where = f"layout of the {end}"
        wrong = list(_mismatches(where, layout[end], _LAYOUT_END))
        yield from wrong
        if wrong:
            continue
        for file in layout[end]["files"]:
            yield from _mismatches(f"{where}, a file", file, _LAYOUT_FILE)
        if layout[end]["index"] is not None:
            yield from _mismatches(f"{where}, index", layout[end]["index"], _INDEX)


def _fits(document: Json, schema: _Schema) -> bool:
    """Whether :func:`_mismatches` finds none."""
    if not isinstance(document, dict):
        return False
    for key, is_valid in schema.items():
        if key not in document or not is_valid(document[key]):
            return False
    return True


def _mismatches(where: str, document: Json, schema: _Schema) -> Iterator[str]:
    if not isinstance(document, dict):
        yield f"{where} is no object"
        return
    for key, is_valid in schema.items():
        if key not in document:
            yield f"{where}: the key {key!r} is missing"
        elif not is_valid(document[key]):
            yield f"{where}: {key!r} has the value {document[key]!r:.80}"
