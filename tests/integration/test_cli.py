"""Every command and option, as a user types them: processes of ``python -m sparsedelta``."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    COMMANDS,
    FROZEN,
    HALF,
    TIMEOUT,
    TUNED,
    Pair,
    Run,
    Stored,
    call,
    cli,
    environment,
    failed,
    hint_of,
    succeeded,
    tree,
    write_file,
)

import sparsedelta

HEX = re.compile(r"[0-9a-f]{64}")
ESCAPE = "\x1b"


def request(pair: Pair, command: str) -> list[str]:
    """A command line of each command that succeeds."""
    out = str(pair.out)
    base, target, delta = map(str, (pair.base, pair.target, pair.delta))
    return {
        "diff": ["diff", base, target, "-o", out],
        "apply": ["apply", base, delta, "-o", out],
        "revert": ["revert", target, delta, "-o", out],
        "validate": ["validate", delta, "--base", base],
        "info": ["info", delta, "--tensors"],
        "fingerprint": ["fingerprint", base],
    }[command]


def on_a_terminal(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and all that a terminal is sent on stdout and stderr."""
    main, side = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsedelta", *map(str, arguments)],
            env=environment({"TERM": "xterm-256color", **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=side,
            stderr=side,
        )
        os.close(side)
        text = b""
        try:
            while chunk := os.read(main, 1 << 16):
                text += chunk
        except OSError:  # how Linux says that the other side has closed
            pass
        return process.wait(TIMEOUT), text.decode()
    finally:
        os.close(main)


# --- what commands do ---


@pytest.mark.parametrize("known", [[], ["--base", "BASE"]], ids=["portable", "compact"])
def test_there_and_back(pair: Pair, known: list[str]) -> None:
    """The product in three lines: diff, apply and revert return the files, byte for byte."""
    delta, out, back = (pair.folder / name for name in ("d", "out", "back"))
    known = [word.replace("BASE", str(pair.base)) for word in known]
    profile = "compact" if known else "portable"
    succeeded(cli("diff", pair.base, pair.target, "-o", delta, "--profile", profile))
    succeeded(cli("apply", pair.base, delta, "-o", out))
    succeeded(cli("revert", out, delta, "-o", back, *known))
    assert out.read_bytes() == pair.target.read_bytes()
    assert back.read_bytes() == pair.base.read_bytes()


def test_the_library_and_the_command_write_the_same_delta(pair: Pair) -> None:
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out))
    assert pair.out.read_bytes() == pair.delta.read_bytes()


def test_long_options_are_the_short_ones(pair: Pair) -> None:
    succeeded(call("diff", pair.base, pair.target, "--out", pair.out, "--quiet"))
    assert pair.out.read_bytes() == pair.delta.read_bytes()


def test_relative_paths_are_of_the_current_folder(pair: Pair) -> None:
    succeeded(cli("apply", pair.base.name, pair.delta.name, "-o", "out", cwd=pair.folder))
    assert (pair.folder / "out").read_bytes() == pair.target.read_bytes()


def test_the_summary_of_diff_says_what_was_written(pair: Pair) -> None:
    run = succeeded(call("diff", pair.base, pair.target, "-o", pair.out))
    nnz = sparsedelta.info(pair.out).nnz
    assert f"wrote {pair.out}: " in run.out
    assert f"{nnz:,} entries in 2 of 4 tensors" in run.out


def test_the_summary_of_a_delta_that_saves_nothing_is_a_clean_sentence(tmp_path: Path) -> None:
    """No ratio to boast of: no trace of it either."""
    base = write_file(tmp_path / "a", {"w": Stored("U8", (4,), bytes(4))})
    target = write_file(tmp_path / "b", {"w": Stored("U8", (4,), bytes([1, 0, 0, 0]))})
    run = succeeded(call("diff", base, target, "-o", tmp_path / "d"))
    assert " ," not in run.out
    assert "  " not in run.out


