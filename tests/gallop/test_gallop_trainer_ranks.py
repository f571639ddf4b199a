"""``attach`` inside the trainers as one of several processes: data parallel, and sharded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from many_ranks import TIMEOUT, all_well, free_port, run_script
from tiny_models import weights_of
from trainer_cases import CONFIG, logged, make_trainer, ragged, same_weights, write_base
from transformers import AutoModelForCausalLM

from gallop import Mask, attach
from sparsedelta import apply

HERE = Path(__file__).parent


def test_data_parallel_trainers(tmp_path: Path, model_dir: Path) -> None:
    """``accelerate launch`` of Trainer and SFTTrainer (trainer_ranks_work.py).

    The mask, and the norms up to rounding, are also those of one process on the same batches.
    """
    base = write_base(tmp_path / "base", dropout=0.0)
    shutil.copytree(model_dir, tmp_path / "words")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--main_process_port", str(free_port())),
            *(str(HERE / "trainer_ranks_work.py"), str(tmp_path)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.stdout.count("well") == 2, done.stdout + done.stderr

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

    apply(tmp_path / "words", tmp_path / "instructions" / "sft.d", tmp_path / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype="auto")
    expected = torch.load(tmp_path / "instructions" / "sft.pt", weights_only=True)
    assert same_weights(weights_of(tuned), expected)


def test_sharded_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2, made to work on CPUs for this test (trainer_shards_work.py)."""
    write_base(tmp_path / "base")
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    all_well(run_script(2, HERE / "trainer_shards_work.py", tmp_path))
