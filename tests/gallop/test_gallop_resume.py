"""Runs that are interrupted and go on: equal, bit for bit, to runs that are not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked_scripts import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gallop_train import CONFIG, some_samples
from tiny_llama import tiny_llama
from tiny_models import same_bits, weights_of
from transformers import PreTrainedTokenizerFast

from gallop import Mask
from gallop.cli import main
from gallop.errors import ConfigError, RunError
from gallop.interrupts import stop_requests
from gallop.run_folder import RunFolder
from gallop.sampled_product import GradientMode
from gallop.saving import Saving
from gallop.settings import defaults
from gallop.state_file import read_state, write_state
from gallop.step_log import JsonLinesLog, StepRecord
from gallop.train import choose_mask, finetune
from gallop.train_config import Engine, TrainConfig
from sparsedelta.errors import OutputError

TRAINING = TrainConfig(steps=9, lr=1e-2, batch_size=3, accumulate=2, selection_samples=8, seed=5)
SETTINGS = {**defaults(), "steps": 9}


def dropping_llama(dtype: torch.dtype) -> Any:  # noqa: ANN401
    model = tiny_llama(dtype=dtype)
    model.config.attention_dropout = 0.3  # so that the state of the generator matters
    return model


class Countdown:
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        """Tell."""
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("engine", "gradient", "stop"),
    [
        ("hook", "dense", 1),
        ("hook", "dense", 4),
        ("hook", "dense", 9),
        ("autograd", "dense", 4),
        ("autograd", "sampled", 4),
    ],
)
def test_going_on_equals_never_having_stopped(
    tmp_path: Path, dtype: torch.dtype, engine: Engine, gradient: GradientMode, stop: int
) -> None:
    """Law: weights, losses and norms are those of the uninterrupted run, bit for bit."""
    training = dataclasses.replace(TRAINING, engine=engine, gradient=gradient)
    samples = some_samples(7)
    whole = dropping_llama(dtype)
    mask = choose_mask(whole, samples, selection=CONFIG, training=training)
    expected = finetune(whole, samples, training=training, mask=mask)

    run = RunFolder(tmp_path / "run")
    saving = Saving(run, settings=SETTINGS, inputs={}, stop=Countdown(stop))
    with pytest.raises(KeyboardInterrupt):
        finetune(dropping_llama(dtype), samples, training=training, mask=mask, saving=saving)
    assert run.last_step == stop
    assert len(list(run.path.glob("step-*"))) == 1

    later = RunFolder(tmp_path / "run")
    torch.manual_seed(99)  # whatever the process has drawn
    model = dropping_llama(dtype)
    found = finetune(model, samples, training=training, mask=later.mask(), start=later.load())
    assert (found.losses, found.grad_norms) == (expected.losses, expected.grad_norms)
    assert (found.tokens, found.samples) == (expected.tokens, expected.samples)
    want = weights_of(whole)
    assert all(same_bits(value, want[name]) for name, value in weights_of(model).items())


def test_a_state_without_its_mask_is_refused(tmp_path: Path) -> None:
    saving = Saving(
        RunFolder(tmp_path / "run"), settings=SETTINGS, inputs={}, every=1, stop=Countdown(1)
    )
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_llama(), some_samples(7), selection=CONFIG, training=TRAINING, saving=saving)
    start = RunFolder(tmp_path / "run").load()
    with pytest.raises(ConfigError, match="mask of the saved state"):
        finetune(tiny_llama(), some_samples(7), selection=CONFIG, training=TRAINING, start=start)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.just(torch.arange(6, dtype=torch.bfloat16)[::2]),
)  # fmt: skip
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=6,
)


def equal(left: Any, right: Any) -> bool:  # noqa: ANN401
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and same_bits(left.contiguous(), right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@settings(max_examples=25)
@given(state=STATES)
def test_a_state_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, state: object
) -> None:
    """Law: read(write(state)) is state, types and bits included."""
    path = tmp_path_factory.mktemp("state") / "s.safetensors"
    write_state(path, state)
    assert equal(state, read_state(path))
    shutil.rmtree(path.parent)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"\0" * 64)
    for path in (tmp_path / "s", tmp_path / "none"):
        with pytest.raises(RunError, match="expected a saved state"):
            read_state(path)
    with pytest.raises(TypeError, match=r"state\.a: expected a tensor"):
        write_state(tmp_path / "t", {"a": object()})
    with pytest.raises(RunError, match=r"found no run\.json"):
        RunFolder(tmp_path / "nowhere").settings({})


@pytest.mark.parametrize("at", [b"0.0625", None])
def test_a_flipped_bit_in_a_state_is_found(tmp_path: Path, at: bytes | None) -> None:
    path = tmp_path / "s"
    write_state(path, {"lr": 0.0625, "master": torch.arange(5.0)})
    data = bytearray(path.read_bytes())
    data[data.index(at) + 2 if at else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="the file is damaged"):
        read_state(path)


def test_a_stray_file_in_a_run_is_no_save(tmp_path: Path) -> None:
    (tmp_path / "step-foo.safetensors").touch()
    run = RunFolder(tmp_path)
    assert (run.last_step, run.load()) == (None, None)
    (tmp_path / "step-00000007.safetensors").touch()
    assert run.last_step == 7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": None}, "expected settings of type dict, found None"),
        ({"inputs": []}, "expected inputs of type dict"),
        ({"inputs": {"tokenizer": 3}}, "expected inputs with digests"),
        ({"threads": "2"}, "expected threads of type int"),
        ({"settings": {"steps": "many"}}, "steps: expected a whole number"),
        ({"settings": {"log": 5}}, "log: expected"),
    ],
)
def test_a_damaged_document_is_told(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    RunFolder(tmp_path / "run").begin(SETTINGS, Mask({"w": [0]}, {"w": (2,)}), {})
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=says):
        RunFolder(tmp_path / "run").settings({})


def record(step: int) -> StepRecord:
    return StepRecord(step=step, loss=1.5, grad_norm=2.0, lr=0.1, tokens=3, seconds=0.5, memory=7)


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_log_holds_each_step_once(tmp_path: Path, after: int) -> None:
    """Law: lines of steps that are taken again go, and so does half a line at the end."""
    path = tmp_path / "log.jsonl"
    log = JsonLinesLog(path)
    for step in range(1, 5):
        log.write(record(step))
    log.close()
    path.write_text(path.read_text() + '{"step": 5, "lo')
    log = JsonLinesLog(path, after=after)
    for step in range(after + 1, 7):
        log.write(record(step))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert set(lines[0]) == {"step", "loss", "grad_norm", "lr", "tokens", "seconds", "memory"}
    assert [each.name for each in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("foreign", ["dear diary\n", "[1]\n", "{}\n", '{"step": "x"}\n'])
def test_a_log_of_something_else_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + foreign)
    with pytest.raises(OutputError, match="expected one JSON object with a step a line"):
        JsonLinesLog(path, after=1)
    assert path.read_text() == '{"step": 1}\n' + foreign


def test_the_second_signal_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requests("one moment") as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert capsys.readouterr().err == "one moment\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# From here on with the command, in processes that are killed.


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = ("good", "bad", "moving", "dull", "long", "short", "hated", "loved")
    lines = [{"prompt": f"the film was {each}", "completion": " positive"} for each in words]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    for dtype in (torch.float32, torch.bfloat16):
        path = tmp_path / str(dtype).removeprefix("torch.")
        tiny_llama(dtype=dtype).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return tmp_path / "float32", tmp_path / "bfloat16"


def started(*arguments: object) -> Forked:
    return Forked("gallop.cli", *arguments)


def wait_for_step(log: Path, step: int, process: Forked) -> None:
    while not log.exists() or log.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


STEPS = 150
COMMON = ("--density", 0.1, "--steps", STEPS, "--batch-size", 2, "--lr", 0.01)


def steps_of(log: Path) -> list[tuple[int, float]]:
    return [(x["step"], x["loss"]) for x in map(json.loads, log.read_text().splitlines())]


class Whole(NamedTuple):
    """A run that nobody has interrupted: its model, its delta, its log."""

    model: Path
    out: Path
    log: Path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, long_data: Path
) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    _, model = models(folder, tokenizer)
    out, log = folder / "out", folder / "log"
    given = ("train", model, long_data, "-o", out, *COMMON, "--quiet", "--log", log)
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in given])
    assert not stopped.value.code
    return Whole(model, out, log)


def test_a_kill_in_the_middle_changes_nothing(
    tmp_path: Path, whole: Whole, long_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of SIGKILL in bfloat16: the delta that comes out in the end is the same file."""
    model, out, log = whole.model, tmp_path / "out", tmp_path / "log"
    run = tmp_path / "my run"
    more = ("--log", log, "--save-every", 7, "--run", run)
    process = started("train", model, long_data, "-o", out, *COMMON, *more)
    wait_for_step(log, 30, process)
    process.kill()
    process.communicate()
    assert not out.exists()
    killed_at = len(log.read_text().splitlines())
    saved = RunFolder(run).last_step
    assert saved is not None
    assert 21 <= saved <= killed_at < STEPS
    code, text, err = call(capsys, "train", "--resume", run, "--quiet", "--json")
    assert code == 0, err
    assert json.loads(text)["steps"] == STEPS
    assert "select" not in err
    assert out.read_bytes() == whole.out.read_bytes()
    assert steps_of(log) == steps_of(whole.log)
    assert RunFolder(run).last_step == 147  # named by the user: it stays


