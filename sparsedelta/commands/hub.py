"""Commands about the Hub: ``push``, ``pull``, ``search``, ``history``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final, Literal

import click

import sparsedelta
from sparsedelta.commands.options import (
    OUTPUT,
    PATH,
    as_json,
    dry_run,
    force,
    options,
    print_notes,
    print_result,
    quiet,
    threads,
)
from sparsedelta.console import format_bytes, progress_bar
from sparsedelta.locations import Location

_SHOWN: Final = 16

_token = click.option(
    "--token", metavar="TOKEN", help="[default: HF_TOKEN, or that of hf auth login]"
)
_revision = click.option("--revision", metavar="REVISION", help="Branch, tag or commit.")
_endings = options(as_json, quiet)


@click.command()
@click.argument("delta", type=PATH)
@click.argument("repo", metavar="NS/NAME")
@click.option(
    "--base",
    metavar="NS/NAME[@REV]|PATH",
    help="The model it starts from, or where that lies here. [default: what it says]",
)
@click.option("--chain", is_flag=True, help="Add it to a chain, behind its last link.")
@click.option("--private/--public", default=None, help="Of a repository that is made.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option(
    "--message", "--commit-message", metavar="TEXT", help="First line of the commit's message."
)
@click.option("--tag", metavar="NAME", help="Tag the commit.")
@click.option("--license", metavar="ID", help="Of the model card. [default: that of the base]")
@click.option("--no-check-base", is_flag=True, help="Do not compare the base on the Hub.")
@click.option("--full-check-base", is_flag=True, help="Compare all of it: reads every byte.")
@_token
@threads
@dry_run
@_endings
def push(
    delta: Location,
    repo: str,
    *,
    no_check_base: bool,
    full_check_base: bool,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    license: str | None,  # noqa: A002 (the name of the option)
    **given: Any,  # noqa: ANN401 (passed on)
) -> None:
    """Push DELTA to a repository on the Hub, with its model card, as one commit.

    DELTA is validated, with its base where that is needed and at hand, and its base compared with
    the model on the Hub that it names.
    """
    if no_check_base and full_check_base:
        raise click.UsageError("give either --no-check-base or --full-check-base")
    check: Literal["quick", "full", "none"] = (
        "none" if no_check_base else "full" if full_check_base else "quick"
    )
    with progress_bar("push", quiet=quiet) as progress:
        report = sparsedelta.push(
            delta,
            repo,
            license=license,
            check=check,
            dry_run=dry_run,
            progress=progress,
            **given,
        )
    print_notes(report.notes, quiet=quiet)
    print_result(
        {**asdict(report), "dry_run": dry_run},
        *_pushed(report, dry_run=dry_run),
        as_json=as_json,
        quiet=quiet,
    )


def _pushed(report: sparsedelta.PushReport, *, dry_run: bool) -> Iterator[str]:
    if not report.committed:
        yield f"nothing to push: {report.url} has it already, at commit {report.commit}"
    else:
        did = "would push" if dry_run else "pushed"
        yield f"{did} {format_bytes(report.size)} to {report.url}"
        yield from (f"  + {path}" for path in report.files)
        yield from (f"  - {path}" for path in report.deleted)
    if report.pull_request:
        yield f"pull request {report.pull_request}"
    elif report.committed and report.commit:
        yield f"commit {report.commit}"
    if report.base is not None:
        yield f"base {report.base.repo}@{report.base.commit}, {_checked(report.base)}"


def _checked(base: sparsedelta.BaseCheck) -> str:
    if base.how == "sha256":
        return "the same files, by their SHA-256"
    if base.how == "words":
        return f"the same, word for word ({format_bytes(base.nbytes)})"
    if base.how == "sample":
        return f"the same as far as was compared: {format_bytes(base.nbytes)}"
    return "not compared"


@click.command()
@click.argument("repo", metavar="NS/NAME[@REV]")
@click.option("-o", "--out", "out", type=OUTPUT, help="The file to write. [default: the cache]")
@_revision
@click.option("--local-dir", type=OUTPUT, metavar="DIR", help="Write the files to this folder.")
@click.option("--to", metavar="N|FINGERPRINT", help="Of a chain: how far. [default: to its end]")
@click.option(
    "--onto", type=PATH, metavar="CHECKPOINT", help="Get the links that it lacks, and apply them."
)
@click.option(
    "--base",
    type=PATH,
    metavar="CHECKPOINT",
    help="Where it starts: proves that it leads to its target; reads compact deltas.",
)
@click.option("--cache-dir", metavar="DIR", help="[default: HF_HUB_CACHE]")
@_token
@threads
@force
@dry_run
@_endings
def pull(
    repo: str,
    *,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    **given: Any,  # noqa: ANN401 (passed on)
) -> None:
    """Get a delta from the Hub, verified before it has its name, and print where it is.

    Of a chain, with -o, its links are squashed into one delta; with --onto they are applied.
    """
    with progress_bar("pull", quiet=quiet) as progress:
        report = sparsedelta.pull(repo, dry_run=dry_run, progress=progress, **given)
    did = "would get" if dry_run else "got"
    links = f", links {report.links[0]} to {report.links[-1]}" if report.links else ""
    print_notes(
        [
            f"{did} {format_bytes(report.size)} in {len(report.files)} files of "
            f"{report.repo}@{report.commit}{links}",
            *report.notes,
        ],
        quiet=quiet,
    )
    document = {**asdict(report), "dry_run": dry_run}
    # The path alone, even with --quiet: as hf download does, for scripts.
    print_result(document, *([report.path] if report.path else ()), as_json=as_json, quiet=False)


@click.command()
@click.option("--base", required=True, metavar="NS/NAME", help="The model.")
@click.option("--author", metavar="NAME", help="Only of this user or organization.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@_token
@_endings
def search(*, as_json: bool, quiet: bool, **given: Any) -> None:  # noqa: ANN401 (passed on)
    """List the repositories on the Hub with deltas made for a model."""
    found = sparsedelta.search(**given)
    print_result(
        {"base": given["base"], "deltas": [asdict(each) for each in found]},
        # One name a line with --quiet, as hf does.
        *(
            each.repo
            if quiet
            else f"{each.repo}  {each.modified or ''}  {each.downloads} downloads"
            for each in found
        ),
        as_json=as_json,
        quiet=False,
    )


@click.command()
@click.argument("repo", metavar="NS/NAME[@REV]")
@_revision
@_token
@_endings
def history(repo: str, *, as_json: bool, quiet: bool, **given: Any) -> None:  # noqa: ANN401 (passed on)
    """Show the chain of deltas that a repository on the Hub holds."""
    found = sparsedelta.history(repo, **given)
    base = found.base
    where = f"{base.repo}@{base.commit or 'main'}" if base.repo else "not known"
    lines = [f"o {base.fingerprint[:_SHOWN]}  base: {where}"]
    for number, link in enumerate(found.deltas, 1):
        back = "" if link.invertible else ", does not lead back"
        name = f"[{number}] " if found.is_chain else ""
        lines += [
            f"│ {name}{link.path}: {link.nnz:,} entries in {link.tensors} tensors, "
            f"{format_bytes(link.size)}{back}",
            f"o {link.target[:_SHOWN]}",
        ]
    print_result(asdict(found), *lines, as_json=as_json, quiet=quiet)
