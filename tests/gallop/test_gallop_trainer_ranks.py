"""``attach`` inside the trainers as one of several processes: data parallel, and sharded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from forked_scripts import Forked
from many_ranks import all_well, free_port, run_script
from tiny_models import weights_of
from trainer_cases import CONFIG, logged, make_trainer, ragged, same_weights, write_base
from transformers import AutoModelForCausalLM

from gallop import Mask, attach
from sparsedelta import apply

HERE = Path(__file__).parent


PATIENCE = 300
"""Seconds, on a machine that does much else."""


def run_two(script: Path, folder: Path, *tasks: str) -> None:
    """Run tasks of a script in two processes, as torchrun starts them; both must end well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        runs = run_script(2, script, folder, *tasks, patience=PATIENCE)
    all_well(runs)
    assert all("well" in run.out for run in runs)


def launch(script: Path, folder: Path, *tasks: str) -> None:
    """Run tasks of a script in two processes with ``accelerate launch``; both must end well."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    launcher = Forked(
        "accelerate.commands.launch",
        *("--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", free_port()),
        *(script, folder, *tasks),
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path},
    )
    out, err = launcher.communicate(timeout=PATIENCE)
    assert out.count("well") == 2, out + err


def test_data_parallel_training(tmp_path: Path) -> None:
    """Trainer (trainer_ranks_work.py).

    The mask, and the norms up to rounding, are also those of one process on the same batches.
    """
    base = write_base(tmp_path / "base", dropout=0.0)
    run_two(HERE / "trainer_ranks_work.py", tmp_path, "training")

    alone = make_trainer(
        base,
        tmp_path / "alone",
        **ragged(),
        max_steps=5,
        max_grad_norm=0.3,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
    )
    attachment = attach(alone, CONFIG, selection_samples=20)
    alone.train()
    found = json.loads((tmp_path / "training" / "found.json").read_text())
    assert attachment.mask == Mask.load(tmp_path / "training" / "mask.st")
    assert attachment.report is not None
    assert attachment.report.samples == 24
    assert found["norms"] == pytest.approx(logged(alone, "grad_norm"), rel=1e-4)
    assert found["losses"] == pytest.approx(logged(alone, "loss"), rel=1e-4)


@pytest.mark.parametrize("task", ["selection", "checkpoints", "differences", "refusals"])
def test_data_parallel_trainers(tmp_path: Path, task: str) -> None:
    """What else there is of them (trainer_ranks_work.py)."""
    write_base(tmp_path / "base", dropout=0.0)
    run_two(HERE / "trainer_ranks_work.py", tmp_path, task)


def test_accelerate_launch_of_an_sft_trainer(tmp_path: Path, model_dir: Path) -> None:
    """The two lines in a script of trl, by the command that starts such scripts."""
    shutil.copytree(model_dir, tmp_path / "words")
    launch(HERE / "trainer_ranks_work.py", tmp_path, "instructions")
    apply(tmp_path / "words", tmp_path / "instructions" / "sft.d", tmp_path / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype="auto")
    expected = torch.load(tmp_path / "instructions" / "sft.pt", weights_only=True)
    assert same_weights(weights_of(tuned), expected)


@pytest.mark.parametrize("task", ["training", "best", "refusals"])
def test_sharded_trainers(tmp_path: Path, task: str) -> None:
    """FSDP2, made to work on CPUs for this test (trainer_shards_work.py)."""
    write_base(tmp_path / "base")
    run_two(HERE / "trainer_shards_work.py", tmp_path, task)