def test_an_interrupt_saves_and_says_how_to_go_on(
    tmp_path: Path, whole: Whole, long_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, log = whole.model, tmp_path / "out", tmp_path / "log"
    process = started("train", model, long_data, "-o", out, *COMMON, "--log", log)
    wait_for_step(log, 20, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "finishing this step" in err
    assert "Traceback" not in err
    saved = len(log.read_text().splitlines())
    last = err.splitlines()[-1]
    assert last == (
        f"interrupted; saved after step {saved}; go on with: gallop train --resume {out}.run"
    )
    again = ("train", model, long_data, "-o", out, *COMMON)
    code, _, err = call(capsys, *again)
    assert (code, f"hint: gallop train --resume {out}.run goes on" in err) == (1, True), err
    command = last.partition("go on with: gallop ")[2].split()
    code, _, err = call(capsys, *command, "--quiet")
    assert code == 0, err
    assert not Path(f"{out}.run").exists()
    assert out.read_bytes() == whole.out.read_bytes()


@pytest.fixture(scope="module")
def stopped_run(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, long_data: Path
) -> Path:
    """A folder with a base, data and a run that was begun there, after its first save."""
    tmp_path = tmp_path_factory.mktemp("stopped")
    models(tmp_path, tokenizer)
    shutil.copy(long_data, tmp_path / "data.jsonl")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit):
            main(
                ["train", "float32", "data.jsonl", "-o", "out", "--steps", "2", "--quiet",
                 "--save-every", "1", "--run", "run", "--density", "0.1"]
            )  # fmt: skip
    finally:
        os.chdir(here)
    (tmp_path / "out").unlink()
    return tmp_path


def change_base(folder: Path) -> None:
    data = bytearray((folder / "float32" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "float32" / "model.safetensors").write_bytes(data)


def change_data(folder: Path) -> None:
    (folder / "data.jsonl").write_text('{"text": "the film was bad"}')


def change_architecture(folder: Path) -> None:
    path = folder / "float32" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))


