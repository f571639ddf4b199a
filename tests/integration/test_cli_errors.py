"""What a user meets: wrong files, wrong bases, damaged deltas. One message, the right exit code."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Pair,
    Run,
    Stored,
    Tensors,
    base_tensors,
    call,
    cli,
    failed,
    hint_of,
    tree,
    tuned,
    write_file,
)

import sparsedelta

CODE = re.compile(r"\bSD[1-5]\d\d\b")


# --- arguments ---


def test_exchanged_arguments_of_apply_are_told_as_such(pair: Pair) -> None:
    message = failed(cli("apply", pair.delta, pair.base, "-o", pair.out), 1)
    assert f"{pair.delta} is a delta, expected a checkpoint" in message
    assert "apply BASE DELTA" in hint_of(message)
    assert not pair.out.exists()


def test_exchanged_arguments_of_revert_are_told_as_such(pair: Pair) -> None:
    message = failed(cli("revert", pair.delta, pair.target, "-o", pair.out), 1)
    assert f"{pair.delta} is a delta, expected a checkpoint" in message
    assert "revert TARGET DELTA" in hint_of(message)
    assert not pair.out.exists()


@pytest.mark.parametrize("command", ["diff", "fingerprint"])
def test_a_delta_for_a_checkpoint_gets_a_hint_of_its_own_command(pair: Pair, command: str) -> None:
    """``apply BASE DELTA`` is no help to who did not want to apply anything in that order."""
    rest: list[str | Path] = [pair.target, "-o", pair.out] if command == "diff" else []
    message = failed(call(command, pair.delta, *rest), 1)
    assert f"{pair.delta} is a delta, expected a checkpoint" in message
    assert "the order of arguments is: sparsedelta apply" not in message


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_checkpoint_for_a_delta_is_told_as_such(pair: Pair, command: str) -> None:
    message = failed(call(command, pair.base, pair.target, "-o", pair.out), 3)
    assert str(pair.target) in message
    assert "checkpoint" in hint_of(message)
    assert not pair.out.exists()


NOWHERE = "nowhere.safetensors"
MISSING = {
    "base of diff": ["diff", NOWHERE, "TARGET", "-o", "OUT"],
    "target of diff": ["diff", "BASE", NOWHERE, "-o", "OUT"],
    "base of apply": ["apply", NOWHERE, "DELTA", "-o", "OUT"],
    "delta of apply": ["apply", "BASE", NOWHERE, "-o", "OUT"],
    "target of revert": ["revert", NOWHERE, "DELTA", "-o", "OUT"],
    "delta of revert": ["revert", "TARGET", NOWHERE, "-o", "OUT"],
    "delta of validate": ["validate", NOWHERE],
    "base of validate": ["validate", "DELTA", "--base", NOWHERE],
    "delta of info": ["info", NOWHERE],
    "checkpoint of fingerprint": ["fingerprint", NOWHERE],
}


def ask(pair: Pair, words: list[str]) -> Run:
    """Run a command line with the pair's paths in place of the words in capitals."""
    paths = {"BASE": pair.base, "TARGET": pair.target, "DELTA": pair.delta, "OUT": pair.out}
    return call(*(paths.get(word, word) for word in words), cwd=pair.folder)


@pytest.mark.parametrize("words", MISSING.values(), ids=MISSING.keys())
def test_a_missing_file_is_named(pair: Pair, words: list[str]) -> None:
    before = tree(pair.folder)
    assert NOWHERE in failed(ask(pair, words), 1)
    assert tree(pair.folder) == before


ROLES = {
    "checkpoint": ["fingerprint", "INPUT"],
    "base": ["apply", "INPUT", "DELTA", "-o", "OUT"],
    "target": ["diff", "BASE", "INPUT", "-o", "OUT"],
}
DELTA_ROLES = {
    "info": ["info", "INPUT"],
    "apply": ["apply", "BASE", "INPUT", "-o", "OUT"],
}


