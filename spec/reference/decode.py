"""An independent reader of the sparsedelta format 0.1, for checking other readers.

It follows SPEC.md rule by rule and holds everything in memory: written to be read, not to be fast.
`python decode.py FILE` prints the delta as JSON, or the code of the first broken rule (exit 3).
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

U64 = npt.NDArray[np.uint64]
Words = npt.NDArray[np.unsignedinteger[Any]]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

MAX_HEADER, MAX_MANIFEST, MAX_WINDOW = 65_528, 2**27, 2**27
MAX_NAMES, MAX_NAME, MAX_DIMS, MAX_WORDS = 2**20, 1024, 64, 2**48
MAX_DEPTH, MAX_INT, MAX_INT_DIGITS, MAX_PADDING = 8, 2**53 - 1, 16, 7
MIN_BLOCK, MAX_BLOCK, SEGMENT, DIGEST = 8, 24, 2**22, 32
ESCAPE, LISTED = 255, 64  # the byte that continues a symbol; entries that describe() lists

BITS = dict.fromkeys("BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ".split(), 8)
BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= dict.fromkeys("U16 I16 F16 BF16".split(), 16) | dict.fromkeys("U32 I32 F32".split(), 32)
BITS |= dict.fromkeys("U64 I64 F64 C64".split(), 64)

HEX, NUMBER = "[0-9a-f]{64}", "0|[1-9][0-9]*"
SECTIONS = ("sd.manifest", "sd.tables", "sd.data")
HEADER_FORM = {"sd.profile": "portable", "sd.base": HEX, "sd.target": HEX, "sd.content": HEX}
HEADER_FORM |= {"sd.invertible": "true|false", "sd.nnz": NUMBER}
HEADER_FORM |= {"sd.manifest": HEX, "sd.manifest_size": NUMBER}
# A form is a type, a pattern, [form of the items], {key: form}, or (forms of keys that must be
# there, form of all other values).
CODEC_FORM = ({"id": str}, object)
PART_FORM = {"op": str, "nnz": int, "block": int, "index": CODEC_FORM, "value": CODEC_FORM}
PART_FORM |= {"bytes": int}
RECORD_FORM = {"name": str, "dtype": str, "shape": [int], "parts": [PART_FORM]}
MANIFEST_FORM = {"base": HEX, "target": HEX, "content": HEX, "invertible": bool, "nnz": int}
MANIFEST_FORM |= {"metadata": ({}, str), "must_understand": [str], "profile": "portable"}
MANIFEST_FORM |= {"tables": HEX, "tensors": [RECORD_FORM], "untouched": [str], "version": r"0\.1"}
INDEX_CODECS = ({"id": "gap8"}, {"id": "bitmask"}, {"id": "dense"})
VALUE_CODECS = ({"id": "zigzag"}, {"id": "planes"})
VALUE_CODECS += tuple({"id": "packed", "width": p} for p in (0, 1, 2, 4, 8))
SEQUENCES = (["difference"], ["replace"], ["difference", "replace"])


class RuleError(Exception):
    """The first rule of section 9 that a file or an operation breaks."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Part:
    """Entries of one tensor under one operation, ascending by index."""

    op: str
    indices: U64
    words: Words


@dataclass(frozen=True)
class Tensor:
    """A touched tensor."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Decoded:
    """A delta whose every rule has been checked."""

    base: str
    target: str
    content: str
    invertible: bool
    nnz: int
    tensors: dict[str, Tensor]


@dataclass
class Layout:
    """A part as the manifest lays it out: n words of W bytes in blocks of `size` words."""

    op: str
    index: str
    value: str
    p: int
    n: int
    W: int
    nnz: int
    size: int
    bytes: int
    rows: npt.NDArray[Any]

    @property
    def row(self) -> np.dtype[Any]:
        """The type of a row of the block table."""
        streams = (self.index != "dense") + {"packed": 3, "zigzag": 2}.get(self.value, self.W)
        stream = [("encoded", "<u4"), ("decoded", "<u4"), ("checksum", "V8")]
        return np.dtype([("count", "<u4"), ("streams", stream, (streams,))])

    @property
    def sizes(self) -> U64:
        """The number of words of each block."""
        starts = np.arange(len(self.rows), dtype=np.uint64) * np.uint64(self.size)
        return np.minimum(np.uint64(self.n) - starts, np.uint64(self.size))


def need(code: str, ok: bool, message: str) -> None:  # noqa: FBT001 - reads as the rule does
    """Raise the rule's code unless it holds."""
    if not ok:
        raise RuleError(code, message)


# --- Digests (sections 4 and 8) ---


def b3(data: bytes, context: str | None = None) -> bytes:
    """BLAKE3 of data, in derive-key mode if a context is given."""
    return blake3(data, derive_key_context=context and f"sparsedelta 1 {context}").digest()


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _typed(dtype: str, shape: tuple[int, ...]) -> bytes:
    return _text(dtype) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)


