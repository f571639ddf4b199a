"""Commands that read parts of a delta: ``ls``, ``rows``."""

from __future__ import annotations

from dataclasses import asdict

import click
import numpy as np

import sparsedelta
from sparsedelta.commands.options import PATH, as_json, print_result, quiet
from sparsedelta.console import format_bytes
from sparsedelta.errors import UsageError
from sparsedelta.locations import Location

_SHOWN = 20


@click.command("ls")
@click.argument("delta", type=PATH)
@as_json
@quiet
def ls(delta: Location, *, as_json: bool, quiet: bool) -> None:
    """List the tensors that DELTA touches, from its header and manifest."""
    found = sparsedelta.info(delta)
    print_result(
        {"delta": found.path, "tensors": [asdict(tensor) for tensor in found.tensors]},
        *(
            f"{tensor.nnz + tensor.carried:>14,}  {format_bytes(tensor.nbytes):>9}  "
            f"{tensor.kind:<8}  {tensor.name}"
            for tensor in found.tensors
        ),
        as_json=as_json,
        quiet=quiet,
    )


@click.command()
@click.argument("delta", type=PATH)
@click.argument("tensor")
@click.argument("rows", metavar="START:STOP")
@click.option("--base", type=PATH, help="Give the new words themselves: needs the base.")
@as_json
@quiet
def rows(
    delta: Location,
    tensor: str,
    rows: str,
    base: Location | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what DELTA changes in rows START to STOP of TENSOR, decoding only these blocks.

    Indices are those of words in the whole tensor. With --base the words of the target are given.
    """
    start, stop = _range(rows)
    if base is not None:
        words = sparsedelta.read_rows(base, delta, tensor, start, stop)
        print_result(
            {"tensor": tensor, "start": start, "stop": stop, "words": words.tolist()},
            f"{words.size:,} words of {tensor}, rows {start} to {stop}, verified",
            " ".join(f"{word:x}" for word in words[:_SHOWN].tolist()) + _more(words.size),
            as_json=as_json,
            quiet=quiet,
        )
        return
    with sparsedelta.DeltaReader(delta) as reader:
        found = reader.rows(tensor, start, stop)
    entries = [
        {"op": part.op, "indices": part.indices, "words": part.words} for part in found.entries
    ]
    nnz = sum(0 if each["words"] is None else len(each["words"]) for each in entries)
    lines = [f"{nnz:,} entries in rows {start} to {stop} of {tensor}"]
    for part in found.entries:
        if part.indices is None or part.words is None:
            continue
        pairs = zip(part.indices[:_SHOWN].tolist(), part.words[:_SHOWN].tolist(), strict=True)
        lines += [f"  {part.op} {index}: {word:x}" for index, word in pairs]
        lines += [_more(len(part.words))] if len(part.words) > _SHOWN else []
    document = {
        "tensor": tensor,
        "start": start,
        "stop": stop,
        "entries": [
            {
                key: each.tolist() if isinstance(each, np.ndarray) else each
                for key, each in e.items()
            }
            for e in entries
        ],
        "carried": found.carried.tolist(),
    }
    print_result(document, *lines, as_json=as_json, quiet=quiet)


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise UsageError(f"rows {text!r:.40}, expected START:STOP", hint="rows 0:8 are the first 8")
    return int(first), int(last)


def _more(count: int) -> str:
    return f"  … and {count - _SHOWN:,} more (--json has them all)" if count > _SHOWN else ""
