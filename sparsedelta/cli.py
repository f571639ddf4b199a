"""The command line: ``sparsedelta COMMAND …``, also as ``python -m sparsedelta``.

Results go to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 verification mismatch, 4 not found or no access on the Hub.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

import sparsedelta
from sparsedelta.console import format_bytes, progress_bar
from sparsedelta.errors import SparseDeltaError, printable

_Command = TypeVar("_Command", bound=Callable[..., Any])

_EXIT_INTERRUPTED: Final = 130
_OPEN_FILES: Final = 1 << 14
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_MISMATCH: Final = 3


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
_force = click.option("--force", is_flag=True, help="Replace an existing output.")
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Do and verify everything, leave no output behind."
)
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker threads. [default: the cores of this process]",
)
_path = click.Path(path_type=Path)
_reading = _options(_json, _quiet, _threads)
_writing = _options(_json, _quiet, _threads, _force, _dry_run)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sparsedelta.__version__, prog_name="sparsedelta")
def cli() -> None:
    """Bit-exact, invertible sparse deltas between model checkpoints.

    A checkpoint is a .safetensors file, or a directory with one file or with shards and an index.
    """


@cli.command()
@click.argument("base", type=_path)
@click.argument("target", type=_path)
@click.option("-o", "--out", "out", type=_path, required=True, help="The delta to write.")
@click.option(
    "--profile",
    type=click.Choice(["portable", "compact"]),
    default="portable",
    show_default=True,
    help="portable: readable without the base. compact: comes with a later release.",
)
@click.option("--one-way", is_flag=True, help="Store new words: larger, and cannot be reverted.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Provenance to store; repeatable.")
@click.option("--base-repo", metavar="NS/NAME", help="Hint where the base can be had.")
@click.option("--base-revision", metavar="COMMIT", help="Hint at the base's commit.")
@_writing
def diff(
    base: Path,
    target: Path,
    out: Path,
    *,
    profile: str,
    meta: tuple[str, ...],
    base_repo: str | None,
    base_revision: str | None,
    threads: int | None,
    one_way: bool,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Write the delta that leads from BASE to TARGET."""
    with progress_bar("diff", quiet=quiet) as progress:
        report = sparsedelta.diff(
            base,
            target,
            out,
            profile=profile,
            one_way=one_way,
            metadata=_metadata(meta),
            base_repo=base_repo,
            base_revision=base_revision,
            threads=threads,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    manifest = report.manifest
    _print(
        {
            "delta": str(out),
            "size": report.size,
            "checkpoint_bytes": report.checkpoint_bytes,
            "nnz": manifest.nnz,
            "touched": len(manifest.tensors),
            "untouched": len(manifest.untouched),
            "base": manifest.base,
            "target": manifest.target,
            "content": manifest.content,
            "invertible": manifest.invertible,
            "dry_run": dry_run,
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}"
        f"{_ratio(report.checkpoint_bytes, report.size)}, {manifest.nnz:,} entries in "
        f"{len(manifest.tensors)} of {len(manifest.tensors) + len(manifest.untouched)} tensors"
        f"{_bits(report.size, manifest.nnz)}",
        as_json=as_json,
        quiet=quiet,
    )


@cli.command()
@click.argument("base", type=_path)
@click.argument("delta", type=_path)
@click.option("-o", "--out", "out", type=_path, required=True, help="The new checkpoint.")
@_writing
def apply(base: Path, delta: Path, out: Path, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the target of DELTA: BASE with its changes, verified bit for bit."""
    _transform(sparsedelta.apply, "apply", base, delta, out, **options)


@cli.command()
@click.argument("target", type=_path)
@click.argument("delta", type=_path)
@click.option("-o", "--out", "out", type=_path, required=True, help="The old checkpoint.")
@_writing
def revert(target: Path, delta: Path, out: Path, **options: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the base of DELTA: TARGET with its changes undone, verified bit for bit."""
    _transform(sparsedelta.revert, "revert", target, delta, out, **options)


def _transform(
    operation: Callable[..., sparsedelta.ApplyReport],
    verb: str,
    source: Path,
    delta: Path,
    out: Path,
    *,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
) -> None:
    with progress_bar(verb, quiet=quiet) as progress:
        report = operation(
            source,
            delta,
            out,
            threads=threads,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    wrote = "would write" if dry_run else "wrote"
    if report.changed:
        text = f"{wrote} {out}: {report.nnz:,} entries in {report.tensors} tensors"
    else:
        end = "target" if verb == "apply" else "base"
        text = f"nothing to do: {source} already is the {end} of {delta}; {wrote} {out} as a copy"
    for name in report.left_behind if not quiet else ():
        note = f"note: {name} is not copied: it may hold the old weights, is large, or a link"
        click.echo(printable(note), err=True)
    _print(
        {"output": str(out), "dry_run": dry_run, **asdict(report)},
        text,
        f"verified {report.fingerprint}",
        as_json=as_json,
        quiet=quiet,
    )


@cli.command()
@click.argument("delta", type=_path)
@click.option("--base", type=_path, help="Also prove that applying to this base gives the target.")
@_reading
def validate(
    delta: Path, base: Path | None, threads: int | None, *, as_json: bool, quiet: bool
) -> None:
    """Check DELTA against every rule of the format; exit 3 if one is broken."""
    with progress_bar("validate", quiet=quiet) as progress:
        report = sparsedelta.validate(delta, base=base, threads=threads, progress=progress)
    checked = f"{report.nnz:,} entries in {report.tensors} tensors"
    proven = ", applying to the base gives the target" if report.base_checked else ""
    _print(
        {**asdict(report), "ok": report.ok},
        f"{delta} is {'valid' if report.ok else 'NOT valid'}: {checked}{proven}",
        *(f"  {problem.message}" for problem in report.problems),
        as_json=as_json,
        quiet=quiet and report.ok,
    )
    if not report.ok:
        sys.exit(_EXIT_MISMATCH)


@cli.command()
@click.argument("delta", type=_path)
@click.option("--tensors", is_flag=True, help="List the touched tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Accepted for uniformity; info has no progress.")
def info(delta: Path, *, tensors: bool, as_json: bool, quiet: bool) -> None:  # noqa: ARG001
    """Say what DELTA is, from its header and manifest."""
    found = sparsedelta.info(delta)
    document = asdict(found)
    if not tensors:
        del document["tensors"]
    document["bits_per_entry"] = found.bits_per_entry
    document["density"] = found.density
    _print(document, *_info_lines(found, tensors=tensors), as_json=as_json, quiet=False)


def _info_lines(found: sparsedelta.DeltaInfo, *, tensors: bool) -> list[str]:
    density = "" if found.density is None else f", {found.density:.3%} of their words"
    rows = [
        ("delta", f"{found.path}  ({format_bytes(found.size)})"),
        ("format", f"sparsedelta {found.version}, profile {found.profile}"),
        ("base", found.base),
        ("target", found.target),
        ("content", found.content),
        ("invertible", "yes" if found.invertible else "no (written one-way)"),
        ("tensors", f"{found.touched} touched, {found.untouched} untouched"),
        ("entries", f"{found.nnz:,}{density}{_bits(found.size, found.nnz)}"),
        *sorted(found.hints.items()),
        *((f"metadata.{key}", value) for key, value in sorted(found.metadata.items())),
    ]
    width = max(len(key) for key, _ in rows)
    lines = [f"{key:<{width}}  {value}" for key, value in rows]
    if tensors:
        lines.append("")
        for tensor in found.tensors:
            share = tensor.nnz / tensor.words
            lines.append(
                f"{tensor.name}  {tensor.dtype} {list(tensor.shape)}  {tensor.nnz:,} entries "
                f"({share:.3%})  {format_bytes(tensor.nbytes)}  {'; '.join(tensor.encodings)}"
            )
    return lines


@cli.command()
@click.argument("checkpoint", type=_path)
@click.option("--tensors", is_flag=True, help="Also list the digest of every tensor.")
@_reading
def fingerprint(
    checkpoint: Path, threads: int | None, *, tensors: bool, as_json: bool, quiet: bool
) -> None:
    """Print the identity of CHECKPOINT: of its names, dtypes, shapes and bits."""
    with progress_bar("fingerprint", quiet=quiet) as progress:
        found = sparsedelta.fingerprint(checkpoint, threads=threads, progress=progress)
    document: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "fingerprint": found.fingerprint,
        "tensors": len(found.tensors),
        "bytes": found.nbytes,
    }
    lines = [found.fingerprint]
    if tensors:
        document["digests"] = {name: digest.hex() for name, digest in found.tensors.items()}
        lines += [f"{digest.hex()}  {name}" for name, digest in found.tensors.items()]
    _print(document, *lines, as_json=as_json, quiet=False)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    metadata = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"--meta {pair!r}: expected KEY=VALUE")
        metadata[key] = value
    return metadata


def _ratio(whole: int, part: int) -> str:
    return f" ({whole / part:.0f}x smaller than the checkpoint)" if whole > part else ""


def _bits(size: int, nnz: int) -> str:
    return f", {8 * size / nnz:.2f} bits each, all bytes counted" if nnz else ""


def _print(document: dict[str, Any], *lines: str, as_json: bool, quiet: bool) -> None:
    # ASCII: a path or a name that is no text still makes valid JSON.
    if as_json:
        click.echo(json.dumps(document, indent=2, default=list))
    elif not quiet:
        for line in lines:
            click.echo(printable(line))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors of ours are one message, no traceback."""
    run(cli, "sparsedelta", arguments)


def _interrupt_once() -> None:
    """Make Ctrl-C, a polite kill and a closed terminal one interrupt each, and only the first.

    Temporary files are removed on the way out; a second signal must not interrupt that. A signal
    that is ignored, as in a background job, stays so.
    """

    def interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, interrupt)


def _allow_many_files() -> None:
    """Use what the system grants: a checkpoint of hundreds of shards is open at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(command: click.Command, name: str, arguments: list[str] | None = None) -> None:
    """Run a click command; map our errors and an interrupt to exit codes."""
    _interrupt_once()
    _allow_many_files()
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was left behind", err=True)
        sys.exit(_EXIT_INTERRUPTED)
    except SparseDeltaError as error:
        click.echo(f"error: {printable(error.message)}", err=True)
        if error.hint:
            click.echo(f"hint: {printable(error.hint)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
