"""Commands that follow a delta: ``apply``, ``revert``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import (
    OUTPUT,
    PATH,
    cache,
    one_of_many,
    options,
    print_notes,
    print_result,
    writing,
)
from sparsedelta.commands.stacked import method_options, stacked
from sparsedelta.errors import UsageError
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location, as_location

_following: Final = options(
    click.option("--in-place", is_flag=True, help="Change the checkpoint itself, safely."),
    click.option(
        "--verify",
        type=click.Choice(["full", "touched"]),
        default="full",
        show_default=True,
        help="Digest every tensor, or only those that the delta names.",
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
    click.option(
        "--to",
        metavar="FINGERPRINT",
        help="The checkpoint to lead to, where deltas fork; its first hex digits will do.",
    ),
    click.option(
        "--stream",
        is_flag=True,
        help="Read what lies on the Hub by ranges, without a copy in its cache.",
    ),
    cache,
)


@click.command()
@click.argument("base", type=PATH)
@click.argument("deltas", metavar="DELTA...", nargs=-1, required=True)
@click.option("-o", "--out", "out", type=OUTPUT, help="The new checkpoint.")
@click.option(
    "--stack",
    is_flag=True,
    help="Add up deltas that all start at BASE: DELTA[:WEIGHT]..., as compose does.",
)
@click.option(
    "--undo",
    type=OUTPUT,
    metavar="FILE",
    help="Also write the portable delta that leads back, while BASE is at hand.",
)
@method_options
@_following
@writing
def apply(
    base: Location,
    deltas: tuple[str, ...],
    *,
    stack: bool,
    undo: Location | None,
    method: str | None,
    parameters: tuple[str, ...],
    seed: int | None,
    fp8_arithmetic: bool,
    **options: Any,  # noqa: ANN401 (passed on)
) -> None:
    """Write the target of DELTA: BASE with its changes, verified bit for bit.

    Several are a chain, in any order, and followed in one pass over BASE; a checkpoint that is at a
    link of it already is followed from there. Deltas that all start at BASE are added up if
    --stack is said, each with a weight if it is given: DELTA:0.5; or put together by --method.
    """
    if stack and undo is not None:
        raise click.UsageError("--undo goes with a delta or a chain, not with --stack")
    chosen = {
        "method": method,
        "set": parameters or None,
        "seed": seed,
        "fp8-arithmetic": fp8_arithmetic or None,
    }
    if stack:
        stacked(
            base,
            deltas,
            method=method,
            parameters=parameters,
            seed=seed,
            fp8_arithmetic=fp8_arithmetic,
            **options,
        )
    else:
        for option, value in chosen.items():
            if value is not None:
                raise UsageError(
                    f"--{option} says how deltas of one base are put together",
                    hint="sparsedelta apply --stack BASE D1 D2 … does; without, deltas are a chain",
                )
        places = tuple(map(as_location, deltas))
        _transform(sparsedelta.apply, "apply", base, places, undo=undo, **options)


@click.command()
@click.argument("target", type=PATH)
@click.argument("deltas", metavar="DELTA...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--out", "out", type=OUTPUT, help="The old checkpoint.")
@click.option("--base", type=PATH, help="The base, with which a compact delta is read.")
@_following
@writing
def revert(target: Location, deltas: tuple[Location, ...], **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the base of DELTA: TARGET with its changes undone, verified bit for bit.

    Several are a chain, in any order, and undone in one pass over TARGET.
    """
    _transform(sparsedelta.revert, "revert", target, deltas, **options)


def _transform(
    operation: Callable[..., sparsedelta.ApplyReport],
    verb: str,
    source: Location,
    deltas: tuple[Location, ...],
    out: Location | None,
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    threads: int | None,
    **options: Any,  # noqa: ANN401 (passed on)
) -> None:
    with one_of_many(verb, quiet=quiet) as (ranks, progress):
        report = operation(
            source,
            deltas,
            out,
            threads=threads_here(ranks, threads),
            dry_run=dry_run,
            progress=progress,
            ranks=ranks,
            **options,
        )
    if ranks.rank:
        return
    wrote = "would write" if dry_run else "wrote"
    print_notes(_notes(report, wrote), quiet=quiet)
    if report.changed:
        if out is None:
            wrote = "would change" if dry_run else "changed"
        text = f"{wrote} {out or source}: {report.nnz:,} entries in {report.tensors} tensors"
        if len(report.deltas) > 1:
            text += f", along a chain of {len(report.deltas)} deltas: {', '.join(report.deltas)}"
    else:
        end = "target" if verb == "apply" else "base"
        text = f"nothing to do: {source} already is the {end} of {', '.join(map(str, deltas))}"
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


def _notes(report: sparsedelta.ApplyReport, wrote: str) -> Iterator[str]:
    if report.settled is not None:
        yield f"the run that was interrupted has been {report.settled}"
    if report.kept:
        yield f"{len(report.kept)} files were finished already: verified"
    if report.discarded:
        yield "an interrupted run had left files of other inputs: removed"
    for path in report.duplicates:
        yield f"{path} is left out: another delta has the same content"
    if report.changed and report.skipped:
        yield f"the checkpoint is on the way already; skipped: {', '.join(report.skipped)}"
    if report.undo is not None:
        yield f"{wrote} {report.undo}: it leads back"
    if report.files:
        yield f"{wrote} from the delta: {', '.join(report.files)}"
    for name, why in report.unwritten.items():
        yield f"{name} is not written: {why}"
    for name in report.left_behind:
        yield f"{name} is not copied: old weights, a large file, a link, or not to be listed"
