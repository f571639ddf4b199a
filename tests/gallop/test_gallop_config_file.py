"""Settings: one table, from which files and flags are made, and what happens where they meet."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gallop import GallopConfig
from gallop.cli import gallop, main
from gallop.config_file import read_config, write_config
from gallop.errors import ConfigError
from gallop.setting import Setting
from gallop.settings import SETTINGS, defaults, keyword_arguments
from gallop.train_config import TrainConfig

COMMANDS = ("select", "train", "eval", "estimate")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


FIELDS = [
    pytest.param(kind, field, id=f"{kind.__name__}.{field.name}")
    for kind in (GallopConfig, TrainConfig)
    for field in dataclasses.fields(kind)
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_has_a_flag_and_a_key(kind: type, field: dataclasses.Field[Any]) -> None:
    """A field that somebody adds to a dataclass must come into the table, with its default."""
    name = f"{kind.__name__}.{field.name}"
    (setting,) = [each for each in SETTINGS if name in each.fields]
    if field.default is not dataclasses.MISSING:
        assert setting.default == field.default
    for command in setting.commands:
        (parameter,) = [
            each for each in gallop.commands[command].params if each.name == setting.name
        ]
        assert isinstance(parameter, click.Option)
        assert any(flag.startswith("--") for flag in parameter.opts)


def test_the_table_holds_each_setting_once() -> None:
    for unique in ("name", "key"):
        found = [(s.section if unique == "key" else "", getattr(s, unique)) for s in SETTINGS]
        assert len(set(found)) == len(found)
    known = {f"{k.values[0].__name__}.{k.values[1].name}" for k in FIELDS}  # type: ignore[union-attr]
    assert {field for each in SETTINGS for field in each.fields} <= known
    for each in SETTINGS:
        assert set(each.commands) <= set(COMMANDS)
        assert each.default is None or each.convert(each.default) == each.default
        assert each.kind != "choice" or each.choices


def other(setting: Setting) -> Any:  # noqa: ANN401, PLR0911
    """A value that is not the default."""
    match setting.kind:
        case "integer":
            return (setting.default or 0) + 3
        case "number":
            return setting.default / 2 if setting.default else 0.25
        case "numbers":
            return (0.5, 0.25)
        case "switch":
            return not setting.default
        case "text":
            return "ä text"
        case "texts":
            return ("one", "two: *")
    return next(each for each in setting.choices if each != setting.default)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """Law: read(write(values)) is values."""
    values = {each.name: other(each) for each in SETTINGS}
    assert read_config(written(tmp_path / "c.yml", write_config(values))) == values
    assert read_config(written(tmp_path / "d.yml", write_config(defaults()))) == defaults()


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_win_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "out.yml"
    apart = {"mask"}  # it does not go with a density
    own = [each for each in SETTINGS if command in each.commands and each.name not in apart]
    assert call(capsys, command, "--print-config")[1] == write_config(defaults())
    file = {each.name: other(each) for each in own}
    code, out, err = call(
        capsys, command, "--config", written(path, write_config(file)), "--print-config"
    )
    assert code == 0, err
    written(path, out)
    assert read_config(path) == {**defaults(), **file}
    arguments: list[str] = []
    for each in own:
        value = each.default
        if each.positional:
            arguments.append("given")
        elif each.kind == "switch":
            arguments.append(each.flags.split("/")[0 if value else 1])
        elif each.kind == "numbers":
            arguments += [each.flags, *map(str, value)]
        elif each.kind == "choice":
            arguments += [each.flags, next(x for x in each.choices if x != file[each.name])]
        else:
            given = (value[0] if value else "given") if each.kind == "texts" else value
            arguments += [each.flags.split("/")[-1], str(given or "5")]
    code, out, err = call(capsys, command, *arguments, "--config", path, "--print-config")
    assert code == 0, err
    found = read_config(written(path, out))
    assert not [each.name for each in own if found[each.name] == file[each.name]]


FULL = """\
model:
  path: {model}
data: {{path: {data}, max_length: 64}}
selection:
  density: 0.1
  exclude: ["*norm*"]
training:
  steps: 2
  lr: 2e-4
  max_grad_norm: null
output:
  path: {out}
