"""The whole path on real weights: fine-tune sparsely, ship the delta, apply it, revert it.

    make demo

SmolLM2-135M-Instruct learns the sentiment of movie reviews by changing 1 % of its weights; the
change is exported as a delta, applied to the base, compared with the trained checkpoint bit for
bit, reverted, and refused on a wrong base. Every step is the command that a user would type.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import reviews
import weights
from rich.console import Console
from rich.table import Table

DENSITY: Final = 0.01
STEPS: Final = 50
BATCH: Final = 8
SELECTION_SAMPLES: Final = 96
LR: Final = 2e-4
TEST_REVIEWS: Final = 200
EXIT_MISMATCH: Final = 3

console = Console(stderr=True, highlight=False)


@dataclass
class Figures:
    """What the table at the end shows."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def add(self, name: str, value: str) -> None:
        """Add a figure."""
        self.rows.append((name, value))


class Accuracy(NamedTuple):
    """How well a model labels held-out reviews.

    Attributes:
        answered: Share of reviews whose likeliest next token, of the whole vocabulary, is right.
        preferred: Share of reviews whose right label is likelier than the wrong one.
    """

    answered: float
    preferred: float


def moved(before: float, after: float) -> str:
    """A share before and after."""
    return f"{before:.1%} → {after:.1%}"


def run(figures: Figures, step: str, *command: str | Path, expect: int = 0) -> dict[str, Any]:
    """Run a command, show it, time it, and return the JSON document that it prints.

    Args:
        figures: Gets the seconds.
        step: What the command does, in a few words.
        command: The command and its arguments.
        expect: The exit code it must end with.
    """
    words = [str(word) for word in command]
    console.print(f"\n[bold]{step}[/]\n  $ {' '.join(words)}")
    begun = time.monotonic()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*words, "--json"], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    seconds = time.monotonic() - begun
    figures.seconds.append((step, seconds))
    if done.returncode != expect:
        sys.exit(f"{words[0]} exited with {done.returncode}, expected {expect}")
    console.print(f"  [dim]{seconds:.1f} s[/]")
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return document


