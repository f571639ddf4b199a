"""Small files beside the weights: what a delta carries, and what it may never touch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    base_tensors,
    call,
    failed,
    hint_of,
    split,
    succeeded,
    tree,
    tuned,
    write_file,
    write_shards,
)

import sparsedelta
from sparsedelta import DeltaReader, FormatError, UsageError
from sparsedelta.attachments import CarriedEnd, CarriedFile
from sparsedelta.limits import MAX_COMPANION_BYTES
from sparsedelta.writer import DeltaWriter

Files = Mapping[str, bytes]

INDEX = "model.safetensors.index.json"
SAME = {"tokenizer.json": b"{}", "LICENSE": b"free"}


def checkpoint(folder: Path, files: Files, *, is_base: bool, sharded: bool = False) -> Path:
    """A checkpoint in a folder, with files beside its weights."""
    tensors = base_tensors() if is_base else tuned(base_tensors())
    if sharded:
        write_shards(folder, *split(tensors, [FROZEN, BIAS], [TUNED, HALF]))
    else:
        write_file(folder / "model.safetensors", tensors)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


class Ends:
    """A base and a target with files, the delta between them, and where to write."""

    def __init__(self, folder: Path, old: Files, new: Files, *, sharded: bool = False) -> None:
        self.base = checkpoint(folder / "base", old, is_base=True, sharded=sharded)
        self.target = checkpoint(folder / "target", new, is_base=False, sharded=sharded)
        self.delta = folder / "d"
        self.out = folder / "out"
        self.back = folder / "back"

    def diff(self, *, lean: bool = False, forget: bool = False) -> tuple[str, ...]:
        """Write the delta; return its notes."""
        report = sparsedelta.diff(
            self.base, self.target, self.delta, with_files=True, lean=lean, forget=forget
        )
        assert sparsedelta.validate(self.delta, base=self.base).problems == ()
        return report.notes


CASES: dict[str, tuple[Files, Files]] = {
    "changed": ({"config.json": b"old"}, {"config.json": b"new"}),
    "added": ({}, {"chat_template.jinja": b"{{ x }}"}),
    "removed": ({"generation_config.json": b"{}"}, {}),
    "emptied": ({"config.json": b"old"}, {"config.json": b""}),
    "filled": ({"config.json": b""}, {"config.json": b"new"}),
    "empty and new": ({}, {"empty": b""}),
    "binary": ({"a.model": bytes(range(256))}, {"a.model": bytes(range(255, -1, -1))}),
    "large": ({"vocab.txt": b"word\n" * 100_000}, {"vocab.txt": os.urandom(300_000)}),
    "exchanged": ({"a": b"1", "b": b"2"}, {"a": b"2", "b": b"1"}),
    "many": (
        {f"f{n}": b"%d" % n for n in range(40)},
        {f"f{n}": b"%d" % (n % 7) for n in range(60)},
    ),
    "all alike": ({f"f{n}": b"x" for n in range(9)}, {f"f{n}": b"y" for n in range(9)}),
    "none": ({}, {}),
}


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("case", CASES)
def test_folders_come_back_whole_in_both_directions(
    tmp_path: Path, case: str, *, sharded: bool
) -> None:
    old, new = CASES[case]
    ends = Ends(tmp_path, {**SAME, **old}, {**SAME, **new}, sharded=sharded)
    assert ends.diff() == ()
    there = sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)
    back = sparsedelta.revert(ends.target, ends.delta, ends.back)
    assert tree(ends.back) == tree(ends.base)
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    assert set(sparsedelta.info(ends.delta).files) == changed
    assert set(there.files) == changed & set(new)
    assert set(back.files) == changed & set(old)


def test_files_that_are_equal_are_not_carried(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {**SAME, "config.json": b"1"}, {**SAME, "config.json": b"2"})
    ends.diff()
    with DeltaReader(ends.delta) as reader:
        (file,) = reader.manifest.attachments.files
    assert file.name == "config.json"


def test_equal_contents_are_stored_once(tmp_path: Path) -> None:
    content = os.urandom(50_000)
    ends = Ends(tmp_path, {}, {f"f{n}": content for n in range(10)})
    ends.diff()
    assert ends.delta.stat().st_size < 2 * len(content)


def test_carried_files_are_no_part_of_the_identity(tmp_path: Path) -> None:
    """Sections 3.7 and 8: neither of fingerprints nor of the content digest."""
    ends = Ends(tmp_path, {"c": b"1"}, {"c": b"2"})
    ends.diff()
    without = sparsedelta.diff(ends.base, ends.target, tmp_path / "e").manifest
    with_files = sparsedelta.info(ends.delta)
    assert (with_files.base, with_files.target) == (without.base, without.target)
    assert with_files.content == without.content
    assert sparsedelta.info(tmp_path / "e").files == ()


def test_files_alone_make_a_delta(tmp_path: Path) -> None:
    """Equal weights, another configuration: nothing is touched, and yet there is something."""
    base = checkpoint(tmp_path / "base", {"config.json": b"1"}, is_base=True)
    target = checkpoint(tmp_path / "target", {"config.json": b"2"}, is_base=True)
    sparsedelta.diff(base, target, tmp_path / "d", with_files=True)
    sparsedelta.apply(base, tmp_path / "d", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)
    sparsedelta.revert(target, tmp_path / "d", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)


def test_a_set_carries_files_in_its_root(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {"c": b"1"}, {"c": b"2"})
    sparsedelta.diff(ends.base, ends.target, ends.delta, with_files=True, max_shard_size=1)
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)


# --- choices ---


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_no_files_leaves_them_as_they_are_in_the_source(tmp_path: Path, verb: str) -> None:
    ends = Ends(tmp_path, {"c": b"1", "gone": b"g"}, {"c": b"2", "new": b"n"})
    ends.diff()
    source = ends.base if verb == "apply" else ends.target
    run = succeeded(call(verb, source, ends.delta, "-o", ends.out, "--no-files"))
    assert "from the delta" not in run.err
    kept = {name: data for name, data in tree(source).items() if name != "model.safetensors"}
    found = tree(ends.out)
    other = ends.target if verb == "apply" else ends.base
    assert found.pop("model.safetensors") == (other / "model.safetensors").read_bytes()
    assert found == kept


def test_the_command_says_which_files_it_writes(tmp_path: Path) -> None:
    """Configuration can name code: who applies a stranger's delta should see it."""
    ends = Ends(tmp_path, {"gone": b"g"}, {"config.json": b"2", "modeling_x.py": b"import os"})
    ends.diff()
    run = succeeded(call("apply", ends.base, ends.delta, "-o", ends.out))
    assert "note: wrote from the delta: config.json, modeling_x.py" in run.err
    document = succeeded(
        call("apply", ends.base, ends.delta, "-o", ends.back, "--json", "-q")
    ).document
    assert document["files"] == ["config.json", "modeling_x.py"]


