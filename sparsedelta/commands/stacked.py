"""Deltas with weights on the command line, what is told of their overlap, and ``apply --stack``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import (
    one_of_many,
    options,
    pairs,
    print_notes,
    print_result,
)
from sparsedelta.errors import UsageError
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location, as_location
from sparsedelta.merging.methods import METHODS
from sparsedelta.merging.overlap import Overlap

_WEIGHT: Final = re.compile(
    r"(?P<place>.+):(?P<weight>[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+|nan|inf))",
    re.ASCII | re.DOTALL,
)

_SHOWN_KINDS: Final = 20

method_options: Final = options(
    click.option(
        "--method",
        type=click.Choice(list(METHODS)),
        metavar="NAME",
        help=f"How they are put together: {', '.join(METHODS)}.  [default: sum]",
    ),
    click.option(
        "--set",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        help="A parameter of the method, such as density=0.5, or density=0.5,0.3 for each delta.",
    ),
    click.option("--seed", type=int, help="Of random methods.  [default: 0]"),
    click.option(
        "--fp8-arithmetic",
        is_flag=True,
        help="Compute with fp8 too, but for tensors with a scale beside them.",
    ),
)


def how(
    method: str | None, parameters: Sequence[str], seed: int | None, *, fp8_arithmetic: bool
) -> dict[str, Any]:
    """Arguments that say how deltas are put together, of :data:`method_options`."""
    return {
        "method": method or "sum",
        "parameters": {
            key: _value(text) for key, text in pairs("--set", "NAME=VALUE", tuple(parameters))
        },
        "seed": seed or 0,
        "fp8_arithmetic": fp8_arithmetic,
    }


def _value(text: str) -> Any:  # noqa: ANN401 (what the parameter takes)
    if "," in text:
        return [_value(each) for each in text.split(",")]
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def weighted(text: str) -> tuple[Location, float]:
    """A delta and its weight: ``DELTA``, or ``DELTA:WEIGHT`` unless a file is called that."""
    match = _WEIGHT.fullmatch(text)
    if match is None or Path(text).exists():
        return as_location(text), 1.0
    return as_location(match["place"]), float(match["weight"])


def stacked(
    base: Location,
    deltas: Sequence[str],
    *,
    out: Location | None,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    force: bool,
    threads: int | None,
    method: str | None,
    parameters: Sequence[str],
    seed: int | None,
    fp8_arithmetic: bool,
    **other: Any,  # noqa: ANN401 (options of a chain, which are refused)
) -> None:
    """Write what deltas of one base make of it together, and say what they have in common."""
    for option, usual in (
        ("in_place", False),
        ("resume", False),
        ("verify", "full"),
        ("to", None),
        ("stream", False),
    ):
        if other.get(option, usual) != usual:
            raise UsageError(
                f"--{option.replace('_', '-')} does not go with --stack",
                hint="compose the deltas first: sparsedelta compose --base BASE D1 D2 … -o DELTA",
            )
    places, weights = zip(*map(weighted, deltas), strict=True)
    with one_of_many("apply", quiet=quiet) as (ranks, progress):
        report = sparsedelta.apply_stack(
            base,
            places,
            out,
            weights=weights,
            **how(method, parameters, seed, fp8_arithmetic=fp8_arithmetic),
            threads=threads_here(ranks, threads),
            dry_run=dry_run,
            force=force,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank:
        return
    print_notes(report.notes, quiet=quiet)
    print_result(
        {
            "output": None if out is None else str(out),
            "dry_run": dry_run,
            "fingerprint": report.fingerprint,
            "base": report.base,
            "tensors": report.tensors,
            "nnz": report.nnz,
            "nbytes": report.nbytes,
            "method": method or "sum",
            "left_behind": report.left_behind,
            "files_left_out": report.files_left_out,
            **told_overlaps(report.parents, report.weights, report.overlap, report.kinds),
        },
        f"{'would write' if dry_run else 'wrote'} {out or base}: {report.nnz:,} words changed in "
        f"{report.tensors} tensors",
        *overlap_lines(report.parents, report.weights, report.overlap, report.kinds),
        f"fingerprint {report.fingerprint}",
        as_json=as_json,
        quiet=quiet,
    )


def told_overlaps(
    parents: Sequence[str],
    weights: Sequence[float],
    overlap: Overlap,
    kinds: Mapping[str, Overlap],
) -> dict[str, Any]:
    """What a JSON document says of tasks and what they have in common."""
    return {
        "parents": [
            {"name": name, "weight": weight} for name, weight in zip(parents, weights, strict=True)
        ],
        "overlap": overlap.to_json(),
        "overlap_by_kind": {kind: each.to_json() for kind, each in kinds.items()},
    }


def overlap_lines(
    parents: Sequence[str],
    weights: Sequence[float],
    overlap: Overlap,
    kinds: Mapping[str, Overlap],
) -> Iterator[str]:
    """What is said of tasks and what they have in common."""
    for number, (name, weight) in enumerate(zip(parents, weights, strict=True)):
        count = int(overlap.counts[number, number])
        yield f"  [{number + 1}] {name}, weight {weight:g}: {count:,} entries"
    yield from _pairs(overlap, "  overlap ")
    shared = {kind: each for kind, each in kinds.items() if _shared(each)}
    most = sorted(shared, key=lambda kind: (-_shared(shared[kind]), kind))
    for kind in most[:_SHOWN_KINDS]:
        yield from _pairs(shared[kind], f"    {kind} ")
    if len(most) > _SHOWN_KINDS:
        yield f"    … and {len(most) - _SHOWN_KINDS} more kinds of modules (--json has them all)"


def _shared(overlap: Overlap) -> int:
    return int(overlap.counts.sum() - overlap.counts.trace())


def _pairs(overlap: Overlap, label: str) -> Iterator[str]:
    tasks = len(overlap.counts)
    for one in range(tasks):
        for other in range(one + 1, tasks):
            count = int(overlap.counts[one, other])
            text = f"{label}[{one + 1}] & [{other + 1}]: {count:,} elements"
            if count:
                text += f" ({_percent(overlap.share(one, other))} of [{one + 1}], "
                text += f"{_percent(overlap.share(other, one))} of [{other + 1}])"
                text += f", same sign {_percent(overlap.agreement(one, other))}"
                cosine = overlap.cosine(one, other)
                text += "" if cosine is None else f", cosine {cosine:.3f}"
            yield text


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
