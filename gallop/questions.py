"""Questions with given answers, for choice accuracy: what they are, and how they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gallop.data import read_lines
from gallop.errors import DataError

__all__ = ["ChoiceExample", "read_choices"]


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