def accuracy(checkpoint: Path, held_out: Sequence[reviews.Review]) -> Accuracy:
    """Let the model complete every prompt with one token."""
    import torch  # noqa: PLC0415 (slow: not before it is needed)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    from gallop.computing import computing  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    logging.disable_progress_bar()
    positive, negative = (
        tokenizer(label, add_special_tokens=False)["input_ids"][0]
        for label in (reviews.POSITIVE, reviews.NEGATIVE)
    )
    answered = preferred = 0
    with computing("auto", model), torch.inference_mode():
        for number, review in enumerate(held_out, 1):
            ids = tokenizer(reviews.prompt(review.text), return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
            wanted, other = positive, negative
            if review.label == reviews.NEGATIVE:
                wanted, other = other, wanted
            answered += int(logits.argmax()) == wanted
            preferred += bool(logits[wanted] > logits[other])
            if number % 50 == 0:
                console.print(f"  {number} of {len(held_out)}: {answered / number:.1%} right")
    return Accuracy(answered / len(held_out), preferred / len(held_out))


def timed_accuracy(
    figures: Figures, step: str, checkpoint: Path, held_out: Sequence[reviews.Review]
) -> Accuracy:
    """:func:`accuracy`, shown and timed."""
    console.print(f"\n[bold]{step}[/]")
    begun = time.monotonic()
    result = accuracy(checkpoint, held_out)
    figures.seconds.append((step, time.monotonic() - begun))
    return result


def write_wrong_base(base: Path, out: Path) -> None:
    """Copy the base and flip one bit of one weight."""
    shutil.copytree(base, out, dirs_exist_ok=True)
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def fingerprint(figures: Figures, what: str, checkpoint: Path) -> str:
    """Fingerprint of a checkpoint, through the command line."""
    document = run(figures, f"fingerprint of {what}", "sparsedelta", "fingerprint", checkpoint)
    return str(document["fingerprint"])


def check(what: str, *, holds: bool) -> None:
    """Say that something holds, or end the demo."""
    if not holds:
        sys.exit(f"NOT TRUE: {what}")
    console.print(f"  [green]✓[/] {what}")


def demo(work: Path) -> None:
    """Run every step and print the table."""
    figures = Figures()
    base, trained, applied, reverted, wrong = (
        work / name for name in ("base", "trained", "applied", "reverted", "wrong")
    )
    delta = work / "sentiment.delta.safetensors"
    data = work / "train.jsonl"

    console.print("[bold]real weights and real data[/]")
    begun = time.monotonic()
    weights.write_smollm2(base)
    training, held_out = reviews.split_reviews(
        reviews.read_reviews(work / "reviews.zip"), test=TEST_REVIEWS
    )
    reviews.write_training_file(training, data)
    figures.seconds.append(("weights and data", time.monotonic() - begun))
    console.print(f"  SmolLM2-135M-Instruct in bf16; {len(training)} reviews to learn from")

    before = timed_accuracy(figures, "accuracy of the base", base, held_out)
    train = run(
        figures,
        f"fine-tune {DENSITY:.0%} of the weights",
        *("gallop", "train", base, data, "-o", delta, "--density", str(DENSITY)),
        *("--steps", str(STEPS), "--batch-size", str(BATCH), "--lr", str(LR)),
        *("--selection-samples", str(SELECTION_SAMPLES), "--exclude-zeros"),
        # Where the CPU would emulate bfloat16, float32 arithmetic on the same weights.
        *("--dtype", "bfloat16", "--compute", "auto", "--save-model", trained, "--force"),
    )
    info = run(figures, "what the delta says", "sparsedelta", "info", delta)
    run(figures, "validate", "sparsedelta", "validate", delta, "--base", base)
    run(figures, "apply", "sparsedelta", "apply", base, delta, "-o", applied, "--force")
    check(
        "base + delta is the trained checkpoint, bit for bit",
        holds=fingerprint(figures, "base + delta", applied)
        == fingerprint(figures, "the trained checkpoint", trained),
    )
    run(figures, "revert", "sparsedelta", "revert", applied, delta, "-o", reverted, "--force")
    check(
        "trained - delta is the base, bit for bit",
        holds=fingerprint(figures, "trained - delta", reverted)
        == fingerprint(figures, "the base", base),
    )
    write_wrong_base(base, wrong)
    refused = work / "refused"
    run(
        figures,
        "apply to a base that differs in one bit",
        *("sparsedelta", "apply", wrong, delta, "-o", refused),
        expect=EXIT_MISMATCH,
    )
    check("it was refused, and nothing was written", holds=not refused.exists())
    after = timed_accuracy(figures, "accuracy of base + delta", applied, held_out)

    whole = (trained / "model.safetensors").stat().st_size
    figures.add(f"right answers to {TEST_REVIEWS} held-out reviews", moved(before[0], after[0]))
    figures.add("right label likelier than the wrong one", moved(before[1], after[1]))
    figures.add("bytes of the checkpoint", f"{whole:,}")
    figures.add("bytes of the delta", f"{info['size']:,}")
    figures.add("ratio", f"{whole / info['size']:.0f} : 1")
    figures.add("entries selected", f"{train['nnz']:,}")
    figures.add("entries changed", f"{info['nnz']:,}")
    figures.add("bits per changed entry", f"{info['bits_per_entry']:.2f}")
    figures.add("zero weights excluded", f"{train['zeros_excluded']:,}")
    figures.add("share of the mask they would take", f"{train['zero_share']:.1%}")
    figures.add("peak memory of training", f"{train['peak_memory_bytes'] / 2**20:,.0f} MiB")
    figures.add("peak memory of the demo", f"{peak_memory() / 2**20:,.0f} MiB")
    print_tables(figures)
    print(
        "\nThe three commands to type next:\n"
        f"  sparsedelta info {delta} --tensors\n"
        f"  sparsedelta apply {base} {delta} -o my-model\n"
        f"  gallop train {base} {data} -o mine.delta.safetensors --density 0.005 --steps 100\n"
        f"(first: source {Path(sys.prefix).name}/bin/activate)"
    )


def peak_memory() -> int:
    """Largest resident size of this process and of any it ran, in bytes."""
    return 1024 * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def print_tables(figures: Figures) -> None:
    """Print the figures, then the seconds of each step."""
    table = Table("what", "figure", title="GaLLoP on SmolLM2-135M, as a delta")
    for row in figures.rows:
        table.add_row(*row)
    for step, seconds in figures.seconds:
        table.add_row(f"seconds: {step}", f"{seconds:.1f}")
    table.add_row("seconds in all", f"{sum(s for _, s in figures.seconds):.1f}")
    Console(highlight=False).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where files are kept")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arguments.work.mkdir(parents=True, exist_ok=True)
    demo(arguments.work)


if __name__ == "__main__":
    main()
