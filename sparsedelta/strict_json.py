"""Strict JSON for files that may come from a stranger, and one canonical text (spec section 3.2).

Python's parser keeps the last of duplicate keys, takes NaN and lone surrogates, and gives up with a
RecursionError on deep nesting. Here all of these are a ValueError.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeAlias

from sparsedelta.limits import MAX_JSON_DEPTH, MAX_JSON_INTEGER

Json: TypeAlias = Any
"""A parsed document: dict, list, str, int, bool, None. Callers check what they take out of it."""

_CONTAINERS = (dict, list)
_CONTEXT = 40
_MAX_DIGITS = 20
_SURROGATE = re.compile("[\ud800-\udfff]")


class DuplicateKeyError(ValueError):
    """An object holds a key twice."""


class NotCanonicalError(ValueError):
    """JSON by its grammar, but outside what the format allows: depth, surrogates, numbers."""


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(f"duplicate key {key!r}")
            seen.add(key)
    return result


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse(data: bytes, *, max_depth: int = MAX_JSON_DEPTH, counts: bool = False) -> Json:
    """Parse one UTF-8 JSON document.

    Args:
        data: Its text.
        max_depth: Levels of arrays and objects that are allowed.
        counts: Whether numbers must be integers in [0, 2^53 - 1].

    Raises:
        DuplicateKeyError: An object holds a key twice.
        NotCanonicalError: Nested too deep, a surrogate in a string, a number of many digits or,
            with ``counts``, that is none.
        ValueError: Not UTF-8, or not JSON.
    """
    text = data.decode("utf-8")
    refused: list[str] = []

    # Told at the end: what breaks the grammar further on is the graver fault.
    def integer(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:  # int() takes quadratic time, and refuses from 4,300 on
            refused.append(f"the number {digits[:_MAX_DIGITS]}… is out of range")
            return 0
        if digits == "-0":
            refused.append("the number -0 is no count")
        number = int(digits)
        if counts and not 0 <= number <= MAX_JSON_INTEGER:
            refused.append(f"the number {number} is out of range")
        return number

    def fraction(digits: str) -> float:
        if counts:
            refused.append(f"the number {digits:.{_MAX_DIGITS}} is no integer")
        return float(digits)

    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_reject_constant,
            parse_int=integer,
            parse_float=fraction,
        )
    except RecursionError:
        raise NotCanonicalError(f"nested deeper than {max_depth} levels") from None
    if refused:
        raise NotCanonicalError(refused[0])
    _check_tree(document, max_depth, may_hold_surrogates="\\u" in text)
    return document


def _check_tree(document: Json, max_depth: int, *, may_hold_surrogates: bool) -> None:
    level = [document] if type(document) in _CONTAINERS else []
    depth = 0
    while level:
        depth += 1
        if depth > max_depth:
            raise NotCanonicalError(f"nested deeper than {max_depth} levels")
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) in _CONTAINERS
        ]
    if may_hold_surrogates:
        text = json.dumps(document, ensure_ascii=False)
        found = _SURROGATE.search(text)
        if found:
            where = text[max(0, found.start() - _CONTEXT) : found.end() + _CONTEXT]
            raise NotCanonicalError(f"a surrogate in a string: {where!r}")


def canonical(document: Json) -> bytes:
    """The one text of a document: no whitespace, keys ascending by UTF-8 bytes, minimal escapes.

    Sorting by code points, as Python does, is sorting by UTF-8 bytes.
    """
    text = json.dumps(
        document, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )
    return text.encode("utf-8")


def parse_canonical(data: bytes) -> Json:
    """Parse a document of counts and insist that its text is canonical.

    Raises:
        ValueError: What :func:`parse` or :func:`require_canonical` raise.
    """
    document = parse(data, counts=True)
    require_canonical(document, data)
    return document


def require_canonical(document: Json, data: bytes) -> None:
    """Insist that ``data``, which was parsed to ``document``, is its canonical text.

    Raises:
        NotCanonicalError: It is another.
    """
    if canonical(document) != data:
        raise NotCanonicalError("the text is not canonical JSON")
