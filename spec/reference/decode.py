"""An independent reader of the sparsedelta format 0.1, to check other readers against.

It follows SPEC.md rule by rule and holds everything in memory: made to be read, not to be fast.
`python decode.py FILE` prints the delta as JSON, or the first broken rule on stderr (exit 3).
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import zstandard
from blake3 import blake3

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

MAX_HEADER, MAX_MANIFEST, MAX_WINDOW, MAX_WORDS = 65_528, 2**27, 2**27, 2**48
MAX_NAMES, MAX_NAME, MAX_DIMS, MAX_DEPTH, MAX_INT, MAX_DIGITS = 2**20, 1024, 64, 8, 2**53 - 1, 16
MIN_BLOCK, MAX_BLOCK, SEGMENT, PADDING, ESCAPE, LISTED = 8, 24, 2**22, 7, 255, 64
WORK = 2**31  # bytes; below the 2^36 of a streaming reader, since all of it is held in memory

BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | dict.fromkeys(
    ("U16", "I16", "F16", "BF16"), 16
)
BITS |= dict.fromkeys(("U32", "I32", "F32"), 32) | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)

# A form is a type, a pattern, [the form of the items], {key: form}, or ({key: form}, the form of
# all other values).
HEX, NUMBER, SECTIONS = "[0-9a-f]{64}", "0|[1-9][0-9]*", ("sd.manifest", "sd.tables", "sd.data")
SECTION: Any = {"dtype": "U8", "shape": [int], "data_offsets": [int]}
HEADER: Any = dict.fromkeys(("sd.base", "sd.target", "sd.content", "sd.manifest"), HEX)
HEADER |= {"sd.profile": "portable", "sd.invertible": "true|false"}
HEADER |= {"sd.nnz": NUMBER, "sd.manifest_size": NUMBER}
PART: Any = {"op": str, "nnz": int, "block": int, "bytes": int}
PART |= {"index": ({"id": str}, object), "value": ({"id": str}, object)}
RECORD: Any = {"name": str, "dtype": str, "shape": [int], "parts": [PART]}
MANIFEST: Any = {"base": HEX, "target": HEX, "content": HEX, "invertible": bool, "nnz": int}
MANIFEST |= {"metadata": ({}, str), "must_understand": [str], "profile": "portable"}
MANIFEST |= {"tables": HEX, "tensors": [RECORD], "untouched": [str], "version": r"0\.1"}
INDEX_CODECS: list[Any] = [{"id": "gap8"}, {"id": "bitmask"}, {"id": "dense"}]
VALUE_CODECS: list[Any] = [{"id": "zigzag"}, {"id": "planes"}]
VALUE_CODECS += [{"id": "packed", "width": width} for width in (0, 1, 2, 4, 8)]


class RuleError(Exception):
    """The first rule of section 9 that a file or an operation breaks."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Part:
    """Entries of a tensor under one operation: ascending u64 indices, and words of W bytes."""

    op: str
    indices: Array
    words: Array


@dataclass(frozen=True)
class Tensor:
    """A touched tensor."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Decoded:
    """A delta all of whose rules have been checked."""

    base: str
    target: str
    content: str
    invertible: bool
    nnz: int
    tensors: dict[str, Tensor]


@dataclass
class Layout:
    """A part as the manifest describes it: n words of W bytes in blocks of 2^block words."""

    op: str
    index: str
    value: str
    p: int
    n: int
    W: int
    nnz: int
    block: int
    bytes: int

    def __post_init__(self) -> None:
        """Derive the type and number of the rows of the block table."""
        streams = (self.index != "dense") + {"packed": 3, "zigzag": 2}.get(self.value, self.W)
        stream = [("encoded", "<u4"), ("decoded", "<u4"), ("checksum", "V8")]
        self.row: np.dtype[Any] = np.dtype([("count", "<u4"), ("streams", stream, (streams,))])
        self.blocks, self.rows = -(-self.n >> self.block), np.empty(0, self.row)

    def sizes(self) -> Array:
        """The words of each block; call it once the length of the tables is checked."""
        starts = np.arange(self.blocks) << self.block
        return cast("Array", np.minimum(self.n - starts, 1 << self.block))


def need(code: str, ok: object, message: str) -> None:
    """Raise the code of a rule unless it holds."""
    if not ok:
        raise RuleError(code, message)


# --- Digests (sections 4 and 8) and operations (sections 5 and 7) ---


def b3(data: bytes, context: str | None = None) -> bytes:
    """BLAKE3 of data, in derive-key mode if there is a context."""
    if context is None:
        return blake3(data).digest()
    return blake3(data, derive_key_context=f"sparsedelta 1 {context}").digest()


def text(string: str) -> bytes:
    """A string as it is hashed: its length in bytes, then its UTF-8 bytes."""
    return struct.pack("<I", len(string.encode())) + string.encode()


def typed(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A dtype and a shape as they are hashed."""
    return text(dtype) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)


