"""Commands that follow a delta: ``apply``, ``revert``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import PATH, one_of_many, print_result, writing
from sparsedelta.errors import printable
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location

_files: Final = click.option(
    "--with-files/--no-files",
    "with_files",
    default=True,
    show_default=True,
    help="Write the small files that the delta carries.",
)


@click.command()
@click.argument("base", type=PATH)
@click.argument("delta", type=PATH)
@click.option("-o", "--out", "out", type=PATH, required=True, help="The new checkpoint.")
@_files
@writing
def apply(base: Location, delta: Location, out: Location, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the target of DELTA: BASE with its changes, verified bit for bit."""
    _transform(sparsedelta.apply, "apply", base, delta, out, **options)


@click.command()
@click.argument("target", type=PATH)
@click.argument("delta", type=PATH)
@click.option("-o", "--out", "out", type=PATH, required=True, help="The old checkpoint.")
@_files
@writing
def revert(target: Location, delta: Location, out: Location, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the base of DELTA: TARGET with its changes undone, verified bit for bit."""
    _transform(sparsedelta.revert, "revert", target, delta, out, **options)


def _transform(
    operation: Callable[..., sparsedelta.ApplyReport],
    verb: str,
    source: Location,
    delta: Location,
    out: Location,
    *,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
    with_files: bool,
) -> None:
    with one_of_many(verb, quiet=quiet) as (ranks, progress):
        report = operation(
            source,
            delta,
            out,
            threads=threads_here(ranks, threads),
            force=force,
            dry_run=dry_run,
            with_files=with_files,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank:
        return
    wrote = "would write" if dry_run else "wrote"
    if report.changed:
        text = f"{wrote} {out}: {report.nnz:,} entries in {report.tensors} tensors"
    else:
        end = "target" if verb == "apply" else "base"
        text = f"nothing to do: {source} already is the {end} of {delta}; {wrote} {out} as a copy"
    if report.files and not quiet:
        click.echo(printable(f"note: {wrote} from the delta: {', '.join(report.files)}"), err=True)
    for name, why in report.unwritten.items() if not quiet else ():
        click.echo(printable(f"note: {name} is not written: {why}"), err=True)
    for name in report.left_behind if not quiet else ():
        note = f"note: {name} is not copied: old weights, a large file, a link, or not to be listed"
        click.echo(printable(note), err=True)
    print_result(
        {"output": str(out), "dry_run": dry_run, **asdict(report)},
        text,
        f"verified {report.fingerprint}",
        as_json=as_json,
        quiet=quiet,
    )