def given(pair: Pair, words: list[str], path: Path) -> Run:
    """Run a command line with ``path`` in place of INPUT."""
    return ask(pair, [str(path) if word == "INPUT" else word for word in words])


@pytest.mark.parametrize(
    "words", [*DELTA_ROLES.values(), ["validate", "INPUT"]], ids=[*DELTA_ROLES, "validate"]
)
def test_a_folder_for_a_delta_is_told_as_such(pair: Pair, words: list[str]) -> None:
    message = failed(given(pair, words, pair.folder), 1)
    assert f"{pair.folder} is a directory, expected a delta file" in message
    hint_of(message)


@pytest.mark.parametrize("words", [*ROLES.values(), *DELTA_ROLES.values()])
def test_a_name_that_is_too_long_is_an_error_like_any_other(pair: Pair, words: list[str]) -> None:
    failed(given(pair, words, pair.folder / ("x" * 300)), 1)


@pytest.mark.parametrize("words", [*ROLES.values(), *DELTA_ROLES.values()])
def test_a_path_below_a_file_is_an_error_like_any_other(pair: Pair, words: list[str]) -> None:
    path = pair.base / "model.safetensors"
    assert str(path) in failed(given(pair, words, path), 1)


@pytest.mark.parametrize("words", [*ROLES.values(), *DELTA_ROLES.values()])
def test_a_link_to_itself_is_an_error_like_any_other(pair: Pair, words: list[str]) -> None:
    path = pair.folder / "loop"
    path.symlink_to(path)
    assert str(path) in failed(given(pair, words, path), 1)


def test_a_folder_without_safetensors_says_how_to_get_some(pair: Pair) -> None:
    folder = pair.folder / "old"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    message = failed(call("fingerprint", folder), 1)
    assert str(folder) in message
    assert "safe_serialization" in hint_of(message)


def test_a_folder_with_two_checkpoints_names_both(pair: Pair) -> None:
    message = failed(call("fingerprint", pair.folder), 1)
    assert pair.base.name in message
    assert pair.target.name in message
    assert str(pair.folder / pair.base.name) in hint_of(message)


# --- files that are no safetensors ---


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to(os.devnull)


def an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def a_text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": [1.0] * 100}))