def test_the_summary_of_apply_names_the_verified_fingerprint(pair: Pair) -> None:
    run = succeeded(cli("apply", pair.base, pair.delta, "-o", pair.out))
    expected = str(sparsedelta.fingerprint(pair.target))
    assert f"verified {expected}" in run.out.splitlines()


def test_fingerprint_prints_the_fingerprint_and_nothing_else(pair: Pair) -> None:
    run = succeeded(cli("fingerprint", pair.base))
    assert HEX.fullmatch(run.out.removesuffix("\n"))
    assert run.err == ""


def test_fingerprint_lists_the_tensors(pair: Pair) -> None:
    lines = succeeded(call("fingerprint", pair.base, "--tensors")).out.splitlines()
    assert len(lines) == 1 + 4
    assert re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(FROZEN)}", lines[1])


def test_info_says_both_ends_and_lists_touched_tensors(pair: Pair) -> None:
    run = succeeded(call("info", pair.delta, "--tensors"))
    assert str(sparsedelta.fingerprint(pair.base)) in run.out
    assert str(sparsedelta.fingerprint(pair.target)) in run.out
    assert TUNED in run.out
    assert HALF in run.out
    assert FROZEN not in run.out


def test_info_without_tensors_lists_none(pair: Pair) -> None:
    assert TUNED not in succeeded(call("info", pair.delta)).out


def test_info_shows_provenance_and_hints(pair: Pair) -> None:
    options = ["--meta", "recipe=two = steps", "--base-repo", "org/model", "--base-revision", "abc"]
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, *options))
    lines = succeeded(call("info", pair.out)).out.splitlines()
    assert any(re.fullmatch(r"metadata\.recipe +two = steps", line) for line in lines)
    assert any(re.fullmatch(r"base_repo +org/model", line) for line in lines)
    assert any(re.fullmatch(r"base_revision +abc", line) for line in lines)


def test_provenance_is_no_part_of_the_identity(pair: Pair) -> None:
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, "--meta", "by=me"))
    assert sparsedelta.info(pair.out).content == sparsedelta.info(pair.delta).content


def test_the_hint_of_a_wrong_base_names_the_repository(pair: Pair) -> None:
    options = ["--base-repo", "org/model", "--base-revision", "abc123"]
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, *options))
    other = write_file(pair.folder / "other", {"x": Stored("U8", (1,), b"\0")})
    message = failed(call("apply", other, pair.out, "-o", pair.folder / "o"), 3)
    assert "org/model@abc123" in hint_of(message)


def test_validate_says_that_a_good_delta_is_valid(pair: Pair) -> None:
    assert "is valid" in succeeded(cli("validate", pair.delta)).out


def test_validate_with_the_base_says_what_it_proved(pair: Pair) -> None:
    run = succeeded(call("validate", pair.delta, "--base", pair.base))
    assert "applying to the base gives the target" in run.out
    assert "gives the target" not in succeeded(call("validate", pair.delta)).out


def test_validate_does_not_take_the_target_for_a_proof(pair: Pair) -> None:
    """On a checkpoint that already is the target nothing was applied, so nothing was proven."""
    run = call("validate", pair.delta, "--base", pair.target)
    assert run.code == 3
    assert f"{pair.target} is the target of {pair.delta}, not its base (SD501)" in run.out
    report = call("validate", pair.delta, "--base", pair.target, "--json").document
    assert (report["ok"], report["base_checked"]) == (False, False)


def test_validate_reaches_a_base_around_the_delta(pair: Pair) -> None:
    """A delta in a folder of its base is read, not written: there is nothing to overwrite."""
    folder = pair.folder / "model"
    write_file(folder / "model.safetensors", dict.fromkeys("a", Stored("U8", (2,), b"\0\1")))
    write_file(folder / "new" / "model", dict.fromkeys("a", Stored("U8", (2,), b"\0\2")))
    delta = folder / "deltas" / "d"
    delta.parent.mkdir()
    sparsedelta.diff(folder / "model.safetensors", folder / "new" / "model", delta)
    succeeded(call("validate", delta, "--base", folder))


