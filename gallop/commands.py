"""What the commands do, apart from parsing: each returns the document that it prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gallop.config import GallopConfig
from gallop.data import Sample, encode_examples, read_examples
from gallop.exporting import check_base, export
from gallop.loading import LoadedModel, load_model
from gallop.mask import Mask
from gallop.progress import open_progress
from gallop.recipe import recipe_metadata
from gallop.report import SelectionReport
from gallop.targets import eligible_targets
from gallop.train import TrainConfig, choose_mask, finetune, settings
from sparsedelta.outputs import check_output, staged

__all__ = ["run_select", "run_train"]


def run_select(
    source: str, data: str, *, config: GallopConfig, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose a mask and save it.

    Args:
        source: Model folder or Hub repository.
        data: Data file.
        config: How to choose.
        options: Of the command line.

    Returns:
        What was chosen, JSON-ready.

    Raises:
        SparseDeltaError: Anything that goes wrong.
    """
    out = Path(options["out"])
    check_output(out, force=options["force"], inputs=_inputs(source, data))
    training = _training(options, steps=1)
    loaded, samples, skipped = _load(source, data, options)
    document: dict[str, Any] = {"mask": str(out), "skipped_examples": skipped}
    if options["dry_run"]:
        return document | _plan(loaded.model, config, training=training, samples=samples)
    with open_progress(quiet=options["quiet"]) as progress:
        mask = choose_mask(
            loaded.model,
            samples,
            selection=config,
            training=training,
            pad_id=loaded.pad_id,
            progress=progress,
        )
    mask.save(out)
    return document | _selection(mask)


def run_train(
    source: str, data: str, *, config: GallopConfig | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a mask, chosen or given, and write the delta.

    Args:
        source: Model folder or Hub repository: the base of the delta.
        data: Data file.
        config: How to choose the mask; None to read it from ``options["mask"]``.
        options: Of the command line.

    Returns:
        What was done, JSON-ready.

    Raises:
        SparseDeltaError: Anything that goes wrong.
    """
    out = Path(options["out"])
    saved = Path(options["save_model"]) if options["save_model"] else None
    inputs = _inputs(source, data, options["mask"])
    check_output(out, force=options["force"], inputs=inputs)
    if saved:
        # The delta is an input of the check: neither output may lie in the other's place.
        check_output(saved, force=options["force"], inputs=(*inputs, out), directory=True)
    training = _training(
        options,
        steps=options["steps"] or 1,
        lr=options["lr"],
        warmup=options["warmup"],
        accumulate=options["accumulate"],
        weight_decay=options["weight_decay"],
        weight_decay_mode=options["weight_decay_mode"],
        max_grad_norm=options["max_grad_norm"] or None,
    )
    mask = None if config else Mask.load(options["mask"])
    loaded, samples, skipped = _load(source, data, options)
    if options["steps"] is None:
        training = replace(training, steps=math.ceil(len(samples) / _samples_per_step(training)))
    base = _base_path(source)
    # Before hours of training, not after.
    check_base(loaded.model, mask or Mask({}, {}), base=base)
    document: dict[str, Any] = {"delta": str(out), "skipped_examples": skipped}
    if options["dry_run"]:
        return document | _plan(loaded.model, config, training=training, samples=samples)
    with open_progress(quiet=options["quiet"]) as progress:
        if mask is None and config is not None:
            mask = choose_mask(
                loaded.model,
                samples,
                selection=config,
                training=training,
                pad_id=loaded.pad_id,
                progress=progress,
            )
            check_base(loaded.model, mask, base=base)
        result = finetune(
            loaded.model,
            samples,
            training=training,
            mask=mask,
            pad_id=loaded.pad_id,
            progress=progress,
        )
    written = export(
        loaded.model,
        result.mask,
        base=base,
        out=out,
        metadata=recipe_metadata(result.mask, settings(training)),
        force=options["force"],
    )
    document |= _selection(result.mask)
    document |= {
        "steps": training.steps,
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "moved": written.moved,
        "not_in_model": list(written.not_held),
        "not_in_base": list(written.not_stored),
        "delta_bytes": written.diff.size,
        "checkpoint_bytes": written.diff.checkpoint_bytes,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": result.peak_memory,
    }
    if saved:
        _save_model(loaded, saved, force=options["force"])
        document["model"] = str(saved)
    return document


def _training(options: Mapping[str, Any], *, steps: int, **more: Any) -> TrainConfig:  # noqa: ANN401
    return TrainConfig(
        steps=steps,
        batch_size=options["batch_size"],
        max_length=options["max_length"],
        selection_samples=options["selection_samples"],
        seed=options["seed"],
        **more,
    )


def _load(
    source: str, data: str, options: Mapping[str, Any]
) -> tuple[LoadedModel, list[Sample], int]:
    examples = read_examples(data)  # first: it is quick, and may be wrong
    loaded = load_model(source, options["dtype"])
    samples, skipped = encode_examples(loaded.tokenizer, examples, max_length=options["max_length"])
    return loaded, samples, skipped


def _samples_per_step(training: TrainConfig) -> int:
    return training.batch_size * training.accumulate


def _inputs(*given: str | None) -> tuple[Path, ...]:
    return tuple(Path(each) for each in given if each and Path(each).exists())


def _plan(
    model: nn.Module,
    config: GallopConfig | None,
    *,
    training: TrainConfig,
    samples: list[Sample],
) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "dry_run": True,
        "samples": len(samples),
        "supervised_tokens": sum(sample.supervised for sample in samples),
        "selection_samples": min(training.selection_samples, len(samples)),
        "samples_per_step": _samples_per_step(training),
        "steps": training.steps,
    }
    if config is not None:
        sizes = [target.parameter.numel() for target in eligible_targets(model, config)]
        plan["eligible"] = sum(sizes)
        plan["k"] = (
            config.budget(sum(sizes))
            if config.threshold_scope == "global"
            else sum(map(config.budget, sizes))
        )
    return plan


def _selection(mask: Mask) -> dict[str, Any]:
    document: dict[str, Any] = {"nnz": mask.nnz, "tensors": len(mask), "mask_digest": mask.digest}
    report: SelectionReport | None = mask.report
    if report is not None:
        document |= {
            "requested": report.requested,
            "eligible": report.eligible,
            "zeros_excluded": report.zeros_excluded,
            "zero_share": report.zero_share,
            "threshold": report.threshold,
            "ties": report.ties,
            "ties_taken": report.ties_taken,
            "selection_samples": report.samples,
            "selection_loss": report.loss,
            "selection_seconds": report.seconds,
        }
    return document


def _base_path(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    # transformers has just loaded it, so that the snapshot is complete and needs no network.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    return Path(snapshot_download(source, local_files_only=True))


def _save_model(loaded: LoadedModel, path: Path, *, force: bool) -> None:
    with staged(path, directory=True, force=force) as work:
        loaded.model.save_pretrained(work)  # type: ignore[operator]
        loaded.tokenizer.save_pretrained(work)
