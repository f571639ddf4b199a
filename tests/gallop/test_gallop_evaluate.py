"""Evaluation: against sums written out, one sequence at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gallop_train import some_samples
from tiny_llama import tiny_llama
from tiny_models import same_bits, weights_of
from torch import nn

from gallop import Mask, SparseAdamW, export
from gallop.cli import main
from gallop.data import Example, Sample, read_examples
from gallop.errors import DataError, ExportError
from gallop.evaluation import choice_accuracy, perplexity
from gallop.generation import exact_match
from gallop.likelihood import Answers, answer_log_likelihoods
from gallop.live_delta import apply_to_model
from gallop.questions import ChoiceExample, read_choices
from sparsedelta import WrongBaseError, apply, diff


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def log_likelihood(model: nn.Module, sample: Sample) -> float:
    """Sum over supervised tokens, one at a time, unpadded."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
    return sum(
        float(found[position - 1, label])
        for position, label in enumerate(sample.labels)
        if label != -100 and position
    )


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_perplexity_is_that_of_the_tokens_one_by_one(batch_size: int) -> None:
    model = tiny_llama().train()
    samples = some_samples(7)
    found = perplexity(model, samples, pad_id=0, batch_size=batch_size)
    sums = [-log_likelihood(tiny_llama(), sample) for sample in samples]
    counts = [sample.supervised for sample in samples]
    loss = sum(sums) / sum(counts)
    assert (found.examples, found.tokens) == (7, sum(counts))
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    # The jackknife knows nothing of our formula; for a ratio both agree to first order.
    left_out = [
        (sum(sums) - each) / (sum(counts) - count) for each, count in zip(sums, counts, strict=True)
    ]
    mean = sum(left_out) / 7
    jackknife = math.sqrt(6 / 7 * sum((each - mean) ** 2 for each in left_out))
    assert found.loss_stderr == pytest.approx(jackknife, rel=0.3)
    assert model.training  # it gets its mode back


def test_one_example_has_no_standard_error() -> None:
    assert perplexity(tiny_llama(), some_samples(1), pad_id=0).loss_stderr is None
    with pytest.raises(DataError, match="at least one example"):
        perplexity(tiny_llama(), [], pad_id=0)


QUESTIONS = [
    ChoiceExample("the film was", (" good", " bad long film", " moving"), 1),
    ChoiceExample("I loved", (" it", " it long"), 0),
    ChoiceExample("it is a", (" film", " dull film", " long"), 2),
]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_choices_are_ranked_by_their_likelihood(tokenizer: Any, batch_size: int) -> None:  # noqa: ANN401
    model = tiny_llama()
    found = choice_accuracy(model, tokenizer, QUESTIONS, pad_id=0, batch_size=batch_size)
    correct = normalised = 0
    for question in QUESTIONS:
        start = tokenizer(question.prompt)["input_ids"]
        scores, per_byte = [], []
        for choice in question.choices:
            end = tokenizer(choice, add_special_tokens=False)["input_ids"]
            sample = Sample((*start, *end), (*([-100] * len(start)), *end))
            scores.append(log_likelihood(model, sample))
            per_byte.append(scores[-1] / len(choice))
        correct += max(range(len(scores)), key=scores.__getitem__) == question.answer
        normalised += max(range(len(scores)), key=per_byte.__getitem__) == question.answer
    assert (found.examples, found.correct, found.correct_normalised) == (3, correct, normalised)
    assert found.accuracy == correct / 3
    assert found.accuracy_stderr == pytest.approx(
        math.sqrt(found.accuracy * (1 - found.accuracy) / 2)
    )
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)