def test_validate_leaves_nothing(pair: Pair) -> None:
    before = tree(pair.folder)
    succeeded(call("validate", pair.delta, "--base", pair.base))
    assert tree(pair.folder) == before


# --- apply where there is nothing to do ---


@pytest.mark.parametrize(("command", "end"), [("apply", "target"), ("revert", "base")])
def test_a_checkpoint_that_is_already_there_is_copied(pair: Pair, command: str, end: str) -> None:
    source = getattr(pair, end)
    run = succeeded(cli(command, source, pair.delta, "-o", pair.out))
    assert f"nothing to do: {source} already is the {end} of {pair.delta}" in run.out
    assert pair.out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("command", "end"), [("apply", "target"), ("revert", "base")])
def test_programs_are_told_that_nothing_was_done(pair: Pair, command: str, end: str) -> None:
    source = getattr(pair, end)
    found = succeeded(call(command, source, pair.delta, "-o", pair.out, "--json")).document
    assert (found["changed"], found["nnz"], found["tensors"]) == (False, 0, 0)
    assert found["fingerprint"] == str(sparsedelta.fingerprint(source))


def test_equal_checkpoints_make_a_delta_of_nothing(pair: Pair) -> None:
    """A delta without entries is one like any other: it applies, reverts and validates."""
    delta = pair.folder / "d"
    assert succeeded(call("diff", pair.base, pair.base, "-o", delta, "--json")).document["nnz"] == 0
    succeeded(call("validate", delta, "--base", pair.base))
    for command in ("apply", "revert"):
        succeeded(call(command, pair.base, delta, "-o", pair.out, "--force"))
        assert pair.out.read_bytes() == pair.base.read_bytes()
    assert "0 entries" in re.sub(r"entries +0\b", "0 entries", succeeded(call("info", delta)).out)


# --- one-way deltas ---


@pytest.fixture
def one_way(pair: Pair) -> Path:
    path = pair.folder / "one-way"
    succeeded(call("diff", pair.base, pair.target, "-o", path, "--one-way"))
    return path


def test_a_one_way_delta_leads_to_the_target(pair: Pair, one_way: Path) -> None:
    succeeded(call("apply", pair.base, one_way, "-o", pair.out))
    assert pair.out.read_bytes() == pair.target.read_bytes()


def test_a_one_way_delta_cannot_be_reverted(pair: Pair, one_way: Path) -> None:
    before = tree(pair.folder)
    message = failed(cli("revert", pair.target, one_way, "-o", pair.out), 1)
    assert str(one_way) in message
    assert "sparsedelta diff" in hint_of(message)
    assert tree(pair.folder) == before


def test_info_says_that_a_delta_is_one_way(one_way: Path) -> None:
    assert re.search(r"^invertible +no", succeeded(call("info", one_way)).out, re.MULTILINE)
    assert succeeded(call("info", one_way, "--json")).document["invertible"] is False


# --- --json ---

