"""Options of ``diff``: what they do, what they refuse, and whether the message helps."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Pair,
    Stored,
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
from sparsedelta import DeltaReader, OutputError, UsageError, VerificationError
from sparsedelta.codecs import INDEX_CODECS
from sparsedelta.delta import SPARSE_OPS
from sparsedelta.state_dict import StateDictReader


def refused(pair: Pair, code: int, *options: str | Path) -> str:
    """Message of a diff that is refused; nothing is left behind."""
    before = tree(pair.folder)
    run = call("diff", pair.base, pair.target, "-o", pair.out, *options)
    assert run.code == code, run.err
    assert run.out == ""
    assert tree(pair.folder) == before
    return run.err


def made(pair: Pair, *options: str | Path) -> Path:
    """A delta made with options; it leads from file to file."""
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, *options))
    there = pair.folder / "there"
    sparsedelta.apply(pair.base, pair.out, there, force=True)
    assert there.read_bytes() == pair.target.read_bytes()
    return pair.out


# --- checkpoints that share little ---


@pytest.fixture
def strangers(tmp_path: Path) -> Pair:
    """Two checkpoints with nothing in common."""
    base = write_file(tmp_path / "base", base_tensors(0))
    others = {f"other.{name}": tensor for name, tensor in base_tensors(7).items()}
    others["more"] = Stored("U8", (3,), b"abc")
    return Pair(tmp_path, base, write_file(tmp_path / "target", others), tmp_path / "none")


def test_strangers_are_refused_with_the_numbers_and_the_flag(strangers: Pair) -> None:
    message = refused(strangers, 1)
    assert f"{strangers.base} and {strangers.target} share 0 tensors" in message
    assert "of 4 in the base and 5 in the target" in message
    assert "--unrelated (unrelated=True in Python)" in hint_of(message)
    assert "--rename OLD=NEW" in hint_of(message)


def test_strangers_are_related_if_that_is_meant(strangers: Pair) -> None:
    delta = made(strangers, "--unrelated")
    assert sparsedelta.info(delta).kinds == {"dropped": 4, "new": 5}
    sparsedelta.revert(strangers.target, delta, strangers.folder / "back")
    assert (strangers.folder / "back").read_bytes() == strangers.base.read_bytes()


def test_an_adapter_is_not_taken_for_its_model(pair: Pair) -> None:
    """LoRA weights beside their base: no name and no content in common."""
    adapter = {
        f"base_model.{name}.lora_{kind}.weight": Stored("F32", (2, 8), bytes(64))
        for name in (TUNED, HALF)
        for kind in "AB"
    }
    write_file(pair.folder / "adapter", adapter)
    message = failed(call("diff", pair.base, pair.folder / "adapter", "-o", pair.out), 1)
    assert "share 0 tensors" in message


# --- renames ---


def renamed(pair: Pair, names: dict[str, str], seed: int = 5) -> Pair:
    """The pair with all words new and these names in the target: only a person can tell."""
    fresh = base_tensors(seed)
    target = {names.get(name, name): tensor for name, tensor in fresh.items()}
    return Pair(pair.folder, pair.base, write_file(pair.target, target), pair.delta)


def test_a_rename_that_content_cannot_tell_can_be_told(pair: Pair) -> None:
    pair = renamed(pair, {TUNED: "new.tuned"})
    assert sparsedelta.info(made(pair)).kinds == {"changed": 3, "dropped": 1, "new": 1}
    delta = made(pair, "--force", "--rename", f"{TUNED}=new.tuned")
    assert sparsedelta.info(delta).kinds == {"changed": 3, "renamed": 1}


def test_names_may_hold_the_sign_of_equality_in_the_new_name(pair: Pair) -> None:
    pair = renamed(pair, {TUNED: "a=b"})
    assert sparsedelta.info(made(pair, "--rename", f"{TUNED}=a=b")).kinds["renamed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((f"{TUNED}",), "expected OLD=NEW"),
        (("=x",), "expected OLD=NEW"),
        (("no.such=new.tuned",), "base.safetensors has no 'no.such'"),
        ((f"{TUNED}=no.such",), "target.safetensors has no 'no.such'"),
        ((f"{TUNED}=",), "target.safetensors has no ''"),
        ((f"{HALF}=new.tuned",), r"BF16 [64, 65] cannot become F32 [50, 20]"),
        ((f"{BIAS}={BIAS}",), f"rename '{BIAS}' to '{BIAS}'"),
        ((f"{TUNED}=new.tuned", f"{HALF}=new.tuned"), "cannot come from both"),
    ],
)
def test_renames_that_make_no_sense_are_refused(
    pair: Pair, options: tuple[str, ...], message: str
) -> None:
    pair = renamed(pair, {TUNED: "new.tuned"})
    flags = [flag for option in options for flag in ("--rename", option)]
    assert message in refused(pair, 2, *flags)


def test_a_rename_over_a_tensor_of_which_nothing_is_said_is_refused(pair: Pair) -> None:
    """A record has its name to itself, so that the dropped tensor cannot keep it."""
    tensors = base_tensors()
    tensors["twin"] = Stored("F32", (50, 20), tensors[TUNED].data[::-1])
    write_file(pair.base, tensors)
    del tensors["twin"]
    write_file(pair.target, tensors)
    message = refused(pair, 2, "--rename", f"twin={TUNED}")
    assert f"renamed to '{TUNED}', but the base has one of that name too" in message
    assert "--rename OLD=NEW" in hint_of(message)


# --- codecs ---


def codecs_of(delta: Path) -> set[str]:
    """Codecs of the parts that have entries."""
    with DeltaReader(delta) as reader:
        return {
            part.encoding.describe()
            for record in reader.manifest.tensors
            for _, part in record.coded
            if part.op in SPARSE_OPS
        }


PORTABLE_INDEX = sorted(INDEX_CODECS.keys() - {"ranked"})


@pytest.mark.parametrize("index", PORTABLE_INDEX)
def test_an_index_codec_alone_leaves_the_choice_of_values(pair: Pair, index: str) -> None:
    found = codecs_of(made(pair, "--codec", index))
    assert {description.split(" + ")[0] for description in found} == {index}


@pytest.mark.parametrize("value", ["packed0", "packed1", "packed8", "zigzag", "planes", "raw"])
def test_a_value_codec_can_be_asked_for_too(pair: Pair, value: str) -> None:
    (found,) = codecs_of(made(pair, "--codec", f"gap8+{value}"))
    expected = re.sub(r"packed(\d)", r"packed(width=\1)", value)
    assert found == f"gap8 + {expected}"


@pytest.mark.parametrize(
    ("codec", "kind", "known"),
    [
        ("huffman", "index", sorted(INDEX_CODECS)),
        ("GAP8", "index", ["gap8"]),
        ("packed2", "index", ["gap8"]),
        ("gap8+huffman", "value", ["packed0", "packed8", "planes", "raw", "zigzag"]),
        ("gap8+", "value", ["planes"]),
        ("gap8+packed3", "value", ["packed2", "packed4"]),
        ("gap8+raw+raw", "value", ["raw"]),
        (" gap8", "index", ["gap8"]),
    ],
)
def test_unknown_codecs_are_refused_and_the_known_listed(
    pair: Pair, codec: str, kind: str, known: list[str]
) -> None:
    message = refused(pair, 2, "--codec", codec)
    assert f"unknown {kind} codec" in message
    assert f"in {codec!r}" in message
    assert all(re.search(rf"\b{re.escape(name)}\b", message.splitlines()[0]) for name in known)
    assert "gap8+packed2" in hint_of(message)


@pytest.mark.parametrize(
    ("codec", "options", "op"),
    [
        ("dense+packed1", (), "difference"),
        ("range+packed4", (), "difference"),
        ("bitmask+packed2", ("--one-way",), "replace"),
        ("gap8+zigzag", ("--one-way",), "replace"),
        ("dense", ("--one-way",), "replace"),  # most words of the blocks are no entries
    ],
)
def test_codecs_that_cannot_hold_the_entries_are_refused_and_the_tensor_named(
    pair: Pair, codec: str, options: tuple[str, ...], op: str
) -> None:
    message = refused(pair, 2, "--codec", codec, *options)
    assert f"tensor '{TUNED}': the chosen codecs cannot hold its {op}" in message
    assert "the smallest that fit are taken" in hint_of(message)


# --- explain ---


def test_explain_lists_every_encoding_and_marks_the_chosen_one(pair: Pair) -> None:
    run = succeeded(call("diff", pair.base, pair.target, "-o", pair.out, "--explain"))
    head, *sections = run.out.strip().split("\n\n")
    assert head.startswith(f"wrote {pair.out}")
    assert [section.splitlines()[0] for section in sections] == [
        f"{TUNED}  difference",
        f"{HALF}  difference",
    ]
    chosen = codecs_of(pair.out)
    for section in sections:
        lines = section.splitlines()[1:]
        sizes = [int(re.findall(r"([\d,]+) B", line)[0].replace(",", "")) for line in lines]
        assert sizes == sorted(sizes)
        marked = [line for line in lines if line.lstrip().startswith("*")]
        assert len(marked) == 1
        assert marked[0].split(" B  ")[1] in chosen
        assert all(f"  {index} + " in section for index in PORTABLE_INDEX)
        assert "ranked" not in section


def test_explain_in_json_has_sizes_that_are_true(pair: Pair) -> None:
    """Forcing an encoding costs what was said."""
    document = succeeded(
        call("diff", pair.base, pair.target, "-o", pair.out, "--explain", "--json")
    ).document
    sizes = {entry["tensor"]: entry for entry in document["sizes"]}
    assert set(sizes) == {TUNED, HALF}
    for codec, described in (("gap8+zigzag", "gap8 + zigzag"), ("raw+raw", "raw + raw")):
        forced = succeeded(
            call(
                "diff",
                pair.base,
                pair.target,
                "-o",
                pair.folder / "forced",
                "--codec",
                codec,
                "--explain",
                "--json",
                "--force",
            )
        ).document
        for entry in forced["sizes"]:
            assert entry["chosen"] == described
            assert entry["nbytes"][described] == sizes[entry["tensor"]]["nbytes"][described]
    # Steps of one in bf16, what fine-tuning mostly is: here the chosen one is the smallest.
    half = sizes[HALF]
    assert half["op"] == "difference"
    assert half["nbytes"][half["chosen"]] == min(half["nbytes"].values())


def test_explaining_does_not_change_the_delta(pair: Pair) -> None:
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, "--explain", "-q"))
    assert pair.out.read_bytes() == pair.delta.read_bytes()
    report = sparsedelta.diff(pair.base, pair.target, pair.out, force=True)
    assert report.sizes == (), "only if it was asked for"


# --- sizes of shards ---


@pytest.mark.parametrize(
    "size", ["", "x", "-1", "1e9", "nan", "inf", "5Gi", "5 G", "0x10", "1,5GB", "٣MB", "1MB2"]
)
def test_sizes_that_are_none_are_refused(pair: Pair, size: str) -> None:
    assert "expected a size such as 500MB or 5GB" in refused(pair, 2, "--max-shard-size", size)


@pytest.mark.parametrize("size", ["0", "0.0GB", "0.3B"])
def test_a_size_of_nothing_is_refused(pair: Pair, size: str) -> None:
    assert "expected at least 1" in refused(pair, 2, "--max-shard-size", size)


@pytest.mark.parametrize("size", ["1500", "1.5kB", "1.5KB", " 1500 b ", "0.0015MB", "1500.9"])
def test_sizes_are_in_units_of_a_thousand(pair: Pair, size: str) -> None:
    made(pair, "--max-shard-size", size)
    expected = pair.folder / "expected"
    expected.mkdir()
    sparsedelta.diff(pair.base, pair.target, expected / pair.out.name, max_shard_size=1500)
    assert {p.name: p.read_bytes() for p in expected.iterdir()} == {
        p.name: p.read_bytes() for p in pair.folder.glob("out*")
    }


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "TB", "100000TB"])
def test_no_size_is_too_large(pair: Pair, size: str) -> None:
    assert made(pair, "--max-shard-size", size).read_bytes() == pair.delta.read_bytes()


@pytest.mark.parametrize("size", [0, -5])
def test_sizes_are_checked_in_python_too(pair: Pair, size: int) -> None:
    with pytest.raises(UsageError, match=f"{size} bytes, expected at least 1"):
        sparsedelta.diff(pair.base, pair.target, pair.out, max_shard_size=size)


# --- layout and SHA-256 ---


def test_sha256_of_the_files_is_recorded(pair: Pair) -> None:
    with DeltaReader(made(pair, "--sha256")) as reader:
        layout = reader.manifest.attachments.layout
    assert layout is not None
    for key, path in (("base", pair.base), ("target", pair.target)):
        end = layout[key]
        assert end is not None
        (file,) = end.files
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_sha256_that_is_not_that_of_the_result_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsedelta.operations.attach._sha256", lambda _: "ab" * 32)
    sparsedelta.diff(pair.base, pair.target, pair.out, sha256=True)
    there = pair.folder / "there"
    with pytest.raises(VerificationError, match=r"SHA-256 .*, the delta promises abab.*SD502"):
        sparsedelta.apply(pair.base, pair.out, there)
    assert not there.exists()


@pytest.mark.parametrize("option", ["sha256", "layout"])
def test_what_is_in_memory_has_no_files_to_record(pair: Pair, option: str) -> None:
    model = StateDictReader({"w": torch.zeros(3)}, location="the model in training")
    saved = write_file(pair.folder / "w", {"w": Stored("F32", (3,), bytes(12))})
    options = {"sha256": True} if option == "sha256" else {"layout": "always"}
    for base, target in ((model, saved), (saved, model)):
        with pytest.raises(UsageError, match="the layout of the model in training cannot be"):
            sparsedelta.diff(base, target, pair.out, **options)
    assert not pair.out.exists()
    # Without them the model is a checkpoint like any other.
    report = sparsedelta.diff(model, saved, pair.out)
    assert report.manifest.tensors == ()
    assert report.notes == ()


def test_file_names_that_a_delta_cannot_hold_are_noted(tmp_path: Path) -> None:
    """``auto`` says that the files will not come back; ``always`` refuses."""
    tensors = base_tensors()
    for name, content in (("base", tensors), ("target", tuned(tensors))):
        folder = write_shards(tmp_path / name, *split(content, [FROZEN, TUNED], [HALF, BIAS]))
        first = folder / "model-00001-of-00002.safetensors"
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(first.name, "part 1.safetensors"))
        first.rename(folder / "part 1.safetensors")
    report = sparsedelta.diff(tmp_path / "base", tmp_path / "target", tmp_path / "d")
    assert len(report.notes) == 2
    assert f"the layout of {tmp_path / 'base'} is not recorded" in report.notes[0]
    assert "'part 1.safetensors' holds more than" in report.notes[0]
    sparsedelta.apply(tmp_path / "base", tmp_path / "d", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "target")
    with pytest.raises(UsageError, match=r"'part 1\.safetensors' holds more than"):
        sparsedelta.diff(tmp_path / "base", tmp_path / "target", tmp_path / "e", layout="always")


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_the_layout_is_recorded_as_asked(pair: Pair, mode: str) -> None:
    """Headers that are the same at both ends, and a small delta: ``auto`` leaves them out."""
    with DeltaReader(made(pair, "--layout", mode)) as reader:
        assert (reader.manifest.attachments.layout is not None) == (mode == "always")


def test_auto_records_the_layout_where_the_files_differ(pair: Pair) -> None:
    write_file(pair.target, tuned(base_tensors()), {"format": "pt"})
    assert sparsedelta.info(made(pair)).layout == {
        "base": ("model.safetensors",),
        "target": ("model.safetensors",),
    }


# --- what else there is ---


def test_a_codec_of_another_profile_is_refused(pair: Pair) -> None:
    message = refused(pair, 2, "--codec", "ranked")
    assert "ranked is of the profile 'compact' only" in message


def test_a_codec_of_the_profile_can_be_asked_for(pair: Pair) -> None:
    message = refused(pair, 2, "--profile", "compact", "--codec", "ranked")
    assert f"tensor {HALF!r}" in message or f"tensor {TUNED!r}" in message
    assert "ranked is not for F32" in message


def test_lean_leaves_out_what_stays(pair: Pair) -> None:
    delta = made(pair, "--lean")
    found = sparsedelta.info(delta)
    assert (found.lean, found.untouched, found.touched) == (True, 0, 2)
    assert found.size < pair.delta.stat().st_size
    assert "not listed (lean)" in succeeded(call("info", delta)).out


def test_one_way_and_forget_say_that_they_do_not_lead_back(pair: Pair) -> None:
    tensors = {name: t for name, t in tuned(base_tensors()).items() if name != BIAS}
    write_file(pair.target, tensors)
    for option, name in (("--one-way", TUNED), ("--forget", BIAS)):
        delta = made(pair, option, "--force")
        assert not sparsedelta.info(delta).invertible
        message = failed(call("revert", pair.target, delta, "-o", pair.folder / "back"), 1)
        assert "SD503" in message
        assert name in message
        assert "make it again without --one-way and --forget" in hint_of(message)
        assert "no: the old words of" in succeeded(call("info", delta)).out


def test_a_name_that_a_delta_cannot_hold_is_refused(pair: Pair) -> None:
    for name in ("x" * 1025, "a\x7f", "tab\there", "é" * 513):
        write_file(pair.base, {name: Stored("U8", (1,), b"a")})
        write_file(pair.target, {name: Stored("U8", (1,), b"b")})
        message = refused(pair, 1)
        assert "tensor name" in message
        assert "a delta cannot hold it" in message


def test_the_output_is_never_an_input(pair: Pair) -> None:
    for path in (pair.base, pair.target):
        with pytest.raises(OutputError, match="would overwrite the input"):
            sparsedelta.diff(pair.base, pair.target, path, force=True)


def test_a_manifest_that_is_too_large_says_what_helps(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsedelta.delta_files.MAX_MANIFEST_BYTES", 100)
    message = refused(pair, 1)
    assert "100 are allowed" in message
    assert "--lean" in hint_of(message)
    assert "--max-shard-size" in hint_of(message)


def test_every_option_at_once_still_leads_there_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = base_tensors()
    target = tuned(base)
    target["renamed"] = target.pop(FROZEN)
    target["new"] = Stored("F8_E4M3", (7,), rng.bytes(7))
    for name, tensors in (("base", base), ("target", target)):
        write_file(tmp_path / name / "model.safetensors", tensors)
        (tmp_path / name / "config.json").write_text(name)
    succeeded(
        call(
            "diff", tmp_path / "base", tmp_path / "target", "-o", tmp_path / "d",
            "--lean", "--layout", "always", "--sha256", "--with-files",
            "--rename", f"{FROZEN}=renamed", "--unrelated", "--codec", "gap8", "--explain",
            "--max-shard-size", "1kB", "--meta", "a=b", "--base-repo", "me/base",
            "--base-revision", "main", "--threads", "2", "--json", "-q",
        )
    )  # fmt: skip
    sparsedelta.apply(tmp_path / "base", tmp_path / "d", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "target")
    sparsedelta.revert(tmp_path / "target", tmp_path / "d", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "base")
