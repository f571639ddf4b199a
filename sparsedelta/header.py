"""The safetensors header of a delta file (spec section 3, rules SD101 to SD107)."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sparsedelta.errors import UPGRADE, FormatError, UnsupportedError
from sparsedelta.limits import FORMAT_MAJOR, FORMAT_VERSION, MAX_HEADER_BYTES
from sparsedelta.manifest_schema import is_hex64, is_profile, is_readable_version
from sparsedelta.strict_json import Json, NotCanonicalError, canonical, parse, require_canonical

MANIFEST: Final = "sd.manifest"
TABLES: Final = "sd.tables"
DATA: Final = "sd.data"
SET_KEYS: Final = ("sd.set_id", "sd.part")
"""What the header of a file of a set has beside the rest."""

TENSORS: Final = (MANIFEST, TABLES, DATA)
"""The three tensors, in the order of their offsets."""

_ALIGNMENT: Final = 8
_DECIMAL = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_HEX_KEYS: Final = ("sd.base", "sd.target", "sd.content", "sd.manifest")
_DECIMAL_KEYS: Final = ("sd.nnz", "sd.manifest_size")


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a delta file says.

    Attributes:
        metadata: ``__metadata__``, string to string.
        ranges: Absolute start and end of each of the three tensors in the file.
    """

    metadata: Mapping[str, str]
    ranges: Mapping[str, tuple[int, int]]


def build_header(metadata: Mapping[str, str], lengths: Mapping[str, int]) -> bytes:
    """The length word and the header of a file whose tensors have these lengths.

    Raises:
        ValueError: The header would be longer than the format allows.
    """
    document: dict[str, Json] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in TENSORS:
        end = offset + lengths[name]
        document[name] = {"dtype": "U8", "shape": [end - offset], "data_offsets": [offset, end]}
        offset = end
    text = canonical(document)
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return struct.pack("<Q", len(text)) + text


def header_length(start: bytes, file_size: int) -> int:
    """Length of the JSON header, from the first 8 bytes of the file (rule SD101)."""
    if len(start) < _ALIGNMENT:
        raise FormatError("SD101", f"the file has {len(start)} bytes, a header needs at least 8")
    (length,) = struct.unpack_from("<Q", start)
    if length > MAX_HEADER_BYTES or length % _ALIGNMENT or _ALIGNMENT + length > file_size:
        raise FormatError(
            "SD101",
            f"the header claims {length} bytes in a file of {file_size}; expected a multiple of "
            f"{_ALIGNMENT}, at most {MAX_HEADER_BYTES}",
        )
    return int(length)


def parse_header(text: bytes, file_size: int) -> Header:
    """Check and parse the JSON header.

    Args:
        text: The header's bytes, without the length word.
        file_size: Size of the whole file.

    Raises:
        FormatError: The first broken rule of SD102 to SD107.
        UnsupportedError: Another format version.
    """
    trimmed = text.rstrip(b" ")
    if not (trimmed.lstrip(b" \t\n\r").startswith(b"{") and trimmed.endswith(b"}")):
        raise FormatError("SD102", "the header is not one JSON object, followed by spaces only")
    try:
        document = parse(trimmed, counts=True)
    except NotCanonicalError as error:
        raise FormatError("SD103", f"the header: {error}") from None
    except ValueError as error:
        raise FormatError("SD102", f"the header is no strict JSON: {error}") from None
    _check_canonical(document, text)
    metadata = _check_metadata(document.get("__metadata__"))
    return Header(metadata, _check_tensors(document, len(text), file_size))


def _check_canonical(document: Json, text: bytes) -> None:
    trimmed = text.rstrip(b" ")
    if len(text) - len(trimmed) >= _ALIGNMENT:
        raise FormatError("SD103", "the header is padded with more than 7 spaces")
    try:
        require_canonical(document, trimmed)
    except ValueError as error:
        raise FormatError("SD103", f"the header: {error}") from None


def _check_metadata(metadata: Json) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("SD104", "the file has no __metadata__ of strings")
    if metadata.get("format") != "sparsedelta":
        raise FormatError(
            "SD104",
            f"__metadata__ says format {metadata.get('format')!r}, expected 'sparsedelta'",
            hint="this is a safetensors file, but not a delta: a delta is made by sparsedelta diff",
        )
    version = metadata.get("sd.version")
    if not is_readable_version(version):
        raise UnsupportedError(
            "SD105",
            f"format version {version!r:.80}, this release reads {FORMAT_MAJOR}.x and writes "
            f"{FORMAT_VERSION}",
            hint=f"install the release that made it, or a newer one ({UPGRADE.partition(': ')[2]})",
        )
    for key in _HEX_KEYS:
        if not is_hex64(metadata.get(key)):
            raise FormatError(
                "SD106", f"{key} is {metadata.get(key)!r:.80}, expected 64 hex digits"
            )
    for key in _DECIMAL_KEYS:
        if not _DECIMAL.fullmatch(metadata.get(key, "")):
            raise FormatError("SD106", f"{key} is {metadata.get(key)!r:.80}, expected a number")
    if metadata.get("sd.invertible") not in ("true", "false"):
        raise FormatError("SD106", f"sd.invertible is {metadata.get('sd.invertible')!r:.80}")
    if not is_profile(metadata.get("sd.profile")):
        raise FormatError("SD106", f"sd.profile is {metadata.get('sd.profile')!r:.80}")
    _check_set(metadata)
    return metadata


def _check_set(metadata: Mapping[str, str]) -> None:
    found = [metadata.get(key) for key in SET_KEYS]
    if found == [None, None]:
        return
    if not is_hex64(found[0]) or not _DECIMAL.fullmatch(found[1] or ""):
        raise FormatError("SD106", f"{SET_KEYS} are {found!r:.160}, expected a digest and a number")


def _check_tensors(
    document: dict[str, Json], text_length: int, file_size: int
) -> dict[str, tuple[int, int]]:
    if document.keys() - {"__metadata__"} != set(TENSORS):
        names = sorted(document.keys() - {"__metadata__"})
        raise FormatError("SD107", f"the file holds the tensors {names!r:.200}, expected {TENSORS}")
    start_of_data = _ALIGNMENT + text_length
    ranges = {}
    offset = 0
    for name in TENSORS:
        entry = document[name]
        length = _entry_length(entry)
        if length is None or entry["data_offsets"] != [offset, offset + length]:
            raise FormatError(
                "SD107", f"{name} is {entry!r:.200}, expected U8, contiguous, from {offset}"
            )
        ranges[name] = (start_of_data + offset, start_of_data + offset + length)
        offset += length
    if start_of_data + offset != file_size:
        raise FormatError(
            "SD107", f"header and tensors end at byte {start_of_data + offset} of {file_size}"
        )
    return ranges


def _entry_length(entry: Json) -> int | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    shape = entry["shape"]
    if entry["dtype"] != "U8" or not isinstance(shape, list) or len(shape) != 1:
        return None
    numbers = [*shape, *(entry["data_offsets"] if isinstance(entry["data_offsets"], list) else ())]
    if any(type(number) is not int or number < 0 for number in numbers):
        return None
    return int(shape[0])