def test_without_the_option_nothing_is_carried(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {"c": b"1"}, {"c": b"2"})
    sparsedelta.diff(ends.base, ends.target, ends.delta)
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert (ends.out / "c").read_bytes() == b"1"


def test_forget_carries_only_what_apply_needs(tmp_path: Path) -> None:
    secret = os.urandom(1000).hex().encode()
    ends = Ends(tmp_path, {"c": secret, "gone": secret[::-1]}, {"c": b"2", "new": b"n"})
    ends.diff(forget=True)
    assert secret[:200] not in ends.delta.read_bytes()
    with DeltaReader(ends.delta) as reader:
        carried = {file.name: file for file in reader.manifest.attachments.files}
    for name in ("c", "gone"):
        old = carried[name].base
        assert old is not None
        assert (old.blob, old.size) == (None, 2000)
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)


@pytest.mark.parametrize("which", ["base", "target"])
def test_single_files_have_nothing_beside_them(tmp_path: Path, which: str) -> None:
    ends = Ends(tmp_path, {}, {})
    base = ends.base / "model.safetensors" if which == "base" else ends.base
    target = ends.target / "model.safetensors" if which == "target" else ends.target
    message = failed(call("diff", base, target, "-o", ends.delta, "--with-files"), 2)
    named = base if which == "base" else target
    assert f"{named} is no directory" in message
    assert "leave out --with-files" in hint_of(message)