def change_mask(folder: Path) -> None:
    mask = Mask.load(folder / "run" / "mask.safetensors")
    name = next(iter(mask))
    Mask({name: [0]}, mask.shapes).save(folder / "run" / "mask.safetensors")


@pytest.mark.parametrize(
    ("change", "arguments", "code", "says"),
    [
        (None, (), 0, ""),
        (None, ("float32", "data.jsonl", "--lr", "0.0002"), 0, ""),
        (change_base, (), 1, "error: weights of the base: expected that with which"),
        (change_data, (), 1, "error: data data.jsonl: expected that with which"),
        (change_architecture, (), 1, "error: architecture of the base: expected"),
        (change_mask, (), 1, "expected the mask with which the run began"),
        (None, ("--lr", "0.1"), 2, "error: training.lr: expected 0.0002, with which the run"),
        (None, ("--exclude", "*mlp*"), 2, "error: selection.exclude: expected ()"),
        (None, ("--run", "other"), 2, "either --run"),
        (None, ("--log", "run/run.json"), 1, "run/run.json exists"),
    ],
)
def test_what_has_changed_is_named(
    tmp_path: Path,
    stopped_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    change: Any,  # noqa: ANN401
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    shutil.copytree(stopped_run, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    if change:
        change(tmp_path / "w")
    found, _, err = call(capsys, "train", "--resume", "run", *arguments)
    assert found == code, err
    assert says in err
    assert (tmp_path / "w" / "out").exists() == (code == 0)
