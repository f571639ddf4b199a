"""What `gallop eval` does, apart from parsing: the document that it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from gallop.data import encode_examples, read_examples
from gallop.evaluation import choice_accuracy, perplexity
from gallop.generation import exact_match
from gallop.live_delta import apply_to_model
from gallop.loading import LoadedModel, base_path, load_model
from gallop.outcome import Outcome
from gallop.progress import open_progress
from gallop.questions import read_choices

__all__ = ["run_eval"]


def run_eval(options: Mapping[str, Any]) -> Outcome:
    """Measure a model.

    Args:
        options: Every setting by name, and the flags of the command line.

    Returns:
        Figures with their counts and standard errors.

    Raises:
        SparseDeltaError: Anything that goes wrong.
    """
    metric = options["metric"]
    read = read_choices if metric == "choice" else read_examples
    examples: Any = read(options["eval_data"])  # first: it is quick, and may be wrong
    deltas = tuple(options["deltas"])
    # Deltas are about the stored bits: another dtype comes after them.
    loaded = load_model(options["model"], "auto" if deltas else options["dtype"])
    if deltas:
        apply_to_model(loaded.model, deltas, base=base_path(options["model"]))
        if options["dtype"] != "auto":
            loaded.model.to(getattr(torch, options["dtype"]))
    document = {
        "model": options["model"],
        "deltas": list(deltas),
        "data": options["eval_data"],
        "metric": metric,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
    }
    return Outcome(document | _measured(loaded, examples, options))


def _measured(loaded: LoadedModel, examples: Any, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    metric = options["metric"]
    extra: dict[str, Any] = {}
    with open_progress(quiet=options["quiet"]) as progress:
        common: dict[str, Any] = {
            "pad_id": loaded.pad_id,
            "batch_size": options["eval_batch_size"],
            "on_batch": lambda done, total: progress.advance(
                metric, done, total=total, detail="batches"
            ),
        }
        result: Any
        match metric:
            case "choice":
                result = choice_accuracy(
                    loaded.model,
                    loaded.tokenizer,
                    examples,
                    max_length=options["max_length"],
                    **common,
                )
            case "exact-match":
                result = exact_match(
                    loaded.model,
                    loaded.tokenizer,
                    examples,
                    max_new_tokens=options["max_new_tokens"],
                    **common,
                )
            case _:
                samples, skipped = encode_examples(
                    loaded.tokenizer, examples, max_length=options["max_length"]
                )
                extra["skipped_examples"] = skipped
                result = perplexity(loaded.model, samples, **common)
    return dataclasses.asdict(result) | extra
