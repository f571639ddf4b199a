"""The strict parser of checkpoint headers: every lie is an error that names file and tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from sparsedelta.errors import CheckpointError
from sparsedelta.files import InputFile
from sparsedelta.safetensors_header import FileLayout, read_layout
from sparsedelta.words import DTYPE_BITS

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file from its header and data: a document or its text, bytes or their number."""

    def write(header: object, data: bytes | int = 0, *, length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        prefix = struct.pack("<Q", len(text) if length is None else length)
        path.write_bytes(prefix + text + (bytes(data) if isinstance(data, int) else data))
        return path

    return write


def layout_of(path: Path) -> FileLayout:
    with InputFile(path) as file:
        return read_layout(file)


def refused(path: Path, *parts: str) -> CheckpointError:
    """The file is refused, in a message of some lines that names it and says these things."""
    with pytest.raises(CheckpointError) as error:
        layout_of(path)
    for part in (str(path), *parts):
        assert part in error.value.message
    assert len(error.value.message) < 2000
    return error.value


def entry(dtype: object, shape: object, start: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


F32 = entry("F32", [2], 0, 8)


# --- what is read ---


def test_a_file_is_read_as_it_stands(write: Write) -> None:
    metadata = {"format": "pt", "é": ""}
    header = {"__metadata__": metadata, "b": entry("I64", [1], 8, 16), "a": F32}
    path = write(header, 16)
    layout = layout_of(path)
    assert layout.prefix == path.read_bytes()[:-16]
    assert layout.metadata == metadata
    assert layout.size == path.stat().st_size
    found = [(str(t.spec), t.spec.name, t.offset) for t in layout.tensors]
    start = len(layout.prefix)
    assert found == [("F32 [2]", "a", start), ("I64 [1]", "b", start + 8)]


def test_tensors_come_in_the_order_of_their_data(write: Write) -> None:
    names = ["z", "b", "y", "a"]
    header = {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}
    path = write(dict(sorted(header.items())), 4)
    assert [tensor.spec.name for tensor in layout_of(path).tensors] == names


def test_a_file_without_tensors_or_metadata_is_a_checkpoint(write: Write) -> None:
    layout = layout_of(write({}))
    assert layout.tensors == ()
    assert layout.metadata == {}


@pytest.mark.parametrize("padding", [0, 1, 7, 8, 1000])
def test_a_header_may_be_padded_with_spaces(write: Write, padding: int) -> None:
    layout = layout_of(write(json.dumps({"a": F32}).encode() + b" " * padding, 8))
    assert layout.prefix.endswith(b"}" + b" " * padding)
    assert len(layout.tensors) == 1


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_of_safetensors_is_read(write: Write, dtype: str) -> None:
    nbytes = 8 * DTYPE_BITS[dtype] // 8
    (tensor,) = layout_of(write({"a": entry(dtype, [2, 4], 0, nbytes)}, nbytes)).tensors
    assert (tensor.spec.dtype, tensor.spec.nbytes) == (dtype, nbytes)


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_the_official_library_agrees_on_the_bytes_of_every_dtype(write: Write, dtype: str) -> None:
    nbytes = 8 * DTYPE_BITS[dtype] // 8
    path = write({"a": entry(dtype, [2, 4], 0, nbytes)}, nbytes)
    assert official(path.read_bytes()) == [("a", dtype, (2, 4))]


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes", "words"),
    [
        ("F4", [2], 1, 1),
        ("F4", [3, 2], 3, 3),
        ("F6_E2M3", [4], 3, 3),
        ("F6_E3M2", [8], 6, 6),
        ("F8_E8M0", [3], 3, 3),
        ("C64", [3], 24, 3),
        ("BOOL", [3], 3, 3),
        ("F32", [], 4, 1),
        ("F4", [0], 0, 0),
        ("F64", [5, 0, 3], 0, 0),
        ("BF16", [1] * 64, 2, 1),
    ],
)
def test_bytes_and_words_follow_from_dtype_and_shape(
    write: Write, dtype: str, shape: list[int], nbytes: int, words: int
) -> None:
    """Sub-byte elements are packed, a scalar is one element, a dimension of 0 leaves none."""
    (tensor,) = layout_of(write({"a": entry(dtype, shape, 0, nbytes)}, nbytes)).tensors
    assert (tensor.spec.nbytes, tensor.spec.words) == (nbytes, words)


@pytest.mark.parametrize(("dtype", "shape"), [("F4", [3]), ("F6_E2M3", [2]), ("F4", [])])
def test_half_a_byte_is_no_tensor(write: Write, dtype: str, shape: list[int]) -> None:
    refused(write({"a": entry(dtype, shape, 0, 1)}, 1), "'a'", "no whole number of bytes")


def test_empty_tensors_may_share_an_offset(write: Write) -> None:
    """With each other, with the tensor that follows, and at the end."""
    header = {
        "z": entry("F32", [0], 0, 0),
        "a": F32,
        "b": entry("F32", [0, 7], 0, 0),
        "y": entry("U8", [0], 8, 8),
        "c": entry("U8", [0], 8, 8),
    }
    layout = layout_of(write(header, 8))
    offsets = {t.spec.name: t.offset - len(layout.prefix) for t in layout.tensors}
    assert offsets == {"z": 0, "b": 0, "a": 0, "y": 8, "c": 8}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "\n", "\x7f", "🧠", "__metadata", "é"])
