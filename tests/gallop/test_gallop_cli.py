"""The command line, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_scripts import Forked
from safetensors.torch import load_file

from gallop import Mask
from gallop.cli import main
from sparsedelta import apply


class Run:
    """One command: exit code, stdout, stderr."""

    def __init__(self, *arguments: object) -> None:
        done = Forked("gallop.cli", *arguments)
        self.out, self.err = done.communicate()
        self.code = done.returncode


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process, which is quicker."""
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def test_select_then_train_then_apply(tmp_path: Path, model_dir: Path, data_file: Path) -> None:
    mask, delta, saved = tmp_path / "m", tmp_path / "d", tmp_path / "saved"
    chosen = Run("select", model_dir, data_file, "-o", mask, "--density", 0.1, "--json")
    assert (chosen.code, chosen.err.splitlines()[-1][:10]) == (0, "select 1/1"), chosen.err
    document = json.loads(chosen.out)
    assert document["nnz"] == Mask.load(mask).nnz == document["requested"]
    trained = Run(
        "train", model_dir, data_file, "-o", delta, "--mask", mask, "--steps", 3, "--lr", 0.01,
        "--batch-size", 2, "--accumulate", 2, "--save-model", saved, "--json", "--quiet",
    )  # fmt: skip
    assert (trained.code, trained.err) == (0, ""), trained.err
    document = json.loads(trained.out)
    assert document["mask_digest"] == Mask.load(mask).digest
    assert document["last_loss"] < document["first_loss"]
    assert document["delta_bytes"] == delta.stat().st_size
    assert document["moved"] == document["nnz"]
    apply(model_dir, delta, tmp_path / "tuned")
    tuned, live = (load_file(path / "model.safetensors") for path in (tmp_path / "tuned", saved))
    assert all(bool((value == live[name]).all()) for name, value in tuned.items())
    assert (saved / "tokenizer.json").exists()