"""


def test_a_file_is_enough(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same delta as from flags; a flag over it makes another."""
    text = FULL.format(model=model_dir, data=data_file, out=tmp_path / "one")
    path = written(tmp_path / "run.yml", text)
    assert read_config(path)["lr"] == 2e-4  # text to YAML 1.1
    code, _, err = call(capsys, "train", "--config", path, "--quiet")
    assert code == 0, err
    arguments = ("--density", 0.1, "--exclude", "*norm*", "--max-length", 64, "--steps", 2)
    two = ("train", model_dir, data_file, "-o", tmp_path / "two", *arguments)
    code, _, err = call(capsys, *two, "--max-grad-norm", 0, "--quiet")
    assert code == 0, err
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    code, out, err = call(
        capsys, "train", "--config", path, "--steps", 3, "-o", tmp_path / "x", "--dry-run", "--json"
    )
    assert (code, json.loads(out)["steps"]) == (0, 3), err


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (
            "model: {path: x}\ntrainig: {}",
            "run.yml:2: expected a section",
            "did you mean training?",
        ),
        (
            "training:\n  steps: 3\n  batchsize: 4",
            "run.yml:3: expected a key of training, found 'batchsize'",
            "did you mean batch_size?",
        ),
        ("selection:\n  zzz: 1", "run.yml:2: expected a key of selection", "known are density"),
        ("training:\n  steps: 3\n  steps: 4", "run.yml:3: expected steps once", ""),
        ("training:\n  steps: many", "run.yml:2: training.steps: expected a whole number", ""),
        ("training:\n  steps: true", "run.yml:2: training.steps: expected a whole number", ""),
        ("training:\n  steps: 0", "of at least 1, found 0", ""),
        ("training:\n\n  lr: fast", "run.yml:3: training.lr: expected a number, found 'fast'", ""),
        ("training: {warmup: 2}", "training.warmup: expected a number in [0, 1], found 2", ""),
        ("training: {betas: 0.9}", "training.betas: expected a list of two numbers", ""),
        ("selection: {density: null}", "selection.density: expected a number, found None", ""),
        ("selection: {include: '*'}", "selection.include: expected a list of texts", ""),
        ("selection: {exclude_zeros: 1}", "expected true or false, found 1", ""),
        ("model: {dtype: int8}", "expected one of auto, float32, bfloat16, float16", ""),
        ("model: {path: [1]}", "model.path: expected text, found [1]", ""),
        ("model: path", "run.yml:1: expected keys and values, found a scalar", ""),
        ("- model", "run.yml:1: expected keys and values, found a sequence", ""),
        ("model: {path: !!python/name:os.system x}", "model.value: expected plain YAML", ""),
        ("model: {path: x", "run.yml:1: expected YAML", ""),
    ],
)
def test_mistakes_are_named_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, text: str, says: str, hint: str
) -> None:
    path = written(tmp_path / "run.yml", text)
    code, out, err = call(capsys, "train", "--config", path)
    assert (code, out) == (2, ""), err
    assert f"error: {path}" in err or err.startswith("error: ")
    assert says in err
    assert hint in err


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    assert read_config(written(tmp_path / "a.yml", "")) == {}
    assert read_config(written(tmp_path / "b.yml", "# nothing\ntraining:\n")) == {}
    with pytest.raises(ConfigError, match="expected a configuration file"):
        read_config(tmp_path / "none.yml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("select",), "Missing MODEL: give it, or model.path in --config."),
        (("train", "m"), "Missing DATA: give it, or data.path in --config."),
        (("train", "m", "d"), "Missing -o/--out: give it, or output.path in --config."),
        (("eval", "m"), "Missing DATA: give it, or evaluation.path in --config."),
        (("estimate",), "Missing MODEL"),
    ],
)
def test_what_cannot_be_left_out_is_asked_for(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    code, _, err = call(capsys, *arguments)
    assert (code, says in err) == (2, True), err


def test_density_in_a_file_and_a_mask_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "run.yml", "selection: {density: 0.1, mask: m}")
    code, _, err = call(capsys, "train", "m", "d", "-o", "o", "--config", path)
    assert (code, "either --density" in err) == (2, True), err
    written(path, write_config(defaults() | {"mask": "m"}))  # as --print-config writes it
    code, _, err = call(capsys, "train", "m", "d", "-o", tmp_path / "o", "--config", path)
    assert (code, "error: m: expected a mask file" in err) == (1, True), err


def test_without_pyyaml_there_is_a_reason(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['yaml'] = None; from gallop.cli import main; "
        "main(['train', '--config', 'x.yml'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "error: pyyaml: expected it installed" in done.stderr
    assert 'hint: pip install "sparsedelta[train]"' in done.stderr


def test_dataclasses_are_made_of_the_table() -> None:
    values = defaults() | {"seed": 7, "density": 0.5, "steps": 3}
    assert GallopConfig(**keyword_arguments("GallopConfig", values)) == GallopConfig(0.5, seed=7)
    assert TrainConfig(**keyword_arguments("TrainConfig", values)) == TrainConfig(steps=3, seed=7)
    assert yaml.safe_load(write_config(values))["training"]["seed"] == 7