def test_a_name_is_any_text(write: Write, name: str) -> None:
    """What a delta cannot hold is for the delta to say: a checkpoint has its own rules."""
    (tensor,) = layout_of(write({name: F32}, 8)).tensors
    assert tensor.spec.name == name


def test_names_are_not_normalised(write: Write) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    layout = layout_of(write({composed: F32, decomposed: entry("U8", [1], 8, 9)}, 9))
    assert [tensor.spec.name for tensor in layout.tensors] == [composed, decomposed]


# --- lengths that lie ---


@pytest.mark.parametrize("size", range(8))
def test_a_file_without_room_for_a_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    refused(path, f"{size} bytes")


@pytest.mark.parametrize("length", [39, 100, 1 << 20, 100_000_001, 1 << 62, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_refused(write: Write, length: int) -> None:
    """Before any memory is taken for it."""
    path = write(b'{"a":{"dtype":"U8","shape":[1]}}', b"12345", length=length)
    assert refused(path, str(length)).hint


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_header_cut_short_is_refused(write: Write, length: int) -> None:
    refused(write({"a": F32}, 8, length=length), "no strict JSON")


def test_a_header_that_reaches_into_the_data_is_refused(write: Write) -> None:
    text = json.dumps({"a": F32}).encode()
    refused(write(text, 8, length=len(text) + 8), "no strict JSON")


@pytest.mark.parametrize("change", [-8, -1, 1, 100])
def test_data_of_another_length_is_refused(write: Write, change: int) -> None:
    error = refused(write({"a": F32}, 8 + change), "8 bytes", str(8 + change))
    assert error.hint


def test_data_without_tensors_is_refused(write: Write) -> None:
    refused(write({}, 1), "0 bytes", "1 after")


# --- JSON that lies ---

TEXTS = {
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "an empty text": b"",
    "spaces": b"    ",
    "two documents": b"{}{}",
    "a NUL behind": b"{}\0",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"\xff":1}',
    "a lone surrogate": b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "not a number": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}',
    "a huge integer": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
    "a huge fraction": b'{"a":{"dtype":"U8","shape":[1e9999],"data_offsets":[0,0]}}',
    "deep lists": b"[" * 100_000,
    "deep closed lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a deep shape": b'{"a":{"dtype":"U8","shape":' + b"[" * 9999 + b"]" * 9999 + b"}}",
    "duplicate tensors": b'{"a":'
    + json.dumps(F32).encode()
    + b',"a":'
    + json.dumps(F32).encode()
    + b"}",
    "duplicate metadata": b'{"__metadata__":{},"__metadata__":{}}',
    "duplicate key in metadata": b'{"__metadata__":{"a":"1","a":"2"}}',
    "duplicate key in a tensor": b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],'
    b'"data_offsets":[0,0]}}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_header_that_is_no_strict_json_object_is_refused(write: Write, text: bytes) -> None:
    refused(write(text))


@pytest.mark.parametrize(
    "metadata", [None, [], "pt", {"a": 1}, {"a": None}, {"a": {}}, {"a": True}]
)
def test_metadata_maps_strings_to_strings(write: Write, metadata: object) -> None:
    refused(write({"__metadata__": metadata, "a": F32}, 8), "__metadata__")


# --- entries that lie ---

