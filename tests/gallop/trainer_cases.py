"""A tiny Llama and its data in a Trainer, for tests and for the processes that they kill."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from tiny_llama import tiny_llama
from tiny_models import same_bits
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from gallop import GallopConfig

Sample = dict[str, Tensor]

DENSITY = 0.05
CONFIG = GallopConfig(DENSITY)
KILLED = 9
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {},
    "sampled": {"engine": "autograd", "gradient": "sampled"},
}
"""Ways of training that are killed in the middle: what ``attach`` is given for each."""
RAGGED = 46
"""Samples of which the last batch of two processes, of 4 each, has 6."""


def samples(count: int = 48, *, seed: int = 3) -> list[Sample]:
    """Sequences of 8 token ids of which the first few, more or less, are not supervised."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        ids = torch.randint(4, 24, (8,), generator=generator)
        labels = ids.clone()
        labels[: 1 + number % 5] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def noisy_collator(features: list[Sample]) -> Sample:
    """Stack, and replace some ids at the whim of all three global generators."""
    batch = {key: torch.stack([each[key] for each in features]) for key in features[0]}
    whims = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002, S311
    for row, whim in enumerate(whims):
        if row < len(features) and whim < 0.5:
            batch["input_ids"][row, 0] = 4 + int(16 * whim)
    return batch


def write_base(folder: Path, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Path:
    """Save the tiny Llama as a checkpoint."""
    model = tiny_llama(dtype=dtype)
    model.config.attention_dropout = dropout
    model.save_pretrained(folder)
    return folder


def make_trainer(base: Path, out: Path, *, kind: type[Trainer] = Trainer, **changes: Any) -> Any:  # noqa: ANN401
    """A Trainer over the model of a folder; arguments of both kinds of its own in ``changes``."""
    own = {"data_collator", "callbacks", "eval_dataset", "compute_metrics", "train_dataset"}
    arguments: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments |= {key: value for key, value in changes.items() if key not in own}
    return kind(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        TrainingArguments(str(out), **arguments),
        **({"train_dataset": samples()} | {k: v for k, v in changes.items() if k in own}),
    )


def saving() -> dict[str, Any]:
    """Arguments of a run that saves, over the end of an epoch of 6 steps."""
    return {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.2,
    }


def ragged() -> dict[str, Any]:
    """Arguments of two processes of which one has a smaller batch at the end of an epoch."""
    return {
        "train_dataset": samples(RAGGED),
        "accelerator_config": {"even_batches": False},
    }


def same_weights(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Compare states bit for bit."""
    return left.keys() == right.keys() and all(same_bits(left[n], right[n]) for n in left)


def logged(trainer: Any, key: str) -> list[float]:  # noqa: ANN401
    """What a trainer has logged under a key, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class KillAt(TrainerCallback):  # type: ignore[misc]
    """Ends the process in the middle of training, as a lost node would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: object, state: Any, *_: object, **_kw: object) -> None:  # noqa: ANN401, D102
        if state.global_step == self.step:
            os._exit(KILLED)
