"""Options and output that the commands share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final, TypeVar

import click

from sparsedelta.console import progress_bar
from sparsedelta.errors import printable
from sparsedelta.launch import launched
from sparsedelta.locations import Location, as_location, output_path
from sparsedelta.progress import Progress
from sparsedelta.ranks import Ranks

_SIZE: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?) *(?P<unit>|[kKmMgGtT]?i?[bB])", re.ASCII)
_UNITS: Final = {
    **{f"{prefix}IB": 1 << (10 * power) for power, prefix in enumerate("KMGT", start=1)},
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, in the order in which help lists them."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def _silence(ctx: click.Context, param: click.Parameter, value: bool) -> bool:  # noqa: FBT001
    """Let the client of the Hub, which is not loaded yet, show no progress either."""
    del ctx, param
    if value:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return value


quiet = click.option(
    "-q", "--quiet", is_flag=True, callback=_silence, help="No progress, no summary."
)
force = click.option("--force", is_flag=True, help="Replace an existing output.")
dry_run = click.option(
    "--dry-run", is_flag=True, help="Do and verify everything, leave no output behind."
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker threads. [default: the cores of this process]",
)


class _Place(click.ParamType[Location]):
    """A local path, a URL or a repository: whether it can be read, our own errors say."""

    name = "path"

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click has it)
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> Location:
        return as_location(value)


class _Output(_Place):
    """A local path to write: a name is never taken for a repository on the Hub."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click has it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Location:
        del param, ctx
        return output_path(value)


cache = click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Remember digests of large files beside them.",
)
PATH: Final = _Place()
OUTPUT: Final = _Output()
delta_files = options(
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        help="Write a set of files of about this size: 500MB, 5GB.",
    ),
    click.option(
        "--shards",
        type=click.IntRange(min=1),
        metavar="N",
        help="Write a set of N files, each for an equal share of the work. "
        "[default under torchrun: the processes]",
    ),
    click.option(
        "--meta", multiple=True, metavar="KEY=VALUE", help="Provenance to store; repeatable."
    ),
)
reading = options(as_json, quiet, threads)
writing = options(as_json, quiet, threads, force, dry_run)


@contextmanager
def one_of_many(label: str, *, quiet: bool) -> Iterator[tuple[Ranks, Progress]]:
    """The ranks that this process is one of, and progress, which only the first one shows."""
    with launched() as ranks, progress_bar(label, quiet=quiet or ranks.rank > 0) as progress:
        yield ranks, progress


def ratio(whole: int, part: int) -> str:
    """How much smaller a delta is than its checkpoint, if it is."""
    return f" ({whole / part:.0f}x smaller than the checkpoint)" if whole > part else ""


def bits(size: int, nnz: int) -> str:
    """Bits of a file per entry."""
    return f", {8 * size / nnz:.2f} bits each, all bytes counted" if nnz else ""


def print_result(document: dict[str, Any], *lines: str, as_json: bool, quiet: bool) -> None:
    """Print a result on stdout: one JSON document, or lines."""
    # ASCII: a path or a name that is no text still makes valid JSON.
    if as_json:
        click.echo(json.dumps(document, indent=2, default=list))
    elif not quiet:
        for line in lines:
            click.echo(printable(line))


def print_notes(notes: Iterable[str], *, quiet: bool) -> None:
    """Tell on stderr what the user should know, a line each."""
    for note in notes if not quiet else ():
        click.echo(printable(f"note: {note}"), err=True)


def pairs(option: str, form: str, told: tuple[str, ...]) -> list[tuple[str, str]]:
    """Keys and values of an option such as ``--meta KEY=VALUE``."""
    found = []
    for pair in told:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"{option} {pair!r}: expected {form}")
        found.append((key, value))
    return found


def size(text: str | None) -> int | None:
    """Bytes of a size such as ``500MB``."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.UsageError(f"--max-shard-size {text!r}: expected a size such as 500MB or 5GB")
    return int(Decimal(match["number"]) * _UNITS[match["unit"].upper()])
