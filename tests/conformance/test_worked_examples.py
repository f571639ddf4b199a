"""The worked examples of the spec, read out of its pages, so that these cannot drift."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_codecs import (
    INDEX_STREAMS,
    Coded,
    index_lengths,
    lengths_fit,
    read_values,
    value_lengths,
)
from block_codecs import read_index as read_places
from decode import decode
from ranked import entries_of, read_ranked
from ranked_encoder import Plan, encode_ranked
from stream_encoder import encode_index, encode_value
from streams import read_block
from terms import Array, Tensors, b3, fingerprint, text, typed

SPEC = Path(__file__).resolve().parents[2] / "spec"
PAGES = {  # how many examples: two for each codec, and `raw` is two codecs
    "gap8": 2,
    "gap8-split": 2,
    "bitmask": 2,
    "range": 2,
    "dense": 2,
    "raw": 4,
    "packed": 2,
    "zigzag": 2,
    "planes": 2,
    "ranked": 2,
}
KEYS = {"index", "value", "op", "block", "word", "width", "k", "indices", "values"}
RANKED_KEYS = {"dtype", "first", "rows", "base", "classes"}  # of `ranked` only
Fields = list[tuple[str, str]]


def blocks(page: Path, kind: str) -> list[Fields]:
    """The fields of each fenced block of a kind: key and value, without comments."""
    found = re.findall(
        rf"^```{kind}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    fields = []
    for block in found:
        lines = [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]
        pairs = [line.partition(":") for line in lines if line]
        assert all(colon for _, colon, _ in pairs)
        fields.append([(key, value.strip()) for key, _, value in pairs])
    return fields


def joined(fields: Fields) -> dict[str, str]:
    """Fields as a dictionary; lines with the same key continue each other."""
    out: dict[str, str] = {}
    for key, value in fields:
        out[key] = f"{out.get(key, '')} {value}".strip()
    return out


def examples(names: Iterable[str]) -> list[Any]:
    """The examples of some pages."""
    return [
        pytest.param(joined(fields), id=f"{name}-{number}")
        for name in names
        for number, fields in enumerate(blocks(SPEC / "codecs" / f"{name}.md", "worked-example"))
    ]


EXAMPLES = examples(name for name in PAGES if name != "ranked")
FINGERPRINTS = blocks(SPEC / "fingerprints.md", "worked-fingerprint")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_two_examples(name: str) -> None:
    assert len(blocks(SPEC / "codecs" / f"{name}.md", "worked-example")) >= PAGES[name]


def test_every_page_is_read() -> None:
    found = {path.stem for path in (SPEC / "codecs").iterdir()}
    assert found == {*PAGES, "README"}


@pytest.mark.parametrize("example", EXAMPLES)
def test_worked_example(example: dict[str, str]) -> None:
    """Both ways: the reference reads the streams, and the generator's encoder writes them."""
    assert {key for key in example if not key.isupper()} <= KEYS
    streams = [bytes.fromhex(value) for key, value in example.items() if key.isupper()]
    arrays = [np.frombuffer(stream, np.uint8) for stream in streams]
    index, value = example.get("index", "gap8"), example.get("value", "zigzag")
    n, width = int(example.get("block", "0")), int(example.get("word", "2"))
    p, op = int(example.get("width", "0")), example.get("op", "difference")
    indices = [int(i) for i in example.get("indices", "").split()]
    words = [int(word, 16) for word in example.get("values", "").split()]
    k = int(example.get("k", "0"))
    count = len(indices) or len(words)
    part = Coded(op, index, value, p, n, width, count, 24, 0)
    counts, sizes, lengths = (np.array(row) for row in ([count], [n], [list(map(len, streams))]))

    if "index" in example and "value" in example:
        found: tuple[Array, Array] = read_block(part, arrays, n, count)
        assert (found[0].tolist(), found[1].tolist()) == (indices, words)
        entries = dict(zip(indices, words, strict=True))
        run = range(n) if index == "dense" else range(indices[0], indices[-1] + 1)
        filled = [entries.get(i, 0) for i in run] if index in ("dense", "range") else words
        encoded = encode_index(index, indices, n, k) + encode_value(value, filled, width, p)
        assert encoded == streams
        assert lengths_fit(part, counts, sizes, lengths)
        return
    if "index" in example:
        assert len(streams) == INDEX_STREAMS[index]
        assert read_places(part, arrays, n, count)[0].tolist() == indices
        assert encode_index(index, indices, n, k) == streams
        limits = index_lengths(part, counts, sizes)
    else:
        assert read_values(part, arrays, count).tolist() == words
        assert encode_value(value, words, width, p) == streams
        limits = value_lengths(part, counts)
    for length, (low, high, unit) in zip(lengths[0], limits, strict=True):
        assert low[0] <= length <= high[0]
        assert length % unit == 0


