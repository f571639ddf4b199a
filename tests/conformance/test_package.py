"""The package over all vectors: it has to find what the vectors say, and nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import algebra
import decode
import numpy as np
import pytest
import terms
from blake3 import blake3

import sparsedelta
from sparsedelta.delta import SPARSE_OPS, Delta, Part, TensorDelta
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, SparseDeltaError, StructureError, UnsupportedError
from sparsedelta.records import BarePart, TensorRecord
from sparsedelta.safetensors_header import build_layout
from sparsedelta.words import TensorSpec, Words

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
INDEX: dict[str, str] = json.loads((VECTORS / "index.json").read_text())
NAMES = sorted(n.removesuffix(".expected.json") for n in INDEX if n.endswith(".expected.json"))
VALID = [name for name in NAMES if name.startswith("valid/")]
INVALID = [name for name in NAMES if name.startswith("invalid/")]


def file_of(name: str) -> Path:
    """The delta of a vector: a file, or the root of a set in a folder of its own."""
    folder = VECTORS / name
    if folder.is_dir():
        return folder / f"{folder.name}.safetensors"
    return VECTORS / f"{name}.safetensors"


def expected_of(name: str) -> Any:  # noqa: ANN401 (any JSON value)
    return json.loads((VECTORS / f"{name}.expected.json").read_text())


READ = [name for name in INVALID if expected_of(name)["kind"] == "read"]
APPLY = [name for name in INVALID if expected_of(name)["kind"] != "read"]


def check_part(part: Part, expected: dict[str, Any]) -> None:
    """Compare a part of the package with that of an expected.json."""
    assert part.op == expected["op"]
    assert part.reference == expected.get("from", expected.get("to"))
    if "nnz" not in expected:
        assert part.words is None
        return
    assert part.words is not None
    assert part.words.dtype.kind == "u"
    assert part.words.size == expected["nnz"]
    if part.indices is not None:
        assert part.indices.dtype == np.int64
    if part.op == "add":
        assert part.dtype == expected["dtype"]
        assert struct.pack(">d", part.scale).hex() == expected["scale"]
    little = part.words.astype(part.words.dtype.newbyteorder("<"))
    digits = 2 * part.words.dtype.itemsize
    if "words" in expected:
        assert [f"{word:0{digits}x}" for word in part.words.tolist()] == expected["words"]
    else:
        assert blake3(little.tobytes()).hexdigest() == expected["words_b3"]
    if part.indices is not None and "indices" in expected:
        assert part.indices.tolist() == expected["indices"]
    elif part.indices is not None:
        assert blake3(part.indices.astype("<u8").tobytes()).hexdigest() == expected["indices_b3"]


def check_end(spec: TensorSpec | None, expected: dict[str, Any] | None) -> None:
    """Compare a tensor at one end."""
    if expected is None or spec is None:
        assert spec is None
        assert expected is None
        return
    assert (spec.dtype, list(spec.shape)) == (expected["dtype"], expected["shape"])


def bytes_of(description: dict[str, Any]) -> bytes:
    """The bytes that an expected.json describes."""
    if "hex" in description:
        return bytes.fromhex(description["hex"])
    return bytes.fromhex(description["repeat"]) * int(description["times"])


def base_words(name: str) -> dict[str, Words]:
    """The words of all tensors of the base of a vector."""
    return {
        t["name"]: np.frombuffer(bytes_of(t["bytes"]), f"<u{terms.word_bytes(t['dtype'])}")
        for t in expected_of(name)["base_tensors"]
    }


def read_part(
    reader: DeltaReader, record: TensorRecord, number: int, base: dict[str, Words]
) -> Part:
    """A part in memory, block by block, with the words that it is applied to."""
    part = record.parts[number]
    if isinstance(part, BarePart):
        return Part(part.op, None, None, part.reference)
    copies = [p.reference for p in record.parts[:number] if p.op == "new" and p.reference]
    source = copies[0] if copies else record.base and record.base.name
    size, found = 1 << part.block_log2, []
    for k in range(part.block_count(record.domain(number))):
        old = base[source][k * size : (k + 1) * size] if source in base else None
        indices, words = reader.read_block(record, number, k, base=old)
        found.append((indices + k * size, words))
    words = np.concatenate([words for _, words in found])
    if part.op not in SPARSE_OPS:
        return Part(part.op, None, words)
    indices = np.concatenate([indices for indices, _ in found])
    return Part(part.op, indices, words, None, part.dtype, part.scale)


def read(name: str) -> Delta:
    """A vector in memory; with its base, if some entries cannot be read without."""
    with DeltaReader(file_of(name)) as reader:
        if not reader.needs_base:
            return reader.read()
        with pytest.raises(StructureError, match="base"):
            reader.read()
        base, manifest = base_words(name), reader.manifest
        tensors = {}
        for record in manifest.tensors:
            parts = [read_part(reader, record, k, base) for k in range(len(record.parts))]
            tensors[record.name] = TensorDelta(record.base, record.target, tuple(parts))
        return Delta(manifest.base, manifest.target, tensors, manifest.metadata)


@pytest.mark.parametrize("name", VALID)
def test_package_reads_valid_vector(name: str) -> None:
    expected = expected_of(name)
    delta = read(name)
    with DeltaReader(file_of(name)) as reader:
        assert reader.manifest.lean == expected["lean"]
        assert list(reader.manifest.untouched) == expected["untouched"]
        assert reader.manifest.invertible == expected["invertible"]
        if not reader.needs_base:  # in memory, entries are entries
            assert delta.invertible == expected["invertible"]
    for key in ("base", "target", "content", "nnz"):
        assert getattr(delta, key) == expected[key]
    assert list(delta.tensors) == [record["name"] for record in expected["tensors"]]
    for record in expected["tensors"]:
        tensor = delta.tensors[record["name"]]
        check_end(tensor.base, record["base"])
        check_end(tensor.target, record["target"])
        if tensor.base is not None:
            assert tensor.base.name == record["from"] or record["name"]
        for part, wanted in zip(tensor.parts, record["parts"], strict=True):
            check_part(part, wanted)
    if delta.invertible:
        back = delta.invert()
        assert back.invert() == delta
        assert back.invert().content == delta.content


@pytest.mark.parametrize("name", VALID)
def test_package_finds_no_problem_in_valid_vector(name: str) -> None:
    assert [problem.rule for problem in sparsedelta.validate(file_of(name)).problems] == []


def write_checkpoint(path: Path, tensors: list[dict[str, Any]]) -> Path:
    """A checkpoint of one file in a folder, since that is where carried files can lie."""
    path.mkdir()
    specs = [TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in tensors]
    contents = {t["name"]: bytes_of(t["bytes"]) for t in tensors}
    layout = build_layout(specs, {})
    with (path / "model.safetensors").open("wb") as file:
        file.write(layout.prefix)
        for stored in layout.tensors:
            file.write(contents[stored.spec.name])
    return path


def sha256s(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files of a folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def check_files(folder: Path, expected: dict[str, Any], end: str) -> None:
    """Compare the files of a result with the layout and the carried files of a vector."""
    recorded = expected.get(f"{end}_files") or {}
    assert sha256s(folder, list(recorded)) == recorded
    if recorded:
        weights = {p.name for p in folder.iterdir() if ".safetensors" in p.name}
        assert {n for n in weights if n.endswith((".safetensors", ".json"))} == set(recorded)
    for file in expected["files"]:
        wanted = file[end]
        if wanted is None:
            assert not (folder / file["name"]).exists()
        elif wanted["blob"] is not None:
            content = (folder / file["name"]).read_bytes()
            assert blake3(content).hexdigest() == wanted["digest"]


def is_one_checkpoint(folder: Path) -> bool:
    """A layout may have several files and no index: a reader must be told which are meant."""
    names = [path.name for path in folder.iterdir()]
    files = [name for name in names if name.endswith(".safetensors")]
    return len(files) == 1 or any(name.endswith(".index.json") for name in names)


@pytest.mark.parametrize("name", VALID)
def test_package_applies_and_reverts_valid_vector(name: str, tmp_path: Path) -> None:
    expected = expected_of(name)
    base = write_checkpoint(tmp_path / "base", expected["base_tensors"])
    delta, out = file_of(name), tmp_path / "out"
    assert sparsedelta.fingerprint(base).fingerprint == expected["base"]
    report = sparsedelta.apply(base, delta, out)
    assert report.fingerprint == expected["target"]
    check_files(out, expected, "target")
    if is_one_checkpoint(out):
        found = sparsedelta.fingerprint(out)
        assert found.fingerprint == expected["target"]
        assert {n: d.hex() for n, d in found.tensors.items()} == expected["target_tensors"]
        if expected["invertible"]:
            sparsedelta.revert(out, delta, tmp_path / "back")
            check_files(tmp_path / "back", expected, "base")
            if is_one_checkpoint(tmp_path / "back"):
                assert sparsedelta.fingerprint(tmp_path / "back").fingerprint == expected["base"]
    assert sparsedelta.validate(delta, base=base).ok


@pytest.mark.parametrize("name", VALID)
def test_package_writes_what_it_has_read(name: str, tmp_path: Path) -> None:
    """From the parts in memory and the base follows a delta of the same content."""
    base = write_checkpoint(tmp_path / "base", expected_of(name)["base_tensors"])
    delta = read(name)
    out = tmp_path / "out.safetensors"
    manifest = sparsedelta.write_delta(base, delta.tensors.values(), out)
    assert manifest.content == delta.content
    assert sparsedelta.validate(out, base=base).ok


@pytest.mark.parametrize("name", READ)
def test_package_refuses_invalid_vector(name: str) -> None:
    """Reading into memory stops at the first rule that is broken, but for those of blobs."""
    rule = expected_of(name)["rule"]
    beside, ranks = rule in ("SD414", "SD415", "SD416"), name.startswith("invalid/sd402-ranked")
    if beside or ranks or rule == "SD417":
        # What lies beside the tensors is read by who needs it, and ranks by who has the base;
        # validate reads all.
        return
    with pytest.raises(FormatError) as caught, DeltaReader(file_of(name)) as reader:
        reader.read()
    assert caught.value.rule == rule
    assert isinstance(caught.value, UnsupportedError) or rule not in ("SD105", "SD206")


@pytest.mark.parametrize("name", READ)
def test_package_reports_the_rule_of_invalid_vector(name: str) -> None:
    problems = sparsedelta.validate(file_of(name)).problems
    assert problems
    assert problems[0].rule == expected_of(name)["rule"]


@pytest.mark.parametrize("name", APPLY)
def test_package_refuses_to_follow_invalid_vector(name: str, tmp_path: Path) -> None:
    expected = expected_of(name)
    source = write_checkpoint(tmp_path / "source", expected["tensors"])
    operation = getattr(sparsedelta, expected["kind"])
    with pytest.raises(SparseDeltaError) as caught:
        operation(source, file_of(name), tmp_path / "out")
    assert getattr(caught.value, "rule", None) == expected["rule"]
    assert not (tmp_path / "out").exists()


# --- Inverse and squash against the reference (spec/algebra.md) ---

INVERTIBLE = [name for name in VALID if expected_of(name)["invertible"]]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_inverse_is_that_of_the_reference(name: str, tmp_path: Path) -> None:
    """Of a part file alone there is none: only whole deltas are inverted."""
    delta = decode.decode(file_of(name))
    manifest = sparsedelta.invert(file_of(name), tmp_path / "inverse").manifest
    content, records = algebra.inverse(delta)
    assert manifest.content == content
    assert [record.name for record in manifest.tensors] == [record.name for record in records]
    # What the package wrote is a delta by the reference's rules, and leads back.
    again = decode.decode(tmp_path / "inverse")
    assert again.content == content
    assert algebra.inverse(again)[0] == delta.content
    expected = expected_of(name)
    base = write_checkpoint(tmp_path / "base", expected["base_tensors"])
    sparsedelta.apply(base, file_of(name), tmp_path / "target")
    if not is_one_checkpoint(tmp_path / "target"):
        return  # a layout may have files that are no checkpoint without an index
    sparsedelta.apply(tmp_path / "target", tmp_path / "inverse", tmp_path / "back")
    if is_one_checkpoint(tmp_path / "back"):
        assert str(sparsedelta.fingerprint(tmp_path / "back")) == delta.base


@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_delta_and_its_inverse_come_to_nothing(name: str, tmp_path: Path) -> None:
    """Section 4: what is at the end what it was is untouched."""
    sparsedelta.invert(file_of(name), tmp_path / "inverse")
    for pair in ((file_of(name), tmp_path / "inverse"), (tmp_path / "inverse", file_of(name))):
        manifest = sparsedelta.squash(pair, tmp_path / "nothing", force=True).manifest
        assert manifest.tensors == ()
        assert manifest.content == terms.content_digest(manifest.base, manifest.base, ())


def test_entries_are_squashed_as_by_the_reference(tmp_path: Path) -> None:
    """Many deltas of both ops over one tensor: every entry is the one of section 3."""
    rng = np.random.default_rng(0)
    spec = TensorSpec("w", "BF16", (600,))
    words = rng.integers(0, 4, 600).astype(np.uint16)
    (tmp_path / "base0").write_bytes(_file(words))
    chain = []
    for number in range(6):
        order = rng.permutation(600)
        changed, replaced = np.sort(order[:150]), np.sort(order[150:220])
        parts = (
            Part("difference", changed, rng.choice(np.array([1, 65535], np.uint16), 150)),
            Part("replace", replaced, rng.integers(0, 4, 70).astype(np.uint16)),
        )
        chain.append(parts)
        base, out = tmp_path / f"base{number}", tmp_path / f"d{number}"
        sparsedelta.write_delta(base, [TensorDelta(spec, spec, parts)], out)
        sparsedelta.apply(base, out, tmp_path / f"base{number + 1}")
    sparsedelta.squash([tmp_path / f"d{number}" for number in (4, 1, 0, 5, 3, 2)], tmp_path / "s")
    plain = [[terms.Part(p.op, *p.entries) for p in parts] for parts in chain]
    expected = defaultdict(list)
    for index, (op, value) in sorted(algebra.squash(plain).items()):
        expected[op].append((index, value))
    (record,) = decode.decode(tmp_path / "s").records
    assert {
        part.op: list(zip(part.indices.tolist(), part.words.tolist(), strict=True))
        for part in record.parts
        if part.words is not None
    } == expected
    sparsedelta.apply(tmp_path / "base0", tmp_path / "s", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "base6").read_bytes()


def _file(words: Words) -> bytes:
    header = b'{"w":{"dtype":"BF16","shape":[600],"data_offsets":[0,1200]}}'
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + words.tobytes()
