"""Commands that put several tasks of one base together: ``compose``, ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import sparsedelta
from sparsedelta.commands.options import (
    OUTPUT,
    PATH,
    bits,
    delta_files,
    one_of_many,
    options,
    pairs,
    print_notes,
    print_result,
    size,
    writing,
)
from sparsedelta.commands.stacked import overlap_lines, told_overlaps, weighted
from sparsedelta.console import format_bytes
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location
from sparsedelta.merging.methods import METHODS

delta_output = options(
    click.option("--lean", is_flag=True, help="Leave out the digests of the tensors that stay."),
    delta_files,
)


@click.command()
@click.option("--base", type=PATH, required=True, help="The base of all deltas.")
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The delta to write.")
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="sum",
    show_default=True,
    metavar="NAME",
    help=f"How they are put together: {', '.join(METHODS)}.",
)
@click.option(
    "--set",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the method, such as density=0.5, or density=0.5,0.3 for each delta.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random methods.")
@click.option(
    "--fp8-arithmetic",
    is_flag=True,
    help="Compute with fp8 too, but for tensors with a scale beside them.",
)
@delta_output
@writing
def compose(
    base: Location,
    deltas: tuple[str, ...],
    out: Location,
    *,
    method: str,
    parameters: tuple[str, ...],
    seed: int,
    fp8_arithmetic: bool,
    lean: bool,
    max_shard_size: str | None,
    shards: int | None,
    meta: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Write one delta of several that all start at the same base, and say what they share.

    With the method sum, neither the order of the deltas nor how they are encoded matters.
    """
    places, weights = zip(*map(weighted, deltas), strict=True)
    with one_of_many("compose", quiet=quiet) as (ranks, progress):
        report = sparsedelta.compose(
            base,
            places,
            out,
            weights=weights,
            method=method,
            parameters={
                key: _value(text) for key, text in pairs("--set", "NAME=VALUE", parameters)
            },
            seed=seed,
            fp8_arithmetic=fp8_arithmetic,
            lean=lean,
            max_shard_size=size(max_shard_size),
            shards=shards,
            metadata=dict(pairs("--meta", "KEY=VALUE", meta)),
            threads=threads_here(ranks, threads),
            force=force,
            dry_run=dry_run,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank:
        return
    print_notes(report.notes, quiet=quiet)
    manifest = report.manifest
    told = (report.parents, report.weights, report.overlap, report.kinds)
    print_result(
        {
            "delta": str(out),
            "size": report.size,
            "nnz": manifest.nnz,
            "touched": len(manifest.tensors),
            "base": manifest.base,
            "target": manifest.target,
            "content": manifest.content,
            "invertible": manifest.invertible,
            "method": method,
            "dry_run": dry_run,
            **told_overlaps(*told),
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}, "
        f"{manifest.nnz:,} entries in {len(manifest.tensors)} tensors"
        f"{bits(report.size, manifest.nnz)}",
        *overlap_lines(*told),
        as_json=as_json,
        quiet=quiet,
    )


def _value(text: str) -> Any:  # noqa: ANN401 (what the parameter takes)
    if "," in text:
        return [_value(each) for each in text.split(",")]
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", "out", type=OUTPUT, help="The checkpoint, or the delta, to write.")
@click.option("--as-delta", is_flag=True, help="Write the delta from the base, not a checkpoint.")
@click.option("--seed", type=int, help="Of random methods. [default: the recipe's, or 0]")
@writing
def merge(
    recipe: Path,
    out: Location | None,
    *,
    as_delta: bool,
    seed: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Carry out RECIPE, a YAML file as mergekit has them, over deltas and checkpoints."""
    with one_of_many("merge", quiet=quiet) as (ranks, progress):
        report = sparsedelta.merge(
            recipe,
            out,
            as_delta=as_delta,
            seed=seed,
            threads=threads_here(ranks, threads),
            force=force,
            dry_run=dry_run,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank:
        return
    print_notes(report.notes, quiet=quiet)
    told = (report.parents, report.weights, report.overlap, report.kinds)
    if isinstance(report, sparsedelta.ComposeReport):
        manifest = report.manifest
        nnz, tensors = manifest.nnz, len(manifest.tensors)
        ends = {"base": manifest.base, "target": manifest.target, "content": manifest.content}
    else:
        nnz, tensors = report.nnz, report.tensors
        ends = {"base": report.base, "target": report.fingerprint}
    print_result(
        {
            "output": None if out is None else str(out),
            "is_delta": as_delta,
            "dry_run": dry_run,
            "nnz": nnz,
            "tensors": tensors,
            **ends,
            **told_overlaps(*told),
        },
        f"{'would write' if dry_run else 'wrote'} {out or 'nothing'}: {nnz:,} words changed in "
        f"{tensors} tensors",
        *overlap_lines(*told),
        f"fingerprint {ends['target']}",
        as_json=as_json,
        quiet=quiet,
    )
