"""The guide, docs/hub.md: every command and every snippet of it is run, in its order."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_material import command
from hubserver.client import Client
from hubserver.people import TOKENS
from hubserver.process import HubServer

GUIDE = Path(__file__).parents[2] / "docs" / "hub.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block of the guide."""
    return BLOCK.findall(GUIDE.read_text(encoding="utf-8"))


def run_command(line: str, folder: str, token: str) -> dict[str, Any]:
    """Run a line of a shell block, in a folder."""
    os.chdir(folder)
    program, *arguments = shlex.split(line)
    if program == "sparsedelta":
        return command(arguments, token)
    from gallop.cli import main  # noqa: PLC0415 (loads torch)

    os.environ["HF_TOKEN"] = token
    try:
        main(arguments)
    except SystemExit as end:
        return {"code": end.code, "err": "", "out": ""}
    finally:
        del os.environ["HF_TOKEN"]
    return {"code": 0, "err": "", "out": ""}


def run_snippet(text: str, folder: str, token: str) -> list[str]:
    """Run a Python block; names of earlier ones are known. Gives the types of its names."""
    os.chdir(folder)
    os.environ["HF_TOKEN"] = token
    try:
        exec(compile(text, "docs/hub.md", "exec"), NAMES)  # noqa: S102 (it is our own guide)
    finally:
        del os.environ["HF_TOKEN"]
    return sorted(f"{name}: {type(value).__name__}" for name, value in NAMES.items())


NAMES: dict[str, Any] = {}


def make_workspace(folder: str) -> None:
    """A tiny llama and what was tuned from it, and examples to train on."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    root = Path(folder)
    words = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz"]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=words[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": words[0], "eos_token": words[1], "unk_token": words[1]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for name in ("base", "tuned", "better"):
        model.save_pretrained(root / name)
        fast.save_pretrained(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                flat = parameter.view(-1)
                flat[torch.randint(flat.numel(), (3,))] += 0.5
    lines = [json.dumps({"prompt": "a b", "completion": " c d"}) for _ in range(8)]
    (root / "examples.jsonl").write_text("\n".join(lines))


def test_every_command_of_the_guide(
    hub: HubServer, client: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("transformers")
    work = tmp_path / "work"
    work.mkdir()
    token = TOKENS["alice"]
    client(make_workspace, folder=str(work))
    base = work / "base"
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    hub.put_repo("org/base", folder=base)
    shutil.rmtree(base)
    ran = 0
    for language, text in blocks():
        if language == "python":
            client(run_snippet, text=text, folder=str(work), token=token)
            ran += 1
            continue
        for line in text.splitlines():
            done = client(run_command, line=line, folder=str(work), token=token)
            assert done["code"] == 0, f"{line}\n{done['err']}"
            ran += 1
    assert ran > 30
    for made in ("out", "streamed"):
        for name in ("model.safetensors", "config.json"):
            assert (work / made / name).read_bytes() == (work / "tuned" / name).read_bytes()
    for made in ("newest", "caught-up"):
        found = (work / made / "model.safetensors").read_bytes()
        assert found == (work / "better" / "model.safetensors").read_bytes()
    assert (work / "pulled.safetensors").read_bytes() == (
        work / "here" / "delta.safetensors"
    ).read_bytes()
    assert list(hub.repo("alice/other")["discussions"]) == ["1"]
    assert set(hub.files("alice/trained")) >= {"delta.safetensors", "sparsedelta.json"}
