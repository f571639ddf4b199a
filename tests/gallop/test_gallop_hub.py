"""From the Hub to a trained delta on the Hub: what is looked at before, and what is there after."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("transformers")

from hubserver.client import Client, ClientError
from hubserver.people import BAD_TOKEN, TOKENS
from hubserver.process import HubServer


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A server of this module."""
    with HubServer(tmp_path_factory.mktemp("hubserver")) as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of this module."""
    folder = tmp_path_factory.mktemp("client")
    with Client(hub.environment(folder / "home", "alice"), folder / "errors.txt") as process:
        yield process


def make_base(folder: str) -> None:
    """Write a tiny model."""
    from trainer_cases import write_base  # noqa: PLC0415 (loads torch)

    write_base(Path(folder))


def train(base: str, out: str, repo: str, *, token: str) -> dict[str, Any]:
    """Train inside a trainer, from a model of the Hub to a delta on the Hub."""
    from trainer_cases import make_trainer  # noqa: PLC0415 (loads torch)

    import gallop  # noqa: PLC0415

    os.environ["HF_TOKEN"] = TOKENS["alice"]
    trainer = make_trainer(Path(base), Path(out), max_steps=2)
    os.environ["HF_TOKEN"] = token
    attachment = gallop.attach(
        trainer,
        gallop.GallopConfig(density=0.05),
        selection_samples=8,
        out=f"{out}.safetensors",
        push_to_hub=repo,
    )
    trainer.train()
    return {"pushed": attachment.pushed, "nnz": attachment.mask and attachment.mask.nnz}


def load(base: str, delta: str) -> list[float]:
    """What a pipeline's model gives, from the Hub alone."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    import sparsedelta  # noqa: PLC0415

    model = sparsedelta.from_pretrained(AutoModelForCausalLM, base, [delta])
    with torch.no_grad():
        return [float(x) for x in model(torch.tensor([[1, 2, 3]])).logits.flatten()[:5]]


def generate(base: str, delta: str, folder: str) -> list[list[int]]:
    """Tokens that a pipeline generates: with a delta of the Hub, and from what `apply` writes."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        pipeline,
    )

    import sparsedelta  # noqa: PLC0415

    sparsedelta.apply(base, delta, folder)
    tuned = sparsedelta.from_pretrained(AutoModelForCausalLM, base, deltas=[delta])
    assert tuned.dtype == torch.float32
    words = {f"w{number}": number for number in range(tuned.config.vocab_size)}
    tokens = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 (no password)
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="w0", pad_token="w0")  # noqa: S106
    found = []
    for model in (tuned, AutoModelForCausalLM.from_pretrained(folder)):
        made = pipeline("text-generation", model=model, tokenizer=fast)(
            "w1 w2 w3", max_new_tokens=5, do_sample=False, return_tensors=True
        )
        found.append(list(made[0]["generated_token_ids"]))
    return found


def load_file(base: str, delta: str, out: str) -> list[float]:
    """The same of what ``apply`` writes."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    import sparsedelta  # noqa: PLC0415

    sparsedelta.apply(base, delta, out)
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        return [float(x) for x in model(torch.tensor([[1, 2, 3]])).logits.flatten()[:5]]


def test_a_trainer_pushes_its_delta(hub: HubServer, client: Client, tmp_path: Path) -> None:
    base = tmp_path / "base"
    client(make_base, folder=str(base))
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.put_repo("org/base", folder=base)
    out = str(tmp_path / "run")
    with pytest.raises(ClientError, match="does not accept the token") as refused:
        client(train, base="org/base", out=out, repo="alice/task", token=BAD_TOKEN)
    assert refused.value.type == "HubError"
    assert not Path(f"{out}.safetensors").exists()
    found = client(train, base="org/base", out=out, repo="alice/task", token=TOKENS["alice"])
    assert found["pushed"] == f"{hub.url}/alice/task"
    files = hub.files("alice/task")
    assert files["delta.safetensors"]["size"] == Path(f"{out}.safetensors").stat().st_size
    loaded = client(load, base="org/base", delta="alice/task")
    assert loaded == client(
        load_file, base="org/base", delta="alice/task", out=str(tmp_path / "applied")
    )
    piped, expected = client(
        generate, base="org/base", delta="alice/task", folder=str(tmp_path / "piped")
    )
    assert piped == expected
    assert len(piped) > 3
    with urlopen(f"{hub.url}/alice/task/resolve/main/sparsedelta.json") as answer:  # noqa: S310
        told = json.load(answer)
    assert (told["base"]["repo"], told["base"]["commit"]) == (
        "org/base",
        hub.repo("org/base")["sha"],
    )
    assert told["deltas"][0]["nnz"] <= found["nnz"]
    assert told["deltas"][0]["method"] == "gallop"


def checked(repo: str, token: str) -> None:
    """What is looked at before a training."""
    from gallop.hub import check_push  # noqa: PLC0415

    os.environ["HF_TOKEN"] = token
    check_push(repo)


@pytest.mark.parametrize(
    ("repo", "user", "told"),
    [
        ("alice/new", "alice-read", "the token only reads"),
        ("bob/new", "alice", "does not belong"),
        ("alice/new@" + "0" * 40, "alice", "is a commit"),
        ("alice/chain", "alice", "holds a chain of 1 deltas"),
    ],
)
def test_what_would_stand_in_the_way(
    hub: HubServer, client: Client, repo: str, user: str, told: str
) -> None:
    digest = "0" * 64
    link: dict[str, str | None] = {"path": "chain/000001.safetensors", "base": digest}
    link |= {"target": digest, "content": digest, "method": None}
    link |= {"format_version": "1.0", "profile": "portable"}
    listed = {
        "version": 1,
        "kind": "chain",
        "base": {"repo": None, "commit": None, "fingerprint": digest, "files": []},
        "deltas": [{**link, "nnz": 1, "tensors": 1, "invertible": True, "files": []}],
    }
    hub.put_repo("alice/chain", files={"sparsedelta.json": json.dumps(listed).encode()})
    with pytest.raises(ClientError, match=told):
        client(checked, repo=repo, token=TOKENS[user])
    client(checked, repo="alice/new", token=TOKENS["alice"])
    client(checked, repo="acme/new", token=TOKENS["alice"])
