"""What `gallop estimate` does, apart from parsing: the document that it prints."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gallop.config import GallopConfig
from gallop.data import Sample, encode_examples, make_batch, read_examples, sample_order
from gallop.errors import ModelError
from gallop.estimation import (
    delta_bytes,
    entry_bytes,
    micro_batch_cost,
    model_bytes,
    requested_entries,
    run_probe,
)
from gallop.linear import gathering_linears
from gallop.loading import load_architecture, load_model, load_tokenizer
from gallop.memory import plan_targets
from gallop.outcome import Outcome
from gallop.speeds import gradient_speeds, matmul_speed
from gallop.targets import eligible_targets
from gallop.train_config import check_gradient
from sparsedelta.checkpoint import open_checkpoint

__all__ = ["run_estimate"]

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def run_estimate(config: GallopConfig, options: Mapping[str, Any], *, probe: bool) -> Outcome:
    """Estimate memory, time and the size of the delta.

    Args:
        config: How a mask would be chosen.
        options: Every setting by name, and the flags of the command line.
        probe: Whether the weights are loaded and one micro-batch is run.

    Returns:
        Figures in bytes and seconds, and where a selection would sum up gradients.

    Raises:
        SparseDeltaError: Anything that goes wrong.
    """
    check_gradient(options["gradient"], options["engine"])
    source = options["model"]
    samples = _samples(options)
    model, mode = load_architecture(source, _dtype(source, options["dtype"]))
    dtype = next(model.parameters()).dtype
    targets = eligible_targets(model, config, loaded=False)
    sizes = [target.size for target in targets]
    eligible, chosen = sum(sizes), requested_entries(sizes, config)
    plan = plan_targets(
        targets, config, memory=options["memory"], memory_budget=options["memory_budget"]
    )
    sums = next(each for each in plan.estimates if each.mode == plan.mode)
    batches = _Batches(samples, options)
    share = chosen / eligible
    sampled = share if options["gradient"] == "sampled" else None
    gathering = sum(each.weight.numel() for each in gathering_linears(model, targets).values())
    size = {"batch_size": options["batch_size"], "length": batches.longest}
    # A selection needs gradients as a whole, however they are trained.
    whole = cost = micro_batch_cost(model, targets, mode=mode, **size)
    if sampled is not None:
        cost = micro_batch_cost(model, targets, mode=mode, **size, sampled=sampled)
    weights, state = model_bytes(model), chosen * entry_bytes(dtype)
    document: dict[str, Any] = {
        "model": source,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "eligible": eligible,
        "k": chosen,
        "weights_bytes": weights,
        "optimizer_bytes": state,
        "optimizer_bytes_per_entry": entry_bytes(dtype),
        "activations_bytes": cost.nbytes,
        "activations_from": "a forward and backward pass of one micro-batch, followed without data",
        "training_bytes": weights + state + cost.nbytes,
        "selection_bytes": weights + sums.device_bytes + sums.host_bytes + whole.nbytes,
        "selection_memory": dataclasses.asdict(plan) | {"groups": plan.passes},
        "delta_bytes": delta_bytes(chosen, eligible, dtype),
        "samples": batches.samples,
        "tokens_per_micro_batch": round(batches.mean_tokens),
        "steps": batches.steps,
        "selection_batches": batches.selection,
    }
    rows = max(1, round(batches.mean_tokens))
    speeds = gradient_speeds(dtype, rows=rows, share=share, **_widths(model))
    dense, alone = (gathering * batches.mean_tokens / speed for speed in speeds)
    document |= {
        "gradient": options["gradient"],
        "dense_gradient_seconds": dense * options["accumulate"],
        "sampled_gradient_seconds": alone * options["accumulate"],
    }
    per_token = (cost.flops - cost.sampled_flops) / (options["batch_size"] * batches.longest)
    flops = per_token * batches.mean_tokens
    if probe:
        found = _probe(
            source, config, samples, options=options, length=batches.longest, sampled=sampled
        )
        seconds = found["probe_seconds"] * batches.mean_tokens / found["probe_tokens"]
        document |= found
        document["seconds_from"] = "one micro-batch that was run"
    else:
        speed = matmul_speed(dtype, rows=rows, **_widths(model))
        seconds = flops / speed + (0.0 if sampled is None else alone)
        document["seconds_from"] = (
            f"{flops:.3g} floating-point operations a micro-batch at {speed / 1e9:.0f} GFLOP/s, "
            "which a matrix product of this model reaches here: a lower bound"
        )
    in_selection = seconds + (0.0 if sampled is None else max(0.0, dense - alone))
    document |= {
        "seconds_per_step": seconds * options["accumulate"],
        "selection_seconds": in_selection * batches.selection * plan.passes,
    }
    if batches.steps is not None:
        document["training_seconds"] = document["seconds_per_step"] * batches.steps
    return Outcome(document, plan.lines())


class _Batches:
    """How many batches there will be, and of what size."""

    def __init__(self, samples: Sequence[Sample] | None, options: Mapping[str, Any]) -> None:
        size, seen = options["batch_size"], options["selection_samples"]
        self.steps: int | None = options["steps"]
        if samples is None:
            self.samples = None
            self.longest = options["max_length"]
            self.mean_tokens = float(size * self.longest)
            self.selection = math.ceil(seen / size)
            return
        lengths = [len(sample.ids) for sample in samples]
        self.samples = len(samples)
        self.longest = max(lengths)
        self.selection = math.ceil(min(seen, len(samples)) / size)
        if self.steps is None:
            self.steps = math.ceil(len(samples) / (size * options["accumulate"]))
        # The batches of the first epoch, padded as they will be.
        order = islice(sample_order(len(samples), options["seed"]), len(samples))
        drawn = [lengths[number] for number in order]
        parts = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        self.mean_tokens = sum(max(part) * size for part in parts) / len(parts)


def _samples(options: Mapping[str, Any]) -> list[Sample] | None:
    if options["data"] is None:
        return None
    examples = read_examples(options["data"])
    tokenizer = load_tokenizer(options["model"])
    return encode_examples(tokenizer, examples, max_length=options["max_length"])[0]


def _dtype(source: str, wanted: str) -> torch.dtype | None:
    # Of a repository on the Hub only the configuration is fetched, which names a dtype too.
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if not Path(source).is_dir():
        return None
    reader = open_checkpoint(source)
    try:
        sizes: Counter[str] = Counter()
        for spec in reader.specs.values():
            sizes[spec.dtype] += spec.words
    finally:
        reader.close()
    name = sizes.most_common(1)[0][0] if sizes else "none"
    if name not in _DTYPES:
        raise ModelError(
            f"{source}: expected weights in {', '.join(_DTYPES)}, found {name}",
            hint="say what they are loaded in with --dtype",
        )
    return _DTYPES[name]


def _widths(model: nn.Module) -> dict[str, int]:
    # The linear layer that occurs most often, by the weights in layers of its shape.
    shapes: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes[module.in_features, module.out_features] += module.weight.numel()
    (inner, outer) = shapes.most_common(1)[0][0] if shapes else (1024, 1024)
    return {"inner": inner, "outer": outer}


def _probe(
    source: str,
    config: GallopConfig,
    samples: Sequence[Sample] | None,
    *,
    options: Mapping[str, Any],
    length: int,
    sampled: float | None,
) -> dict[str, Any]:
    loaded = load_model(source, options["dtype"])
    longest = sorted(samples or [], key=lambda sample: -len(sample.ids))[: options["batch_size"]]
    if not longest:
        ids = tuple(range(length))
        longest = [Sample(tuple(i % 16 for i in ids), tuple(i % 16 for i in ids))]
    batch = make_batch(
        [longest[i % len(longest)] for i in range(options["batch_size"])], loaded.pad_id
    )
    targets = eligible_targets(loaded.model, config)
    found = run_probe(loaded.model, targets, batch, sampled=sampled)
    return {
        "probe_seconds": found.seconds,
        "probe_bytes": found.nbytes,
        "probe_tokens": batch["input_ids"].numel(),
    }