def test_train_is_repeatable_and_readable(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        code, out, err = call(
            capsys, "train", model_dir, data_file, "-o", tmp_path / name,
            "--density", 0.05, "--steps", 2, "--threshold-scope", "per_tensor",
        )  # fmt: skip
        assert code == 0, err
        assert "zero share" in out
        assert "\nchosen       " in out  # the report of the selection
        assert "selection memory: resident" in err
        assert "entries that moved in float32 show it in float32" in out
        assert "train 2/2 loss" in err
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("command", ["select", "train"])
def test_a_dry_run_writes_nothing(
    tmp_path: Path,
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    steps = ("--steps", 9) if command == "train" else ()
    code, out, _ = call(
        capsys, command, model_dir, data_file, "-o", tmp_path / "x",
        "--density", 0.1, "--dry-run", "--json", *steps,
    )  # fmt: skip
    assert code == 0
    plan = json.loads(out)
    assert plan["dry_run"] is True
    assert plan["samples"] == 4
    assert plan["k"] == plan["eligible"] // 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--density", "0.1", "--mask", "m"], 2, "either --density"),
        (["--selector", "fisher", "--mask", "m"], 2, "either --selector"),
        (["--include-zeros", "--mask", "m"], 2, "either --exclude-zeros/--include-zeros"),
        (
            [
                "--allocation",
                "typo",
                "--threshold-scope",
                "per_tensor",
                "--exclude-zeros",
                "--dry-run",
            ],
            2,
            "error: allocation: expected one of uniform",
        ),
        (["--save-model", "x", "--run", "x"], 1, "the output x would overwrite the input x"),
        (["--log", "x", "--log", "./x"], 2, "found one twice"),
        (
            ["--save-model", "x", "--tensorboard", "x/events"],
            1,
            "the output x/events lies inside the input x",
        ),
        (["--run", "x", "--tensorboard", "x/events"], 1, "lies inside the input x"),
        (["--tensorboard", __file__], 2, "--tensorboard: expected a folder, found the file"),
        (["--density", "2"], 2, "error: density: expected a number in (0, 1], found 2.0"),
        (["--density", "0.1", "--seed", "-1"], 2, "error: seed: expected"),
        (["--density", "0.1", "--steps", "0"], 2, "--steps"),
        (["--density", "0.1", "--lr", "-1"], 2, "error: lr: expected"),
        (["--density", "0.1", "--dtype", "bfloat16"], 1, "hint: load the model in the dtype"),
        (["--density", "0.1", "--include", "zzz*"], 1, "error: no eligible parameter"),
        (["--density", "0.1", "--max-length", "2"], 1, "hint: raise --max-length"),
        (["--mask", "none"], 1, "error: none: expected a mask file"),
    ],
)
def test_failures_are_told_without_a_traceback(
    tmp_path: Path,
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    given: list[Any] = ["train", model_dir, data_file, "-o", tmp_path / "d", "--steps", 1]
    found, out, err = call(capsys, *given, *arguments)
    assert (found, out) == (code, ""), err
    assert says in err
    assert "Traceback" not in err
    assert "select 1/" not in err  # found before any work was done
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("-o", tmp_path / "m", "--density", 0.1)
    for model in (tmp_path / "nowhere", "nobody/nothing"):
        code, _, err = call(capsys, "select", model, data_file, *rest)
        assert (code, err.startswith(f"error: {model}: expected a")) == (4, True), err
        assert "hint: " in err
    code, _, err = call(capsys, "select", model_dir, tmp_path / "none.jsonl", *rest)
    assert (code, "expected a data file" in err) == (1, True), err
    (tmp_path / "empty").mkdir()
    code, _, err = call(capsys, "select", tmp_path / "empty", data_file, *rest)
    assert (code, "expected a causal language model" in err) == (1, True), err


def test_outputs_are_kept_unless_forced(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    out.write_text("kept")
    given = ("select", model_dir, data_file, "-o", out, "--density", 0.1, "--quiet")
    code, _, err = call(capsys, *given)
    assert (code, "--force" in err, out.read_text()) == (1, True, "kept")
    assert call(capsys, *given, "--force")[0] == 0
    assert Mask.load(out).nnz
    code, _, err = call(
        capsys, "select", model_dir, data_file, "-o", data_file, "--density", 0.1, "--force"
    )
    assert (code, "overwrite the input" in err) == (1, True)


def test_interruption_leaves_no_file(
    tmp_path: Path,
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gallop.commands.finetune", interrupted)
    code, out, err = call(
        capsys, "train", model_dir, data_file, "-o", tmp_path / "d", "--density", 0.1, "--steps", 1
    )
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_wait_for_torch() -> None:
    shown = Run("train", "--help")
    assert shown.code == 0
    for option in ("--density", "--selection-samples", "--include-zeros", "--save-model", "--mask"):
        assert option in shown.out
    code = "import sys, gallop.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("saved", ["out", "out/model", "."])
def test_delta_and_model_do_not_take_each_others_place(
    tmp_path: Path,
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    saved: str,
) -> None:
    """Found before any work is done, with --force as without."""
    arguments = ("train", model_dir, data_file, "-o", tmp_path / "out", "--density", 0.1)
    rest = ("--steps", 1, "--save-model", tmp_path / saved, "--force")
    code, out, err = call(capsys, *arguments, *rest)
    assert (code, out) == (1, ""), err
    assert "select 1/" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_is_replaced_if_forced(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", model_dir, data_file, "-o", tmp_path / "d", "--density", 0.1)
    rest = ("--steps", 1, "--save-model", tmp_path / "saved", "--force", "--quiet")
    for _ in range(2):
        code, _, err = call(capsys, *arguments, *rest)
        assert code == 0, err
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_density_and_steps_have_defaults(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 % of the parameters, and one pass over the data: 4 examples in batches of 3 are 2 steps."""
    arguments = ("train", model_dir, data_file, "-o", tmp_path / "d", "--batch-size", 3)
    code, out, err = call(capsys, *arguments, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["steps"], plan["k"]) == (2, plan["eligible"] // 100)
    code, out, err = call(capsys, *arguments, "--json", "--quiet")
    assert (code, json.loads(out)["steps"]) == (0, 2), err


@pytest.mark.parametrize("memory", [("--memory", "grouped", "--memory-budget", 12_000), ()])
def test_settings_of_the_selection_reach_it(
    tmp_path: Path,
    model_dir: Path,
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    memory: tuple[object, ...],
) -> None:
    """Selector, scope and allocation are in the mask; the memory mode changes nothing of it."""
    arguments = ("select", model_dir, data_file, "-o", tmp_path / "m", "--density", 0.1)
    chosen = ("--selector", "gem", "--weight-threshold", 0.5, "--include", "@linear")
    code, out, err = call(capsys, *arguments, *chosen, *memory, "--json")
    assert code == 0, err
    mask = Mask.load(tmp_path / "m")
    assert mask.config is not None
    assert (mask.config.selector, mask.config.allocation) == ("gem", "entropy")
    assert mask.config.weight_threshold == 0.5
    assert "selection memory: grouped" in err if memory else "selection memory: resident" in err
    document = json.loads(out)
    assert document["mask_digest"] == mask.digest
    assert document["selection_report"]["k"] == mask.nnz
    assert call(capsys, *arguments, *chosen, "--force", "-q")[0] == 0
    assert Mask.load(tmp_path / "m") == mask
    code, _, err = call(capsys, *arguments, "--selector", "galop", "--force")
    assert (code, "selector: expected" in err) == (2, True), err
