"""Commands that follow a delta: ``apply``, ``revert``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import PATH, options, print_result, writing
from sparsedelta.console import progress_bar
from sparsedelta.errors import printable
from sparsedelta.locations import Location

_following: Final = options(
    click.option("--in-place", is_flag=True, help="Change the checkpoint itself, safely."),
    click.option(
        "--verify",
        type=click.Choice(["full", "touched"]),
        default="full",
        show_default=True,
        help="In place: digest every tensor, or only those that the delta names.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with a run that was interrupted; keep what is finished if this one is.",
    ),
    click.option(
        "--with-files/--no-files",
        "with_files",
        default=True,
        show_default=True,
        help="Write the small files that the delta carries.",
    ),
)


@click.command()
@click.argument("base", type=PATH)
@click.argument("delta", type=PATH)
@click.option("-o", "--out", "out", type=PATH, help="The new checkpoint.")
@_following
@writing
def apply(base: Location, delta: Location, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the target of DELTA: BASE with its changes, verified bit for bit."""
    _transform(sparsedelta.apply, "apply", base, delta, **options)


@click.command()
@click.argument("target", type=PATH)
@click.argument("delta", type=PATH)
@click.option("-o", "--out", "out", type=PATH, help="The old checkpoint.")
@_following
@writing
def revert(target: Location, delta: Location, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the base of DELTA: TARGET with its changes undone, verified bit for bit."""
    _transform(sparsedelta.revert, "revert", target, delta, **options)


def _transform(
    operation: Callable[..., sparsedelta.ApplyReport],
    verb: str,
    source: Location,
    delta: Location,
    out: Location | None,
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    **options: Any,  # noqa: ANN401 (passed on)
) -> None:
    with progress_bar(verb, quiet=quiet) as progress:
        report = operation(source, delta, out, dry_run=dry_run, progress=progress, **options)
    wrote = "would write" if dry_run else "wrote"
    if report.settled is not None and not quiet:
        click.echo(f"note: the run that was interrupted has been {report.settled}", err=True)
    if report.kept and not quiet:
        click.echo(f"note: {len(report.kept)} files were finished already: verified", err=True)
    if report.discarded and not quiet:
        click.echo("note: an interrupted run had left files of other inputs: removed", err=True)
    if report.files and not quiet:
        click.echo(printable(f"note: {wrote} from the delta: {', '.join(report.files)}"), err=True)
    for name, why in report.unwritten.items() if not quiet else ():
        click.echo(printable(f"note: {name} is not written: {why}"), err=True)
    for name in report.left_behind if not quiet else ():
        note = f"note: {name} is not copied: old weights, a large file, a link, or not to be listed"
        click.echo(printable(note), err=True)
    if report.changed:
        if out is None:
            wrote = "would change" if dry_run else "changed"
        text = f"{wrote} {out or source}: {report.nnz:,} entries in {report.tensors} tensors"
    else:
        end = "target" if verb == "apply" else "base"
        text = f"nothing to do: {source} already is the {end} of {delta}"
        text += f"; {wrote} {out} as a copy" if out is not None else ""
    verified = f"verified {report.fingerprint}"
    if report.verified == "touched":
        verified = "touched tensors match, fingerprint not verified"
    print_result(
        {"output": str(out or source), "dry_run": dry_run, **asdict(report)},
        text,
        verified,
        as_json=as_json,
        quiet=quiet,
    )
