"""Commands that make something of checkpoints or deltas: ``diff``, ``export``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import click

import sparsedelta
from sparsedelta.commands.options import (
    OUTPUT,
    PATH,
    as_json,
    bits,
    cache,
    delta_files,
    force,
    one_of_many,
    pairs,
    print_notes,
    print_result,
    quiet,
    ratio,
    size,
    writing,
)
from sparsedelta.console import format_bytes, progress_bar
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location

if TYPE_CHECKING:
    from sparsedelta.manifest import Manifest
    from sparsedelta.operations.diff import DiffReport


@click.command()
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The delta to write.")
@click.option(
    "--profile",
    type=click.Choice(["portable", "compact"]),
    default="portable",
    show_default=True,
    help="portable: readable without the base, and invertible. compact: about half the size.",
)
@click.option("--one-way", is_flag=True, help="Store new words, none of what goes: not revertible.")
@click.option(
    "--forget", is_flag=True, help="Do not store tensors and rows that go: cannot be reverted."
)
@click.option("--lean", is_flag=True, help="Leave out the digests of the tensors that stay.")
@click.option(
    "--layout",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Record the checkpoints' files, to give them back byte for byte; auto: if it is cheap.",
)
@click.option("--sha256", is_flag=True, help="Record the SHA-256 of the checkpoints' files too.")
@click.option(
    "--with-files", is_flag=True, help="Carry the small files beside the weights that differ."
)
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="A tensor that has another name in TARGET; repeatable. Most are found by content.",
)
@click.option("--unrelated", is_flag=True, help="Allow checkpoints that share few tensors.")
@click.option(
    "--codec",
    metavar="INDEX[+VALUE]",
    help="Force codecs: gap8, bitmask+planes, raw+raw, … [default: the smallest]",
)
@click.option("--explain", is_flag=True, help="Print what each encoding would have cost.")
@delta_files
@click.option("--base-repo", metavar="NS/NAME", help="Hint where the base can be had.")
@click.option("--base-revision", metavar="COMMIT", help="Hint at the base's commit.")
@cache
@writing
def diff(
    base: Location,
    target: Location,
    out: Location,
    *,
    profile: str,
    meta: tuple[str, ...],
    base_repo: str | None,
    base_revision: str | None,
    threads: int | None,
    one_way: bool,
    forget: bool,
    lean: bool,
    layout: Literal["auto", "always", "never"],
    sha256: bool,
    with_files: bool,
    rename: tuple[str, ...],
    unrelated: bool,
    codec: str | None,
    explain: bool,
    max_shard_size: str | None,
    shards: int | None,
    as_json: bool,
    quiet: bool,
    force: bool,
    dry_run: bool,
    cache: bool,
) -> None:
    """Write the delta that leads from BASE to TARGET.

    Under torchrun the processes share the work.
    """
    with one_of_many("diff", quiet=quiet) as (ranks, progress):
        report = sparsedelta.diff(
            base,
            target,
            out,
            profile=profile,
            one_way=one_way,
            forget=forget,
            lean=lean,
            layout=layout,
            sha256=sha256,
            with_files=with_files,
            renames=_renames(rename),
            unrelated=unrelated,
            codec=codec,
            explain=explain,
            max_shard_size=size(max_shard_size),
            shards=shards,
            metadata=dict(pairs("--meta", "KEY=VALUE", meta)),
            base_repo=base_repo,
            base_revision=base_revision,
            threads=threads_here(ranks, threads),
            force=force,
            dry_run=dry_run,
            cache=cache,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank:
        return
    print_notes((*report.notes, *_advice(report)), quiet=quiet)
    manifest = report.manifest
    carried = sum(record.carried for record in manifest.tensors)
    kinds = report.kinds
    print_result(
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
            "lean": manifest.lean,
            "carried": carried,
            "kinds": kinds,
            "dry_run": dry_run,
            "profile": manifest.profile,
            "advice": None if report.advice is None else asdict(report.advice),
            **({"sizes": [asdict(sizes) for sizes in report.sizes]} if explain else {}),
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}"
        f"{ratio(report.checkpoint_bytes, report.size)}, {manifest.nnz:,} entries in "
        f"{_tensors(manifest, kinds)}"
        + (f", {carried:,} words carried whole" if carried else bits(report.size, manifest.nnz)),
        *(_explained(report) if explain else ()),
        as_json=as_json,
        quiet=quiet,
    )


def _advice(report: DiffReport) -> Iterator[str]:
    advice = report.advice
    if advice is not None:
        share = 1 - advice.size / report.size
        yield (
            f"--profile {advice.profile} would take about {format_bytes(advice.size)}, {share:.0%} "
            "less; it can only be read with the base at hand (docs/profiles.md)"
        )


def _tensors(manifest: Manifest, kinds: Mapping[str, int]) -> str:
    total = len(manifest.tensors) + len(manifest.untouched)
    of = "" if manifest.lean else f" of {total}"
    structural = kinds.keys() - {"changed"}
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{len(manifest.tensors)}{of} tensors{f' ({listed})' if structural else ''}"


def _renames(told: tuple[str, ...]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for old, new in pairs("--rename", "OLD=NEW", told):
        if renames.setdefault(new, old) != old:
            raise click.UsageError(
                f"--rename: {new!r} cannot come from both {renames[new]!r} and {old!r}"
            )
    return renames


def _explained(report: DiffReport) -> list[str]:
    lines = []
    for part in report.sizes:
        lines += ["", f"{part.tensor}  {part.op}"]
        for encoding, nbytes in sorted(part.nbytes.items(), key=lambda item: item[1]):
            mark = "*" if encoding == part.chosen else " "
            lines.append(f"  {mark} {nbytes:>14,} B  {encoding}")
    return lines


@click.command()
@click.argument("delta", type=PATH)
@click.option("--raw", "is_raw", is_flag=True, required=True, help="As plain tensors.")
@click.option("--base", type=PATH, help="Its base: values are then the new elements themselves.")
@click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The file to write.")
@as_json
@quiet
@force
def export(
    delta: Location,
    base: Location | None,
    out: Location,
    *,
    is_raw: bool,  # noqa: ARG001 (asked for, so that other formats can be added)
    as_json: bool,
    quiet: bool,
    force: bool,
) -> None:
    """Write DELTA as plain tensors: NAME.indices and NAME.values, for any safetensors reader."""
    with progress_bar("export", quiet=quiet) as progress:
        report = sparsedelta.export_raw(delta, out, base=base, force=force, progress=progress)
    what = "new elements" if report.values == "elements" else "differences mod 2^w"
    print_result(
        {"output": str(out), **asdict(report)},
        f"wrote {out}: {format_bytes(report.size)}, {report.nnz:,} entries ({what}) of "
        f"{report.changed} tensors, {report.whole} tensors whole, {len(report.dropped)} dropped, "
        f"{len(report.renamed)} renamed",
        as_json=as_json,
        quiet=quiet,
    )
