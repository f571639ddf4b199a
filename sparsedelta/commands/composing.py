"""Commands that put several tasks of one base together: ``compose``, ``merge``."""

from __future__ import annotations

from pathlib import Path

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
from sparsedelta.commands.stacked import how, method_options, overlap_lines, told_overlaps, weighted
from sparsedelta.console import format_bytes
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location

delta_output = options(
    click.option("--lean", is_flag=True, help="Leave out the digests of the tensors that stay."),
    delta_files,
)


@click.command()
@click.option("--base", type=PATH, required=True, help="The base of all deltas.")
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The delta to write.")
@method_options
@delta_output
@writing
def compose(
    base: Location,
    deltas: tuple[str, ...],
    out: Location,
    *,
    method: str | None,
    parameters: tuple[str, ...],
    seed: int | None,
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
            **how(method, parameters, seed, fp8_arithmetic=fp8_arithmetic),
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
            "method": method or "sum",
            "dry_run": dry_run,
            "files_left_out": report.files_left_out,
            **told_overlaps(*told),
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}, "
        f"{manifest.nnz:,} entries in {len(manifest.tensors)} tensors"
        f"{bits(report.size, manifest.nnz)}",
        *overlap_lines(*told),
        as_json=as_json,
        quiet=quiet,
    )


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", "out", type=OUTPUT, help="The checkpoint, or the delta, to write.")
@click.option("--as-delta", is_flag=True, help="Write the delta from the base, not a checkpoint.")
@click.option("--seed", type=int, help="Of random methods. [default: the recipe's, or 0]")
@delta_output
@writing
def merge(
    recipe: Path,
    out: Location | None,
    *,
    as_delta: bool,
    seed: int | None,
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
    """Carry out RECIPE, a YAML file as mergekit has them, over deltas and checkpoints.

    A checkpoint is written in files like those of the base, and with the base's configuration and
    tokenizer; --lean, --max-shard-size, --shards and --meta are for --as-delta.
    """
    with one_of_many("merge", quiet=quiet) as (ranks, progress):
        report = sparsedelta.merge(
            recipe,
            out,
            as_delta=as_delta,
            seed=seed,
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
            "files_left_out": report.files_left_out,
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