@pytest.mark.parametrize("example", examples(["ranked"]))
def test_worked_example_with_a_base(example: dict[str, str]) -> None:
    """Both ways, field by field: the names of the fields are those of the generator's encoder."""
    assert {key for key in example if not key.isupper()} <= KEYS | RANKED_KEYS
    fields = {key: bytes.fromhex(value) for key, value in example.items() if key.isupper()}
    dtype, first, n = example["dtype"], int(example["first"]), int(example["block"])
    base = np.array([int(word, 16) for word in example["base"].split()], "<u2")
    indices = [int(i) for i in example["indices"].split()]
    words = [int(word, 16) for word in example["values"].split()]
    assert base.size == n
    stream = b"".join(fields.values())
    found = entries_of(read_ranked(stream, n, first, len(indices), dtype), base, dtype)
    assert (found[0].tolist(), found[1].tolist()) == (indices, words)
    low, high, index, value = zip(
        *(map(int, each.split()) for each in example["classes"].split(",")), strict=True
    )
    plan = Plan(tuple(zip(low, high, index, value, strict=True)), int(example.get("rows", "0")))
    entries = dict(zip(indices, words, strict=True))
    assert encode_ranked(entries, base.tolist(), first, dtype, plan) == fields
    part = Coded("difference", "ranked", "ranked", 0, n, 2, len(indices), 24, 0, tensor=dtype)
    counts, sizes, lengths = (np.array(row) for row in ([len(indices)], [n], [[len(stream)]]))
    assert lengths_fit(part, counts, sizes, lengths)


def test_there_are_three_worked_fingerprints() -> None:
    assert len(FINGERPRINTS) == 3


@pytest.mark.parametrize("fields", FINGERPRINTS)
def test_worked_fingerprint(fields: Fields) -> None:
    """Every digest is that of the bytes above it, and the bytes are those of section 4."""
    tensors: Tensors = {}
    leaves: list[tuple[str, bytes]] = []
    for start in [i for i, (key, _) in enumerate(fields) if key == "tensor"]:
        end = next(i for i in range(start, len(fields)) if fields[i][0] == "tensor digest")
        tensor = joined(fields[start + 1 : end + 1])
        name, dtype, shape = json.loads(fields[start][1])
        data = bytes.fromhex(tensor["bytes"])
        segments = [bytes.fromhex(v) for k, v in tensor.items() if k == "segment digest"]
        assert segments == [b3(data, "segment")] * bool(data)
        count = len(segments).to_bytes(8, "little")
        hashed = typed(dtype, tuple(shape)) + count + b"".join(segments)
        assert bytes.fromhex(tensor["tensor input"]) == hashed
        assert tensor["tensor digest"] == b3(hashed, "tensor").hex()
        tensors[name] = (dtype, tuple(shape), data)
        leaves.append((name, bytes.fromhex(tensor["tensor digest"])))
    whole = joined(fields)
    hashed = len(leaves).to_bytes(8, "little")
    hashed += b"".join(text(name) + digest for name, digest in leaves)
    assert bytes.fromhex(whole["checkpoint input"]) == hashed
    assert whole["fingerprint"] == b3(hashed, "checkpoint").hex()
    assert whole["fingerprint"] == fingerprint(tensors)


def test_worked_content_digest() -> None:
    """The digests are those of the bytes above them, and of the vector that is named."""
    (fields,) = blocks(SPEC / "fingerprints.md", "worked-content")
    whole = joined(fields)
    delta = decode(SPEC / "vectors" / "valid" / f"{whole['vector']}.safetensors")
    ((part,),) = [record.parts for record in delta.records]
    assert part.words is not None
    for name, array in (("indices", part.indices.astype("<u8")), ("words", part.words)):
        hashed = bytes.fromhex(whole[f"{name} input"])
        assert hashed == array.tobytes()
        assert whole[f"{name} digest"] == b3(hashed, name).hex()
        assert whole[f"{name} digest"] in whole["content input"]
    assert whole["content digest"] == b3(bytes.fromhex(whole["content input"]), "content").hex()
    assert whole["content digest"] == delta.content