FACTS: dict[str, dict[str, Any]] = {
    "diff": {"touched": 2, "untouched": 2, "invertible": True, "dry_run": False},
    "apply": {"changed": True, "tensors": 2, "left_behind": [], "dry_run": False},
    "revert": {"changed": True, "tensors": 2, "left_behind": [], "dry_run": False},
    "validate": {"ok": True, "problems": [], "tensors": 2, "base_checked": True},
    "info": {"version": "1.0", "profile": "portable", "touched": 2, "untouched": 2},
    "fingerprint": {"tensors": 4},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_and_nothing_else(pair: Pair, command: str) -> None:
    run = succeeded(cli(*request(pair, command), "--json"))
    found = run.document
    assert {key: found.get(key) for key in FACTS[command]} == FACTS[command]
    assert run.err == ""


def test_json_of_diff_says_what_the_delta_says(pair: Pair) -> None:
    found = succeeded(call(*request(pair, "diff"), "--json")).document
    info = sparsedelta.info(pair.out)
    assert found["delta"] == str(pair.out)
    assert found["size"] == pair.out.stat().st_size
    assert (found["base"], found["target"], found["content"], found["nnz"]) == (
        info.base,
        info.target,
        info.content,
        info.nnz,
    )


def test_json_of_info_lists_tensors_only_when_asked(pair: Pair) -> None:
    without = succeeded(call("info", pair.delta, "--json")).document
    listed = succeeded(call("info", pair.delta, "--json", "--tensors")).document
    assert "tensors" not in without
    assert [tensor["name"] for tensor in listed["tensors"]] == [TUNED, HALF]
    assert listed["tensors"][0]["target"]["shape"] == [50, 20]


def test_json_of_fingerprint_lists_digests_only_when_asked(pair: Pair) -> None:
    without = succeeded(call("fingerprint", pair.base, "--json")).document
    listed = succeeded(call("fingerprint", pair.base, "--json", "--tensors")).document
    assert "digests" not in without
    assert sorted(listed["digests"]) == sorted(sparsedelta.fingerprint(pair.base).tensors)


def test_json_of_an_invalid_delta_is_a_document_with_its_problems(pair: Pair) -> None:
    """A program that asks gets its answer where it looks for it, and exit code 3."""
    damaged = bytearray(pair.delta.read_bytes())
    damaged[-1] ^= 1
    pair.delta.write_bytes(damaged)
    run = cli("validate", pair.delta, "--json")
    assert run.code == 3
    assert run.document["ok"] is False
    assert [problem["rule"] for problem in run.document["problems"]] == ["SD401"]


def test_json_wins_over_quiet(pair: Pair) -> None:
    assert succeeded(call(*request(pair, "diff"), "--json", "--quiet")).document["nnz"] > 0


def test_json_holds_names_of_any_script(tmp_path: Path) -> None:
    name = "größe.重み.🧠"
    base = write_file(tmp_path / "a", {name: Stored("U8", (2,), b"\0\0")})
    target = write_file(tmp_path / "b", {name: Stored("U8", (2,), b"\0\1")})
    succeeded(cli("diff", base, target, "-o", tmp_path / "d"))
    run = succeeded(cli("info", tmp_path / "d", "--json", "--tensors"))
    assert run.document["tensors"][0]["name"] == name


# --- --quiet ---


@pytest.mark.parametrize("command", ["diff", "apply", "revert", "validate"])
def test_quiet_says_nothing(pair: Pair, command: str) -> None:
    run = succeeded(cli(*request(pair, command), "--quiet"))
    assert (run.out, run.err) == ("", "")


@pytest.mark.parametrize("command", ["info", "fingerprint"])
def test_quiet_keeps_the_answer_of_a_question(pair: Pair, command: str) -> None:
    arguments = request(pair, command)
    assert succeeded(call(*arguments, "-q")).out == succeeded(call(*arguments)).out != ""


def test_quiet_keeps_errors(pair: Pair) -> None:
    failed(cli("apply", pair.delta, pair.base, "-o", pair.out, "--quiet"), 1)


def test_quiet_keeps_the_problems_of_a_delta(pair: Pair) -> None:
    pair.delta.write_bytes(pair.delta.read_bytes()[:-1])
    run = call("validate", pair.delta, "--quiet")
    assert run.code == 3
    assert "NOT valid" in run.out + run.err


# --- --threads ---


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tensor of three segments and many blocks, and one of another width."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    old = rng.integers(0, 256, (9 << 20) + 3, dtype=np.uint8)
    new = old.copy()
    new[rng.random(old.size) < 0.05] += 3
    wide = rng.integers(0, 1 << 32, 70_000, dtype=np.uint32)
    base = write_file(
        folder / "base.safetensors",
        {
            "w": Stored("U8", old.shape, old.tobytes()),
            "wide": Stored("U32", wide.shape, wide.tobytes()),
        },
    )
    wide[::5] -= 1
    target = write_file(
        folder / "target.safetensors",
        {
            "w": Stored("U8", new.shape, new.tobytes()),
            "wide": Stored("U32", wide.shape, wide.tobytes()),
        },
    )
    delta = folder / "delta.safetensors"
    succeeded(call("diff", base, target, "-o", delta, "--threads", "1"))
    return Pair(folder, base, target, delta)


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_any_number_of_threads_gives_the_same_bytes(
    large: Pair, tmp_path: Path, threads: str
) -> None:
    delta, out, back = (tmp_path / name for name in ("d", "out", "back"))
    succeeded(call("diff", large.base, large.target, "-o", delta, "--threads", threads))
    assert delta.read_bytes() == large.delta.read_bytes()
    succeeded(call("apply", large.base, delta, "-o", out, "--threads", threads))
    assert out.read_bytes() == large.target.read_bytes()
    succeeded(call("revert", out, delta, "-o", back, "--threads", threads))
    assert back.read_bytes() == large.base.read_bytes()


@pytest.mark.parametrize("threads", ["2", "5"])
def test_any_number_of_threads_gives_the_same_answers(large: Pair, threads: str) -> None:
    for command, path in (("fingerprint", large.base), ("validate", large.delta)):
        one = succeeded(call(command, path, "--json", "--threads", "1"))
        assert succeeded(call(command, path, "--json", "--threads", threads)).out == one.out


# --- usage ---


def test_version() -> None:
    run = succeeded(cli("--version"))
    assert run.out.split() == ["sparsedelta,", "version", sparsedelta.__version__]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str) -> None:
    run = succeeded(cli(flag))
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", run.out, re.MULTILINE)
    assert run.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_describes_every_option(command: str) -> None:
    text = succeeded(call(command, "-h")).out
    assert text.startswith(f"Usage: sparsedelta {command} [OPTIONS] ")
    options = text.split("Options:\n")[1]
    lines = [line for line in options.splitlines() if line.lstrip().startswith("-")]
    assert lines
    for line in lines:
        flags, _, described = line.strip().partition("  ")
        wrapped = options.split(line + "\n", 1)[1].startswith(" " * 10)
        assert described or wrapped, f"{flags} is not described"


