"""Commands on several deltas: ``squash``, ``invert``, ``log``, ``which``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import (
    OUTPUT,
    PATH,
    as_json,
    bits,
    cache,
    delta_files,
    one_of_many,
    options,
    pairs,
    print_notes,
    print_result,
    quiet,
    reading,
    size,
    writing,
)
from sparsedelta.console import format_bytes
from sparsedelta.errors import printable
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location

_EXIT_MISMATCH: Final = 3
_SHOWN: Final = 16

_deltas = click.argument("deltas", metavar="DELTA...", type=PATH, nargs=-1, required=True)

_made_delta: Final = options(
    click.option("-o", "--out", "out", type=OUTPUT, required=True, help="The delta to write."),
    click.option(
        "--codec",
        metavar="INDEX[+VALUE]",
        help="Force codecs: gap8, bitmask+planes, raw+raw, … [default: the smallest]",
    ),
    click.option(
        "--base", type=PATH, help="Where DELTA starts, with which compact deltas are read."
    ),
    delta_files,
)


@click.command()
@_deltas
@_made_delta
@click.option(
    "--forget", is_flag=True, help="Do not store tensors and rows that go: cannot be reverted."
)
@click.option("--lean", is_flag=True, help="Leave out the digests of the tensors that stay.")
@writing
def squash(deltas: tuple[Location, ...], **arguments: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the one delta that does what a chain of DELTAs does, exactly, without the base.

    They are put in order by their fingerprints; a gap or a fork is refused.
    """
    _write(sparsedelta.squash, "squash", deltas, **arguments)


@click.command()
@click.argument("delta", type=PATH)
@_made_delta
@writing
def invert(delta: Location, **arguments: Any) -> None:  # noqa: ANN401 (passed on)
    """Write the delta that leads from the target of DELTA to its base, exactly."""
    _write(sparsedelta.invert, "invert", delta, **arguments)


def _write(
    operation: Any,  # noqa: ANN401 (squash or invert)
    verb: str,
    given: Any,  # noqa: ANN401 (its first argument)
    out: Location,
    *,
    max_shard_size: str | None,
    meta: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    **arguments: Any,  # noqa: ANN401 (passed on)
) -> None:
    with one_of_many(verb, quiet=quiet) as (ranks, progress):
        report = operation(
            given,
            out,
            max_shard_size=size(max_shard_size),
            metadata=dict(pairs("--meta", "KEY=VALUE", meta)),
            threads=threads_here(ranks, threads),
            dry_run=dry_run,
            progress=progress,
            ranks=ranks,
            **arguments,
        )
    if ranks.rank:
        return
    left_out = [f"{path} is left out: another has the same content" for path in report.duplicates]
    print_notes((*left_out, *report.notes), quiet=quiet)
    manifest = report.manifest
    carried = sum(record.carried for record in manifest.tensors)
    print_result(
        {
            "delta": str(out),
            "size": report.size,
            "nnz": manifest.nnz,
            "touched": len(manifest.tensors),
            "untouched": len(manifest.untouched),
            "base": manifest.base,
            "target": manifest.target,
            "content": manifest.content,
            "invertible": manifest.invertible,
            "lean": manifest.lean,
            "carried": carried,
            "dry_run": dry_run,
            "deltas": report.deltas,
            "duplicates": report.duplicates,
        },
        f"{'would write' if dry_run else 'wrote'} {out}: {format_bytes(report.size)}, "
        f"{manifest.nnz:,} entries in {len(manifest.tensors)} tensors"
        + (f", {carried:,} words carried whole" if carried else bits(report.size, manifest.nnz)),
        f"from {manifest.base[:_SHOWN]}… to {manifest.target[:_SHOWN]}…, by "
        + ", then ".join(report.deltas),
        as_json=as_json,
        quiet=quiet,
    )


@click.command()
@_deltas
@as_json
@quiet
def log(deltas: tuple[Location, ...], *, as_json: bool, quiet: bool) -> None:
    """Draw the history that DELTAs tell: which checkpoint leads to which, by fingerprints."""
    graph = sparsedelta.log(deltas)
    for duplicate in graph.duplicates if not quiet else ():
        click.echo(
            printable(f"note: {duplicate.path} has the same content as {duplicate.of}"), err=True
        )
    print_result(asdict(graph), *_drawn(graph), as_json=as_json, quiet=quiet)


def _drawn(graph: sparsedelta.HistoryGraph) -> Iterator[str]:
    drawn: set[str] = set()
    for number, start in enumerate(graph.starts()):
        if number:
            yield ""
        # A stack, not a recursion: a history may be long. What is drawn next is on top.
        todo: list[tuple[str, str, sparsedelta.Edge | None]] = [(start, "", None)]
        while todo:
            node, indent, edge = todo.pop()
            if edge is not None:
                yield f"{indent}│ {_edge(edge)}"
            if node in drawn:
                yield f"{indent}o {node[:_SHOWN]}  (drawn above)"
                continue
            drawn.add(node)
            onward = graph.leaving(node)
            yield f"{indent}o {node[:_SHOWN]}{_marks(graph, node)}"
            for loop in graph.edges:
                if loop.base == loop.target == node:
                    yield f"{indent}│ {_edge(loop)}, changes nothing"
            for branch, each in reversed(list(enumerate(onward))):
                # The last goes straight on, the others are drawn beside it, first.
                beside = "│ " * (branch < len(onward) - 1)
                todo.append((each.target, indent + beside, each))


def _edge(edge: sparsedelta.Edge) -> str:
    back = "" if edge.invertible else ", does not lead back"
    return (
        f"{edge.path}: {edge.nnz:,} entries in {edge.tensors} tensors, "
        f"{format_bytes(edge.size)}{back}"
    )


def _marks(graph: sparsedelta.HistoryGraph, node: str) -> str:
    marks = [
        *(["base"] if node in graph.roots else ()),
        *([f"fork: {len(graph.leaving(node))} deltas"] if node in graph.forks else ()),
        *(["tip"] if node in graph.tips else ()),
    ]
    return f"  ({', '.join(marks)})" if marks else ""


@click.command()
@click.argument("checkpoint", type=PATH)
@_deltas
@cache
@reading
def which(
    checkpoint: Location,
    deltas: tuple[Location, ...],
    threads: int | None,
    *,
    cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say where on the history of DELTAs CHECKPOINT stands; exit 3 if it is not on it."""
    with one_of_many("which", quiet=quiet) as (ranks, progress):
        found = sparsedelta.which(
            checkpoint,
            deltas,
            threads=threads_here(ranks, threads),
            progress=progress,
            cache=cache,
            ranks=ranks,
        )
    if not ranks.rank:
        print_result(asdict(found), *_standing(found), as_json=as_json, quiet=quiet)
    if not found.is_known:
        sys.exit(_EXIT_MISMATCH)


def _standing(found: sparsedelta.Standing) -> Iterator[str]:
    shown = f"{found.checkpoint} is {found.fingerprint[:_SHOWN]}…"
    if not found.is_known:
        yield f"{shown}: none of these deltas starts from it or leads to it"
        return
    ends = [*(["a base"] if found.is_base else ()), *(["a tip"] if found.is_tip else ())]
    yield f"{shown}: {' and '.join(ends) or 'between the ends'}"
    for path in found.arrived:
        yield f"  behind {path}"
    for path in found.leaving:
        yield f"  before {path}"
    if found.from_base and len(found.from_base) > 1:
        yield f"  from the base: {', then '.join(found.from_base)}"
