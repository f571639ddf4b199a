"""How good a causal language model is: perplexity, choice accuracy, exact match of generation.

Examples are put into batches by length, longest first, so that the same file and batch size give
the same numbers, and what does not fit into memory fails at once. Every figure comes with its
standard error over examples, which are taken to be independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gallop.data import Example, Sample, encode_completion, encode_prompt, make_batch, read_lines
from gallop.errors import DataError
from gallop.weighing import IGNORED_LABEL

__all__ = [
    "ChoiceExample",
    "ChoiceResult",
    "ExactMatchResult",
    "PerplexityResult",
    "choice_accuracy",
    "exact_match",
    "perplexity",
    "read_choices",
]

OnBatch = Callable[[int, int], None]
"""Called with batches done and batches in all."""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A question with given answers.

    Attributes:
        prompt: What comes before the answer.
        choices: At least two answers, as the prompt would go on; each usually begins with a space.
        answer: Number of the right one, from 0.
        where: File and line, for messages.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    where: str = "example"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityResult:
    """Perplexity over supervised tokens.

    Attributes:
        examples: Number of examples.
        tokens: Number of supervised tokens.
        loss: Mean negative log-likelihood of a supervised token, in nats.
        loss_stderr: Its standard error, that of a ratio of sums over examples; None for one.
        perplexity: ``exp(loss)``.
        perplexity_stderr: ``perplexity * loss_stderr``, to first order.
    """

    examples: int
    tokens: int
    loss: float
    loss_stderr: float | None
    perplexity: float
    perplexity_stderr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceResult:
    """Share of right answers.

    Attributes:
        examples: Number of examples.
        correct: How many right answers have the largest log-probability of all choices.
        accuracy: ``correct / examples``.
        accuracy_stderr: Its standard error; None for one example.
        correct_normalised: The same with each log-probability divided by the bytes of its choice in
            UTF-8, as lm-evaluation-harness does for ``acc_norm``.
        accuracy_normalised: Its share.
        accuracy_normalised_stderr: Its standard error.
        chance: What guessing would give: the mean of one over the number of choices.
    """

    examples: int
    correct: int
    accuracy: float
    accuracy_stderr: float | None
    correct_normalised: int
    accuracy_normalised: float
    accuracy_normalised_stderr: float | None
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatchResult:
    """Share of completions that greedy generation gives back.

    Attributes:
        examples: Number of examples.
        correct: How many generated texts equal the completion, white space at both ends aside.
        exact_match: ``correct / examples``.
        exact_match_stderr: Its standard error; None for one example.
        max_new_tokens: Tokens generated at most.
    """

    examples: int
    correct: int
    exact_match: float
    exact_match_stderr: float | None
    max_new_tokens: int


def perplexity(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    pad_id: int,
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> PerplexityResult:
    """Measure how well the supervised tokens of samples are predicted.

    Args:
        model: A causal language model of transformers.
        samples: From :func:`gallop.data.encode_examples`; prompts are not supervised.
        pad_id: Token id to pad with.
        batch_size: Samples per forward pass.
        on_batch: Hears about every batch.

    Returns:
        Loss and perplexity.

    Raises:
        DataError: There is no sample.
    """
    _require_some(samples)
    losses = [-each for each in _log_likelihoods(model, samples, pad_id, batch_size, on_batch)]
    counts = [sample.supervised for sample in samples]
    tokens = sum(counts)
    loss = math.fsum(losses) / tokens
    error = None
    if len(samples) > 1:
        residuals = (each - loss * count for each, count in zip(losses, counts, strict=True))
        spread = math.fsum(residual**2 for residual in residuals)
        error = math.sqrt(spread * len(samples) / (len(samples) - 1)) / tokens
    value = math.exp(min(loss, 700.0))  # a double holds no more
    return PerplexityResult(
        examples=len(samples),
        tokens=tokens,
        loss=loss,
        loss_stderr=error,
        perplexity=value,
        perplexity_stderr=None if error is None else value * error,
    )


def choice_accuracy(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401  (transformers has no common typed base)
    examples: Sequence[ChoiceExample],
    *,
    pad_id: int,
    max_length: int = 512,
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> ChoiceResult:
    """Measure how often the right answer is the likeliest of the given ones.

    Prompt and choice are tokenised apart, as in training, and no end of sequence is appended. Of
    equally likely choices the first is taken.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        examples: From :func:`read_choices`.
        pad_id: Token id to pad with.
        max_length: Prompts are cut on the left, so that prompt and choice have so many tokens.
        batch_size: Sequences per forward pass: one for each choice.
        on_batch: Hears about every batch.

    Returns:
        Accuracy by sum and by normalised log-probability.

    Raises:
        DataError: There is no example, or a choice without tokens, without room or context.
    """
    _require_some(examples)
    samples = [
        _choice_sample(tokenizer, example, choice, max_length)
        for example in examples
        for choice in example.choices
    ]
    scores = iter(_log_likelihoods(model, samples, pad_id, batch_size, on_batch))
    correct = normalised = 0
    for example in examples:
        own = [next(scores) for _ in example.choices]
        lengths = [len(choice.encode()) for choice in example.choices]
        per_byte = [score / length for score, length in zip(own, lengths, strict=True)]
        correct += own.index(max(own)) == example.answer
        normalised += per_byte.index(max(per_byte)) == example.answer
    count = len(examples)
    return ChoiceResult(
        examples=count,
        correct=correct,
        accuracy=correct / count,
        accuracy_stderr=_share_error(correct, count),
        correct_normalised=normalised,
        accuracy_normalised=normalised / count,
        accuracy_normalised_stderr=_share_error(normalised, count),
        chance=math.fsum(1 / len(example.choices) for example in examples) / count,
    )


def exact_match(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401
    examples: Sequence[Example],
    *,
    pad_id: int,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> ExactMatchResult:
    """Measure how often greedy generation from the prompt gives the completion.

    Generation ends at the end of sequence or after ``max_new_tokens``; a model that goes on after
    the right words is wrong, unless it is stopped there.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        examples: With prompt and completion.
        pad_id: Token id to pad with, on the left.
        max_new_tokens: Tokens to generate at most; by default those of the longest completion and
            one end of sequence.
        batch_size: Prompts per generation.
        on_batch: Hears about every batch.

    Returns:
        Share of exact matches.

    Raises:
        DataError: There is no example, or one without prompt or completion.
    """
    _require_some(examples)
    for example in examples:
        if not example.prompt or not example.completion:
            raise DataError(
                f"{example.where}: expected prompt and completion, for exact match, found "
                f"{'messages' if example.messages else 'text'}"
            )
    prompts = [encode_prompt(tokenizer, example.prompt) for example in examples]
    if max_new_tokens is None:
        max_new_tokens = 1 + max(
            len(encode_completion(tokenizer, example.completion)) for example in examples
        )
    made: dict[int, str] = {}
    with _evaluating(model):
        for part in _batched([len(prompt) for prompt in prompts], batch_size, on_batch):
            ids, attention = _left_padded([prompts[i] for i in part], pad_id)
            settings = _greedy(tokenizer, pad_id, max_new_tokens)
            device = next(model.parameters()).device
            found = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                generation_config=settings,
            )
            texts = tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
            made |= dict(zip(part, texts, strict=True))
    correct = sum(
        made[number].strip() == example.completion.strip()
        for number, example in enumerate(examples)
    )
    count = len(examples)
    return ExactMatchResult(
        examples=count,
        correct=correct,
        exact_match=correct / count,
        exact_match_stderr=_share_error(correct, count),
        max_new_tokens=max_new_tokens,
    )


def read_choices(path: str | Path) -> list[ChoiceExample]:
    """Read questions with choices.

    Args:
        path: A ``.jsonl`` file: one object a line with ``prompt``, ``choices`` (texts) and
            ``answer``: one of the choices, or its number from 0.

    Returns:
        The examples in order.

    Raises:
        DataError: There is no such file, or a line is malformed; the message names it.
    """
    return [_choice_example(line, where) for line, where in read_lines(path)]


def _choice_example(line: str, where: str) -> ChoiceExample:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: expected a JSON object, found {error}") from error
    match record:
        case {"prompt": str(prompt), "choices": [_, _, *_] as choices, "answer": answer} if all(
            isinstance(choice, str) and choice for choice in choices
        ):
            number = choices.index(answer) if answer in choices else answer
            whole = isinstance(number, int) and not isinstance(number, bool)
            if whole and 0 <= number < len(choices) and len(set(choices)) == len(choices):
                return ChoiceExample(prompt, tuple(choices), number, where)
            raise DataError(
                f"{where}: expected different choices, and one of them or its number from 0 as the "
                f"answer, found {answer!r} of {choices}"
            )
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    raise DataError(
        f"{where}: expected a text prompt, a list choices of at least two texts, and answer, "
        f"found {found}"
    )


def _choice_sample(
    tokenizer: Any,  # noqa: ANN401
    example: ChoiceExample,
    choice: str,
    max_length: int,
) -> Sample:
    answer = encode_completion(tokenizer, choice)
    room = max_length - len(answer)
    prompt = encode_prompt(tokenizer, example.prompt)
    start = prompt[max(0, len(prompt) - room) :] if room > 0 else []
    if not answer or not start:
        raise DataError(
            f"{example.where}: expected tokens of prompt and choice within {max_length} tokens, "
            f"found {len(prompt)} and {len(answer)}",
            hint="raise --max-length",
        )
    return Sample((*start, *answer), (*(IGNORED_LABEL for _ in start), *answer))


def _log_likelihoods(
    model: nn.Module,
    samples: Sequence[Sample],
    pad_id: int,
    batch_size: int,
    on_batch: OnBatch | None,
) -> list[float]:
    # The sum over supervised tokens of each sample, in float32.
    found = [0.0] * len(samples)
    device = next(model.parameters()).device
    with _evaluating(model):
        for part in _batched([len(sample.ids) for sample in samples], batch_size, on_batch):
            batch = make_batch([samples[i] for i in part], pad_id)
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
            logits = model(input_ids=ids, attention_mask=batch["attention_mask"].to(device)).logits
            for row, number in enumerate(part):  # a row at a time: logits in float32 are large
                loss = functional.cross_entropy(
                    logits[row, :-1].float(),
                    labels[row, 1:],
                    ignore_index=IGNORED_LABEL,
                    reduction="sum",
                )
                found[number] = -float(loss)
    return found


def _batched(
    lengths: Sequence[int], batch_size: int, on_batch: OnBatch | None
) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number, part in enumerate(parts, start=1):
        yield part
        if on_batch:
            on_batch(number, len(parts))


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention[row, length - len(prompt) :] = 1
    return ids, attention


def _greedy(tokenizer: Any, pad_id: int, max_new_tokens: int) -> Any:  # noqa: ANN401
    from transformers import GenerationConfig  # noqa: PLC0415  (an extra)

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_id,
    )


class _Sized(Protocol):
    def __len__(self) -> int: ...


def _require_some(examples: _Sized) -> None:
    if not len(examples):
        raise DataError("evaluation: expected at least one example, found none")


def _share_error(correct: int, count: int) -> float | None:
    share = correct / count
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    found = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in found:
            module.training = mode