ENTRIES: dict[str, object] = {
    "null": None,
    "a list": ["F32", [2], [0, 8]],
    "a string": "F32",
    "empty": {},
    "without dtype": {"shape": [2], "data_offsets": [0, 8]},
    "without shape": {"dtype": "F32", "data_offsets": [0, 8]},
    "without offsets": {"dtype": "F32", "shape": [2]},
    "another key": F32 | {"strides": [1]},
    "keys of another case": {"DType": "F32", "shape": [2], "data_offsets": [0, 8]},
    "an unknown dtype": entry("F31", [2], 0, 8),
    "a dtype of another case": entry("f32", [2], 0, 8),
    "a dtype of torch": entry("float32", [2], 0, 8),
    "a dtype that is a number": entry(32, [2], 0, 8),
    "a dtype that is null": entry(None, [2], 0, 8),
    "a dtype that is a list": entry(["F32"], [2], 0, 8),
    "a shape that is a number": entry("F32", 2, 0, 8),
    "a shape that is null": entry("F32", None, 0, 8),
    "a shape that is a string": entry("F32", "2", 0, 8),
    "a shape that is an object": entry("F32", {"2": 2}, 0, 8),
    "a boolean dimension": entry("U8", [True, 8], 0, 8),
    "a negative dimension": entry("F32", [-2], 0, 8),
    "two negative dimensions": entry("F32", [-2, -1], 0, 8),
    "a fractional dimension": entry("F32", [2.0], 0, 8),
    "a dimension in words": entry("F32", ["2"], 0, 8),
    "a null dimension": entry("F32", [None], 0, 8),
    "a nested dimension": entry("F32", [[2]], 0, 8),
    "65 dimensions": entry("F32", [1] * 64 + [2], 0, 8),
    "a million dimensions": entry("F32", [1] * 1_000_000, 0, 4),
    "a dimension of 2^53": entry("F32", [1 << 53, 0], 0, 0),
    "a dimension of 2^64": entry("F32", [1 << 64, 0], 0, 0),
    "more elements than 2^64": entry("F32", [1 << 32, 1 << 32], 0, 0),
    "a product that wraps around": entry("U8", [(1 << 32) + 1, (1 << 32) - 1, 1], 0, 0),
    "elements whose bytes wrap around": entry("F64", [1 << 52, 1 << 9], 0, 0),
    "offsets that are a number": {"dtype": "F32", "shape": [2], "data_offsets": 8},
    "offsets that are null": {"dtype": "F32", "shape": [2], "data_offsets": None},
    "one offset": {"dtype": "F32", "shape": [2], "data_offsets": [8]},
    "three offsets": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]},
    "boolean offsets": entry("U8", [1], False, True),
    "fractional offsets": entry("F32", [2], 0.0, 8.0),
    "negative offsets": entry("F32", [2], -8, 0),
    "offsets in words": entry("F32", [2], "0", "8"),
    "offsets in the wrong order": entry("F32", [2], 8, 0),
    "too few bytes": entry("F32", [2], 0, 7),
    "too many bytes": entry("F32", [1], 0, 8),
    "bytes for an empty tensor": entry("F32", [0], 0, 8),
    "no bytes for a scalar": entry("F32", [], 0, 0),
}


@pytest.mark.parametrize("value", ENTRIES.values(), ids=ENTRIES.keys())
def test_an_entry_that_lies_is_refused_by_name(write: Write, value: object) -> None:
    refused(write({"liar": value}, 8), "'liar'")


def test_a_size_that_does_not_follow_is_told_with_both_numbers(write: Write) -> None:
    refused(write({"a": entry("F32", [2, 3], 0, 8)}, 8), "8 bytes", "24 follow", "F32 [2, 3]")


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ((9, 17), "a hole"),
        ((16, 24), "a hole"),
        ((7, 15), "an overlap"),
        ((0, 8), "an overlap"),
        ((4, 12), "an overlap"),
    ],
)
def test_holes_and_overlaps_are_refused_by_name(
    write: Write, second: tuple[int, int], what: str
) -> None:
    header = {"a": F32, "b": entry("F32", [2], *second)}
    message = refused(write(header, max(second[1], 8)), what).message
    assert "'a'" in message or "'b'" in message


def test_a_hole_at_the_start_is_refused(write: Write) -> None:
    refused(write({"a": entry("F32", [2], 8, 16)}, 16), "'a'", "a hole")


def test_an_empty_tensor_inside_another_is_refused(write: Write) -> None:
    refused(write({"a": F32, "b": entry("U8", [0], 4, 4)}, 8), "'b'")


def test_offsets_behind_the_end_are_refused(write: Write) -> None:
    refused(write({"a": entry("U8", [1 << 40], 0, 1 << 40)}, 8), str(1 << 40))