def a_zip(path: Path) -> None:
    """What ``torch.save`` writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


def a_gguf(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": a_fifo,
    "device": a_device,
    "endless device": an_endless_device,
}
KINDS: dict[str, Callable[[Path], None]] = {
    "empty": an_empty_file,
    "text": a_text,
    "pickle": a_pickle,
    "zip": a_zip,
    "gguf": a_gguf,
}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.parametrize("command", ["fingerprint", "info"])
def test_what_is_no_file_is_refused_at_once(
    pair: Pair, make: Callable[[Path], None], command: str
) -> None:
    """Nothing waits for the other end of a pipe, and nothing of a device is read."""
    path = pair.folder / "input.safetensors"
    make(path)
    names = set(tree(pair.folder))
    assert f"{path} is not a regular file" in failed(cli(command, path), 1)
    assert set(tree(pair.folder)) == names


@pytest.mark.parametrize("words", ROLES.values(), ids=ROLES.keys())
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_what_is_no_checkpoint_is_refused(
    pair: Pair, make: Callable[[Path], None], words: list[str]
) -> None:
    path = pair.folder / "input.safetensors"
    make(path)
    before = tree(pair.folder)
    assert str(path) in failed(given(pair, words, path), 1)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("words", DELTA_ROLES.values(), ids=DELTA_ROLES.keys())
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_what_is_no_delta_is_refused(
    pair: Pair, make: Callable[[Path], None], words: list[str]
) -> None:
    path = pair.folder / "input.safetensors"
    make(path)
    before = tree(pair.folder)
    message = failed(given(pair, words, path), 3)
    assert f"SD101: {path}: " in message
    assert tree(pair.folder) == before


@pytest.mark.parametrize("make", [a_text, a_pickle, a_zip, a_gguf])
def test_other_formats_get_a_hint(pair: Pair, make: Callable[[Path], None]) -> None:
    path = pair.folder / "input.safetensors"
    make(path)
    hint_of(failed(call("fingerprint", path), 1))


# --- checkpoints that cannot be related ---


def test_diff_refuses_checkpoints_that_share_few_tensors(pair: Pair) -> None:
    """The counts, and the flag that allows it."""
    others = {f"other.{n}": Stored("U8", (40 + n,), bytes(40 + n)) for n in range(5)}
    path = write_file(pair.folder / "other", {**others, FROZEN: base_tensors()[FROZEN]})
    message = failed(cli("diff", pair.base, path, "-o", pair.out), 1)
    for part in (
        str(pair.base),
        str(path),
        "share 1 ",
        f"{len(base_tensors())} in the base",
        "6 in",
    ):
        assert part in message
    assert "--unrelated" in hint_of(message)
    assert "--rename" in hint_of(message)
    assert not pair.out.exists()
    assert cli("diff", pair.base, path, "-o", pair.out, "--unrelated").code == 0
    assert cli("apply", pair.base, pair.out, "-o", pair.folder / "back").code == 0
    assert (pair.folder / "back").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["", "a\x00b", "a\x1b[2Jb", "x" * 1025])
def test_diff_names_a_tensor_whose_name_no_delta_can_hold(pair: Pair, name: str) -> None:
    path = write_file(pair.folder / "odd", {name: Stored("U8", (1,), b"\0")})
    message = failed(call("diff", path, path, "-o", pair.out), 1)
    assert repr(name)[:50] in message
    assert "\x1b" not in message
    assert not pair.out.exists()


# --- provenance that a delta cannot hold ---


def test_metadata_that_is_no_text_is_an_error_like_any_other(pair: Pair) -> None:
    """Bytes that are no UTF-8 reach us as lone surrogates, which no JSON holds."""
    evil = os.fsdecode(b"note=\xff")
    run = cli("diff", pair.base, pair.target, "-o", pair.out, "--meta", evil)
    assert run.code in (1, 2), run.err
    assert "Traceback" not in run.err
    assert not pair.out.exists()


def test_a_hint_at_the_base_that_fits_no_header_is_an_error_like_any_other(pair: Pair) -> None:
    run = call("diff", pair.base, pair.target, "-o", pair.out, "--base-repo", "x" * 70_000)
    assert run.code in (1, 2), run.err
    assert "Traceback" not in run.err
    assert not pair.out.exists()


# --- the wrong base ---


def touched_bit(tensors: Tensors) -> None:
    tensors[HALF] = tensors[HALF].with_word(4000, 1 << 15)


def untouched_bit(tensors: Tensors) -> None:
    tensors[BIAS] = tensors[BIAS].with_word(6, 1)


def touched_dtype(tensors: Tensors) -> None:
    tensors[TUNED] = Stored("I32", tensors[TUNED].shape, tensors[TUNED].data)


def untouched_dtype(tensors: Tensors) -> None:
    tensors[BIAS] = Stored("BF16", tensors[BIAS].shape, tensors[BIAS].data)


def touched_shape(tensors: Tensors) -> None:
    tensors[TUNED] = Stored("F32", (20, 50), tensors[TUNED].data)


def untouched_shape(tensors: Tensors) -> None:
    tensors[BIAS] = Stored("F16", (7, 1), tensors[BIAS].data)


def missing_touched(tensors: Tensors) -> None:
    del tensors[HALF]


def missing_untouched(tensors: Tensors) -> None:
    del tensors[BIAS]


def extra(tensors: Tensors) -> None:
    tensors["e.extra"] = Stored("U8", (1,), b"\0")


Damage = Callable[[Tensors], None]

WRONG: dict[str, tuple[Damage, str]] = {
    "one bit of a touched tensor": (touched_bit, HALF),
    "one bit of an untouched tensor": (untouched_bit, BIAS),
    "dtype of a touched tensor": (touched_dtype, TUNED),
    "dtype of an untouched tensor": (untouched_dtype, BIAS),
    "shape of a touched tensor": (touched_shape, TUNED),
    "shape of an untouched tensor": (untouched_shape, BIAS),
    "a touched tensor is missing": (missing_touched, HALF),
    "an untouched tensor is missing": (missing_untouched, BIAS),
    "a tensor too many": (extra, "e.extra"),
}


@pytest.mark.parametrize(("change", "name"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_wrong_checkpoint_is_refused_by_name_of_tensor(
    pair: Pair, command: str, change: Damage, name: str
) -> None:
    tensors = base_tensors() if command == "apply" else tuned(base_tensors())
    change(tensors)
    wrong = write_file(pair.folder / "wrong.safetensors", tensors)
    before = tree(pair.folder)
    message = failed(call(command, wrong, pair.delta, "-o", pair.out), 3)
    for part in (str(wrong), str(pair.delta), repr(name), "SD501"):
        assert part in message
    assert "sparsedelta info" in hint_of(message)
    assert tree(pair.folder) == before


@pytest.mark.parametrize("change", [touched_bit, untouched_bit, untouched_dtype])
def test_a_wrong_base_is_told_with_both_digests(pair: Pair, change: Damage) -> None:
    tensors = base_tensors()
    change(tensors)
    wrong = write_file(pair.folder / "wrong.safetensors", tensors)
    message = failed(call("apply", wrong, pair.delta, "-o", pair.out), 3)
    assert re.search(r"expected digest [0-9a-f]{16}…, found [0-9a-f]{16}…", message)
    assert "1 of 4 tensors differ" in message


@pytest.mark.parametrize("change", [touched_dtype, touched_shape])
def test_a_wrong_form_is_told_with_both_forms(pair: Pair, change: Damage) -> None:
    tensors = base_tensors()
    change(tensors)
    wrong = write_file(pair.folder / "wrong.safetensors", tensors)
    message = failed(call("apply", wrong, pair.delta, "-o", pair.out), 3)
    found = f"{tensors[TUNED].dtype} {list(tensors[TUNED].shape)}"
    assert f"is {found}, expected F32 [50, 20]" in message


def test_the_first_of_many_differing_tensors_is_named(pair: Pair) -> None:
    wrong = write_file(pair.folder / "wrong.safetensors", base_tensors(seed=7))
    message = failed(cli("apply", wrong, pair.delta, "-o", pair.out), 3)
    assert "4 of 4 tensors differ" in message
    assert repr(FROZEN) in message


def test_the_base_is_the_wrong_checkpoint_to_revert_only_if_it_is_neither_end(pair: Pair) -> None:
    """A half-tuned checkpoint is no end of the delta."""
    half = write_file(pair.folder / "half.safetensors", tuned(base_tensors(), [TUNED]))
    assert "SD501" in failed(call("revert", half, pair.delta, "-o", pair.out), 3)
    assert not pair.out.exists()


def test_a_wrong_base_leaves_an_existing_output_alone(pair: Pair) -> None:
    wrong = write_file(pair.folder / "wrong.safetensors", base_tensors(seed=7))
    pair.out.write_bytes(b"precious")
    before = tree(pair.folder)
    failed(call("apply", wrong, pair.delta, "-o", pair.out, "--force"), 3)
    assert tree(pair.folder) == before


@pytest.mark.parametrize(("change", "name"), WRONG.values(), ids=WRONG.keys())
def test_validate_finds_a_wrong_base(pair: Pair, change: Damage, name: str) -> None:
    tensors = base_tensors()
    change(tensors)
    wrong = write_file(pair.folder / "wrong.safetensors", tensors)
    run = call("validate", pair.delta, "--base", wrong)
    assert run.code == 3
    assert "Traceback" not in run.err
    assert "SD501" in run.out
    assert repr(name) in run.out


# --- damaged deltas ---


def spans(delta: bytes) -> dict[str, tuple[int, int]]:
    """First and last byte of each region of a delta file."""
    (length,) = struct.unpack_from("<Q", delta)
    header = json.loads(delta[8 : 8 + length])
    found = {"length": (0, 8), "header": (8, 8 + length)}
    for name in ("sd.manifest", "sd.tables", "sd.data"):
        start, end = header[name]["data_offsets"]
        found[name] = (8 + length + start, 8 + length + end)
    return found


def flip(region: str, part: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        start, end = spans(data)[region]
        damaged = bytearray(data)
        damaged[start + int((end - 1 - start) * part)] ^= 0x10
        return bytes(damaged)

    return damage


def cut(region: str) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        start, end = spans(data)[region]
        return data[: (start + end) // 2]

    return damage


def unchanged_but_longer(data: bytes) -> bytes:
    return data + b"\0"


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "flip in the length": (flip("length", 0.0), r"SD10\d"),
    "flip at the start of the header": (flip("header", 0.0), r"SD10[23]"),
    "flip in the header": (flip("header", 0.5), r"SD(10\d|20[15])"),
    "flip at the start of the manifest": (flip("sd.manifest", 0.0), "SD201"),
    "flip at the end of the manifest": (flip("sd.manifest", 1.0), "SD201"),
    "flip at the start of the tables": (flip("sd.tables", 0.0), "SD302"),
    "flip at the end of the tables": (flip("sd.tables", 1.0), "SD302"),
    "flip at the start of the data": (flip("sd.data", 0.0), "SD401"),
    "flip at the end of the data": (flip("sd.data", 1.0), "SD401"),
    "cut in the length": (cut("length"), "SD101"),
    "cut in the header": (cut("header"), "SD101"),
    "cut in the manifest": (cut("sd.manifest"), "SD107"),
    "cut in the tables": (cut("sd.tables"), "SD107"),
    "cut in the data": (cut("sd.data"), "SD107"),
    "a byte too many": (unchanged_but_longer, "SD107"),
    "twice in a row": (lambda data: data + data, "SD107"),
}
DAMAGED = pytest.mark.parametrize(("damage", "rule"), DAMAGES.values(), ids=DAMAGES.keys())


@DAMAGED
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_damaged_delta_is_not_applied(
    pair: Pair, command: str, damage: Callable[[bytes], bytes], rule: str
) -> None:
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    before = tree(pair.folder)
    source = pair.base if command == "apply" else pair.target
    message = failed(call(command, source, pair.delta, "-o", pair.out), 3)
    assert re.search(rf"\b{rule}\b", message), message
    assert str(pair.delta) in message
    assert tree(pair.folder) == before


@pytest.mark.parametrize(
    "kind", ["flip in the header", "flip at the end of the data", "cut in the data"]
)
def test_a_damaged_delta_ends_the_process_with_3(pair: Pair, kind: str) -> None:
    damage, rule = DAMAGES[kind]
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    before = tree(pair.folder)
    message = failed(cli("apply", pair.base, pair.delta, "-o", pair.out), 3)
    assert re.search(rf"\b{rule}\b", message), message
    assert tree(pair.folder) == before


@DAMAGED
def test_a_damaged_delta_gets_a_hint(
    pair: Pair, damage: Callable[[bytes], bytes], rule: str
) -> None:
    """A user who meets a broken delta is told what to do about it."""
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    hint_of(failed(call("apply", pair.base, pair.delta, "-o", pair.out), 3))


@DAMAGED
def test_validate_names_the_rule_that_a_damaged_delta_breaks(
    pair: Pair, damage: Callable[[bytes], bytes], rule: str
) -> None:
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    run = call("validate", pair.delta)
    assert run.code == 3
    assert "Traceback" not in run.err
    assert re.search(rf"\b{rule}\b", run.out), run.out
    assert str(pair.delta) in run.out


def test_a_message_names_the_file_and_the_rule_once(pair: Pair) -> None:
    """For every damage: no path and no code is repeated on the way up."""
    for damage, _ in DAMAGES.values():
        data = pair.delta.read_bytes()
        path = pair.folder / "damaged"
        path.write_bytes(damage(data))
        line = failed(call("apply", pair.base, path, "-o", pair.out), 3).splitlines()[0]
        assert len(CODE.findall(line)) == 1, line
        assert line.count(str(path)) == 1, line


def test_a_damaged_block_is_named_by_tensor(pair: Pair) -> None:
    damage, _ = DAMAGES["flip at the end of the data"]
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    assert repr(HALF) in failed(cli("apply", pair.base, pair.delta, "-o", pair.out), 3)


def test_a_damaged_delta_leaves_an_existing_output_alone(pair: Pair) -> None:
    damage, _ = DAMAGES["flip at the end of the data"]
    pair.delta.write_bytes(damage(pair.delta.read_bytes()))
    pair.out.write_bytes(b"precious")
    before = tree(pair.folder)
    failed(call("apply", pair.base, pair.delta, "-o", pair.out, "--force"), 3)
    assert tree(pair.folder) == before


def test_a_delta_of_a_later_version_asks_for_a_newer_release(pair: Pair) -> None:
    data = pair.delta.read_bytes().replace(b'"sd.version":"1.0"', b'"sd.version":"9.9"')
    pair.delta.write_bytes(data)
    message = failed(cli("info", pair.delta), 3)
    assert "SD105" in message
    assert "'9.9'" in message
    assert "pip install --upgrade sparsedelta" in hint_of(message)


def test_a_delta_that_lies_about_its_target_is_found_out(pair: Pair) -> None:
    """Every byte of the file is as its writer meant it, but the result is not the target."""
    liar = lying_delta(pair)
    before = tree(pair.folder)
    message = failed(cli("apply", pair.base, liar, "-o", pair.out), 3)
    for part in ("SD502", str(liar), repr("w"), "sparsedelta validate"):
        assert part in message
    assert tree(pair.folder) == before


def test_validate_with_the_base_finds_out_a_delta_that_lies(pair: Pair) -> None:
    liar = lying_delta(pair)
    run = cli("validate", liar, "--base", pair.base)
    assert run.code == 3
    assert "SD502" in run.out


def lying_delta(pair: Pair) -> Path:
    """A well-formed delta on a base of one tensor, whose entries do not lead to its target."""
    # Imported here: only this test needs the writer's inside.
    import numpy as np  # noqa: PLC0415

    from sparsedelta.changes import Changes  # noqa: PLC0415
    from sparsedelta.digests import segment_digest  # noqa: PLC0415
    from sparsedelta.encode import EncodedTensor, encode_part  # noqa: PLC0415
    from sparsedelta.parallel import OrderedMap  # noqa: PLC0415
    from sparsedelta.words import TensorSpec  # noqa: PLC0415
    from sparsedelta.writer import DeltaWriter  # noqa: PLC0415

    old, new = bytes(100), bytes([1, *bytes(99)])
    write_file(pair.base, {"w": Stored("U8", (100,), old)})
    spec = TensorSpec("w", "U8", (100,))
    changes = Changes.from_entries(spec, np.array([5]), np.array([1], np.uint8))
    path = pair.folder / "liar.safetensors"
    with OrderedMap(1) as pool, DeltaWriter(path) as writer:
        part = encode_part(changes, "difference", pool=pool)
        ends = (segment_digest(old),), (segment_digest(new),)
        writer.add(EncodedTensor(spec, spec, (part,), *ends))
        writer.finish()
    assert sparsedelta.validate(path).ok
    return path
