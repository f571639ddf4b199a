"""Invalid vectors: the header, rules SD101 to SD107."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from header import HEADER, MAX_HEADER, SECTIONS
from vector_encoder import build
from vector_samples import Invalid, bare_length, drop, put, simple, swap


def invalid_header() -> Iterator[Invalid]:
    """Rules SD101 to SD103."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **how)

    yield bad("sd101-empty-file", "no byte", file=lambda _: b"")
    yield bad("sd101-seven-bytes", "shorter than the length", file=lambda f: f[:7])
    yield bad("sd101-short-header", "the file ends in the header", file=lambda f: f[:200])
    yield bad("sd101-huge-length", "N is 2^64 - 1", file=lambda f: b"\xff" * 8 + f[8:])
    note = {"note": "x" * (MAX_HEADER + 8 - bare_length(base))}
    yield bad("sd101-long-header", "N is 65,536", extra=note)
    note = {"note": "x" * ((4 - bare_length(base)) % 8)}
    yield bad("sd101-odd-length", "N mod 8 is 4", extra=note, padded=lambda t: t.rstrip(b" "))

    note = {"note": "?"}
    for name, why, new in (
        ("utf8", "a byte that is not UTF-8", b'"note":"\xff"'),
        ("overlong", "an overlong UTF-8 sequence", b'"note":"\xc0\xaf"'),
        ("raw-surrogate", "a surrogate encoded in UTF-8", b'"note":"\xed\xa0\x80"'),
        ("duplicate-key", "a key twice", b'"note":"?","note":"?"'),
        ("raw-control", "a raw control character in a string", b'"note":"\x01"'),
        ("bad-escape", "an escape that JSON does not have", b'"note":"\\x41"'),
        ("trailing-comma", "a comma before the brace", b'"note":"?",'),
        ("nan", "NaN is no JSON", b'"note":NaN'),
        ("infinity", "-Infinity is no JSON", b'"note":-Infinity'),
    ):
        hook = swap('"note":"?"', new)
        if name == "trailing-comma":
            hook = swap("}}", b"},}")
        yield bad(f"sd102-{name}", why, extra=note, header_text=hook)
    yield bad("sd102-no-json", "an empty header", header_text=lambda _: b"")
    yield bad("sd102-bom", "a byte order mark", header_text=lambda t: b"\xef\xbb\xbf" + t)
    yield bad("sd102-array", "an array, not an object", header_text=lambda t: b"[" + t + b"]")
    yield bad("sd102-newline", "a line end after the object", header_text=lambda t: t + b"\n")
    yield bad("sd102-nul", "a NUL after the object", header_text=lambda t: t + b"\0")
    yield bad("sd102-two-objects", "a second object", header_text=lambda t: t + b"{}")
    yield bad("sd102-unclosed", "the last brace is missing", header_text=lambda t: t[:-1])

    for name, why, new in (
        ("space-inside", "a space between key and value", b'"note": "?"'),
        ("escaped-slash", "an escape that is not needed", b'"note":"\\/"'),
        ("escaped-letter", "a letter as \\u0041", b'"note":"\\u0041"'),
        ("upper-case-hex", "an upper-case hex digit", b'"note":"\\u001F"'),
        ("long-escape", "\\u000a instead of \\n", b'"note":"\\u000a"'),
        ("lone-surrogate", "an escape of a lone surrogate", b'"note":"\\ud800"'),
        ("escaped-pair", "a pair of escaped surrogates", b'"note":"\\ud83d\\udc0e"'),
    ):
        yield bad(f"sd103-{name}", why, extra=note, header_text=swap('"note":"?"', new))
    yield bad("sd103-leading-space", "a space before the object", header_text=lambda t: b" " + t)
    yield bad("sd103-unsorted", "keys out of order", header_text=_rotate)
    utf16 = {"\uffff": "", "\U0001f40e": ""}
    hook = swap('"\uffff":"","\U0001f40e":""', '"\U0001f40e":"","\uffff":""')
    yield bad("sd103-utf16-order", "keys in the order of UTF-16", extra=utf16, header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[-0,')
    yield bad("sd103-minus-zero", "-0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[0.0,')
    yield bad("sd103-fraction", "0.0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[0e0,')
    yield bad("sd103-exponent", "0e0", header_text=hook)
    hook = swap('"data_offsets":[0,', '"data_offsets":[' + "9" * 5000 + ",")
    yield bad("sd103-huge-number", "a number of 5,000 digits", header_text=hook)
    hook = swap('{"__metadata__"', '{"__metadata":' + "[" * 8 + "]" * 8 + ',"__metadata__"')
    yield bad("sd103-depth-9", "depth 9", header_text=hook)
    note = {"note": "x" * (-bare_length(base) % 8)}
    hook = lambda text: text.rstrip(b" ") + b" " * 8  # noqa: E731 - a hook
    yield bad("sd103-eight-spaces", "8 spaces", extra=note, padded=hook)


def _rotate(text: bytes) -> bytes:
    header = json.loads(text)
    ordered = {k: header[k] for k in ("__metadata__", "sd.manifest", "sd.tables", "sd.data")}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()


def invalid_metadata() -> Iterator[Invalid]:
    """Rules SD104 to SD107."""
    base = simple()

    def bad(name: str, why: str, **how: Any) -> Invalid:  # noqa: ANN401 - the options of build
        return name, why, build(base, **how)

    yield bad("sd104-no-metadata", "no __metadata__", header=drop("__metadata__"))
    yield bad("sd104-array", "__metadata__ is an array", header=put([], "__metadata__"))
    yield bad("sd104-number", "a value is a number", meta=put(1, "note"))
    yield bad("sd104-null", "a value is null", meta=put(None, "sd.base_repo"))
    yield bad("sd104-no-format", "no format", meta=drop("format"))
    yield bad("sd104-format", "another format", meta=put("pt", "format"))
    odd = ("0.1", "0.2", "2.0", "10.0", "1", "1.0.0", "1.00", "01.0", "1.", "+1.0", "1.0 ", "")
    for version in odd:
        name = f"sd105-version-{version.strip().replace('+', 'plus-') or 'empty'}"
        name += "-and-space" if version.endswith(" ") else ""
        yield bad(name, f"version {version!r}", meta=put(version, "sd.version"))
    yield bad("sd105-no-version", "no version", meta=drop("sd.version"))

    for key in HEADER:
        name = f"sd106-no-{key.removeprefix('sd.').replace('_', '-')}"
        yield bad(name, f"{key} is missing", meta=drop(key))
    for name, key, value in (
        ("upper-case", "sd.base", "A" * 64),
        ("63-digits", "sd.target", "a" * 63),
        ("65-digits", "sd.manifest", "a" * 65),
        ("line-end", "sd.content", "a" * 64 + "\n"),
        ("leading-zero", "sd.nnz", "06"),
        ("plus", "sd.nnz", "+6"),
        ("arabic-digit", "sd.nnz", "\u0666"),
        ("size-hex", "sd.manifest_size", "0x10"),
        ("size-empty", "sd.manifest_size", ""),
        ("true", "sd.invertible", "True"),
        ("profile-upper-case", "sd.profile", "Portable"),
        ("profile-empty", "sd.profile", ""),
        ("profile-long", "sd.profile", "a" * 33),
        ("profile-underscore", "sd.profile", "not_portable"),
    ):
        yield bad(f"sd106-{name}", f"{key} is {value!r}", meta=put(value, key))

    for name, why, extra in (
        ("set-id-alone", "sd.set_id without sd.part", {"sd.set_id": "a" * 64}),
        ("part-alone", "sd.part without sd.set_id", {"sd.part": "1"}),
        ("set-id-short", "63 digits", {"sd.set_id": "a" * 63, "sd.part": "1"}),
        ("part-leading-zero", "sd.part is 01", {"sd.set_id": "a" * 64, "sd.part": "01"}),
    ):
        yield bad(f"sd106-{name}", why, extra=extra)

    yield bad("sd107-fourth", "a fourth tensor", header=put(_tensor(0, 0), "sd.extra"))
    yield bad("sd107-no-data", "sd.data is missing", header=drop("sd.data"))
    yield bad("sd107-dtype", "dtype I8", header=put("I8", "sd.tables", "dtype"))
    yield bad("sd107-key", "an unknown key", header=put(0, "sd.tables", "align"))
    yield bad("sd107-null", "a tensor is null", header=put(None, "sd.tables"))
    yield bad("sd107-bool", "false for 0", header=put(False, "sd.manifest", "data_offsets", 0))
    yield bad("sd107-string", "a string for 0", header=put("0", "sd.manifest", "data_offsets", 0))
    yield bad("sd107-one-offset", "one offset", header=put([0], "sd.manifest", "data_offsets"))
    yield bad("sd107-no-offset", "no offset", header=put([], "sd.manifest", "data_offsets"))
    yield bad("sd107-two-dimensions", "two dimensions", header=_reshape)
    yield bad("sd107-length", "the shape is not the length", header=put([1], "sd.data", "shape"))
    yield bad(
        "sd107-reversed",
        "an end before its start",
        header=put([9, 0], "sd.manifest", "data_offsets"),
    )
    yield bad("sd107-trailing-byte", "a byte after the data", file=lambda f: f + b"\0")
    yield bad("sd107-missing-byte", "the last byte is missing", file=lambda f: f[:-1])
    yield bad("sd107-gap", "a gap after the manifest", header=_gap, body=lambda b: b"\0" + b)
    yield bad("sd107-order", "the tables come first", header=_tables_first, body=lambda b: b)
    yield bad("sd107-overlap", "tables begin in the manifest", header=_overlap)


def _tensor(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def _reshape(header: dict[str, Any]) -> dict[str, Any]:
    header["sd.data"]["shape"] = [1, *header["sd.data"]["shape"]]
    return header


def _gap(header: dict[str, Any]) -> dict[str, Any]:
    for name in SECTIONS:
        start, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [start + 1, end + 1]
    return header


def _tables_first(header: dict[str, Any]) -> dict[str, Any]:
    manifest, tables = (header[name]["shape"][0] for name in SECTIONS[:2])
    header["sd.tables"] = _tensor(0, tables)
    header["sd.manifest"] = _tensor(tables, tables + manifest)
    return header


def _overlap(header: dict[str, Any]) -> dict[str, Any]:
    start, end = header["sd.tables"]["data_offsets"]
    header["sd.tables"] = _tensor(start - 1, end)
    return header