def test_a_message_is_bounded_whatever_the_header_holds(write: Write) -> None:
    """Names, dtypes and shapes from a stranger do not fill the screen."""
    name = "n" * 100_000
    refused(write({name: entry("F31", [2], 0, 8)}, 8))
    refused(write({name: entry("x" * 100_000, [2], 0, 8)}, 8))
    refused(write({name: entry("F32", [2], 4, 12)}, 12))
    refused(write({name: entry("F32", [10**20] * 64, 0, 8)}, 8))
    refused(write({name: F32, "m": entry("F32", [2], 9, 17)}, 17))


# --- against the official parser ---


def official(data: bytes) -> list[tuple[str, str, tuple[int, ...]]]:
    """What the official library reads, by name."""
    items = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    return sorted((name, item["dtype"], tuple(item["shape"])) for name, item in items)


def ours(path: Path, data: bytes) -> list[tuple[str, str, tuple[int, ...]]] | None:
    """What we read, by name; None if we refuse."""
    path.write_bytes(data)
    try:
        layout = layout_of(path)
    except CheckpointError:
        return None
    for tensor in layout.tensors:
        start = tensor.offset - len(layout.prefix)
        assert 0 <= start <= start + tensor.spec.nbytes <= len(data) - len(layout.prefix)
    return sorted((t.spec.name, t.spec.dtype, t.spec.shape) for t in layout.tensors)


VALID = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("F32", [2, 3], 0, 24),
        "empty": entry("BF16", [0, 4], 24, 24),
        "b": entry("BF16", [3], 24, 30),
        "scalar": entry("U8", [], 30, 31),
        "packed": entry("F4", [2], 31, 32),
    },
    separators=(",", ":"),
).encode()

# What a header is made of: mutations of these kinds often give another valid one.
TOKENS = [
    *(b"0", b"1", b"2", b"9", b"-", b".0", b"e1", b" ", b"\n", b",", b":", b"[", b"]", b"{", b"}"),
    *(b'"', b"\\", b"\\u0061", b"\\ud800", b"\xc3\xa9", b"\xff", b"\0", b"true", b"null", b"-0"),
    *(b"F32", b"BF16", b"F16", b"U8", b'"a":1,', b'"dtype"', b'"shape"', b'"data_offsets"'),
]
tokens = st.sampled_from(TOKENS)


@st.composite
def mutated_headers(draw: st.DrawFn) -> bytes:
    """A valid header with a few spans replaced by tokens or bytes, or by spans of its own."""
    text = bytearray(VALID)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 3)))
        own = draw(st.integers(0, len(text)))
        patch = draw(tokens | st.binary(max_size=2) | st.just(bytes(text[own : own + 12])))
        text[start:end] = patch
    return bytes(text)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "x.safetensors"


def test_the_header_that_is_mutated_is_valid(scratch: Path) -> None:
    data = struct.pack("<Q", len(VALID)) + VALID + bytes(32)
    found = ours(scratch, data)
    assert found is not None
    assert found == official(data)


@given(mutated_headers(), st.integers(0, 64))
def test_a_mutated_header_is_refused_or_read_as_the_official_parser_does(
    scratch: Path, text: bytes, extra: int
) -> None:
    """No header means one thing here and another there, and none ends in another exception."""
    data = struct.pack("<Q", len(text)) + text + bytes(extra if extra > 40 else 32)
    found = ours(scratch, data)
    if found is not None:
        assert found == official(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_read_as_the_official_parser_does(
    scratch: Path, data: bytes
) -> None:
    found = ours(scratch, data)
    if found is not None:
        assert found == official(data)


@given(st.data())
def test_any_valid_file_is_read_as_the_official_parser_does(
    scratch: Path, data: st.DataObject
) -> None:
    """The strictness costs no valid file."""
    header: dict[str, Any] = {}
    names = data.draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=5)
    )
    offset = 0
    for name in names:
        if name == "__metadata__":
            continue
        dtype = data.draw(st.sampled_from(sorted(DTYPE_BITS)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        bits = math.prod(shape) * DTYPE_BITS[dtype]
        if bits % 8:
            shape, bits = [*shape, 4], 4 * bits
        header[name] = entry(dtype, shape, offset, offset + bits // 8)
        offset += bits // 8
    text = json.dumps(header, ensure_ascii=data.draw(st.booleans())).encode()
    text += b" " * data.draw(st.integers(0, 9))
    content = struct.pack("<Q", len(text)) + text + bytes(offset)
    found = ours(scratch, content)
    assert found == official(content)


def test_the_official_parser_refuses_too(write: Write) -> None:
    """The comparison above compares: the official parser is not one that takes anything."""
    with pytest.raises(SafetensorError):
        official(write({"a": F32}, 7).read_bytes())
