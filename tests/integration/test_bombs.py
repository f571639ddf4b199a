"""Decompression bombs and other small files that ask for much: a named rule, and little memory.

Every case runs in a process of its own that may not take more address space than a few hundred MiB
above what the imports need. A case that hangs is killed; none is timed.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard
from blake3 import blake3
from checkpoint_files import TIMEOUT, Stored, environment, write_file
from forked_commands import run_code

import sparsedelta

ROOM: Final = 400
"""MiB of address space above the imports, where nothing else is said."""

ROOM_FOR_JSON: Final = 900
"""The same for JSON of 64 to 100 MB that is well-formed: Python's objects take many times that."""

FILE_BLOB: Final = 1 << 27
ZERO: Final = "0" * 64
EMPTY_FINGERPRINT: Final = (
    blake3(struct.pack("<Q", 0), derive_key_context="sparsedelta 1 checkpoint").digest().hex()
)

CHILD: Final = """
import json, resource, sys
import sparsedelta
from sparsedelta import DeltaReader, SparseDeltaError, apply, fingerprint, info, validate
room, name, *paths = sys.argv[1:]
def read(path):
    with DeltaReader(path) as reader:
        reader.read()
def base(path, delta, out):
    apply(path, delta, out, threads=1)
def check(path):
    return [problem.rule for problem in validate(path, threads=1).problems]
def scan(path):
    fingerprint(path, threads=1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + (int(room) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    found = {"read": read, "apply": base, "validate": check, "fingerprint": scan}[name](*paths)
    print(json.dumps(found or ["none"]))
except SparseDeltaError as error:
    print(json.dumps([getattr(error, "rule", None) or error.code]))
"""