USAGE = {
    "unknown command": ["destroy"],
    "unknown option": ["info", "DELTA", "--loud"],
    "no output": ["diff", "BASE", "TARGET"],
    "too few arguments": ["apply", "BASE", "-o", "OUT"],
    "too many arguments": ["apply", "BASE", "DELTA", "MORE", "-o", "OUT"],
    "no threads": ["fingerprint", "BASE", "--threads", "0"],
    "negative threads": ["fingerprint", "BASE", "--threads", "-1"],
    "threads in words": ["fingerprint", "BASE", "--threads", "many"],
    "unknown profile": ["diff", "BASE", "TARGET", "-o", "OUT", "--profile", "tiny"],
    "codec of another profile": ["diff", "BASE", "TARGET", "-o", "OUT", "--codec", "ranked"],
    "metadata without value": ["diff", "BASE", "TARGET", "-o", "OUT", "--meta", "key"],
    "metadata without key": ["diff", "BASE", "TARGET", "-o", "OUT", "--meta", "=value"],
}


def ask(pair: Pair, words: list[str]) -> Run:
    """Run a command line with the pair's paths in place of the words in capitals."""
    paths = {
        "BASE": pair.base,
        "TARGET": pair.target,
        "DELTA": pair.delta,
        "OUT": pair.out,
        "MORE": pair.base,
    }
    return call(*(paths.get(word, word) for word in words))


