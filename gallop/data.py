"""Training examples: read from a file, turned into token ids and labels, cut into batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gallop.errors import DataError
from gallop.weighing import IGNORED_LABEL

__all__ = [
    "Batch",
    "Example",
    "Sample",
    "encode_completion",
    "encode_examples",
    "encode_prompt",
    "make_batch",
    "read_examples",
    "read_lines",
    "sample_order",
]

Batch: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """One line of training data.

    Attributes:
        prompt: Text that gives context and is not learned; empty for plain text.
        completion: Text to learn.
        messages: A chat instead, as (role, content) pairs; the assistant's turns are learned.
        where: File and line, for messages.
    """

    prompt: str = ""
    completion: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    where: str = "example"


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded example.

    Attributes:
        ids: Token ids.
        labels: The id where the token is learned, -100 elsewhere; as long as ``ids``.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        """Number of tokens in the loss; the first token is predicted by nothing."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])


def read_examples(path: str | Path) -> list[Example]:
    """Read a training file.

    A ``.jsonl`` file has one object a line: ``{"prompt": …, "completion": …}``,
    ``{"text": …}`` or ``{"messages": [{"role": …, "content": …}, …]}``. Any other file is plain
    text with one example a line. Blank lines are skipped.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its examples, in order.

    Raises:
        DataError: There is no such file, a line is malformed (the message names it), or
            there is no example.
    """
    parse = _parse_object if Path(path).suffix.lower() == ".jsonl" else _parse_text
    return [parse(line, where) for line, where in read_lines(path)]


def read_lines(path: str | Path) -> list[tuple[str, str]]:
    """Read the lines of a data file that are not blank.

    Args:
        path: The file, in UTF-8.

    Returns:
        Lines in order, each with its file and number for messages.

    Raises:
        DataError: There is no such file, or no line in it; or it is one of JSON, not of JSON lines.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a data file, found none")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error}") from error
    if path.suffix.lower() == ".json":
        raise DataError(
            f"{path}: expected one JSON object a line in a .jsonl file, found a .json file",
            hint="if it is one object a line, rename it; else write a line per example",
        )
    found = [(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: expected at least one example, found none")
    return found


def encode_examples(
    tokenizer: Any,  # noqa: ANN401  (transformers has no common typed base)
    examples: Sequence[Example],
    *,
    max_length: int,
) -> tuple[list[Sample], int]:
    """Tokenise examples, supervising completions and the assistant's turns only.

    Prompt and completion are tokenised apart, so that the boundary is where generation would
    start; a completion usually begins with a space. The end-of-sequence token, if the tokenizer
    has one, is appended to a completion or text and learned. Chats follow the tokenizer's
    template, which brings its own special tokens.

    Args:
        tokenizer: A transformers tokenizer.
        examples: What to encode.
        max_length: Longer examples are cut on the right.

    Returns:
        The samples, and how many examples were left out because nothing to learn was left of
        them.

    Raises:
        DataError: A chat cannot be rendered, or no sample is left.
    """
    samples = []
    for example in examples:
        ids: list[int] = []
        labels: list[int] = []
        for segment, learned in _segments(tokenizer, example):
            ids += segment
            labels += segment if learned else [IGNORED_LABEL] * len(segment)
        sample = Sample(tuple(ids[:max_length]), tuple(labels[:max_length]))
        if sample.supervised:
            samples.append(sample)
    if not samples:
        raise DataError(
            f"{examples[0].where if examples else 'data'}: expected tokens to learn within "
            f"{max_length} tokens, found none in any of {len(examples)} examples",
            hint="raise --max-length",
        )
    return samples, len(examples) - len(samples)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:  # noqa: ANN401
    """Tokenise what a completion follows, with the special tokens that begin a sequence.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The text.

    Returns:
        Token ids, without an end of sequence.
    """
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers end every text; this one goes on
    return ids


def encode_completion(tokenizer: Any, completion: str) -> list[int]:  # noqa: ANN401
    """Tokenise what follows a prompt, without any special token.

    Args:
        tokenizer: A transformers tokenizer.
        completion: The text; it usually begins with a space.

    Returns:
        Token ids.
    """
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def make_batch(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Stack samples, padded on the right.

    Args:
        samples: At least one.
        pad_id: Token id for the padding; neither attended to nor learned.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (samples, longest).
    """
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, sample in enumerate(samples):
        end = len(sample.ids)
        ids[row, :end] = torch.tensor(sample.ids)
        attention[row, :end] = 1
        labels[row, :end] = torch.tensor(sample.labels)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def sample_order(count: int, seed: int) -> Iterator[int]:
    """Yield sample numbers for ever: every epoch a new permutation, all fixed by the seed.

    Args:
        count: Number of samples.
        seed: Seed of the permutations.

    Yields:
        Numbers in ``[0, count)``.
    """
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(count).tolist()
        epoch += 1


def _parse_text(line: str, where: str) -> Example:
    return Example(completion=line.rstrip("\r"), where=where)


def _parse_object(line: str, where: str) -> Example:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: expected a JSON object, found {error}") from error
    match record:
        case {"messages": [_, *_] as messages}:
            return Example(messages=_turns(messages, where), where=where)
        case {"prompt": str(prompt), "completion": str(completion)}:
            return Example(prompt=prompt, completion=completion, where=where)
        case {"text": str(text)}:
            return Example(completion=text, where=where)
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    raise DataError(
        f"{where}: expected strings prompt and completion, a string text, or a list messages, "
        f"found {found}"
    )


def _turns(messages: list[Any], where: str) -> tuple[tuple[str, str], ...]:
    turns = []
    for message in messages:
        match message:
            case {"role": str(role), "content": str(content)}:
                turns.append((role, content))
            case _:
                raise DataError(
                    f"{where}: expected messages with strings role and content, found {message!r}"
                )
    if not any(role == "assistant" for role, _ in turns):
        raise DataError(f"{where}: expected a message of role assistant to learn, found none")
    return tuple(turns)


def _segments(tokenizer: Any, example: Example) -> Iterator[tuple[list[int], bool]]:  # noqa: ANN401
    if example.messages:
        for text, learned in _rendered_turns(tokenizer, example):
            yield tokenizer(text, add_special_tokens=False)["input_ids"], learned
        return
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    yield encode_prompt(tokenizer, example.prompt), False
    yield encode_completion(tokenizer, example.completion) + eos, True


def _rendered_turns(
    tokenizer: Any,  # noqa: ANN401
    example: Example,
) -> Iterator[tuple[str, bool]]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            f"{example.where}: expected a tokenizer with a chat template for messages, found none",
            hint="use prompt and completion instead of messages",
        )
    messages = [{"role": role, "content": content} for role, content in example.messages]
    done = ""
    for position, (role, _) in enumerate(example.messages):
        if role != "assistant":
            continue
        for end, learned in ((position, False), (position + 1, True)):
            text = tokenizer.apply_chat_template(
                messages[:end], tokenize=False, add_generation_prompt=not learned
            )
            if not text.startswith(done):
                raise DataError(
                    f"{example.where}: expected a chat template that only appends, found one that "
                    f"rewrites earlier turns at message {position}",
                    hint="use prompt and completion instead of messages",
                )
            yield text[len(done) :], learned
            done = text
