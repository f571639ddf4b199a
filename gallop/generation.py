"""What a causal language model says: greedy generation, compared with what it should say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gallop.data import Example, encode_completion, encode_prompt
from gallop.errors import DataError
from gallop.evaluation import require_some, share_error
from gallop.likelihood import OnBatch, batched, evaluating, left_padded

__all__ = ["ExactMatchResult", "exact_match"]


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
    require_some(examples)
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
    with evaluating(model):
        for part in batched([len(prompt) for prompt in prompts], batch_size, on_batch):
            ids, attention = left_padded([prompts[i] for i in part], pad_id)
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
        exact_match_stderr=share_error(correct, count),
        max_new_tokens=max_new_tokens,
    )


def _greedy(tokenizer: Any, pad_id: int, max_new_tokens: int) -> Any:  # noqa: ANN401
    from transformers import GenerationConfig  # noqa: PLC0415  (an extra)

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_id,
    )
