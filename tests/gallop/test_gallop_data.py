"""Data: parsing, what is learned of an example, batches, order."""

from __future__ import annotations

import copy
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from gallop.data import (
    Example,
    Sample,
    encode_examples,
    make_batch,
    read_examples,
    sample_order,
)
from gallop.errors import DataError

EOS = 2


def written(path: Path, *records: object) -> Path:
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def learned(tokenizer: Any, sample: Sample) -> tuple[str, str]:  # noqa: ANN401
    """Split a sample into the text that is read and the text that is learned."""
    read = [i for i, label in zip(sample.ids, sample.labels, strict=True) if label == -100]
    return tokenizer.decode(read), tokenizer.decode([x for x in sample.labels if x != -100])


def test_json_lines_take_three_forms(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = written(
        tmp_path / "d.jsonl",
        {"prompt": "p", "completion": " c", "id": 7},
        {"text": "t\u2028u"},
        {"messages": messages},
    )
    path.write_text(path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    first, second, third = read_examples(path)
    assert (first.prompt, first.completion, first.where) == ("p", " c", f"{path}:1")
    assert (second.prompt, second.completion) == ("", "t\u2028u")  # no line end in JSON lines
    assert third.messages == (("user", "a"), ("assistant", "b"))


def test_other_files_are_one_example_a_line(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(b'{"a": 1}\r\n\r\n two\n')
    assert [each.completion for each in read_examples(path)] == ['{"a": 1}', " two"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", ":1: expected a JSON object"),
        ("[1]", ":1: expected strings prompt and completion.*found list"),
        ('{"prompt": "x"}', r":1: .*found \['prompt'\]"),
        ('{"prompt": "x", "completion": 3}', ":1: expected strings"),
        ('{"messages": []}', ":1: expected strings"),
        ('{"messages": [{"role": "user"}]}', ":1: expected messages with"),
        ('{"messages": [{"role": "user", "content": "x"}]}', ":1: expected a message of role"),
        ("", "at least one example"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_examples(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a data file"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected UTF-8"):
        read_examples(tmp_path / "latin.txt")


def test_only_the_completion_is_learned(tokenizer: Any) -> None:  # noqa: ANN401
    example = Example(prompt="the film was good", completion=" positive")
    (sample,), skipped = encode_examples(tokenizer, [example], max_length=32)
    assert skipped == 0
    assert learned(tokenizer, sample) == ("the film was good", "positive </s>")
    assert sample.ids[-1] == EOS
    assert sample.supervised == 2


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tokenizer: Any) -> None:  # noqa: ANN401
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", EOS)]
    )
    example = Example(prompt="the film", completion=" good")
    assert ending(example.prompt)["input_ids"][-1] == EOS
    (sample,), _ = encode_examples(ending, [example], max_length=32)
    assert learned(ending, sample) == ("the film", "good </s>")


def test_all_of_a_text_is_learned_but_its_first_token_is_not_counted(tokenizer: Any) -> None:  # noqa: ANN401
    (sample,), _ = encode_examples(tokenizer, [Example(completion="I loved it")], max_length=32)
    assert sample.ids == sample.labels
    assert len(sample.ids) == 4
    assert sample.supervised == 3


def test_every_turn_of_the_assistant_is_learned(tokenizer: Any) -> None:  # noqa: ANN401
    turns = (
        ("user", "good"),
        ("assistant", "positive"),
        ("user", "bad"),
        ("assistant", "negative"),
    )
    (sample,), _ = encode_examples(tokenizer, [Example(messages=turns)], max_length=64)
    read, answers = learned(tokenizer, sample)
    assert answers == "positive </s> negative </s>"
    assert read == "user : good </s> assistant : user : bad </s> assistant :"


def test_chats_need_a_template_that_appends(tokenizer: Any) -> None:  # noqa: ANN401
    example = Example(messages=(("user", "good"), ("assistant", "positive")), where="d:3")
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(DataError, match="d:3: expected a tokenizer with a chat template"):
            encode_examples(tokenizer, [example], max_length=64)
        tokenizer.chat_template = "{{ messages | length }}"
        with pytest.raises(DataError, match="d:3: expected a chat template that only appends"):
            encode_examples(tokenizer, [example], max_length=64)
    finally:
        tokenizer.chat_template = kept


def test_what_has_nothing_left_to_learn_is_skipped(tokenizer: Any) -> None:  # noqa: ANN401
    long = Example(prompt="the film was good", completion=" positive", where="d:1")
    short = Example(completion="a film")
    samples, skipped = encode_examples(tokenizer, [long, short], max_length=4)
    assert (len(samples), skipped) == (1, 1)
    with pytest.raises(DataError, match="d:1: expected tokens to learn within 4 tokens"):
        encode_examples(tokenizer, [long], max_length=4)


def test_batches_are_padded_on_the_right() -> None:
    batch = make_batch([Sample((5, 6, 7), (-100, 6, 7)), Sample((8,), (8,))], 9)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }


@given(st.integers(1, 20), st.integers(0, 2**40))
def test_every_epoch_sees_every_sample(count: int, seed: int) -> None:
    """Law: each run of ``count`` numbers is a permutation, and the seed fixes them all."""
    drawn = list(islice(sample_order(count, seed), 3 * count))
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert drawn == list(islice(sample_order(count, seed), 3 * count))


def test_epochs_and_seeds_differ() -> None:
    drawn = list(islice(sample_order(50, 0), 100))
    assert drawn[:50] != drawn[50:]
    assert drawn[:50] != list(islice(sample_order(50, 1), 50))


def test_a_json_file_is_not_taken_for_text(tmp_path: Path) -> None:
    """Its braces and keys would be learned; the suffix is compared without its case."""
    line = '{"prompt": "a", "completion": "b"}\n'
    (tmp_path / "data.json").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=r"expected one JSON object a line"):
        read_examples(tmp_path / "data.json")
    (tmp_path / "data.JSONL").write_text(line, encoding="utf-8")
    assert read_examples(tmp_path / "data.JSONL")[0].completion == "b"
