"""The ``gallop`` command: results on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 failure, 2 usage, 3 verification mismatch, 4 not found or no access,
130 interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gallop.config import GallopConfig
from sparsedelta.cli import run

__all__ = ["gallop", "main"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_density = click.option(
    "--density",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of the parameters, in (0, 1].",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparsedelta", prog_name="gallop")
def gallop() -> None:
    """Fine-tune the few parameters with the largest gradient for their size, as a delta."""


def _common(command: _Command) -> _Command:
    options = (
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=8,
            show_default=True,
            help="Samples per backward pass.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=2),
            default=512,
            show_default=True,
            help="Cut samples to so many tokens.",
        ),
        click.option(
            "--selection-samples",
            type=click.IntRange(min=1),
            default=256,
            show_default=True,
            help="Samples that the selection sees.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Order, dropout."),
        click.option(
            "--eps", type=float, default=1e-8, show_default=True, help="Eps of the score."
        ),
        click.option(
            "--threshold-scope",
            type=click.Choice(["global", "per_tensor"]),
            default="global",
            show_default=True,
            help="One threshold for the model, or one for each tensor.",
        ),
        click.option(
            "--gradient-mean",
            type=click.Choice(["sample", "token"]),
            default="sample",
            show_default=True,
            help="Weigh selection batches by samples or by supervised tokens.",
        ),
        click.option(
            "--exclude-zeros/--include-zeros",
            default=True,
            show_default=True,
            help="Whether weights that are exactly zero may not be chosen.",
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="GLOB",
            help="Consider only parameters of these names; may be repeated.",
        ),
        click.option(
            "--exclude",
            multiple=True,
            metavar="GLOB",
            help="Keep parameters out by name; may be repeated.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Load the weights so; auto is the dtype of the checkpoint, which a delta needs.",
        ),
        click.option(
            "--dry-run", is_flag=True, help="Check everything; compute and write nothing."
        ),
        click.option("--force", is_flag=True, help="Replace existing outputs."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no summary."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@gallop.command()
@click.argument("model")
@click.argument("data")
@click.option("-o", "--out", required=True, metavar="MASK", help="Mask file to write.")
@_density
@_common
def select(model: str, data: str, **options: Any) -> None:  # noqa: ANN401  (click passes them by name)
    """Choose which parameters of MODEL to train on DATA, and save them as a MASK."""
    from gallop.commands import run_select  # noqa: PLC0415  (help must not wait for torch)

    _print(run_select(model, data, config=_config(options), options=options), options)


@gallop.command()
@click.argument("model")
@click.argument("data")
@click.option("-o", "--out", required=True, metavar="DELTA", help="Delta file to write.")
@_density
@click.option("--mask", metavar="MASK", help="Train this saved mask instead of choosing one.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Optimizer steps.  [default: one pass over the data]",
)
@click.option("--lr", type=float, default=2e-4, show_default=True, help="Peak learning rate.")
@click.option(
    "--warmup",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the steps with a rising learning rate; then it falls linearly.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Backward passes per step.",
)
@click.option(
    "--weight-decay", type=float, default=0.0, show_default=True, help="On the mask only."
)
@click.option(
    "--weight-decay-mode",
    type=click.Choice(["weight", "delta"]),
    default="weight",
    show_default=True,
    help="Decay to zero, or to the base.",
)
@click.option(
    "--max-grad-norm",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Clip the gradient of the mask to this norm; 0 does not clip.",
)
@click.option("--save-model", metavar="DIR", help="Save the trained checkpoint as well.")
@click.option(
    "--profile",
    type=click.Choice(["portable", "compact"]),
    default="portable",
    show_default=True,
    help="Encoding of the delta.",
)
@_common
def train(model: str, data: str, **options: Any) -> None:  # noqa: ANN401
    """Train a share of the parameters of MODEL on DATA, and write the DELTA to it.

    MODEL is a local folder or a Hub repository. DATA is a .jsonl file, one object a line with
    prompt and completion, text, or messages; any other file is plain text, one example a line.
    """
    if options["profile"] == "compact":
        raise click.BadParameter(
            "compact comes in a later release; use portable", param_hint="--profile"
        )
    source = click.get_current_context().get_parameter_source("density")
    if options["mask"] and source is not ParameterSource.DEFAULT:
        raise click.UsageError("give either --density, to choose a mask, or --mask, to train one")
    config = None if options["mask"] else _config(options)
    from gallop.commands import run_train  # noqa: PLC0415

    _print(run_train(model, data, config=config, options=options), options)


def _config(options: dict[str, Any]) -> GallopConfig:
    return GallopConfig(
        options["density"],
        eps=options["eps"],
        threshold_scope=options["threshold_scope"],
        exclude_zeros=options["exclude_zeros"],
        gradient_mean=options["gradient_mean"],
        seed=options["seed"],
        include=options["include"] or ("*",),
        exclude=options["exclude"],
    )


def _print(result: dict[str, Any], options: dict[str, Any]) -> None:
    if options["as_json"]:
        click.echo(json.dumps(result, indent=2))
        return
    if options["quiet"]:
        return
    width = max(len(key) for key in result)
    for key, value in result.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {_readable(value)}")


def _readable(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(str, value)) or "none"
        case None:
            return "unknown"
    return str(value)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: Instead of ``sys.argv[1:]``.
    """
    run(gallop, "gallop", arguments)


if __name__ == "__main__":
    main()
