"""The way back beside a result: written in the pass that makes it, or before where it cannot be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UnfinishedError, UsageError, WrongBaseError
from sparsedelta.operations.as_portable import portable
from sparsedelta.operations.request import Request
from sparsedelta.operations.squash import invert, squash
from sparsedelta.operations.standpoint import Standpoint, refuse_one_way
from sparsedelta.operations.way_back import WayBack, leads_back
from sparsedelta.outputs import check_output, output_errors
from sparsedelta.ranks import first


@dataclass(frozen=True, slots=True)
class Undo:
    """The way back that was asked for.

    Attributes:
        out: Where it is written; None if it was not asked for.
        way_back: What writes it in the pass over the words; None if it is written already.
    """

    out: Path | None = None
    way_back: WayBack | None = None


@contextmanager
def undoing(walk: Standpoint, request: Request) -> Iterator[Undo]:
    """While a route is followed: what writes the delta that leads back, removed again on failure.

    It is on disk before a file is changed in place, and before an output has its name.

    Args:
        walk: The checkpoint at hand, and the route that is followed from it.
        request: How it is followed.

    Raises:
        NotInvertibleError: A delta does not lead back, even with its base at hand.
        OutputError: The output exists, or cannot be written.
    """
    out, route = request.undo, walk.route
    if out is None or request.dry_run:
        yield Undo()
        return
    inputs = (*route.paths, *walk.checkpoint.paths)
    if request.out is not None and request.out.absolute() == out.absolute():
        raise UsageError(f"{out} cannot be the result and lead back from it")
    first(request.ranks, lambda: check_output(out, force=request.force, inputs=inputs))
    with ExitStack() as stack:
        way_back = None
        # Of what is kept of an interrupted run nobody has the words before.
        is_kept = request.resume and not request.in_place
        if request.ranks.size == 1 and not is_kept and leads_back(route):
            way_back = stack.enter_context(WayBack(route, out, walk.pool, force=request.force))
        elif not first(request.ranks, lambda: _write(walk.checkpoint, route.readers, out, request)):
            yield Undo()
            return
        try:
            yield Undo(out, way_back)
        except UnfinishedError:
            raise  # what is half changed may still be taken to its end, and then back
        except BaseException:
            is_written = way_back is None or way_back.is_written
            if request.ranks.rank == 0 and is_written:
                out.unlink(missing_ok=True)
            raise


def _write(base: CheckpointReader, way: Sequence[DeltaReader], out: Path, request: Request) -> bool:
    """Write the way back beforehand; False if the checkpoint is not where the way starts."""
    try:
        _write_from(base, way, out, request)
    except WrongBaseError:
        return False  # the pass finds out what it is
    return True


def _write_from(
    base: CheckpointReader, way: Sequence[DeltaReader], out: Path, request: Request
) -> None:
    folder, threads, force = out.parent, request.threads, request.force
    with portable(way, base, folder, threads=threads, verb="the way back") as readers:
        for reader in readers:
            refuse_one_way(reader, "does not lead back")
        if len(readers) == 1:
            invert(readers[0], out, threads=threads, force=force)
            return
        with output_errors(folder), tempfile.TemporaryDirectory(dir=folder) as work:
            whole = Path(work) / "chain.safetensors"
            squash(readers, whole, threads=threads)
            invert(whole, out, threads=threads, force=force)
