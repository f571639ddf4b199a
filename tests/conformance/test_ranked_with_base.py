"""What only the base shows of a delta: `validate` with it finds that too, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import call
from sections import Sections, rebuilt
from test_package import (
    APPLY,
    READ,
    VALID,
    bytes_of,
    expected_of,
    file_of,
    write_checkpoint,
)

import sparsedelta
from sparsedelta.delta_reader import DeltaReader

FALSE = "5" * 64


def needs_base(name: str) -> bool:
    with DeltaReader(file_of(name)) as reader:
        return reader.needs_base


RANKED = [name for name in VALID if needs_base(name)]
OF_BASE = [
    name
    for name in APPLY
    if expected_of(name)["rule"] in ("SD409", "SD418", "SD501", "SD502") and needs_base(name)
]
BROKEN = [name for name in READ if name.startswith("invalid/sd417-bits-")]


def delta_files(name: str, folder: Path) -> tuple[dict[str, Sections], str]:
    """The files of a vector, taken apart, and the name of the one to be read."""
    path = file_of(name)
    files = sorted(path.parent.iterdir()) if path.stem == path.parent.name else [path]
    folder.mkdir()
    return {file.name: Sections.of(file.read_bytes()) for file in files}, path.name


def lying(name: str, folder: Path, liar: str | None = None) -> Path:
    """A valid vector with a content digest that does not follow from its entries, else whole.

    Args:
        name: The vector.
        folder: Where to write it.
        liar: The file of a set that lies; None: the one to be read.
    """
    sections, root = delta_files(name, folder)
    each = sections[liar or root]
    sections[liar or root] = each.edited(each.copied() | {"content": FALSE}).agreeing()
    for file, content in rebuilt(sections, root).items():
        (folder / file).write_bytes(content)
    return folder / root


def rules(delta: Path, base: Path | None) -> list[str]:
    return [problem.rule for problem in sparsedelta.validate(delta, base=base).problems]


@pytest.mark.parametrize("name", RANKED)
def test_a_false_content_digest_is_found_with_the_base(name: str, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", expected_of(name)["base_tensors"])
    delta = lying(name, tmp_path / "delta")
    without = sparsedelta.validate(delta)
    assert (without.ok, without.base_checked) == (True, False)
    assert without.unread > 0
    report = sparsedelta.validate(delta, base=base)
    assert [problem.rule for problem in report.problems] == ["SD410"]
    assert FALSE in report.problems[0].message
    assert (report.unread, report.base_checked) == (0, False)
    run = call("validate", delta, "--base", base)
    assert (run.code, "SD410" in run.out) == (3, True)
    honest = sparsedelta.validate(file_of(name), base=base)
    assert (honest.ok, honest.unread, honest.base_checked) == (True, 0, True)


def test_so_is_that_of_a_part_file(tmp_path: Path) -> None:
    name = "valid/ranked-set"
    base = write_checkpoint(tmp_path / "base", expected_of(name)["base_tensors"])
    parts = sorted(path.name for path in file_of(name).parent.iterdir() if "part" in path.name)
    for number, part in enumerate(parts):
        delta = lying(name, tmp_path / str(number), part)
        assert rules(delta, base) == ["SD410"]


@pytest.mark.parametrize("name", OF_BASE)
def test_what_breaks_a_rule_on_its_base_is_told(name: str, tmp_path: Path) -> None:
    """Each is valid without: what is wrong shows in the base words."""
    rule = expected_of(name)["rule"]
    assert rules(file_of(name), None) == []
    base = write_checkpoint(tmp_path / "base", expected_of(name)["tensors"])
    report = sparsedelta.validate(file_of(name), base=base)
    assert rule in [problem.rule for problem in report.problems]
    assert not report.base_checked
    assert report.unread == (1 if rule == "SD501" else 0)
    run = call("validate", file_of(name), "--base", base)
    assert (run.code, rule in run.out) == (3, True)


@pytest.mark.parametrize("name", RANKED[:3])
def test_on_another_base_entries_stay_unread(name: str, tmp_path: Path) -> None:
    """Blocks are checked all the same, and a false digest is not told of: nobody knows."""
    tensors = expected_of(name)["base_tensors"]
    with DeltaReader(file_of(name)) as reader:
        touched = [record.name for record in reader.manifest.tensors if record.needs_base]
    other = []
    for each in tensors:
        data = bytes_of(each["bytes"])
        if each["name"] in touched:
            data = bytes([data[0] ^ 1]) + data[1:]
        other.append(each | {"bytes": {"hex": data.hex()}})
    base = write_checkpoint(tmp_path / "base", other)
    report = sparsedelta.validate(lying(name, tmp_path / "delta"), base=base)
    assert [problem.rule for problem in report.problems] == ["SD501"]
    assert (report.unread, report.base_checked) == (len(touched), False)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_blocks_are_told_once_with_a_base(name: str, tmp_path: Path) -> None:
    """Whatever base is given: what is broken needs none."""
    base = write_checkpoint(tmp_path / "base", [])
    found = rules(file_of(name), base)
    assert found == ["SD417", "SD501"]


# --- Work without a base (rule SD504) ---


@pytest.mark.parametrize("threads", [1, 3])
def test_the_budget_counts_what_blocks_decode_to(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, as the tables say: a frame of a block is as that of any other stream."""
    name = file_of("valid/ranked-compressed")
    with DeltaReader(name) as reader:
        needed = sum(file.decoded_bytes for file in reader.files)
        parts = [t.blocks(0) for file in reader.files for t in file.tables.tensors.values()]
    assert needed > sum(int(part.encoded.sum()) for part in parts)
    monkeypatch.setattr(DeltaReader.check_budget, "__defaults__", (needed,))
    assert sparsedelta.validate(name, threads=threads).ok
    monkeypatch.setattr(DeltaReader.check_budget, "__defaults__", (needed - 1,))
    report = sparsedelta.validate(name, threads=threads)
    assert [problem.rule for problem in report.problems] == ["SD504"]
    assert str(needed) in report.problems[0].message


def test_a_base_lifts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "valid/ranked-compressed"
    base = write_checkpoint(tmp_path / "base", expected_of(name)["base_tensors"])
    monkeypatch.setattr(DeltaReader.check_budget, "__defaults__", (1,))
    assert rules(file_of(name), base) == []
