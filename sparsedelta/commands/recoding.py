"""The command that writes a delta in another profile: ``recode``."""

from __future__ import annotations

import click

import sparsedelta
from sparsedelta.commands.options import OUTPUT, PATH, bits, one_of_many, print_result, writing
from sparsedelta.console import format_bytes
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location


@click.command()
@click.argument("delta", type=PATH)
@click.option("--base", type=PATH, required=True, help="The base of DELTA.")
@click.option(
    "--profile",
    type=click.Choice(["portable", "compact"]),
    required=True,
    help="portable: readable without the base, and invertible. compact: about half the size.",
)
@click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The delta to write.")
@writing
def recode(
    delta: Location,
    base: Location,
    out: Location,
    *,
    profile: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Write DELTA in another profile: the same content digest, nothing is lost."""
    with one_of_many("recode", quiet=quiet) as (ranks, progress):
        if ranks.size > 1:
            raise click.UsageError("recode is the work of one process: run it without torchrun")
        report = sparsedelta.recode(
            delta,
            base,
            out,
            profile=profile,
            threads=threads_here(ranks, threads),
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    manifest = report.manifest
    print_result(
        {
            "delta": str(out),
            "size": report.size,
            "before": report.before,
            "profile": manifest.profile,
            "nnz": manifest.nnz,
            "touched": len(manifest.tensors),
            "fallen_back": report.fallen_back,
            "base": manifest.base,
            "target": manifest.target,
            "content": manifest.content,
            "invertible": manifest.invertible,
            "dry_run": dry_run,
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}, "
        f"{format_bytes(report.before)} before{bits(report.size, manifest.nnz)}",
        as_json=as_json,
        quiet=quiet,
    )