def child(name: str, *paths: Path, room: int = ROOM) -> list[str]:
    """Run an operation with little memory; return the codes that it names."""
    done = run_code(CHILD, room, name, *paths, env=environment(), timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


# --- Files made by hand ---


def canonical(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def b3(data: bytes) -> str:
    return blake3(data).hexdigest()


def manifest_of(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 (JSON)
    """The manifest of the delta of nothing between empty checkpoints, with changes."""
    return {
        "base": EMPTY_FINGERPRINT,
        "target": EMPTY_FINGERPRINT,
        "blobs": [],
        "content": ZERO,
        "files": [],
        "invertible": True,
        "layout": None,
        "lean": False,
        "metadata": {},
        "must_understand": [],
        "nnz": 0,
        "profile": "portable",
        "set": None,
        "tables": ZERO,
        "tensors": [],
        "untouched": [],
        "version": "1.0",
    } | changes


def content_of_nothing() -> str:
    """The content digest of no records between two empty checkpoints."""
    ends = bytes.fromhex(EMPTY_FINGERPRINT * 2)
    data = ends + struct.pack("<Q", 0)
    return blake3(data, derive_key_context="sparsedelta 1 content").hexdigest()


def write(
    path: Path,
    manifest: dict[str, Any] | bytes,
    *,
    tables: bytes = b"",
    data: bytes = b"",
    frame: bytes | None = None,
    size: int | str | None = None,
) -> Path:
    """A delta file.

    Args:
        path: The file.
        manifest: The manifest, or its text.
        tables: The tables.
        data: The data.
        frame: What stands for the manifest; None: its text, compressed.
        size: What the header says of its length; None: the truth.
    """
    if isinstance(manifest, dict):
        manifest["tables"] = b3(tables)
        facts = manifest
        text = canonical(manifest)
    else:
        facts, text = manifest_of(), manifest
    if frame is None:
        frame = min(text, zstandard.compress(text, 1), key=len)
    meta = {
        "format": "sparsedelta",
        "sd.base": facts["base"],
        "sd.target": facts["target"],
        "sd.content": facts["content"],
        "sd.invertible": json.dumps(facts["invertible"]),
        "sd.manifest": b3(frame),
        "sd.manifest_size": str(len(text) if size is None else size),
        "sd.nnz": str(facts["nnz"]),
        "sd.profile": "portable",
        "sd.version": "1.0",
    }
    if facts["set"] is not None:
        meta |= {"sd.set_id": facts["set"]["id"], "sd.part": str(facts["set"]["part"])}
    header: dict[str, Any] = {"__metadata__": meta}
    offset = 0
    for key, part in (("sd.manifest", frame), ("sd.tables", tables), ("sd.data", data)):
        end = offset + len(part)
        header[key] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [offset, end]}
        offset = end
    head = canonical(header)
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + frame + tables + data)
    return path


@functools.cache
def zeros(size: int) -> bytes:
    """A Zstandard frame of zeros, made without taking their memory at once."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    piece = bytes(1 << 20)
    parts = [compressor.compress(piece) for _ in range(size >> 20)]
    parts.append(compressor.compress(bytes(size & ((1 << 20) - 1))))
    return b"".join((*parts, compressor.flush()))


def lying(frame: bytes, size: int) -> bytes:
    """The frame with another content size in its header, of 8 bytes."""
    blocks = zstandard.frame_header_size(frame)
    # Descriptor: content size in 8 bytes, a window byte, no checksum, no dictionary.
    return frame[:4] + b"\xc0" + b"\x50" + struct.pack("<Q", size) + frame[blocks:]


def record(
    words: int, part: dict[str, Any], *, base: bool = True, name: str = "w"
) -> dict[str, Any]:
    """A record of a tensor of bytes with one part."""
    end = {"dtype": "U8", "shape": [words]}
    return {
        "name": name,
        "from": None,
        "base": end if base else None,
        "target": end,
        "parts": [part],
    }


def coded(
    op: str, nnz: int, index: str, value: str, size: int, *, block: int = 24
) -> dict[str, Any]:
    return {
        "op": op,
        "nnz": nnz,
        "block": block,
        "index": {"id": index},
        "value": {"id": value},
        "bytes": size,
    }


def row(count: int, *frames: tuple[bytes, int]) -> bytes:
    cells = [
        struct.pack("<II", len(frame), decoded) + blake3(frame).digest()[:8]
        for frame, decoded in frames
    ]
    return struct.pack("<I", count) + b"".join(cells)


def tensor_fingerprint(name: str, shape: tuple[int, ...], segments: list[bytes]) -> str:
    """The fingerprint of a checkpoint of one tensor of bytes."""
    text = b"\2\0\0\0U8" + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    text += struct.pack("<Q", len(segments)) + b"".join(segments)
    leaf = blake3(text, derive_key_context="sparsedelta 1 tensor").digest()
    own = struct.pack("<QI", 1, len(name)) + name.encode() + leaf
    return blake3(own, derive_key_context="sparsedelta 1 checkpoint").hexdigest()


# --- Manifests ---


def manifest_of_zeros(path: Path) -> None:
    write(path, b"", frame=zeros(1 << 26), size=1 << 26)


def manifest_that_is_larger_than_allowed(path: Path) -> None:
    write(path, b"", frame=zeros(1 << 28), size=1 << 28)


def manifest_of_a_length_of_many_digits(path: Path) -> None:
    write(path, manifest_of(), size="9" * 30_000)


def manifest_that_decodes_to_more_than_declared(path: Path) -> None:
    write(path, b"", frame=lying(zeros(1 << 29), 1 << 20), size=1 << 20)


def manifest_with_a_huge_window(path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    stream = compressor.compressobj(size=1 << 26)
    frame = b"".join([stream.compress(bytes(1 << 26)), stream.flush()])
    # The library writes a window no larger than the content: say that it is of 2^30 bytes.
    blocks = zstandard.frame_header_size(frame)
    frame = frame[:4] + b"\xc0" + bytes([20 << 3]) + struct.pack("<Q", 1 << 26) + frame[blocks:]
    write(path, b"", frame=frame, size=1 << 26)


def manifest_of_brackets(path: Path) -> None:
    write(path, b"[" * (1 << 26))


def manifest_of_a_huge_number(path: Path) -> None:
    write(path, b"9" * (1 << 26))


def header_of_brackets(path: Path) -> None:
    text = b'{"a":' + b"[" * 32_760 + b"]" * 32_760 + b"}"
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)


MANIFESTS: Final[dict[Callable[[Path], None], str]] = {
    manifest_of_zeros: "SD203",
    manifest_that_is_larger_than_allowed: "SD202",
    manifest_of_a_length_of_many_digits: "SD202",
    manifest_that_decodes_to_more_than_declared: "SD202",
    manifest_with_a_huge_window: "SD202",
    manifest_of_brackets: "SD203",
    manifest_of_a_huge_number: "SD203",
    header_of_brackets: "SD103",
}


# --- Many names, many problems ---


def names_beyond_the_limit(path: Path) -> None:
    write(path, manifest_of(untouched=[f"{k:07}" for k in range((1 << 20) + 1)]))


def names_all_alike(path: Path) -> None:
    """Each of them is a problem of its own: they must not all be kept."""
    write(path, manifest_of(untouched=["a"] * 1_200_000))


def records_of_null(path: Path) -> None:
    write(path, manifest_of(tensors=[None] * 1_200_000))


def blobs_of_null(path: Path) -> None:
    write(path, manifest_of(blobs=[None] * 1_200_000))


def records_without_ends(path: Path) -> None:
    one: dict[str, Any] = {"name": "", "from": None, "base": None, "target": None, "parts": []}
    write(path, manifest_of(tensors=[one] * 100_000))


def features_by_the_million(path: Path) -> None:
    write(path, manifest_of(must_understand=["x@1.1"] * 1_200_000))


def part_files_beyond_the_limit(path: Path) -> None:
    entry = {"name": "a", "size": 1, "manifest": ZERO}
    place = {"id": ZERO, "part": 0, "parts": [entry] * 100_000}
    write(path, manifest_of(set=place))


def carried_files_all_alike(path: Path) -> None:
    entry = {"name": "a", "base": None, "target": None}
    write(path, manifest_of(files=[entry] * 100_000))


NAMES: Final[dict[Callable[[Path], None], str]] = {
    names_beyond_the_limit: "SD207",
    names_all_alike: "SD207",
    records_of_null: "SD204",
    blobs_of_null: "SD204",
    records_without_ends: "SD207",
    features_by_the_million: "SD206",
    part_files_beyond_the_limit: "SD216",
    carried_files_all_alike: "SD215",
}


# --- Tables and streams ---


def tensor_of_2_to_the_48(path: Path) -> None:
    write(
        path, manifest_of(tensors=[record(1 << 48, coded("difference", 1, "raw", "raw", 5))], nnz=1)
    )


def tensor_of_more(path: Path) -> None:
    write(
        path,
        manifest_of(
            tensors=[record((1 << 48) + 1, coded("difference", 1, "raw", "raw", 5))], nnz=1
        ),
    )


def copies_of_2_to_the_48(path: Path) -> None:
    """Bare parts cost nothing in the manifest, and their digests would fill any disk."""
    records = [
        record(1 << 48, {"op": "new", "from": "w"}, base=False, name=f"{k:05}")
        for k in range(20_000)
    ]
    write(path, manifest_of(tensors=records, lean=True))


def dimensions_without_end(path: Path) -> None:
    end = {"dtype": "U8", "shape": [2**53 - 1] * 500_000}
    whole = record(1, coded("difference", 1, "raw", "raw", 5)) | {"base": end, "target": end}
    write(path, manifest_of(tensors=[whole], nnz=1))


def dimensions_of_zero_and_much(path: Path) -> None:
    end = {"dtype": "U8", "shape": [0] + [2**53 - 1] * 63}
    write(
        path,
        manifest_of(
            tensors=[record(1, {"op": "drop"}) | {"base": end, "target": None}], invertible=False
        ),
    )


def count_of_2_to_the_32(path: Path) -> None:
    part = coded("difference", 2**32 - 1, "gap8", "planes", 3, block=24)
    tables = bytes(64) + row(2**32 - 1, (b"a", 1), (b"bc", 2**32 - 1))
    write(
        path,
        manifest_of(tensors=[record(1 << 22, part | {"nnz": 1 << 20})], nnz=1 << 20),
        tables=tables,
        data=b"abc",
    )


def decoded_length_of_2_to_the_32(path: Path) -> None:
    part = coded("difference", 5, "gap8", "planes", 3, block=24)
    tables = bytes(64) + row(5, (b"a", 2**32 - 1), (b"bc", 5))
    write(path, manifest_of(tensors=[record(1 << 22, part)], nnz=5), tables=tables, data=b"abc")


def _whole_tensor(path: Path, frame: bytes, words: int) -> None:
    """A new tensor whose blocks of 2^24 bytes all have the same frame."""
    blocks = words >> 24
    segments = [bytes(32)] * (words >> 22)
    part = coded("new", words, "dense", "planes", blocks * len(frame))
    tables = b"".join(segments) + row(1 << 24, (frame, 1 << 24)) * blocks
    target = tensor_fingerprint("w", (words,), segments)
    write(
        path,
        manifest_of(tensors=[record(words, part, base=False)], target=target),
        tables=tables,
        data=frame * blocks,
    )


def stream_that_decodes_to_more_than_declared(path: Path) -> None:
    _whole_tensor(path, lying(zeros(1 << 29), 1 << 24), 1 << 24)


def stream_that_decodes_to_less_than_declared(path: Path) -> None:
    _whole_tensor(path, lying(zeros(1 << 10), 1 << 24), 1 << 24)


def work_beyond_the_budget(path: Path) -> None:
    """A file of some megabytes that asks for more than 2^36 bytes of decoding."""
    _whole_tensor(path, zeros(1 << 24), (1 << 36) + (1 << 24))


TABLES: Final[dict[Callable[[Path], None], str]] = {
    tensor_of_2_to_the_48: "SD301",
    tensor_of_more: "SD208",
    copies_of_2_to_the_48: "SD301",
    dimensions_without_end: "SD208",
    dimensions_of_zero_and_much: "SD306",
    count_of_2_to_the_32: "SD303",
    decoded_length_of_2_to_the_32: "SD304",
    stream_that_decodes_to_more_than_declared: "SD402",
    stream_that_decodes_to_less_than_declared: "SD402",
    work_beyond_the_budget: "SD504",
}


# --- Blobs ---


def _blobs(path: Path, frames: list[tuple[bytes, int]], **changes: Any) -> None:  # noqa: ANN401
    known: dict[bytes, str] = {}
    blobs = [
        {"bytes": len(frame), "size": size, "digest": known.setdefault(frame, b3(frame))}
        for frame, size in frames
    ]
    data = b"".join(frame for frame, _ in frames)
    manifest = manifest_of(blobs=blobs, content=content_of_nothing(), **changes)
    write(path, manifest, data=data)


def _carried(blob: int, size: int, name: str = "config.json") -> dict[str, Any]:
    return {"name": name, "base": None, "target": {"blob": blob, "digest": ZERO, "size": size}}


def blob_that_decodes_to_more_than_declared(path: Path) -> None:
    _blobs(path, [(lying(zeros(1 << 29), 1 << 20), 1 << 20)])


def blobs_of_2_to_the_27(path: Path) -> None:
    """As much as the format allows: read one by one."""
    _blobs(path, [(zeros(FILE_BLOB), FILE_BLOB)] * 8, files=[_carried(7, FILE_BLOB)])


def blob_of_more(path: Path) -> None:
    _blobs(path, [(zeros(FILE_BLOB + 1), FILE_BLOB + 1)])


def blobs_of_more_together(path: Path) -> None:
    _blobs(path, [(zeros(FILE_BLOB), FILE_BLOB)] * 8 + [(b"a", 1)])


def blobs_beyond_the_limit(path: Path) -> None:
    _blobs(path, [(b"", 0)] * ((1 << 16) + 1))


def blobs_up_to_the_limit(path: Path) -> None:
    """Where each of them lies must not be counted up from the first again and again."""
    _blobs(path, [(b"a", 1)] * (1 << 16), files=[_carried(0, 1)])


def _layout(headers: list[int]) -> dict[str, Any]:
    files = [
        {"name": f"{k:06}.safetensors", "header": header, "sha256": None}
        for k, header in enumerate(headers)
    ]
    return {"base": None, "target": {"files": files, "index": None}}


def header_of_zeros(path: Path) -> None:
    _blobs(path, [(zeros(FILE_BLOB), FILE_BLOB)], layout=_layout([0]))


def _header_of_spaces() -> bytes:
    length = (1 << 26) - 8
    return struct.pack("<Q", length) + b"{}".ljust(length)


def one_header_of_many_files(path: Path) -> None:
    """A header without tensors may be that of many files, up to what an end may have."""
    frame = zstandard.compress(_header_of_spaces(), 1)
    bad = {"base": None, "target": {"blob": 1, "digest": ZERO, "size": 1}}
    _blobs(
        path,
        [(frame, 1 << 26), (b"a", 1)],
        layout=_layout([0] * 15),
        files=[{"name": "a", **bad}],
    )


def one_content_of_many_files(path: Path) -> None:
    frame = zeros(FILE_BLOB)
    end = {"blob": 0, "digest": b3(bytes(FILE_BLOB)), "size": FILE_BLOB}
    files = [{"name": f"{k:05}", "base": None, "target": end} for k in range(7)]
    files.append({"name": "x", "base": None, "target": end | {"digest": ZERO}})
    _blobs(path, [(frame, FILE_BLOB)], files=files)


BLOBS: Final[dict[Callable[[Path], None], str]] = {
    blob_that_decodes_to_more_than_declared: "SD414",
    blobs_of_2_to_the_27: "SD416",
    blob_of_more: "SD213",
    blobs_of_more_together: "SD213",
    blobs_beyond_the_limit: "SD213",
    blobs_up_to_the_limit: "SD416",
    header_of_zeros: "SD415",
    one_header_of_many_files: "SD416",
    one_content_of_many_files: "SD416",
}

CASES: Final = MANIFESTS | NAMES | TABLES | BLOBS
LARGE: Final = {
    *(manifest_of_zeros, manifest_of_brackets, manifest_of_a_huge_number),
    *(names_beyond_the_limit, part_files_beyond_the_limit),
    *(copies_of_2_to_the_48, one_header_of_many_files, one_content_of_many_files),
    *(header_of_zeros, dimensions_without_end),
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_bomb_is_named_by_its_rule_within_little_memory(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "delta")
    assert (tmp_path / "delta").stat().st_size < 1 << 23, "a bomb is a small file"
    room = ROOM_FOR_JSON if make in LARGE else ROOM
    assert child("validate", tmp_path / "delta", room=room)[0] == CASES[make]


# --- Other ways in ---


def test_reading_into_memory_has_a_budget_of_memory(tmp_path: Path) -> None:
    """A file of a megabyte that would be 2^34 bytes in memory."""
    _whole_tensor(tmp_path / "delta", zeros(1 << 24), 1 << 34)
    assert child("read", tmp_path / "delta") == ["SD504"]


def test_a_bomb_is_refused_with_a_base_as_well(tmp_path: Path) -> None:
    """Apply looks at the base first, and never at more of the delta than a header can bound."""
    base = write_file(tmp_path / "base", {"w": Stored("U8", (5,), b"12345")})
    for number, (make, rule) in enumerate(MANIFESTS.items()):
        delta = tmp_path / f"delta-{number}"
        make(delta)
        found = child("apply", base, delta, tmp_path / "out", room=ROOM_FOR_JSON)
        assert found in ([rule], ["SD501"]), make.__name__
        assert not (tmp_path / "out").exists()


def empty_checkpoint(path: Path) -> Path:
    return write_file(path / "model.safetensors", {})


@pytest.mark.parametrize(
    "make", [one_content_of_many_files, blob_that_decodes_to_more_than_declared, header_of_zeros]
)
def test_a_bomb_on_its_right_base_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Fingerprints are easily made to fit a base that everyone has."""
    base = empty_checkpoint(tmp_path / "base").parent
    make(tmp_path / "delta")
    found = child("apply", base, tmp_path / "delta", tmp_path / "out", room=ROOM_FOR_JSON)
    unread = make is blob_that_decodes_to_more_than_declared  # nothing refers to that blob
    assert found == (["none"] if unread else [BLOBS[make]])
    assert unread or not (tmp_path / "out").exists()


def test_a_lean_delta_that_copies_from_nowhere_is_refused(tmp_path: Path) -> None:
    """Its tables fit the fingerprints, and nothing but the checkpoint shows that it lies."""
    segments = [bytes(32)]
    target = tensor_fingerprint("m", (3,), segments)
    made = record(3, {"op": "new", "from": "w"}, base=False, name="m")
    manifest = manifest_of(tensors=[made], target=target, lean=True)
    write(tmp_path / "delta", manifest, tables=bytes(64))
    base = empty_checkpoint(tmp_path / "base")
    found = child("apply", base, tmp_path / "delta", tmp_path / "out")
    assert found in (["SD306"], ["SD308"])


# --- Sets ---


def _root(path: Path, count: int, size: int, manifest: str) -> None:
    entries = [
        {"name": f"p{k:05}.safetensors", "size": size, "manifest": manifest} for k in range(count)
    ]
    place = {"id": ZERO, "part": 0, "parts": entries}
    write(path, manifest_of(set=place, content=content_of_nothing()))


@pytest.mark.parametrize(
    ("count", "rule"), [(1 << 16, "SD601"), ((1 << 16) + 1, "SD216"), (0, "SD216")]
)
def test_a_set_of_very_many_parts(tmp_path: Path, count: int, rule: str) -> None:
    _root(tmp_path / "delta", count, 1, ZERO)
    assert child("validate", tmp_path / "delta")[0] == rule


def test_a_set_whose_parts_are_all_one_file(tmp_path: Path) -> None:
    """Links to one small file stand for as many parts as a set may have."""
    target = record(1, coded("difference", 1, "raw", "raw", 5, block=8))
    place = {"id": ZERO, "part": 1, "parts": []}
    part = write(tmp_path / "p00000.safetensors", manifest_of(tensors=[target], nnz=1, set=place))
    for number in range(1, 3000):
        (tmp_path / f"p{number:05}.safetensors").hardlink_to(part)
    meta = sparsedelta.DeltaReader(part).header.metadata
    _root(tmp_path / "delta", 3000, part.stat().st_size, meta["sd.manifest"])
    assert child("validate", tmp_path / "delta") == ["SD602"]


def test_a_set_of_more_parts_than_files_can_be_open_is_an_error(tmp_path: Path) -> None:
    """A true set, and a process that may not open so many."""
    tensors = {f"w{k:03}": Stored("U8", (300,), bytes(300)) for k in range(150)}
    changed = {name: Stored("U8", (300,), b"\1" * 300) for name in tensors}
    base = write_file(tmp_path / "base", tensors)
    target = write_file(tmp_path / "target", changed)
    sparsedelta.diff(base, target, tmp_path / "d.safetensors", max_shard_size=1)
    assert len(list(tmp_path.glob("d-*.safetensors"))) == 150
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    done = run_code(
        code + "from sparsedelta.cli import main; main()",
        *("validate", tmp_path / "d.safetensors"),
        env=environment(),
        timeout=TIMEOUT,
    )
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert "more files than this process may have open" in done.stderr


# --- Checkpoints ---


def checkpoint(path: Path, text: bytes, size: int = 0) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


HEADER: Final = 100_000_000


def test_a_checkpoint_header_of_spaces_is_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "base", b"{}".ljust(HEADER))
    assert child("fingerprint", path) == ["none"]