def test_a_single_file_gets_no_files_beside_it(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {"c": b"1"}, {"c": b"2"})
    ends.diff()
    report = sparsedelta.apply(ends.base / "model.safetensors", ends.delta, ends.out)
    assert report.files == ()
    assert ends.out.read_bytes() == (ends.target / "model.safetensors").read_bytes()
    assert set(tmp_path.iterdir()) == {ends.base, ends.target, ends.delta, ends.out}


# --- what is not carried, and that it is said ---


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a b.json", "holds more"),
        ("été.json", "holds more"),
        ("sub/config.json", "holds more"),
        ("con.json", "device"),
        ("a.", "ends with a dot"),
        ("-rf", "begins with"),
    ],
)
def test_names_that_the_rule_refuses_are_not_carried_and_told(
    tmp_path: Path, name: str, reason: str
) -> None:
    ends = Ends(tmp_path, {name: b"1", "c": b"1"}, {name: b"2", "c": b"2"})
    (note,) = ends.diff()
    assert note.startswith(f"{name} is not carried: its name ")
    assert reason in note
    assert sparsedelta.info(ends.delta).files == ("c",)
    run = succeeded(
        call("diff", ends.base, ends.target, "-o", ends.delta, "--with-files", "--force")
    )
    assert f"note: {name} is not carried" in run.err


def test_nothing_is_said_of_files_that_do_not_differ(tmp_path: Path) -> None:
    same = {"sub/a b.txt": b"same", "x y": b"z"}
    ends = Ends(tmp_path, {**same, "c": b"1"}, {**same, "c": b"2"})
    assert ends.diff() == ()
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    """On a file system that ignores case one of them would vanish."""
    ends = Ends(tmp_path, {"Config.json": b"1"}, {"config.json": b"1"})
    with pytest.raises(UsageError, match=r"both 'config\.json', if case is ignored"):
        ends.diff()
    assert not ends.delta.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "old.gguf", "x.onnx", "other.index.json"])
def test_other_weights_are_not_carried(tmp_path: Path, name: str) -> None:
    ends = Ends(tmp_path, {name: b"old weights"}, {name: b"new weights"})
    ends.diff()
    assert sparsedelta.info(ends.delta).files == ()
    assert sparsedelta.apply(ends.base, ends.delta, ends.out).left_behind == (name,)
    assert not (ends.out / name).exists()


def test_hidden_files_are_not_carried(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {".gitattributes": b"1", ".git/x": b"1"}, {".gitattributes": b"2"})
    assert ends.diff() == ()
    assert sparsedelta.info(ends.delta).files == ()


def test_a_file_over_the_cap_is_not_carried(tmp_path: Path) -> None:
    """Sparse files: the size counts, not what the disk holds."""
    ends = Ends(tmp_path, {"big": b"1", "fits": b"1"}, {"big": b"2", "fits": b"2"})
    for folder in (ends.base, ends.target):
        os.truncate(folder / "big", MAX_COMPANION_BYTES + 1)
    ends.diff()
    assert sparsedelta.info(ends.delta).files == ("fits",)
    assert sparsedelta.apply(ends.base, ends.delta, ends.out).left_behind == ("big",)


def test_the_index_belongs_to_the_layout(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {}, {}, sharded=True)
    index = ends.target / INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), "note": "other"}))
    ends.diff()
    assert sparsedelta.info(ends.delta).files == ()
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)
    sparsedelta.revert(ends.target, ends.delta, ends.back)
    assert tree(ends.back) == tree(ends.base)


# --- links and folders ---


def test_a_linked_file_is_carried_as_what_it_holds(tmp_path: Path) -> None:
    """Snapshots of the Hub's cache consist of links; the copy is a file of its own."""
    ends = Ends(tmp_path, {"c": b"1"}, {})
    (tmp_path / "blob").write_bytes(b"2")
    (ends.target / "c").symlink_to(tmp_path / "blob")
    ends.diff()
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert not (ends.out / "c").is_symlink()
    assert (ends.out / "c").read_bytes() == b"2"


