"""Strict JSON for files that may come from a stranger, and one canonical text (spec section 3.2).

Python's parser keeps the last of duplicate keys, takes NaN and lone surrogates, and gives up with a
RecursionError on deep nesting. Here all of these are a ValueError.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any, NoReturn, TypeAlias

from sparsedelta.limits import MAX_JSON_DEPTH, MAX_JSON_INTEGER

Json: TypeAlias = Any
"""A parsed document: dict, list, str, int, bool, None. Callers check what they take out of it."""

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


def parse(data: bytes, *, max_depth: int = MAX_JSON_DEPTH) -> Json:
    """Parse one UTF-8 JSON document.

    Raises:
        DuplicateKeyError: An object holds a key twice.
        NotCanonicalError: Nested too deep, a surrogate in a string, a number of many digits.
        ValueError: Not UTF-8, or not JSON.
    """
    text = data.decode("utf-8")
    refused: list[str] = []

    def integer(digits: str) -> int:
        # Told at the end: what breaks the grammar further on is the graver fault.
        if len(digits) > _MAX_DIGITS:  # int() takes quadratic time, and refuses from 4,300 on
            refused.append(f"the number {digits[:_MAX_DIGITS]}… is out of range")
        elif digits == "-0":
            refused.append("the number -0 is no count")
        else:
            return int(digits)
        return 0

    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_reject_constant,
            parse_int=integer,
        )
    except RecursionError:
        raise NotCanonicalError(f"nested deeper than {max_depth} levels") from None
    if refused:
        raise NotCanonicalError(refused[0])
    _check_tree(document, max_depth, may_hold_surrogates="\\u" in text)
    return document


def _check_tree(document: Json, max_depth: int, *, may_hold_surrogates: bool) -> None:
    level: list[Json] = [document]
    depth = 0
    while level:
        containers = [item for item in level if isinstance(item, (dict, list))]
        if containers:
            depth += 1
            if depth > max_depth:
                raise NotCanonicalError(f"nested deeper than {max_depth} levels")
        if may_hold_surrogates:
            for item in level:
                if isinstance(item, str) and _SURROGATE.search(item):
                    raise NotCanonicalError(f"a surrogate in the string {item!r:.80}")
        level = [
            child
            for item in containers
            for child in (chain(item, item.values()) if isinstance(item, dict) else item)
        ]


def canonical(document: Json) -> bytes:
    """The one text of a document: no whitespace, keys ascending by UTF-8 bytes, minimal escapes.

    Sorting by code points, as Python does, is sorting by UTF-8 bytes.
    """
    text = json.dumps(
        document, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )
    return text.encode("utf-8")


def parse_canonical(data: bytes) -> Json:
    """Parse a document and insist that its text is canonical.

    Raises:
        ValueError: What :func:`parse` or :func:`require_canonical` raise.
    """
    document = parse(data)
    require_canonical(document, data)
    return document


def require_canonical(document: Json, data: bytes) -> None:
    """Insist that ``data``, which was parsed to ``document``, is its canonical text.

    Raises:
        NotCanonicalError: A number that is no integer in [0, 2^53 - 1], or another text.
    """
    _check_values(document)
    if canonical(document) != data:
        raise NotCanonicalError("the text is not canonical JSON")


def _check_values(document: Json) -> None:
    if isinstance(document, dict):
        for value in document.values():
            _check_values(value)
    elif isinstance(document, list):
        for value in document:
            _check_values(value)
    elif isinstance(document, float):
        raise NotCanonicalError(f"the number {document} is no integer")
    elif isinstance(document, int) and not 0 <= document <= MAX_JSON_INTEGER:
        raise NotCanonicalError(f"the number {document} is out of range")
