"""Strict JSON: what is refused, and the one canonical text."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedelta.limits import MAX_JSON_DEPTH, MAX_JSON_INTEGER
from sparsedelta.strict_json import (
    DuplicateKeyError,
    NotCanonicalError,
    canonical,
    parse,
    parse_canonical,
    require_canonical,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers(0, MAX_JSON_INTEGER) | texts


def documents(depth: int = MAX_JSON_DEPTH) -> st.SearchStrategy[Any]:
    """Documents that canonical JSON can hold, up to a depth."""
    if depth == 0:
        return scalars
    inner = st.deferred(lambda: documents(depth - 1))
    return scalars | st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)


ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}


def stringify(value: Any) -> str:  # noqa: ANN401 (any document)
    """JSON.stringify of ECMA-262, section 25.5.2, with the keys of objects in order."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        quoted = (ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value)
        return f'"{"".join(quoted)}"'
    if isinstance(value, list):
        return f"[{','.join(map(stringify, value))}]"
    keys = sorted(value, key=lambda key: key.encode("utf-8"))
    return f"{{{','.join(f'{stringify(key)}:{stringify(value[key])}' for key in keys)}}}"


def nested(depth: int, kind: str) -> bytes:
    """A document of so many levels."""
    if kind == "list":
        return b"[" * depth + b"]" * depth
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


# --- what is refused ---

MALFORMED = {
    "nothing": b"",
    "spaces": b"  ",
    "two documents": b"{} {}",
    "text behind": b"{}x",
    "a NUL behind": b"{}\0",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a comma too many": b"[1,]",
    "a comment": b"[1] // one",
    "single quotes": b"['a']",
    "a bare key": b"{a:1}",
    "a key that is a number": b"{1:1}",
    "a line break in a string": b'["a\nb"]',
    "a NUL in a string": b'["a\0b"]',
    "an unknown escape": b'["\\x41"]',
    "a short escape": b'["\\u12"]',
    "an open string": b'["a',
    "an open list": b"[1",
    "a leading zero": b"[01]",
    "a plus": b"[+1]",
    "hexadecimal": b"[0x10]",
    "a dot at the end": b"[1.]",
    "not a number": b"[NaN]",
    "infinity": b"[Infinity]",
    "minus infinity": b"[-Infinity]",
    "Python's True": b"[True]",
    "invalid UTF-8": b'["\xff"]',
    "overlong UTF-8": b'["\xc0\xaf"]',
    "a surrogate in UTF-8": b'["\xed\xa0\x80"]',
    "UTF-8 above the last code point": b'["\xf4\x90\x80\x80"]',
    "a high surrogate": b'["\\ud800"]',
    "a low surrogate": b'["\\udc00"]',
    "a high surrogate before a letter": b'["\\ud800a"]',
    "surrogates in the wrong order": b'["\\udc00\\ud800"]',
    "a surrogate in a key": b'{"\\ud800":1}',
    "a surrogate deep inside": b'{"a":[{"b":["\\ud800"]}]}',
    "5000 digits": b"[" + b"9" * 5000 + b"]",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":3}',
        b'[{"x":{"a":1,"a":2}}]',
        b'{"a":1,"\\u0061":2}',
        b'{"":1,"":2}',
    ],
)
def test_duplicate_keys_are_refused(text: bytes) -> None:
    """However they are escaped, and wherever they are."""
    with pytest.raises(DuplicateKeyError, match="duplicate key"):
        parse(text)


@pytest.mark.parametrize("text", [b'["\\ud800"]', nested(9, "list"), b"[" + b"9" * 21 + b"]"])
def test_json_that_no_reader_should_take_is_told_from_no_json(text: bytes) -> None:
    """The rules of the specification have a code for each (SD102 and SD103)."""
    with pytest.raises(NotCanonicalError):
        parse(text)


def test_a_duplicate_key_is_named() -> None:
    with pytest.raises(DuplicateKeyError, match="'b'"):
        parse(b'{"a":1,"b":2,"c":3,"b":4}')


@pytest.mark.parametrize("kind", ["list", "object"])
def test_the_deepest_document_is_read(kind: str) -> None:
    assert parse(nested(MAX_JSON_DEPTH, kind))


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 1000, 100_000])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_a_deeper_document_is_refused(kind: str, depth: int) -> None:
    """Also where Python's parser would give up with a RecursionError."""
    with pytest.raises(ValueError, match="nested deeper than 8 levels"):
        parse(nested(depth, kind))


def test_depth_counts_levels_and_not_neighbours() -> None:
    assert len(parse(b"[" + b",".join([b"[[]]"] * 1000) + b"]")) == 1000


def test_a_limit_of_levels_can_be_given() -> None:
    assert parse(b"[[1]]", max_depth=2) == [[1]]
    with pytest.raises(ValueError, match="deeper than 1 levels"):
        parse(b"[[1]]", max_depth=1)


def test_the_recursion_limit_is_left_alone() -> None:
    before = sys.getrecursionlimit()
    with pytest.raises(ValueError, match="deeper"):
        parse(nested(100_000, "list"))
    assert sys.getrecursionlimit() == before