def test_links_to_folders_and_to_nowhere_are_not_followed(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {}, {"c": b"2"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"s")
    (ends.target / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (ends.target / "dangling").symlink_to(tmp_path / "nowhere")
    (ends.target / "loop").symlink_to(ends.target, target_is_directory=True)
    ends.diff()
    assert sparsedelta.info(ends.delta).files == ("c",)


def test_a_link_in_the_base_at_a_carried_name_is_not_written_through(tmp_path: Path) -> None:
    """Section 11: the result is a new file in its own folder, whatever lies in the source's."""
    ends = Ends(tmp_path, {}, {"c": b"2"})
    victim = tmp_path / "victim"
    victim.write_bytes(b"1")
    (ends.base / "c").symlink_to(victim)
    ends.diff()
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert victim.read_bytes() == b"1"
    assert (ends.out / "c").read_bytes() == b"2"
    assert not (ends.out / "c").is_symlink()


def test_a_link_in_an_output_that_is_replaced_is_not_written_through(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {"c": b"1"}, {"c": b"2"})
    ends.diff()
    victim = tmp_path / "victim"
    victim.write_bytes(b"1")
    checkpoint(ends.out, {}, is_base=True)
    (ends.out / "c").symlink_to(victim)
    sparsedelta.apply(ends.base, ends.delta, ends.out, force=True)
    assert victim.read_bytes() == b"1"
    assert tree(ends.out) == tree(ends.target)


def test_a_file_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    ends = Ends(tmp_path, {"x/k": b"in a folder"}, {"x": b"a file"})
    (note,) = ends.diff()
    assert note.startswith("x/k is not carried")
    sparsedelta.apply(ends.base, ends.delta, ends.out)
    assert tree(ends.out) == tree(ends.target)


# --- deltas that were made to do harm ---


HARMFUL = (
    "../escaped",
    "/tmp/escaped",  # noqa: S108 (it must never come to be)
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    ".bashrc",
    "model.safetensors",
    "MODEL.SafeTensors",
    INDEX,
    "x\0",
    "con",
    "x" * 256,
)


PAYLOAD = CarriedEnd(0, "9e" * 32, 7)
"""A content that is not what its digest claims."""


@pytest.fixture
def harmful(tmp_path: Path) -> Ends:
    """Ends of a delta that is about to be written with a name of one's own."""
    return Ends(tmp_path / "in", {}, {})


def carry(ends: Ends, monkeypatch: pytest.MonkeyPatch, *files: CarriedFile) -> None:
    """Write the delta with carried files that the package would not write."""
    attach = DeltaWriter.attach
    monkeypatch.setattr("sparsedelta.writer.attachment_problems", lambda _: ())

    def with_files(self: DeltaWriter, layout: object, _: object) -> None:
        self.blob(b"payload")
        attach(self, layout, files)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaWriter, "attach", with_files)
    sparsedelta.diff(ends.base, ends.target, ends.delta, layout="never")


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_name_is_refused_before_anything_is_written(
    harmful: Ends, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    carry(harmful, monkeypatch, CarriedFile(name, None, PAYLOAD))
    before = tree(harmful.base.parent.parent)
    for verb, source in (("apply", harmful.base), ("revert", harmful.target)):
        assert "SD215" in failed(call(verb, source, harmful.delta, "-o", harmful.out), 3)
    with pytest.raises(FormatError, match="SD215"):
        sparsedelta.info(harmful.delta)
    assert tree(harmful.base.parent.parent) == before


def test_a_content_that_is_not_what_it_claims_is_refused(
    harmful: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(harmful, monkeypatch, CarriedFile("config.json", None, PAYLOAD))
    before = tree(harmful.base.parent)
    message = failed(call("apply", harmful.base, harmful.delta, "-o", harmful.out), 3)
    assert "SD416" in message
    assert "config.json" in message
    assert tree(harmful.base.parent) == before
    # Who does not write it need not read it.
    succeeded(call("apply", harmful.base, harmful.delta, "-o", harmful.out, "--no-files"))


def test_two_names_that_differ_in_case_only_are_refused(
    harmful: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Config.json", "config.json")
    carry(harmful, monkeypatch, *(CarriedFile(name, None, PAYLOAD) for name in names))
    with pytest.raises(FormatError, match="SD215"):
        sparsedelta.info(harmful.delta)
