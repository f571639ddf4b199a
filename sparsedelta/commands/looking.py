"""Commands that read and report: ``validate``, ``info``, ``fingerprint``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

import sparsedelta
from sparsedelta.commands.options import PATH, bits, cache, one_of_many, print_result, reading
from sparsedelta.console import format_bytes, progress_bar
from sparsedelta.launch import threads_here
from sparsedelta.locations import Location

if TYPE_CHECKING:
    from sparsedelta.operations.info import TensorInfo

_EXIT_MISMATCH: Final = 3
_NAMED: Final = 3


@click.command()
@click.argument("delta", type=PATH)
@click.option("--base", type=PATH, help="Also prove that applying to this base gives the target.")
@click.option(
    "--headers",
    is_flag=True,
    help="Headers and manifests only: of a remote delta nothing else is read.",
)
@reading
def validate(
    delta: Location,
    base: Location | None,
    threads: int | None,
    *,
    headers: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check DELTA against every rule of the format; exit 3 if one is broken."""
    with progress_bar("validate", quiet=quiet) as progress:
        report = sparsedelta.validate(
            delta, base=base, headers=headers, threads=threads, progress=progress
        )
    only = " by its headers" if headers else ""
    checked = f"{report.nnz:,} entries in {report.tensors} tensors"
    proven = ", applying to the base gives the target" if report.base_checked else ""
    if report.unread:
        proven = f"; {report.unread} tensors are read in full with --base only"
    print_result(
        {**asdict(report), "ok": report.ok},
        f"{delta} is {'valid' if report.ok else 'NOT valid'}{only}: {checked}{proven}",
        *(f"  {problem.message}" for problem in report.problems),
        as_json=as_json,
        quiet=quiet and report.ok,
    )
    if not report.ok:
        sys.exit(_EXIT_MISMATCH)


@click.command()
@click.argument("delta", type=PATH)
@click.option("--tensors", is_flag=True, help="List the touched tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Accepted for uniformity; info has no progress.")
def info(delta: Location, *, tensors: bool, as_json: bool, quiet: bool) -> None:  # noqa: ARG001
    """Say what DELTA is, from its header and manifest; or a checkpoint, from its headers."""
    try:
        found = sparsedelta.info(delta)
    except sparsedelta.HubError:
        raise  # then there is no checkpoint either
    except sparsedelta.SparseDeltaError:
        if not _print_checkpoint(delta, as_json=as_json):
            raise
        return
    document = asdict(found)
    if not tensors:
        del document["tensors"]
    document["bits_per_entry"] = found.bits_per_entry
    document["density"] = found.density
    print_result(document, *_info_lines(found, tensors=tensors), as_json=as_json, quiet=False)


def _print_checkpoint(location: Location, *, as_json: bool) -> bool:
    """Whether there is a checkpoint, of which it is told then."""
    try:
        found = sparsedelta.checkpoint_info(location)
    except sparsedelta.UnfinishedError:
        raise  # there is one, and this is what there is to be said of it
    except sparsedelta.SparseDeltaError:
        return False
    how = {
        "read": "its files were digested",
        "full": "written and verified whole",
        "touched": "only the tensors that the delta touches were verified",
        None: "nothing is remembered",
    }[found.verified]
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    rows = [
        ("checkpoint", found.path),
        ("files", f"{len(found.files)}"),
        ("tensors", f"{found.tensors} ({dtypes}), {format_bytes(found.nbytes)}"),
        ("fingerprint", found.fingerprint or f"not known: sparsedelta fingerprint {found.path}"),
        ("verified", f"{how}; digests of {found.remembered} tensors are remembered"),
    ]
    width = max(len(key) for key, _ in rows)
    lines = (f"{key:<{width}}  {value}" for key, value in rows)
    print_result(asdict(found), *lines, as_json=as_json, quiet=False)
    return True