@pytest.mark.parametrize(
    "text",
    [
        b"[" * HEADER,
        b'{"a":' * (HEADER // 5),
        b'{"' + b"a" * (HEADER - 10) + b'":1}',
        b'{"a":[' + b"0," * (HEADER // 50) + b"0]}",
        b'{"a":' + b"9" * (HEADER - 10) + b"}",
        b"\xff" * HEADER,
        b'{"a":{"dtype":"U8","shape":[281474976710656],"data_offsets":[0,281474976710656]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"9007199254740991," * 100_000 + b'0],"data_offsets":'
        b"[0,0]}}",
        b"{}".ljust(HEADER + 1),
    ],
    ids=[
        "brackets",
        "objects",
        "name",
        "list",
        "number",
        "no text",
        "2^48 words",
        "dimensions",
        "longer than allowed",
    ],
)
def test_a_hostile_header_of_a_checkpoint_is_an_error_of_the_checkpoint(
    text: bytes, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "base", text)
    assert child("fingerprint", path, room=ROOM_FOR_JSON) == ["checkpoint"]


def test_very_many_empty_tensors_have_a_fingerprint(tmp_path: Path) -> None:
    entries = {
        f"{k:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(20_000)
    }
    path = checkpoint(tmp_path / "base", json.dumps(entries).encode())
    assert child("fingerprint", path) == ["none"]


@pytest.mark.parametrize(
    "text", [b"[" * 10_000_000, b'{"weight_map":{' + b'"a":"b",' * 1_000_000 + b'"a":"b"}}', b"{}"]
)
def test_a_hostile_index_is_an_error_of_the_checkpoint(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    assert child("fingerprint", tmp_path, room=ROOM_FOR_JSON) == ["checkpoint"]
