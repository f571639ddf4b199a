"""Log-likelihoods under a causal language model: of samples, and of answers to one prompt.

Sequences are put into batches by length, longest first, so that the same input and batch size give
the same numbers, and what does not fit into memory fails at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gallop.data import Sample, make_batch
from gallop.weighing import IGNORED_LABEL

__all__ = [
    "Answers",
    "OnBatch",
    "answer_log_likelihoods",
    "batched",
    "evaluating",
    "left_padded",
    "log_likelihoods",
]

OnBatch = Callable[[int, int], None]
"""Called with batches done and batches in all."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one prompt, as token ids.

    Attributes:
        prompt: At least one token.
        answers: Each of at least one token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def log_likelihoods(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    pad_id: int,
    batch_size: int,
    on_batch: OnBatch | None,
) -> list[float]:
    """Sum the log-probabilities of the supervised tokens of each sample, in float32.

    Args:
        model: A causal language model of transformers.
        samples: Token ids and labels.
        pad_id: Token id to pad with.
        batch_size: Samples per forward pass.
        on_batch: Hears about every batch.

    Returns:
        One number per sample, in nats.
    """
    found = [0.0] * len(samples)
    device = next(model.parameters()).device
    with evaluating(model):
        for part in batched([len(sample.ids) for sample in samples], batch_size, on_batch):
            batch = make_batch([samples[i] for i in part], pad_id)
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
            logits = model(input_ids=ids, attention_mask=batch["attention_mask"].to(device)).logits
            for row, number in enumerate(part):  # a row at a time: logits in float32 are large
                found[number] = -_loss(logits[row, :-1], labels[row, 1:])
    return found


def answer_log_likelihoods(
    model: nn.Module,
    questions: Sequence[Answers],
    *,
    pad_id: int,
    batch_size: int,
    on_batch: OnBatch | None,
) -> list[list[float]]:
    """Sum the log-probabilities of the tokens of each answer, given its prompt.

    A prompt goes through the model once for all of its answers, where the model keeps keys and
    values of every position; otherwise with each of them, which gives the same, but for rounding.

    Args:
        model: A causal language model of transformers.
        questions: Prompts and answers.
        pad_id: Token id to pad with.
        batch_size: Answers per forward pass.
        on_batch: Hears about every batch.

    Returns:
        Per question one number per answer, in nats.
    """
    if not _keeps_every_position(model):
        samples = [
            Sample((*each.prompt, *answer), (*(IGNORED_LABEL for _ in each.prompt), *answer))
            for each in questions
            for answer in each.answers
        ]
        flat = iter(
            log_likelihoods(model, samples, pad_id=pad_id, batch_size=batch_size, on_batch=on_batch)
        )
        return [[next(flat) for _ in each.answers] for each in questions]
    found: list[list[float]] = [[] for _ in questions]
    with evaluating(model):
        parts = _parts(questions, batch_size)
        for done, part in enumerate(parts, start=1):
            scores = iter(_with_shared_prompts(model, [each for _, each in part], pad_id))
            for number, each in part:
                found[number] += [next(scores) for _ in each.answers]
            if on_batch:
                on_batch(done, len(parts))
    return found


def _parts(questions: Sequence[Answers], batch_size: int) -> list[list[tuple[int, Answers]]]:
    # Longest first, with at most so many answers; who has more of them comes several times.
    order = sorted(range(len(questions)), key=lambda number: -len(questions[number].prompt))
    parts: list[list[tuple[int, Answers]]] = []
    room = 0
    for number in order:
        answers = questions[number].answers
        for start in range(0, len(answers), batch_size):
            own = answers[start : start + batch_size]
            if room < len(own):
                parts.append([])
                room = batch_size
            parts[-1].append((number, Answers(questions[number].prompt, own)))
            room -= len(own)
    return parts


def _with_shared_prompts(model: nn.Module, part: Sequence[Answers], pad_id: int) -> list[float]:
    from transformers import DynamicCache  # noqa: PLC0415  (an extra)

    device = next(model.parameters()).device
    answers = [answer for each in part for answer in each.answers]
    rows = torch.tensor([row for row, each in enumerate(part) for _ in each.answers])
    ids, attention = left_padded([each.prompt for each in part], pad_id)
    cache: Any = DynamicCache(config=model.config)
    last = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0).to(device),
        past_key_values=cache,
        use_cache=True,
        **last,
    ).logits[:, -1]
    scores = [
        -_loss(logits[row : row + 1], torch.tensor(answer[:1], device=device))
        for row, answer in zip(rows.tolist(), answers, strict=True)
    ]
    length = max(map(len, answers)) - 1
    if not length:
        return scores
    begun = torch.full((len(answers), length), pad_id)
    labels = torch.full_like(begun, IGNORED_LABEL)
    for row, answer in enumerate(answers):
        begun[row, : len(answer) - 1] = torch.tensor(answer[:-1])
        labels[row, : len(answer) - 1] = torch.tensor(answer[1:])
    cache.batch_select_indices(rows.to(device))
    logits = model(
        input_ids=begun.to(device),
        attention_mask=torch.cat([attention[rows], (labels != IGNORED_LABEL).long()], 1).to(device),
        position_ids=(attention.sum(-1)[rows, None] + torch.arange(length)).to(device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    labels = labels.to(device)
    return [
        score - _loss(logits[row], labels[row]) if len(answers[row]) > 1 else score
        for row, score in enumerate(scores)
    ]


def _loss(logits: Tensor, labels: Tensor) -> float:
    return float(
        functional.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum"
        )
    )


def _keeps_every_position(model: nn.Module) -> bool:
    # Not so where layers have windows or a state, and where positions cannot be told: some
    # families count them from the length of what is padded, too.
    needed = {"attention_mask", "position_ids", "past_key_values", "use_cache"}
    if not needed <= _arguments(model) or getattr(model, "_is_stateful", False):
        return False
    from transformers.cache_utils import DynamicCache, DynamicLayer  # noqa: PLC0415

    cache = DynamicCache(config=model.config)
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Stack prompts, padded on the left, so that what is added follows all of them.

    Args:
        prompts: Token ids.
        pad_id: Token id for the padding.

    Returns:
        Ids and attention mask, int64 of shape (prompts, longest).
    """
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention[row, length - len(prompt) :] = 1
    return ids, attention


def batched(
    lengths: Sequence[int], batch_size: int, on_batch: OnBatch | None
) -> Iterator[list[int]]:
    """Divide sequences into batches, longest first.

    Args:
        lengths: Tokens of each sequence.
        batch_size: Sequences of a batch.
        on_batch: Hears about every batch that is done.

    Yields:
        The numbers of the sequences of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number, part in enumerate(parts, start=1):
        yield part
        if on_batch:
            on_batch(number, len(parts))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, without gradients, for as long as the context lasts.

    Args:
        model: Gets back the modes of its modules.

    Yields:
        Nothing.
    """
    found = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in found:
            module.training = mode