def _info_lines(found: sparsedelta.DeltaInfo, *, tensors: bool) -> list[str]:
    density = "" if found.density is None else f", {found.density:.3%} of their words"
    rows = [
        ("delta", f"{found.path}  ({format_bytes(found.size)})"),
        ("format", f"sparsedelta {found.version}, profile {found.profile}"),
        *([("compact", _compact(found))] if found.needs_base or found.fallen_back else ()),
        ("base", found.base),
        ("target", found.target),
        ("content", found.content),
        ("invertible", _invertible(found)),
        ("tensors", _touched(found)),
        ("entries", f"{found.nnz:,}{density}{bits(found.size, 0 if found.carried else found.nnz)}"),
        *(
            [("carried", f"{found.carried:,} words of whole tensors and rows")]
            if found.carried
            else ()
        ),
        *((f"layout.{end}", ", ".join(names)) for end, names in found.layout.items()),
        *([("files", ", ".join(found.files))] if found.files else ()),
        *([("set", f"{len(found.parts)} part files")] if found.parts else ()),
        *([("set", f"part file {found.part} of a set")] if found.part is not None else ()),
        *sorted(found.hints.items()),
        *((f"metadata.{key}", value) for key, value in sorted(found.metadata.items())),
    ]
    width = max(len(key) for key, _ in rows)
    lines = [f"{key:<{width}}  {value}" for key, value in rows]
    if tensors:
        lines.append("")
        for tensor in found.tensors:
            share = f" ({tensor.nnz / tensor.words:.3%})" if tensor.words else ""
            entries = f"{tensor.nnz:,} entries{share}  " if tensor.nnz else ""
            lines.append(
                f"{tensor.name}  {tensor.kind}  {_ends(tensor)}  {entries}"
                f"{format_bytes(tensor.nbytes)}  {'; '.join(tensor.encodings)}"
            )
    return lines


def _compact(found: sparsedelta.DeltaInfo) -> str:
    text = f"{found.needs_base} tensors are read with the base at hand"
    if not found.fallen_back:
        return text
    more = ", …" if len(found.fallen_back) > _NAMED else ""
    names = ", ".join(found.fallen_back[:_NAMED])
    return f"{text}; stored as in portable: {len(found.fallen_back)} ({names}{more})"


def _invertible(found: sparsedelta.DeltaInfo) -> str:
    if found.invertible:
        return "yes"
    if found.needs_base:
        return "not without its base: sparsedelta recode, or apply --undo"
    if not found.lost:
        return "no"
    more = f" and {len(found.lost) - 1} more" if len(found.lost) > 1 else ""
    return f"no: the old words of {found.lost[0]}{more} are not stored"


def _touched(found: sparsedelta.DeltaInfo) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    stay = "the others not listed (lean)" if found.lean else f"{found.untouched} untouched"
    return f"{found.touched} touched{f' ({kinds})' if kinds else ''}, {stay}"


def _ends(tensor: TensorInfo) -> str:
    return " -> ".join(dict.fromkeys(str(end) for end in (tensor.base, tensor.target) if end))


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--tensors", is_flag=True, help="Also list the digest of every tensor.")
@cache
@reading
def fingerprint(
    checkpoint: Location,
    threads: int | None,
    *,
    tensors: bool,
    cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the identity of CHECKPOINT: of its names, dtypes, shapes and bits."""
    with one_of_many("fingerprint", quiet=quiet) as (ranks, progress):
        count = threads_here(ranks, threads)
        found = sparsedelta.fingerprint(
            checkpoint, threads=count, progress=progress, cache=cache, ranks=ranks
        )
    if ranks.rank:
        return
    if found.remembered and not quiet:
        click.echo(
            f"note: digests of {found.remembered} of {len(found.tensors)} tensors were remembered; "
            "--no-cache reads the files again",
            err=True,
        )
    document: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "fingerprint": found.fingerprint,
        "tensors": len(found.tensors),
        "bytes": found.nbytes,
        "remembered": found.remembered,
    }
    lines = [found.fingerprint]
    if tensors:
        document["digests"] = {name: digest.hex() for name, digest in found.tensors.items()}
        lines += [f"{digest.hex()}  {name}" for name, digest in found.tensors.items()]
    print_result(document, *lines, as_json=as_json, quiet=False)