@pytest.mark.parametrize("words", USAGE.values(), ids=USAGE.keys())
def test_a_request_that_makes_no_sense_exits_2(pair: Pair, words: list[str]) -> None:
    before = tree(pair.folder)
    run = ask(pair, words)
    assert run.code == 2
    assert "error: " in run.err.lower()
    assert "Traceback" not in run.err
    assert run.out == ""
    assert tree(pair.folder) == before


def test_an_unknown_command_ends_the_process_with_2() -> None:
    run = cli("destroy")
    assert run.code == 2
    assert "No such command 'destroy'" in run.err
    assert run.out == ""


# --- what a terminal and a pipe get ---


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "xterm-256color"}])
def test_a_pipe_gets_no_escape_codes(pair: Pair, env: dict[str, str]) -> None:
    for arguments in (
        request(pair, "diff"),
        request(pair, "info"),
        ["apply", str(pair.delta), str(pair.base), "-o", str(pair.folder / "o")],
        ["destroy"],
        ["-h"],
    ):
        run = cli(*arguments, env=env)
        assert ESCAPE not in run.out + run.err


def test_a_terminal_without_colour_gets_none(pair: Pair) -> None:
    code, text = on_a_terminal(*request(pair, "diff"), env={"NO_COLOR": "1"})
    assert code == 0
    assert f"wrote {pair.out}" in text.replace("\r\n", "")
    assert re.findall(r"\x1b\[[0-9;]*(?<![0-9])[349][0-7][;m]", text) == []


def test_a_dumb_terminal_gets_no_escape_codes(pair: Pair) -> None:
    code, text = on_a_terminal(*request(pair, "diff"), env={"TERM": "dumb"})
    assert code == 0
    assert ESCAPE not in text


@pytest.mark.parametrize("option", ["--meta", "--base-repo"])
def test_a_delta_cannot_send_codes_to_a_terminal(pair: Pair, option: str) -> None:
    """A delta may come from a stranger: what it says is shown, not obeyed."""
    evil = f"note={ESCAPE}]0;owned\x07{ESCAPE}[2J"
    succeeded(call("diff", pair.base, pair.target, "-o", pair.out, option, evil))
    code, text = on_a_terminal("info", pair.out)
    assert code == 0
    assert ESCAPE not in text


def test_a_line_of_info_is_one_fact(pair: Pair) -> None:
    """Metadata with line breaks cannot forge the lines of other facts."""
    sparsedelta.diff(pair.base, pair.target, pair.out, metadata={"note": "x\nbase  00000000"})
    lines = succeeded(call("info", pair.out)).out.splitlines()
    assert [line for line in lines if re.match(r"base +", line)] == [
        next(line for line in lines if str(sparsedelta.fingerprint(pair.base)) in line)
    ]


def test_a_reader_that_goes_away_is_no_error_of_ours(pair: Pair) -> None:
    """``sparsedelta info … | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sparsedelta", *request(pair, "info")],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_an_ascii_pipe_gets_what_it_can_show(pair: Pair) -> None:
    """Messages hold … and names of any script; an old locale is no reason to fail."""
    run = cli(*request(pair, "apply"), env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"})
    succeeded(run)


def test_paths_that_are_no_utf_8_are_paths(pair: Pair) -> None:
    """File names are bytes: a file that exists can be named, read and told."""
    out = pair.folder / os.fsdecode(b"delta-\xff")
    env = {"PYTHONIOENCODING": "utf-8:strict"}  # as in any UTF-8 locale but C.UTF-8
    succeeded(cli("diff", pair.base, pair.target, "-o", out, env=env))
    succeeded(cli("info", out, env=env))
    succeeded(cli("info", out, "--json", env=env))


def test_json_is_utf_8_whatever_the_path(pair: Pair) -> None:
    out = pair.folder / os.fsdecode(b"delta-\xff")
    run = succeeded(cli("diff", pair.base, pair.target, "-o", out, "--json"))
    assert json.loads(run.out.encode("utf-8", "surrogateescape"))["nnz"] > 0
