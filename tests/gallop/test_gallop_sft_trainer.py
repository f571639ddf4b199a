"""``attach`` inside trl's SFTTrainer, and on real weights inside a Trainer with a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from real_packages import minilm
from tiny_models import weights_of
from trainer_cases import logged, same_weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from gallop import GallopConfig, attach
from sparsedelta import apply

RECORDS = [
    {"prompt": f"the film was {word}", "completion": f" {label}"}
    for word, label in (
        ("good", "positive"),
        ("bad", "negative"),
        ("moving", "positive"),
        ("dull and long", "negative"),
    )
] * 4


def sft(model_dir: Path, out: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:  # noqa: ANN401
    arguments: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto"),
        args=SFTConfig(str(out), **(arguments | changes)),
        train_dataset=Dataset.from_list(RECORDS),
        eval_dataset=Dataset.from_list(RECORDS[:4]),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"completion_only_loss": False, "packing": True, "max_length": 16, "bf16": False}],
)
def test_two_lines_in_an_sft_script(
    model_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Trains, exports, and logs nothing of the selection among its own metrics."""
    trainer = sft(model_dir, tmp_path / "out", tokenizer, **changes)
    attachment = attach(trainer, GallopConfig(0.05), selection_samples=8, out=tmp_path / "d")
    trainer.train()
    assert attachment.exported is not None
    apply(model_dir, tmp_path / "d", tmp_path / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype="auto")
    assert same_weights(weights_of(tuned), weights_of(trainer.model))

    other = sft(model_dir, tmp_path / "out", tokenizer, **changes)
    attach(other, mask=attachment.mask)
    other.train()
    assert same_weights(weights_of(trainer.model), weights_of(other.model))
    for key in ("loss", "grad_norm", "num_tokens", "entropy", "eval_loss", "eval_entropy"):
        assert logged(trainer, key) == logged(other, key) != []


@pytest.mark.real
def test_a_classifier_on_real_weights(tmp_path: Path) -> None:
    """MiniLM and a new head: one label per sample, dropout, and a head that is exported too."""
    source = minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    fresh = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    fresh.save_pretrained(tmp_path / "base")
    rows = [
        {**tokenizer(record["prompt"]), "labels": int("pos" in record["completion"])}
        for record in RECORDS
    ]
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype="auto"),
        TrainingArguments(
            str(tmp_path / "out"),
            max_steps=5,
            per_device_train_batch_size=4,
            learning_rate=5e-4,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    attachment = attach(trainer, GallopConfig(0.01), selection_samples=8, out=tmp_path / "d")
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    assert attachment.report is not None
    assert attachment.report.samples == 8
    assert attachment.exported is not None
    assert attachment.exported.moved > 0.5 * attachment.report.k
    metadata = attachment.exported.diff.manifest.metadata
    assert any(key.startswith("gallop.visibility.") for key in metadata)
    apply(tmp_path / "base", tmp_path / "d", tmp_path / "tuned")
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned", dtype="auto")
    assert same_weights(weights_of(tuned), weights_of(trainer.model))
