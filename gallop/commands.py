"""What the commands do, apart from parsing: each returns the document that it prints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from gallop.computing import is_emulated, resolve_compute
from gallop.config import GallopConfig
from gallop.data import Sample, encode_examples, read_examples
from gallop.estimation import requested_entries
from gallop.exporting import check_base, export
from gallop.hub import check_push, push_delta
from gallop.interrupts import stop_requests
from gallop.loading import LoadedModel, base_path, hub_model, load_model
from gallop.mask import Mask
from gallop.memory import MemoryPlan
from gallop.outcome import Outcome
from gallop.progress import TrainingProgress, open_progress
from gallop.recipe import recipe_metadata
from gallop.report import SelectionReport
from gallop.report_text import report_lines
from gallop.run_folder import RunFolder
from gallop.saving import Saving
from gallop.settings import keyword_arguments
from gallop.step_log import open_logs
from gallop.targets import eligible_targets
from gallop.train import choose_mask, finetune
from gallop.train_config import TrainConfig, settings
from gallop.visibility import Visibility
from sparsedelta.errors import OutputError
from sparsedelta.operations.identity import fingerprint
from sparsedelta.outputs import check_output, refuse_overlap, staged

__all__ = ["run_select", "run_train"]


def run_select(
    source: str, data: str, *, config: GallopConfig, options: Mapping[str, Any]
) -> Outcome:
    """Choose a mask and save it.

    Args:
        source: Model folder or Hub repository.
        data: Data file.
        config: How to choose.
        options: Of the command line.

    Returns:
        What was chosen.

    Raises:
        SparseDeltaError: Anything that goes wrong.
    """
    out = Path(options["out"])
    check_output(out, force=options["force"], inputs=_inputs(source, data))
    training = replace(_training(options), steps=1)
    loaded, samples, skipped = _load(source, data, options)
    training = _resolved(training, loaded, quiet=options["quiet"])
    document: dict[str, Any] = {"mask": str(out), "skipped_examples": skipped}
    if options["dry_run"]:
        return Outcome(document | _plan(loaded.model, config, training=training, samples=samples))
    with open_progress(quiet=options["quiet"]) as progress:
        mask = _choose(loaded, samples, config, training, options=options, progress=progress)
    mask.save(out)
    return Outcome(document | _selection(mask), _report_lines(mask))


def run_train(
    source: str, data: str, *, config: GallopConfig | None, options: Mapping[str, Any]
) -> Outcome:
    """Train a mask, chosen or given, and write the delta.

    Args:
        source: Model folder or Hub repository: the base of the delta.
        data: Data file.
        config: How to choose the mask; None to read it from ``options["mask"]``.
        options: Every setting by name, and the flags of the command line.

    Returns:
        What was done.

    Raises:
        SparseDeltaError: Anything that goes wrong.
        KeyboardInterrupt: The training was interrupted; notes say how to go on.
    """
    out = Path(options["out"])
    saved = Path(options["save_model"]) if options["save_model"] else None
    run = RunFolder(options["resume"] or options["run"] or f"{out}.run")
    _check_outputs(out, saved, run, inputs=_inputs(source, data, options["mask"]), options=options)
    if options["push_to_hub"]:
        check_push(options["push_to_hub"])
    training = _training(options)
    mask = None if config else Mask.load(options["mask"])
    loaded, samples, skipped = _load(source, data, options)
    training = _resolved(training, loaded, quiet=options["quiet"])
    if options["steps"] is None:
        training = replace(training, steps=math.ceil(len(samples) / _samples_per_step(training)))
    base = base_path(source)
    if options["resume"]:
        mask = run.mask()
    # Before hours of training, not after.
    check_base(loaded.model, mask or Mask({}, {}), base=base)
    document: dict[str, Any] = {"delta": str(out), "skipped_examples": skipped}
    if options["dry_run"]:
        return Outcome(document | _plan(loaded.model, config, training=training, samples=samples))
    inputs = _digests(loaded, samples, base=base, data=data)
    start = None
    if options["resume"]:
        run.check_inputs(inputs)
        start = run.load()
    with open_progress(quiet=options["quiet"]) as progress:
        if mask is None and config is not None:
            mask = _choose(loaded, samples, config, training, options=options, progress=progress)
            check_base(loaded.model, mask, base=base)
        with (
            _how_to_go_on(run),
            stop_requests("finishing this step, then saving; again to stop at once") as stop,
            open_logs(
                options["log"],
                tensorboard=options["tensorboard"],
                after=start.step if start else 0,
            ) as logs,
        ):
            result = finetune(
                loaded.model,
                samples,
                training=training,
                mask=mask,
                pad_id=loaded.pad_id,
                progress=progress,
                logs=logs,
                saving=Saving(
                    run,
                    settings={**options, "steps": training.steps, "compute": training.compute},
                    inputs=inputs,
                    every=options["save_every"],
                    stop=stop,
                    goes_on=bool(options["resume"]),
                ),
                start=start,
            )
    model = hub_model(source)
    written = export(
        loaded.model,
        result.mask,
        base=base,
        base_repo=None if model is None else model.repo,
        base_revision=None if model is None else model.commit,
        out=out,
        metadata=recipe_metadata(result.mask, settings(training), visibility=result.visibility),
        profile=options["profile"],
        force=options["force"],
    )
    document |= _selection(result.mask)
    document |= {
        "steps": training.steps,
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "moved": written.moved,
        "visibility": result.visibility.to_dict(),
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
    if options["push_to_hub"]:
        document["hub"] = push_delta(out, options["push_to_hub"], private=options["private"])
    if options["run"] is None:
        run.remove()  # nobody asked for it by name, and it has served its purpose
    return Outcome(document, [*_report_lines(result.mask), *_visibility_lines(result.visibility)])


def _choose(
    loaded: LoadedModel,
    samples: list[Sample],
    config: GallopConfig,
    training: TrainConfig,
    *,
    options: Mapping[str, Any],
    progress: TrainingProgress,
) -> Mask:
    def show(plan: MemoryPlan) -> None:
        if not options["quiet"]:
            click.echo("\n".join(plan.lines()), err=True)

    return choose_mask(
        loaded.model,
        samples,
        selection=config,
        training=training,
        pad_id=loaded.pad_id,
        progress=progress,
        memory=options["memory"],
        memory_budget=options["memory_budget"],
        on_plan=show,
    )


def _visibility_lines(found: Visibility) -> list[str]:
    # Rounding to 16 bits may swallow updates: a known trap, so it is said every time.
    return [
        f"moved        {each.visible:,} of {each.moved:,} entries that moved in float32 show it in "
        f"{dtype}, of {each.entries:,} trained"
        for dtype, each in found.dtypes.items()
    ]


def _report_lines(mask: Mask) -> list[str]:
    return report_lines(mask.report) if mask.report else []


def _check_outputs(
    out: Path,
    saved: Path | None,
    run: RunFolder,
    *,
    inputs: tuple[Path, ...],
    options: Mapping[str, Any],
) -> None:
    force = options["force"]
    check_output(out, force=force, inputs=inputs)
    if saved:
        # The delta is an input of the check: neither output may lie in the other's place.
        check_output(saved, force=force, inputs=(*inputs, out, run.path), directory=True)
    if options["tensorboard"] and Path(options["tensorboard"]).is_file():
        raise click.UsageError(
            f"--tensorboard: expected a folder, found the file {options['tensorboard']}"
        )
    if options["tensorboard"]:
        # Event files would be taken for files of the checkpoint beside which they lie.
        others = (*inputs, out, run.path, *([saved] if saved else []))
        refuse_overlap(Path(options["tensorboard"]), others)
    # A run that goes on does so in its own logs; any other file there is somebody else's.
    own_logs = {Path(log) for log in run.settings({})["log"]} if options["resume"] else set()
    if len({Path(log).resolve() for log in options["log"]}) < len(options["log"]):
        raise click.UsageError("--log: expected different files, found one twice")
    for log in map(Path, options["log"]):
        check_output(log, force=force or log in own_logs, inputs=(*inputs, out))
    if options["resume"]:
        return
    if not run.path.exists():
        check_output(run.path, force=False, inputs=(*inputs, out), directory=True)
    elif not run.holds_run:
        raise OutputError(
            f"the folder of the run {run.path} exists, and holds something else",
            hint="name another with --run",
        )
    elif not force:
        raise OutputError(
            f"the folder of the run {run.path} exists",
            hint=f"{run.command} goes on with it; --force begins anew",
        )


def _digests(
    loaded: LoadedModel, samples: list[Sample], *, base: Path, data: str
) -> dict[str, str]:
    # What a result depends on besides the settings, by what messages call it.
    encoded = hashlib.sha256()
    for sample in samples:
        encoded.update(repr((sample.ids, sample.labels)).encode())
    architecture = loaded.model.config.to_json_string()  # type: ignore[operator, union-attr]
    return {
        f"data {data}": hashlib.sha256(Path(data).read_bytes()).hexdigest(),
        "tokenizer": encoded.hexdigest(),
        "weights of the base": fingerprint(base).fingerprint,
        "architecture of the base": hashlib.sha256(str(architecture).encode()).hexdigest(),
    }


@contextmanager
def _how_to_go_on(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        step = run.last_step
        if step is not None:
            interrupt.add_note(f"saved after step {step}; go on with: {run.command}")
        raise


def _training(options: Mapping[str, Any]) -> TrainConfig:
    values = keyword_arguments("TrainConfig", options)
    return TrainConfig(
        **{
            **values,
            "steps": values["steps"] or 1,
            "max_grad_norm": values["max_grad_norm"] or None,
        }
    )


def _resolved(training: TrainConfig, loaded: LoadedModel, *, quiet: bool) -> TrainConfig:
    # What is computed in; who would wait for an emulation is told.
    compute = resolve_compute(training.compute, loaded.model)
    if is_emulated(loaded.model) and not quiet:
        note = (
            "computing in float32, with the weights of the checkpoint"
            if compute == "float32"
            else "--compute float32 is faster, with the same weights of bfloat16"
        )
        click.echo(f"note: this CPU emulates bfloat16; {note}", err=True)
    return replace(training, compute=compute)


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
        sizes = [target.size for target in eligible_targets(model, config)]
        plan |= {"eligible": sum(sizes), "k": requested_entries(sizes, config)}
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
            "selection_report": report.to_dict() | {"tensors": len(report.tensors)},
        }
    return document


def _save_model(loaded: LoadedModel, path: Path, *, force: bool) -> None:
    with staged(path, directory=True, force=force) as work:
        loaded.model.save_pretrained(work)  # type: ignore[operator]
        loaded.tokenizer.save_pretrained(work)