def word_bytes(dtype: str) -> int:
    """The width of a word; sub-byte dtypes are sequences of bytes."""
    return max(1, BITS[dtype] // 8)


def segment_digests(dtype: str, data: bytes) -> list[bytes]:
    """The digests of each run of 2^22 words."""
    step = SEGMENT * word_bytes(dtype)
    return [b3(data[i : i + step], "segment") for i in range(0, len(data), step)]


def tensor_digest(dtype: str, shape: tuple[int, ...], segments: list[bytes]) -> bytes:
    """The digest of a tensor from those of its segments."""
    count = struct.pack("<Q", len(segments))
    return b3(_typed(dtype, shape) + count + b"".join(segments), "tensor")


def fingerprint_of(digests: list[tuple[str, bytes]]) -> str:
    """The fingerprint of a checkpoint from names and tensor digests, in any order."""
    rows = sorted((name.encode(), digest) for name, digest in digests)
    body = b"".join(struct.pack("<I", len(name)) + name + digest for name, digest in rows)
    return b3(struct.pack("<Q", len(rows)) + body, "checkpoint").hex()


def fingerprint(tensors: Tensors) -> str:
    """The fingerprint of a checkpoint given as {name: (dtype, shape, bytes)}."""
    return fingerprint_of(
        [(k, tensor_digest(d, s, segment_digests(d, b))) for k, (d, s, b) in tensors.items()]
    )


def content_digest(base: str, target: str, tensors: dict[str, Tensor]) -> str:
    """The identity of a delta, whatever its encoding."""
    out = bytes.fromhex(base) + bytes.fromhex(target) + struct.pack("<Q", len(tensors))
    for name, tensor in tensors.items():
        out += _text(name) + _typed(tensor.dtype, tensor.shape)
        out += struct.pack("<I", len(tensor.parts))
        for part in tensor.parts:
            out += _text(part.op) + struct.pack("<Q", len(part.indices))
            out += b3(part.indices.astype("<u8").tobytes(), "indices")
            out += b3(part.words.tobytes(), "words")
    return b3(out, "content").hex()


# --- JSON (section 3.2) and frames (section 3.1) ---


def canonical(value: object) -> str:
    """The one text of a JSON value. Code points sort as their UTF-8 bytes do."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _integer(text: str) -> int:
    return int(text) if len(text) <= MAX_INT_DIGITS else -1  # -1 is refused by _plain


def _constant(text: str) -> object:
    raise ValueError(text)  # NaN and Infinity, which Python would accept


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _plain(value: object, depth: int = 0) -> bool:
    """Whether numbers and depth are those of canonical JSON."""
    if isinstance(value, (dict, list)):
        items = value.values() if isinstance(value, dict) else value
        return depth < MAX_DEPTH and all(_plain(item, depth + 1) for item in items)
    return not isinstance(value, (int, float)) or (type(value) is not float and 0 <= value <= MAX_INT)


def parse(data: bytes, malformed: str, uncanonical: str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse canonical JSON, with the codes for what is no JSON and for what is not canonical."""
    try:
        text = data.decode()
        value = json.loads(
            text, parse_int=_integer, parse_constant=_constant, object_pairs_hook=_unique
        )
    except ValueError as error:
        raise RuleError(malformed, f"not strict JSON: {error}") from error
    except RecursionError as error:
        raise RuleError(uncanonical, "JSON far deeper than 8") from error
    if malformed != uncanonical:  # the header
        need(malformed, type(value) is dict and text[-1] == "}", "not one object and spaces")
    need(uncanonical, _plain(value) and canonical(value) == text, "not canonical JSON")
    return value


def fits(value: object, form: Any) -> bool:  # noqa: ANN401 - forms nest
    """Whether a JSON value has the form (see MANIFEST_FORM)."""
    if isinstance(form, str):
        return isinstance(value, str) and re.fullmatch(form, value) is not None
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if isinstance(form, dict):
        form = (form, None)  # any other key does not fit
    if isinstance(form, tuple):
        keys, other = form
        return isinstance(value, dict) and keys.keys() <= value.keys() and all(
            fits(item, keys.get(key, other)) for key, item in value.items()
        )
    return form is object or type(value) is form  # isinstance would take a bool for an int


def unframe(code: str, frame: bytes, length: int) -> bytes:
    """The decoded bytes of a frame (3.1) whose decoded length is known."""
    if len(frame) == length:
        return frame
    need(code, len(frame) < length, "the frame is longer than what it holds")
    # The magic number first: the library would also take skippable and legacy frames.
    need(code, frame[:4] == zstandard.FRAME_HEADER, "not a Zstandard frame")
    try:
        head = zstandard.get_frame_parameters(frame)
        need(code, head.content_size == length, f"declares {head.content_size}, not {length} bytes")
        need(code, head.dict_id == 0 and head.window_size <= MAX_WINDOW, "dictionary or window")
        # Only now is the declared size taken as the size of a buffer.
        plain = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise RuleError(code, str(error)) from error
    need(code, len(plain) == length, "the frame does not hold what it declares")
    return plain


# --- The header and the manifest (rules 1xx and 2xx) ---


def read_header(data: bytes) -> tuple[dict[str, str], list[bytes]]:
    """Check rules 1xx; return the metadata and the bytes of the three tensors."""
    size = int.from_bytes(data[:8], "little")
    whole = len(data) >= 8 and size <= MAX_HEADER and size % 8 == 0 and len(data) >= 8 + size
    need("SD101", whole, "no whole header")
    padded, body = data[8 : 8 + size], data[8 + size :]
    header = parse(padded.rstrip(b" "), "SD102", "SD103")
    need("SD103", len(padded) - len(padded.rstrip(b" ")) <= MAX_PADDING, "too many spaces")
    meta = header.get("__metadata__")
    need("SD104", fits(meta, ({"format": "sparsedelta"}, str)), "not the metadata of a delta")
    need("SD105", meta.get("sd.version") == "0.1", f"version {meta.get('sd.version')!r}")
    for key, form in HEADER_FORM.items():
        need("SD106", fits(meta.get(key), form), f"{key} is {meta.get(key)!r}")
    need("SD107", header.keys() == {"__metadata__", *SECTIONS}, "not exactly three tensors")
    ends = [0]
    for name in SECTIONS:
        offsets = fits(header[name], {"dtype": "U8", "shape": [int], "data_offsets": [int]})
        ends += header[name]["data_offsets"][1:2] if offsets else []
        need("SD107", offsets and header[name]["data_offsets"] == ends[-2:], f"{name} is misplaced")
        need("SD107", header[name]["shape"] == [ends[-1] - ends[-2]], f"{name} has a wrong shape")
    need("SD107", ends[-1] == len(body), "the tensors do not cover the data")
    return meta, [body[start:end] for start, end in pairwise(ends)]


def read_manifest(meta: dict[str, str], frame: bytes) -> dict[str, Any]:
    """Check rules SD201 to SD207."""
    need("SD201", b3(frame).hex() == meta["sd.manifest"], "the manifest has another digest")
    digits = meta["sd.manifest_size"]
    small = len(digits) <= MAX_INT_DIGITS and int(digits) <= MAX_MANIFEST
    need("SD202", small, "the manifest is too large")
    manifest: dict[str, Any] = parse(unframe("SD202", frame, int(digits)), "SD203", "SD203")
    need("SD204", fits(manifest, MANIFEST_FORM), "a key is unknown, missing or has a wrong form")
    for key in ("base", "target", "content", "invertible", "nnz", "profile", "version"):
        fact = manifest[key] if isinstance(manifest[key], str) else canonical(manifest[key])
        need("SD205", fact == meta[f"sd.{key}"], f"header and manifest differ in {key}")
    need("SD206", not manifest["must_understand"], f"unknown {manifest['must_understand']}")
    touched, untouched = [r["name"] for r in manifest["tensors"]], manifest["untouched"]
    names = touched + untouched
    need("SD207", len(names) <= MAX_NAMES, "too many names")
    for name in names:
        plain = 1 <= len(name.encode()) <= MAX_NAME and not re.search("[\0-\x1f\x7f-\x9f]", name)
        need("SD207", plain, f"invalid name {name!r}")
    for group in (touched, untouched, sorted(names)):
        need("SD207", all(a < b for a, b in pairwise(group)), "names not unique and ascending")
    return manifest


def read_layouts(manifest: dict[str, Any]) -> list[list[Layout]]:
    """Check rules SD208 to SD212; return the parts of each record."""
    records = manifest["tensors"]
    parts = [(record, part) for record in records for part in record["parts"]]
    for r in records:
        known = r["dtype"] in BITS and len(r["shape"]) <= MAX_DIMS
        bits = math.prod(r["shape"]) * BITS[r["dtype"]] if known else 1
        need("SD208", bits % 8 == 0, f"dtype, dimensions or size of {r['name']!r}")
        r["words"] = bits // 8 // word_bytes(r["dtype"])
        need("SD208", r["words"] <= MAX_WORDS, f"{r['name']!r} is too large")
    for r in records:
        need("SD209", [p["op"] for p in r["parts"]] in SEQUENCES, f"the ops of {r['name']!r}")
    for r, p in parts:
        known = all(canonical(p[k]) in map(canonical, c) for k, c in CODECS.items())
        index, value = p["index"]["id"], p["value"]["id"]
        poor = ("packed", "zigzag") if p["op"] == "replace" else ("packed",) * (index == "dense")
        known = known and value not in poor and MIN_BLOCK <= p["block"] <= MAX_BLOCK
        need("SD210", known, f"the codecs or the block of {r['name']!r}")
    for r in records:
        counts = [p["nnz"] for p in r["parts"]]
        need("SD211", min(counts) > 0 and sum(counts) <= r["words"], f"nnz of {r['name']!r}")
    need("SD211", sum(p["nnz"] for _, p in parts) == manifest["nnz"], "the sum of all nnz")
    replaces = any(p["op"] == "replace" for _, p in parts)
    need("SD212", manifest["invertible"] is not replaces, "invertible does not follow from the ops")
    return [[_layout(r, p) for p in r["parts"]] for r in records]
