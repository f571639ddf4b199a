"""The worked examples of the spec, read out of its pages, so that these cannot drift."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from streams import read_index, read_values
from structure import Layout, stream_limits
from terms import Tensors, b3, fingerprint, text, typed
from vector_encoder import encode_index, encode_value

SPEC = Path(__file__).resolve().parents[2] / "spec"
PAGES = ("gap8", "bitmask", "dense", "packed", "zigzag", "planes")
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


EXAMPLES = [
    pytest.param(joined(fields), id=f"{name}-{number}")
    for name in PAGES
    for number, fields in enumerate(blocks(SPEC / "codecs" / f"{name}.md", "worked-example"))
]
FINGERPRINTS = blocks(SPEC / "fingerprints.md", "worked-fingerprint")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_two_examples(name: str) -> None:
    assert len(blocks(SPEC / "codecs" / f"{name}.md", "worked-example")) >= 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_worked_example(example: dict[str, str]) -> None:
    """Both ways: the reference reads the streams, and the generator's encoder writes them."""
    streams = [bytes.fromhex(value) for key, value in example.items() if key.isupper()]
    index, value = example.get("index", "gap8"), example.get("value", "zigzag")
    n, width = int(example.get("block", "0")), int(example.get("word", "2"))
    p, op = int(example.get("width", "0")), example.get("op", "difference")
    indices = [int(i) for i in example.get("indices", "").split()]
    words = [int(word, 16) for word in example.get("values", "").split()]
    part = Layout(op, index, value, p, n, width, len(indices), 24, 0)
    lengths = [len(stream) for stream in streams]

    if index == "dense":
        entries = dict(zip(indices, words, strict=True))
        every = [entries.get(i, 0) for i in range(n)]
        assert read_index(part, streams, n, len(indices)).tolist() == indices
        assert read_values(part, streams, n).tolist() == every
        assert encode_value(value, every, width, p) == streams
        count, stream_slice = len(indices), slice(0, None)
    elif "index" in example:
        count, stream_slice = len(indices), slice(0, 1)
        assert read_index(part, streams, n, count).tolist() == indices
        assert encode_index(index, indices, n) == streams
    else:
        count, stream_slice = len(words), slice(1, None)
        assert read_values(part, streams, count).tolist() == words
        assert encode_value(value, words, width, p) == streams
    limits = stream_limits(part, np.array([count]), np.array([n]))[stream_slice]
    for length, (low, high, unit) in zip(lengths, limits, strict=True):
        assert low[0] <= length <= high[0]
        assert length % unit == 0


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