def test_minus_zero_is_no_count() -> None:
    """Python reads the integer 0; every other parser reads a float, and so may not agree."""
    with pytest.raises(ValueError, match="-0"):
        parse(b"[-0]")


# --- what is read ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b' \t\r\n{ "a" : [ 1 , true ] }\n', {"a": [1, True]}),
        (b'"\\ud83e\\udde0"', "\U0001f9e0"),
        ('"\U0001f9e0"'.encode(), "\U0001f9e0"),
        (b'"\\/\\u0041\\b"', "/A\b"),
        (b"-1", -1),
        (b"1.5", 1.5),
        (b"null", None),
        (b'{"a":{"a":1},"b":{"a":1}}', {"a": {"a": 1}, "b": {"a": 1}}),
        (b'{"\\ud83e\\udde0":"\\\\ud800"}', {"\U0001f9e0": "\\ud800"}),
    ],
)
def test_json_that_is_not_canonical_is_read(text: bytes, expected: object) -> None:
    """Headers of checkpoints and indexes are written by others."""
    assert parse(text) == expected


@given(documents())
def test_any_writer_of_json_is_read(document: object) -> None:
    """With escapes and line breaks as a writer likes them."""
    assert parse(json.dumps(document, indent=1).encode()) == document
    assert parse(json.dumps(document, ensure_ascii=False).encode()) == document


# --- the canonical text ---


@given(documents())
def test_the_canonical_text_is_that_of_stringify(document: object) -> None:
    assert canonical(document) == stringify(document).encode("utf-8")


@given(documents())
def test_the_canonical_text_is_read_back(document: object) -> None:
    found = parse_canonical(canonical(document))
    assert found == document
    assert canonical(found) == canonical(document)


@given(st.dictionaries(texts, scalars, max_size=6), st.randoms())
def test_the_order_in_which_keys_came_does_not_matter(
    document: dict[str, Any],
    random: Any,  # noqa: ANN401 (hypothesis does not name it)
) -> None:
    items = list(document.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(document)


def test_keys_are_ordered_by_utf_8_and_not_by_utf_16() -> None:
    """U+FFFF is before U+10000 in UTF-8, and behind it in UTF-16, as JavaScript sorts."""
    assert canonical({"\U00010000": 1, "\uffff": 2}) == '{"\uffff":2,"\U00010000":1}'.encode()


def test_every_control_character_has_its_escape() -> None:
    controls = "".join(map(chr, range(0x20)))
    text = canonical(controls).decode()
    assert text == stringify(controls)
    assert "\\u001f" in text
    assert "\\u001F" not in text
    assert "\\u0008" not in text


@pytest.mark.parametrize("character", ["/", "\x7f", "\x80", "\u2028", "\ufeff", "é", "\U0001f9e0"])
def test_nothing_else_is_escaped(character: str) -> None:
    assert canonical(character) == f'"{character}"'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\ud800": 1}])
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        canonical(value)


NOT_CANONICAL = {
    "a space": b'{"a": 1}',
    "a space at the end": b"{} ",
    "a line break": b"{}\n",
    "keys out of order": b'{"b":1,"a":2}',
    "keys in the order of UTF-16": '{"\U00010000":1,"\uffff":2}'.encode(),
    "an escaped letter": b'"\\u0061"',
    "an escaped slash": b'"\\/"',
    "an escaped line break, long": b'"\\u000a"',
    "an escape in capitals": b'"\\u001F"',
    "an escaped delete": b'"\\u007f"',
    "an escaped pair": b'"\\ud83e\\udde0"',
    "a negative number": b"-1",
    "minus zero": b"-0",
    "a fraction": b"1.0",
    "an exponent": b"1e3",
    "a number beyond 2^53 - 1": b"9007199254740992",
    "a fraction inside": b'{"a":[{"b":0.5}]}',
    "infinity by overflow": b"1e999",
}


@pytest.mark.parametrize("text", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_any_other_text_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        parse_canonical(text)


@pytest.mark.parametrize("text", [b"0", b"9007199254740991", b"true", b"null", b'""', b"[]", b"{}"])
def test_the_smallest_documents_are_canonical(text: bytes) -> None:
    assert canonical(parse_canonical(text)) == text


def test_a_boolean_is_not_mistaken_for_a_number() -> None:
    """``True == 1`` in Python, but their texts differ."""
    with pytest.raises(ValueError, match="not canonical"):
        require_canonical(True, b"1")


# --- nothing but ValueError ---


@given(st.binary(max_size=64))
def test_any_bytes_are_a_document_or_a_value_error(data: bytes) -> None:
    try:
        parse_canonical(data)
    except ValueError:
        return


@given(documents(), st.integers(0), st.binary(max_size=3))
def test_a_canonical_text_with_other_bytes_is_another_or_none(
    document: object, position: int, patch: bytes
) -> None:
    """No two texts are the same document: what is accepted is the text of what was read."""
    text = canonical(document)
    at = position % (len(text) + 1)
    mutated = text[:at] + patch + text[at + len(patch) :]
    try:
        found = parse_canonical(mutated)
    except ValueError:
        return
    assert canonical(found) == mutated