ANSWERS = [
    Answers(tuple(range(4, 17)), ((5,), (6, 7, 8), (9, 10))),
    Answers((4, 5), ((11, 12, 13, 14), (5, 6))),
    Answers((20,), ((4,), (7,))),
]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_a_prompt_is_shared_by_its_answers(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens go through the model once, and each answer is as likely as by itself."""
    model = tiny_llama()
    seen: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    batches: list[tuple[int, int]] = []

    def scored() -> list[list[float]]:
        seen.clear()
        return answer_log_likelihoods(
            model,
            ANSWERS,
            pad_id=0,
            batch_size=batch_size,
            on_batch=lambda *each: batches.append(each),
        )

    found = scored()
    if batch_size > 3:
        tokens = torch.cat([each.flatten() for each in seen])
        assert [int((tokens == n).sum()) for n in (15, 16, 20)] == [1, 1, 1]  # of prompts alone
    assert batches[-1][0] == batches[-1][1]
    for question, scores in zip(ANSWERS, found, strict=True):
        for answer, score in zip(question.answers, scores, strict=True):
            labels = (*([-100] * len(question.prompt)), *answer)
            alone = log_likelihood(tiny_llama(), Sample((*question.prompt, *answer), labels))
            assert score == pytest.approx(alone, rel=1e-4)
    monkeypatch.setattr("gallop.likelihood._keeps_every_position", lambda _model: False)
    for one, other in zip(found, scored(), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_prompt_that_is_cut_for_longer_choices(tokenizer: Any) -> None:  # noqa: ANN401
    """Choices of another length have another prompt, then."""
    question = ChoiceExample("the film was dull", (" good", " bad long film"), 0)
    model = tiny_llama()
    found = choice_accuracy(model, tokenizer, [question], pad_id=0, max_length=4)
    ids = tokenizer("the film was dull")["input_ids"]
    scores = []
    for choice in question.choices:
        end = tokenizer(choice, add_special_tokens=False)["input_ids"]
        start = ids[len(end) - 4 :]
        labels = (*([-100] * len(start)), *end)
        scores.append(log_likelihood(model, Sample((*start, *end), labels)))
    assert found.correct == (scores[0] > scores[1])


def test_models_with_windows_are_given_whole_sequences() -> None:
    from transformers import MistralConfig, MistralForCausalLM  # noqa: PLC0415

    config = MistralConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    model = MistralForCausalLM(config).eval()
    (scores,) = answer_log_likelihoods(model, ANSWERS[:1], pad_id=0, batch_size=8, on_batch=None)
    for answer, score in zip(ANSWERS[0].answers, scores, strict=True):
        labels = (*([-100] * len(ANSWERS[0].prompt)), *answer)
        alone = log_likelihood(model, Sample((*ANSWERS[0].prompt, *answer), labels))
        assert score == pytest.approx(alone, rel=1e-4)


def test_every_choice_can_be_the_best(tokenizer: Any) -> None:  # noqa: ANN401
    """Raise the logit of one word: the choice that says it wins, whichever it is."""
    words = ("good", "bad", "moving")
    for number, word in enumerate(words):
        model = tiny_llama(tied=False)
        with torch.no_grad():
            # The last norm gives vectors of one length, so a head along their mean raises all.
            model.lm_head.weight.zero_()
            model.model.norm.weight.zero_()
            bias = tokenizer(word)["input_ids"][0]
            model.lm_head = nn.Linear(16, 24, bias=True)
            model.lm_head.weight.data.zero_()
            model.lm_head.bias.data.zero_()[bias] = 5.0
        question = ChoiceExample("the film was", tuple(f" {each}" for each in words), number)
        found = choice_accuracy(model, tokenizer, [question], pad_id=0)
        assert (found.correct, found.correct_normalised) == (1, 1)


def test_prompts_are_cut_on_the_left(tokenizer: Any) -> None:  # noqa: ANN401
    long = [ChoiceExample("I hated the dull film was", q.choices, q.answer) for q in QUESTIONS[:1]]
    short = [ChoiceExample("was", q.choices, q.answer) for q in QUESTIONS[:1]]
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_llama()

        def forward(self, **inputs: torch.Tensor) -> object:
            seen.append(inputs["input_ids"])
            return self.inner(**inputs)

    model = Spy()
    one = choice_accuracy(model, tokenizer, long, pad_id=0, max_length=4)
    two = choice_accuracy(model, tokenizer, short, pad_id=0)
    assert one == two
    assert max(each.shape[1] for each in seen) == 4
    with pytest.raises(DataError, match="prompt and choice within 3 tokens"):
        choice_accuracy(model, tokenizer, long, pad_id=0, max_length=3)


def test_exact_match_is_greedy_generation(tokenizer: Any) -> None:  # noqa: ANN401
    model = tiny_llama()
    prompts = ("the film was", "I", "it is a long")
    continuations = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        start = len(tokenizer(prompt)["input_ids"])
        continuations.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    right = [Example(p, f" {c} ") for p, c in zip(prompts, continuations, strict=True)]
    wrong = [Example(right[0].prompt, " hated it hated")]
    for batch_size in (1, 2):
        found = exact_match(
            model, tokenizer, right + wrong, pad_id=0, batch_size=batch_size, max_new_tokens=3
        )
        assert (found.examples, found.correct, found.exact_match) == (4, 3, 0.75)
        assert found.exact_match_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert exact_match(model, tokenizer, wrong, pad_id=0).max_new_tokens == 4
    with pytest.raises(DataError, match="expected prompt and completion"):
        exact_match(model, tokenizer, [Example(completion="a")], pad_id=0)


def test_choices_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    good = {"prompt": "p", "choices": [" a", " b"], "answer": " b"}
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(good | {'answer': 0})}\n")
    first, second = read_choices(path)
    assert (first.answer, second.answer, second.where) == (1, 0, f"{path}:3")
    for bad in (
        {"answer": 2},
        {"answer": True},
        {"choices": [" a"]},
        {"prompt": 3},
        {"answer": ""},
    ):
        path.write_text(json.dumps(good | bad))
        with pytest.raises(DataError, match=r"c\.jsonl:1: expected"):
            read_choices(path)
    path.write_text("{")
    with pytest.raises(DataError, match="expected a JSON object"):
        read_choices(path)


def trained(base: Path, model: Any, out: Path, *, lr: float) -> None:  # noqa: ANN401
    """One step on a few entries of a loaded model, exported against a base."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    mask = Mask({name: [0, 3, 5] for name in list(shapes)[:4]}, shapes)
    with SparseAdamW(model, mask, lr=lr) as optimizer:
        model(
            input_ids=torch.arange(12).view(2, 6), labels=torch.arange(12).view(2, 6)
        ).loss.backward()
        optimizer.step()
    export(model, mask, base=base, out=out)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deltas_applied_to_a_live_model_give_the_weights_of_apply(
    tmp_path: Path, dtype: torch.dtype, *, tied: bool
) -> None:
    """Law: load, then apply, is apply, then load; for a chain of deltas too."""
    model = tiny_llama(tied=tied, dtype=dtype)
    model.save_pretrained(tmp_path / "base")
    trained(tmp_path / "base", model, tmp_path / "one", lr=0.1)
    apply(tmp_path / "base", tmp_path / "one", tmp_path / "mid")
    trained(tmp_path / "mid", model, tmp_path / "two", lr=0.2)
    live = tiny_llama(tied=tied, dtype=dtype)
    apply_to_model(live, [tmp_path / "one", tmp_path / "two"], base=tmp_path / "base")
    want = weights_of(model)
    assert all(same_bits(value, want[name]) for name, value in weights_of(live).items())
    live = tiny_llama(tied=tied, dtype=dtype)
    with pytest.raises(WrongBaseError):
        apply_to_model(live, [tmp_path / "two"], base=tmp_path / "base")


def test_deltas_that_change_the_structure_are_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_llama(tied=False).save_pretrained(tmp_path / "more")
    diff(tmp_path / "base", tmp_path / "more", tmp_path / "d")
    with pytest.raises(ExportError, match="expected a change of its entries") as caught:
        apply_to_model(tiny_llama(), [tmp_path / "d"], base=tmp_path / "base")
    assert "sparsedelta apply" in str(caught.value.hint)


def test_the_command_measures_with_and_without_deltas(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = tmp_path / "d"
    code, _, err = call(
        capsys, "train", model_dir, data_file, "-o", delta, "--density", 0.2,
        "--steps", 40, "--lr", 0.05, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    apply(model_dir, delta, tmp_path / "tuned")
    choices = tmp_path / "c.jsonl"
    labels = [" positive", " negative"]
    choices.write_text(
        "".join(
            json.dumps({"prompt": each.prompt, "choices": labels, "answer": each.completion}) + "\n"
            for each in read_examples(data_file)
        )
    )
    figures = {}
    for metric, data in (
        ("perplexity", data_file),
        ("choice", choices),
        ("exact-match", data_file),
    ):
        before = call(capsys, "eval", model_dir, data, "--metric", metric, "--json", "-q")
        after = call(
            capsys, "eval", model_dir, data, "--metric", metric, "--delta", delta, "--json", "-q"
        )
        direct = call(capsys, "eval", tmp_path / "tuned", data, "--metric", metric, "--json", "-q")
        assert (before[0], after[0], direct[0]) == (0, 0, 0), after[2]
        documents = [json.loads(each[1]) for each in (before, after, direct)]
        for key in ("model", "deltas"):
            for document in documents:
                del document[key]
        assert documents[1] == documents[2]
        figures[metric] = documents[:2]
    assert figures["perplexity"][1]["loss"] < figures["perplexity"][0]["loss"]
    assert figures["choice"][1]["correct"] == 4
    assert figures["exact-match"][1]["correct"] == 4
    code, _, err = call(capsys, "eval", tmp_path / "tuned", data_file, "--delta", delta)
    assert code == 3, err
    assert {each.name for each in tmp_path.iterdir()} == {"c.jsonl", "d", "tuned"}


def test_the_dtype_comes_after_the_deltas(
    tmp_path: Path, model_dir: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(
        capsys, "train", model_dir, data_file, "-o", tmp_path / "d", "--steps", 1, "--quiet"
    )
    assert code == 0, err
    code, out, err = call(
        capsys, "eval", model_dir, data_file, "--delta", tmp_path / "d", "--dtype", "bfloat16",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["dtype"] == "bfloat16"
    assert "perplexity 1/1" in err
