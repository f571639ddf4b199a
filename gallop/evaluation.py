"""How likely a causal language model finds texts: perplexity, and accuracy of choices.

Every figure comes with its standard error over examples, which are taken to be independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from gallop.data import Sample, encode_completion, encode_prompt
from gallop.errors import DataError
from gallop.likelihood import Answers, OnBatch, answer_log_likelihoods, log_likelihoods
from gallop.questions import ChoiceExample

__all__ = [
    "ChoiceResult",
    "PerplexityResult",
    "choice_accuracy",
    "perplexity",
    "require_some",
    "share_error",
]


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
    require_some(samples)
    found = log_likelihoods(model, samples, pad_id=pad_id, batch_size=batch_size, on_batch=on_batch)
    losses = [-each for each in found]
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
        examples: From :func:`gallop.questions.read_choices`.
        pad_id: Token id to pad with.
        max_length: Prompts are cut on the left, so that prompt and choice have so many tokens.
        batch_size: Choices per forward pass; their prompt goes through the model once.
        on_batch: Hears about every batch.

    Returns:
        Accuracy by sum and by normalised log-probability.

    Raises:
        DataError: There is no example, or a choice without tokens, without room or context.
    """
    require_some(examples)
    questions = [each for example in examples for each in _answers(tokenizer, example, max_length)]
    scored = answer_log_likelihoods(
        model, questions, pad_id=pad_id, batch_size=batch_size, on_batch=on_batch
    )
    scores = iter([score for each in scored for score in each])
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
        accuracy_stderr=share_error(correct, count),
        correct_normalised=normalised,
        accuracy_normalised=normalised / count,
        accuracy_normalised_stderr=share_error(normalised, count),
        chance=math.fsum(1 / len(example.choices) for example in examples) / count,
    )


def _answers(
    tokenizer: Any,  # noqa: ANN401
    example: ChoiceExample,
    max_length: int,
) -> list[Answers]:
    # Consecutive choices with one prompt: it may be cut more for a longer choice.
    prompt = encode_prompt(tokenizer, example.prompt)
    found: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for choice in example.choices:
        answer = tuple(encode_completion(tokenizer, choice))
        room = max_length - len(answer)
        start = tuple(prompt[max(0, len(prompt) - room) :]) if room > 0 else ()
        if not answer or not start:
            raise DataError(
                f"{example.where}: expected tokens of prompt and choice within {max_length} "
                f"tokens, found {len(prompt)} and {len(answer)}",
                hint="raise --max-length",
            )
        if not found or found[-1][0] != start:
            found.append((start, []))
        found[-1][1].append(answer)
    return [Answers(start, tuple(answers)) for start, answers in found]


class _Sized(Protocol):
    def __len__(self) -> int: ...


def require_some(examples: _Sized) -> None:
    """Refuse an evaluation over nothing.

    Args:
        examples: What is evaluated.

    Raises:
        DataError: It is empty.
    """
    if not len(examples):
        raise DataError("evaluation: expected at least one example, found none")


def share_error(correct: int, count: int) -> float | None:
    """Return the standard error of a share.

    Args:
        correct: How many of ``count`` there are.
        count: Number of examples.

    Returns:
        ``sqrt(p (1 - p) / (n - 1))``; None for one example.
    """
    share = correct / count
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
