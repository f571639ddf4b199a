"""How bytes and values are written: frames (3.1) and canonical JSON (3.2)."""

from __future__ import annotations

import json
from typing import Any

import zstandard
from terms import RuleError, need

MAX_WINDOW, MAX_DEPTH, MAX_INT, MAX_DIGITS = 2**27, 8, 2**53 - 1, 16


def unframe(code: str, frame: bytes, length: int) -> bytes:
    """The bytes that a frame holds, whose number is known."""
    if len(frame) == length:
        return frame
    # The magic number is checked because the library takes skippable and legacy frames too.
    magic = frame[:4] == zstandard.FRAME_HEADER
    need(code, len(frame) < length and magic, "larger than its content, or no Zstandard frame")
    try:
        head = zstandard.get_frame_parameters(frame)
        need(code, head.content_size == length, f"declares {head.content_size} bytes, not {length}")
        need(code, head.dict_id == 0 and head.window_size <= MAX_WINDOW, "dictionary or window")
        # The library takes a buffer of the declared size: hence the checks above come first.
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        content = decoder.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RuleError(code, str(error)) from error
    need(code, len(content) == length, "the content is not what the frame declares")
    return content


def canonical(value: object) -> str:
    """The one text of a JSON value (code points sort as their UTF-8 bytes do)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def plain(value: object, depth: int = 0) -> bool:
    """Whether numbers and depth are those of canonical JSON."""
    if isinstance(value, (dict, list)):
        items = value.values() if isinstance(value, dict) else value
        return depth < MAX_DEPTH and all(plain(item, depth + 1) for item in items)
    return not isinstance(value, (int, float)) or (
        not isinstance(value, float) and 0 <= value <= MAX_INT
    )


def strict(data: bytes, malformed: str, deep: str) -> tuple[Any, str]:
    """Parse strict JSON; return the value and the text that was parsed.

    Args:
        data: The text in UTF-8.
        malformed: The code for what is not strict JSON.
        deep: The code for JSON that is nested too deeply to be read.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        need(malformed, len(dict(pairs)) == len(pairs), "duplicate key")
        return dict(pairs)

    def integer(digits: str) -> int:  # -0 is no count; int() refuses 4301 digits
        return int(digits) if digits[0] != "-" and len(digits) <= MAX_DIGITS else -1

    try:  # float("x") refuses the NaN and Infinity that Python would take
        string = data.decode()
        value = json.loads(
            string, object_pairs_hook=unique, parse_int=integer, parse_constant=lambda _: float("x")
        )
    except ValueError as error:
        raise RuleError(malformed, f"not strict JSON: {error}") from error
    except RecursionError as error:
        raise RuleError(deep, "JSON much deeper than 8") from error
    return value, string


def parse(data: bytes, malformed: str, uncanonical: str) -> Any:  # noqa: ANN401 - JSON
    """Parse canonical JSON; the codes are for what is not JSON and for what is not canonical."""
    value, string = strict(data, malformed, uncanonical)
    if malformed != uncanonical:  # the header: json.loads would take line ends after the object
        need(malformed, isinstance(value, dict) and string[-1] == "}", "not an object and spaces")
    need(uncanonical, plain(value) and canonical(value) == string, "not canonical JSON")
    return value
