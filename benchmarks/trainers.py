"""Ways of fine-tuning a model that `trainer.py` compares: each is a function that takes a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import gallop

LR: Final = 1e-4
LINEARS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Batch = dict[str, Tensor]
Step = Callable[[], None]


@dataclass(frozen=True)
class Way:
    """One way of fine-tuning.

    Attributes:
        name: What tables call it.
        trained: Numbers that the optimizer changes.
        step: Forward, backward, optimizer, on one batch.
    """

    name: str
    trained: int
    step: Step


def load(checkpoint: Path) -> nn.Module:
    """The model in float32, in training mode."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return model.train()


def random_batch(*, rows: int, tokens: int, vocabulary: int) -> Batch:
    """The same random tokens every time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    return {"input_ids": ids, "labels": ids}


def random_mask(model: nn.Module, density: float) -> gallop.Mask:
    """As many entries of every linear layer as the density says, at random places."""
    generator = np.random.default_rng(0)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if _is_linear(n)}
    return gallop.Mask(
        {
            name: np.sort(
                generator.choice(math.prod(shape), round(density * math.prod(shape)), replace=False)
            )
            for name, shape in shapes.items()
        },
        shapes,
    )


def hook(model: nn.Module, batch: Batch, density: float) -> Way:
    """Our default engine."""
    mask = random_mask(model, density)
    optimizer = gallop.SparseAdamW(model, mask, lr=LR)

    def step() -> None:
        _backward(model, batch)
        optimizer.step()

    return Way(f"gallop hook {density:.3g}", mask.nnz, step)


def autograd(model: nn.Module, batch: Batch, density: float) -> Way:
    """Our other engine, under torch's fused AdamW."""
    mask = random_mask(model, density)
    values = gallop.SparseValues(model, mask)
    optimizer = values.optimizer(torch.optim.AdamW, lr=LR, weight_decay=0.0, fused=True)
    return Way(f"gallop autograd {density:.3g}", mask.nnz, _stepper(model, batch, optimizer))


def sampled(model: nn.Module, batch: Batch, density: float) -> Way:
    """The same, with the chosen entries of gradients computed alone."""
    mask = random_mask(model, density)
    values = gallop.SparseValues(model, mask, gradient="sampled")
    optimizer = values.optimizer(torch.optim.AdamW, lr=LR, weight_decay=0.0, fused=True)
    return Way(f"gallop sampled {density:.3g}", mask.nnz, _stepper(model, batch, optimizer))


def full(model: nn.Module, batch: Batch, kind: str) -> Way:
    """AdamW over every weight but the embeddings."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LR, weight_decay=0.0, foreach=kind == "foreach", fused=kind == "fused"
    )
    return Way(f"full AdamW {kind}", _count(trained), _stepper(model, batch, optimizer))


def adapter(model: nn.Module, batch: Batch, kind: str, rank: int) -> Way:
    """LoRA, DoRA or SHiRA of PEFT on all linear layers, under torch's fused AdamW."""
    from peft import LoraConfig, ShiraConfig, get_peft_model  # noqa: PLC0415 (may be missing)

    targets = list(LINEARS)
    makers: dict[str, Callable[[], Any]] = {
        "lora": lambda: LoraConfig(r=rank, target_modules=targets),
        "dora": lambda: LoraConfig(r=rank, target_modules=targets, use_dora=True),
        "shira": lambda: ShiraConfig(r=rank, target_modules=targets, random_seed=0),
    }
    config = makers[kind]()
    wrapped: Any = get_peft_model(model, config)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    names = {"lora": "LoRA", "dora": "DoRA", "shira": "SHiRA"}
    step = _stepper(wrapped, batch, optimizer)
    return Way(f"{names[kind]} r{rank}", _count(trained), step)


def equal_rank(model: nn.Module, entries: int) -> int:
    """The least rank of LoRA on all linear layers that has so many entries."""
    per_rank = sum(sum(p.shape) for n, p in model.named_parameters() if _is_linear(n))
    return math.ceil(entries / per_rank)


WAYS: Final[dict[str, Callable[[nn.Module, Batch], Way]]] = {
    "hook": lambda model, batch: hook(model, batch, 0.01),
    "hook10": lambda model, batch: hook(model, batch, 0.1),
    "autograd": lambda model, batch: autograd(model, batch, 0.01),
    "sampled": lambda model, batch: sampled(model, batch, 0.01),
    "foreach": lambda model, batch: full(model, batch, "foreach"),
    "fused": lambda model, batch: full(model, batch, "fused"),
    "shira": lambda model, batch: adapter(model, batch, "shira", 4),
    "lora": lambda model, batch: adapter(model, batch, "lora", _lora_rank(model)),
    "dora": lambda model, batch: adapter(model, batch, "dora", _lora_rank(model)),
}
"""What is compared, by the word that ``--one`` takes."""


def build(names: Iterable[str], checkpoint: Path, batch: Batch) -> dict[str, Way]:
    """Set ways up side by side, each on weights of its own."""
    first = load(checkpoint)
    return {name: WAYS[name](copy.deepcopy(first), batch) for name in names}


def _lora_rank(model: nn.Module) -> int:
    linear = sum(p.numel() for n, p in model.named_parameters() if _is_linear(n))
    return equal_rank(model, round(0.01 * linear))


def _stepper(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        _backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _backward(model: nn.Module, batch: Batch) -> None:
    model(**batch).loss.backward()


def _is_linear(name: str) -> bool:
    return name.endswith(tuple(f"{each}.weight" for each in LINEARS))


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)