def word_bytes(dtype: str) -> int:
    """The width of a word; a packed sub-byte dtype is a sequence of bytes."""
    return max(1, BITS[dtype] // 8)


def segment_digests(dtype: str, data: bytes) -> list[bytes]:
    """The digests of the runs of 2^22 words."""
    step = SEGMENT * word_bytes(dtype)
    return [b3(data[at : at + step], "segment") for at in range(0, len(data), step)]


def tensor_digest(dtype: str, shape: tuple[int, ...], segments: list[bytes]) -> bytes:
    """The digest of a tensor, from those of its segments."""
    length = struct.pack("<Q", len(segments))
    return b3(typed(dtype, shape) + length + b"".join(segments), "tensor")


def fingerprint_of(digests: list[tuple[str, bytes]]) -> str:
    """The fingerprint of a checkpoint, from the names and digests of its tensors."""
    rows = b"".join(text(name) + digest for name, digest in sorted(digests))
    return b3(struct.pack("<Q", len(digests)) + rows, "checkpoint").hex()


def fingerprint(tensors: Tensors) -> str:
    """The fingerprint of a checkpoint given as {name: (dtype, shape, bytes)}."""
    return fingerprint_of(
        [(k, tensor_digest(d, s, segment_digests(d, b))) for k, (d, s, b) in tensors.items()]
    )


def content_digest(base: str, target: str, tensors: dict[str, Tensor]) -> str:
    """The identity of a delta, whatever its encoding."""
    out = bytearray(bytes.fromhex(base + target) + struct.pack("<Q", len(tensors)))
    for name, t in tensors.items():
        out += text(name) + typed(t.dtype, t.shape) + struct.pack("<I", len(t.parts))
        for part in t.parts:
            out += text(part.op) + struct.pack("<Q", len(part.indices))
            out += b3(part.indices.astype("<u8").tobytes(), "indices")
            out += b3(part.words.tobytes(), "words")
    return b3(bytes(out), "content").hex()


def apply(tensors: Tensors, delta: Decoded, *, back: bool = False) -> Tensors:
    """Lead a checkpoint from base to target, or back; unchanged if it is already there."""
    need("SD503", delta.invertible or not back, "a delta with replaced words has no inverse")
    start, goal = (delta.target, delta.base) if back else (delta.base, delta.target)
    found, result = fingerprint(tensors), dict(tensors)
    need("SD501", found in (start, goal), f"the checkpoint is {found}, not {start}")
    if found == goal:
        return result
    for name, tensor in delta.tensors.items():
        dtype, shape, data = tensors[name]
        words = np.frombuffer(data, f"<u{word_bytes(dtype)}").copy()
        for part in tensor.parts:
            old = 0 if part.op == "replace" else words[part.indices]
            words[part.indices] = old - part.words if back else old + part.words
        result[name] = dtype, shape, words.tobytes()
    need("SD502", fingerprint(result) == goal, "the result is another checkpoint")
    return result


def revert(tensors: Tensors, delta: Decoded) -> Tensors:
    """Lead a checkpoint from target to base."""
    return apply(tensors, delta, back=True)


# --- JSON (3.2) and frames (3.1) ---


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


def parse(data: bytes, malformed: str, uncanonical: str) -> Any:  # noqa: ANN401 - any JSON
    """Parse canonical JSON; the codes are for what is not JSON and for what is not canonical."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        need(malformed, len(dict(pairs)) == len(pairs), "duplicate key")
        return dict(pairs)

    def integer(digits: str) -> int:  # -1 is not canonical either; int() refuses 4301 digits
        return int(digits) if len(digits) <= MAX_DIGITS else -1

    try:  # float("x") refuses the NaN and Infinity that Python would take
        string = data.decode()
        value = json.loads(
            string, object_pairs_hook=unique, parse_int=integer, parse_constant=lambda _: float("x")
        )
    except ValueError as error:
        raise RuleError(malformed, f"not strict JSON: {error}") from error
    except RecursionError as error:
        raise RuleError(uncanonical, "JSON much deeper than 8") from error
    if malformed != uncanonical:  # the header: json.loads would take line ends after the object
        need(malformed, isinstance(value, dict) and string[-1] == "}", "not an object and spaces")
    need(uncanonical, plain(value) and canonical(value) == string, "not canonical JSON")
    return value


def fits(value: Any, form: Any) -> bool:  # noqa: ANN401 - any JSON value, any form
    """Whether a JSON value has a form (see `HEADER`)."""
    if isinstance(form, str):
        return isinstance(value, str) and re.fullmatch(form, value) is not None
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if form is None or isinstance(form, type):  # exactly: a bool is no int
        return form is object or type(value) is form
    keys, others = form if isinstance(form, tuple) else (form, None)
    return (
        isinstance(value, dict)
        and keys.keys() <= value.keys()
        and all(fits(item, keys.get(key, others)) for key, item in value.items())
    )


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


# --- The phases of section 9 ---


def read_header(data: bytes) -> tuple[dict[str, str], list[bytes]]:
    """Check SD101 to SD107; return the metadata and the bytes of the three tensors."""
    n = int.from_bytes(data[:8], "little")
    need("SD101", n <= MAX_HEADER and n % 8 == 0 and len(data) >= 8 + n, "no whole header")
    padded, body = data[8 : 8 + n], data[8 + n :]
    header = parse(padded.rstrip(b" "), "SD102", "SD103")
    need("SD103", len(padded) - len(padded.rstrip(b" ")) <= PADDING, "more than 7 spaces")
    meta = header.get("__metadata__")
    need("SD104", fits(meta, ({"format": "sparsedelta"}, str)), "not the metadata of a delta")
    need("SD105", meta.get("sd.version") == "0.1", f"version {meta.get('sd.version')}")
    for key, form in HEADER.items():
        need("SD106", fits(meta.get(key), form), f"{key} is {meta.get(key)}")
    need("SD107", header.keys() == {"__metadata__", *SECTIONS}, "not exactly the three tensors")
    ends = [0]
    for name in SECTIONS:
        info = header[name]
        need("SD107", fits(info, SECTION) and len(info["data_offsets"]) > 1, f"form of {name}")
        ends.append(info["data_offsets"][1])
        need("SD107", info["data_offsets"] == ends[-2:], f"{name} does not follow its predecessor")
        need("SD107", info["shape"] == [ends[-1] - ends[-2]], f"the shape of {name}")
    need("SD107", ends[-1] == len(body), "the tensors do not end with the file")
    return meta, [body[start:end] for start, end in pairwise(ends)]


def read_manifest(meta: dict[str, str], frame: bytes) -> Any:  # noqa: ANN401 - JSON
    """Check SD201 to SD207."""
    need("SD201", b3(frame).hex() == meta["sd.manifest"], "the digest of the manifest")
    digits = meta["sd.manifest_size"]
    size = int(digits) if len(digits) <= MAX_DIGITS else MAX_INT
    need("SD202", size <= MAX_MANIFEST, "the manifest is too large")
    manifest = parse(unframe("SD202", frame, size), "SD203", "SD203")
    need("SD204", fits(manifest, MANIFEST), "a key is unknown or missing, or a value's form wrong")
    for key in ("base", "target", "content", "invertible", "nnz", "profile", "version"):
        fact = manifest[key] if isinstance(manifest[key], str) else canonical(manifest[key])
        need("SD205", fact == meta[f"sd.{key}"], f"header and manifest differ in {key}")
    need("SD206", not manifest["must_understand"], f"unknown: {manifest['must_understand']}")
    touched, untouched = [r["name"] for r in manifest["tensors"]], manifest["untouched"]
    need("SD207", len(touched) + len(untouched) <= MAX_NAMES, "too many names")
    for name in touched + untouched:
        valid = 1 <= len(name.encode()) <= MAX_NAME and not re.search("[\0-\x1f\x7f-\x9f]", name)
        need("SD207", valid, f"invalid name {name!r}")
    for names in (touched, untouched, sorted(touched + untouched)):
        need("SD207", all(a < b for a, b in pairwise(names)), "names not unique and ascending")
    return manifest


def read_layouts(manifest: Any) -> list[list[Layout]]:  # noqa: ANN401 - JSON
    """Check SD208 to SD212; return the parts of each record."""
    records, words = manifest["tensors"], []
    layouts: list[list[Layout]] = []
    for r in records:
        known = r["dtype"] in BITS and len(r["shape"]) <= MAX_DIMS
        bits = math.prod(r["shape"]) * BITS[r["dtype"]] if known else 1
        words.append(bits // 8 // word_bytes(r["dtype"]) if bits % 8 == 0 else MAX_WORDS + 1)
        need("SD208", words[-1] <= MAX_WORDS, f"dtype, dimensions or size of {r['name']}")
    for r in records:
        ops = [part["op"] for part in r["parts"]]
        allowed = (["difference"], ["replace"], ["difference", "replace"])
        need("SD209", ops in allowed, f"the ops of {r['name']}: {ops}")
    for r, n in zip(records, words, strict=True):
        layouts.append([])
        for part in r["parts"]:
            op, index, value = part["op"], part["index"], part["value"]
            # As texts, since 1 == True.
            ok = canonical(index) in map(canonical, INDEX_CODECS)
            ok &= canonical(value) in map(canonical, VALUE_CODECS)
            ok &= op != "replace" or value["id"] == "planes"
            ok &= (index["id"], value["id"]) != ("dense", "packed")
            ok &= MIN_BLOCK <= part["block"] <= MAX_BLOCK
            need("SD210", ok, f"the codecs or the block of {r['name']}")
            width, rest = word_bytes(r["dtype"]), (part["nnz"], part["block"], part["bytes"])
            p = value.get("width", 0)
            layouts[-1].append(Layout(op, index["id"], value["id"], p, n, width, *rest))
    for r, n, parts in zip(records, words, layouts, strict=True):
        counts = [part.nnz for part in parts]
        need("SD211", min(counts) > 0 and sum(counts) <= n, f"the nnz of {r['name']}")
    flat = [part for parts in layouts for part in parts]
    need("SD211", sum(part.nnz for part in flat) == manifest["nnz"], "the sum of all nnz")
    replaces = any(part.op == "replace" for part in flat)
    need("SD212", manifest["invertible"] is not replaces, "invertible, or not, against its parts")
    return layouts


def stream_limits(part: Layout, count: Array, n: Array) -> list[tuple[Array, Array, int]]:
    """The least and greatest decoded length of each stream, and what it is a multiple of."""
    m, p = (n if part.index == "dense" else count), part.p
    index = {"gap8": [(count, count + n // ESCAPE, 1)], "bitmask": [(-(-n // 8), -(-n // 8), 1)]}
    exceptions = (0 * m, m * part.W, part.W)
    value = {"planes": [(m, m, 1)] * part.W, "zigzag": [(m, m, 1), exceptions]}
    value["packed"] = [(-(-k // 8), -(-k // 8), 1) for k in (m, m * p)] + [exceptions]
    return index.get(part.index, []) + value[part.value]


def read_tables(manifest: Any, layouts: list[list[Layout]], table: bytes, size: int) -> None:  # noqa: ANN401
    """Check SD301 to SD307 for data of some size; fill in the rows of the layouts."""
    untouched, flat = manifest["untouched"], [part for parts in layouts for part in parts]
    segments = [-(-parts[0].n // SEGMENT) for parts in layouts]
    length = 32 * (len(untouched) + 2 * sum(segments))
    length += sum(part.blocks * part.row.itemsize for part in flat)
    need("SD301", len(table) == length, f"tables of {len(table)} bytes, not {length}")
    need("SD302", b3(table).hex() == manifest["tables"], "the digest of the tables")
    take = io.BytesIO(table).read
    old = [(name, take(32)) for name in untouched]
    new, same = list(old), []
    for r, parts, n in zip(manifest["tensors"], layouts, segments, strict=True):
        sides = [[take(32) for _ in range(n)] for _ in range(2)]
        digests = [tensor_digest(r["dtype"], tuple(r["shape"]), side) for side in sides]
        old.append((r["name"], digests[0]))
        new.append((r["name"], digests[1]))
        same += [r["name"]] if sides[0] == sides[1] else []
        for part in parts:
            part.rows = np.frombuffer(take(part.blocks * part.row.itemsize), part.row)
    for part in flat:
        counts = part.rows["count"].astype(np.int64)
        need("SD303", (counts <= part.sizes()).all(), "more entries in a block than words")
        need("SD303", counts.sum() == part.nnz, "the counts do not add up to nnz")
    for part in flat:
        counts, streams = part.rows["count"].astype(np.int64), part.rows["streams"]
        need("SD304", (streams["encoded"] <= streams["decoded"]).all(), "encoded above decoded")
        for k, (low, high, unit) in enumerate(stream_limits(part, counts, part.sizes())):
            decoded = streams["decoded"][:, k].astype(np.int64)
            ok = (low <= decoded) & (decoded <= high) & (decoded % unit == 0)
            need("SD304", np.where(counts, ok, decoded == 0).all(), f"decoded length of stream {k}")
    for part in flat:
        total = part.rows["streams"]["encoded"].sum(dtype=np.int64)
        need("SD305", total == part.bytes, "the encoded lengths do not add up to bytes")
    need("SD305", sum(part.bytes for part in flat) == size, "the parts do not add up to the data")
    need("SD306", fingerprint_of(old) == manifest["base"], "the fingerprint of the base")
    need("SD306", fingerprint_of(new) == manifest["target"], "the fingerprint of the target")
    need("SD307", not same, f"touched and yet the same: {same}")


def read_index(part: Layout, streams: list[bytes], n: int, count: int) -> Array:
    """The indices of a block of n words, from the streams of its index (of its value if dense)."""
    raw = [np.frombuffer(stream, np.uint8) for stream in streams]
    if part.index == "gap8":
        ends = raw[0] != ESCAPE
        places = np.cumsum(raw[0] + ends.astype(np.uint64))
        ok = ends.sum() == count and ends[-1] and places[-1] <= n
        need("SD403", ok, "count, an open gap, or an index outside the block")
        return cast("Array", places[ends] - 1)
    if part.index == "bitmask":
        bits = np.unpackbits(raw[0], bitorder="little")
        need("SD404", bits.sum() == count and not bits[n:].any(), "count or spare bits")
        return np.flatnonzero(bits)
    # A zigzag value is 0 exactly if its symbol is.
    present = np.any(raw[:1] if part.value == "zigzag" else raw, axis=0) | (part.op == "replace")
    need("SD405", present.sum() == count, "a dense block holds another number of entries")
    return np.flatnonzero(present)


def joined(planes: bytes, width: int) -> Array:
    """Words from their byte planes."""
    array = np.frombuffer(planes, np.uint8).reshape(width, len(planes) // width)
    return np.ascontiguousarray(array.T).view(f"<u{width}").ravel()


def read_values(part: Layout, streams: list[bytes], m: int) -> Array:
    """The m words of a block from the streams of its value codec."""
    code, bits, p = ("SD406" if part.value == "packed" else "SD407"), 8 * part.W, part.p
    if part.value == "planes":
        return joined(b"".join(streams), part.W)
    rest = joined(streams[-1], part.W).astype(np.uint64)
    if part.value == "packed":
        sign = np.unpackbits(np.frombuffer(streams[0], np.uint8), bitorder="little")
        mag, top, limit = np.frombuffer(streams[1], np.uint8), 2**p - 1, 2 ** (bits - 1) - 1
        symbols = np.concatenate([mag >> k & top for k in range(0, 8, p)] if p else [sign[:m] * 0])
        need(code, not sign[m:].any() and not symbols[m:].any(), "spare bits")
    else:
        symbols, top, limit = np.frombuffer(streams[0], np.uint8), ESCAPE, 2**bits - 1
    number = symbols[:m].astype(np.uint64)
    need(code, rest.size == (number == top).sum(), "the number of exceptions")
    need(code, rest.size == 0 or int(rest.max()) + top <= limit, "an exception is too large")
    number[number == top] += rest
    if part.value == "packed":  # ~a is -(a + 1)
        need(code, (number + (sign[:m] == 0) <= limit).all(), "a magnitude is too large")
        number = np.where(sign[:m], ~number, number + 1)
    else:
        number = np.where(number & 1, ~(number >> 1), number >> 1)
    return cast("Array", number.astype(f"<u{part.W}"))


def read_part(part: Layout, data: io.BytesIO) -> Part:
    """Check SD401 to SD408, block by block."""
    indices, words = [], []
    for k, (row, size) in enumerate(zip(part.rows, part.sizes(), strict=True)):
        count, n, frames = int(row["count"]), int(size), []
        for stream in row["streams"]:
            frames.append(data.read(int(stream["encoded"])))
            need("SD401", b3(frames[-1])[:8] == stream["checksum"].tobytes(), "a checksum")
        lengths = row["streams"]["decoded"].tolist()
        streams = [unframe("SD402", f, length) for f, length in zip(frames, lengths, strict=True)]
        if count:
            index = read_index(part, streams, n, count)
            if part.index == "dense":
                values = read_values(part, streams, n)[index]
            else:
                values = read_values(part, streams[1:], count)
            need("SD408", part.op == "replace" or values.all(), "a difference of 0")
            indices.append(index.astype(np.uint64) + np.uint64(k << part.block))
            words.append(values)
    return Part(part.op, np.concatenate(indices), np.concatenate(words))


def decode(path: str | Path, work: int = WORK) -> Decoded:
    """Read a delta, checking every rule.

    Raises:
        RuleError: The first rule that is broken, or SD504 for more work than allowed.
    """
    meta, (frame, table, data) = read_header(Path(path).read_bytes())
    manifest = read_manifest(meta, frame)
    layouts = read_layouts(manifest)
    read_tables(manifest, layouts, table, len(data))
    flat = [part for parts in layouts for part in parts]
    cost = sum(int(part.rows["streams"]["decoded"].sum(dtype=np.int64)) for part in flat)
    need("SD504", cost + 16 * manifest["nnz"] <= work, "more work than allowed")
    cursor, tensors = io.BytesIO(data), {}
    for r, layout in zip(manifest["tensors"], layouts, strict=True):
        parts = tuple(read_part(part, cursor) for part in layout)
        tensors[r["name"]] = Tensor(r["dtype"], tuple(r["shape"]), parts)
    for name, tensor in tensors.items():
        every = np.concatenate([part.indices for part in tensor.parts])
        need("SD409", len(np.unique(every)) == len(every), f"the parts of {name} overlap")
    base, target, content = manifest["base"], manifest["target"], manifest["content"]
    need("SD410", content_digest(base, target, tensors) == content, "the content digest")
    return Decoded(base, target, content, manifest["invertible"], manifest["nnz"], tensors)


def describe(delta: Decoded) -> dict[str, Any]:
    """A delta as the JSON of the expected.json files: long lists as their B3."""
    tensors = []
    for name, t in delta.tensors.items():
        parts: list[dict[str, Any]] = []
        for part in t.parts:
            parts.append({"op": part.op, "nnz": len(part.indices)})
            if len(part.indices) <= LISTED:
                digits = 2 * part.words.itemsize
                parts[-1]["indices"] = part.indices.tolist()
                parts[-1]["words"] = [f"{word:0{digits}x}" for word in part.words.tolist()]
            else:
                parts[-1]["indices_b3"] = b3(part.indices.astype("<u8").tobytes()).hex()
                parts[-1]["words_b3"] = b3(part.words.tobytes()).hex()
        tensors.append({"name": name, "dtype": t.dtype, "shape": [*t.shape], "parts": parts})
    return {**vars(delta), "tensors": tensors}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(describe(decode(sys.argv[1])), indent=1) + "\n")
    except RuleError as broken:
        sys.stderr.write(f"{broken}\n")
        sys.exit(3)
