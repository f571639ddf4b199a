"""The way back of a chain, written as a portable delta while its base is at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import WrongBaseError
from sparsedelta.locations import LocationLike
from sparsedelta.operations.as_portable import portable
from sparsedelta.operations.history import DeltaLike, History, open_all
from sparsedelta.operations.squash import invert, squash
from sparsedelta.operations.standpoint import refuse_one_way
from sparsedelta.outputs import check_output, output_errors


@contextmanager
def undo_written(
    base: LocationLike,
    deltas: Sequence[DeltaLike],
    out: Path,
    *,
    to: str | None,
    threads: int | None,
    force: bool,
) -> Iterator[Path | None]:
    """Write the delta that leads back from where a chain leads; removed again if its use fails.

    Args:
        base: Where the chain starts.
        deltas: The chain, in any order.
        out: The delta to write.
        to: Where to lead, as :func:`sparsedelta.apply` has it.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.

    Yields:
        ``out``; None if ``base`` is not where the chain starts, as when it has been followed.

    Raises:
        NotInvertibleError: A delta does not lead back, even with its base at hand.
        OutputError: The output exists, or cannot be written.
    """
    with ExitStack() as stack:
        history = History(open_all(deltas, stack))
        way = history.way(None if to is None else history.find(to), None)
        inputs = tuple(path for reader in way for path in reader.paths)
        check_output(out, force=force, inputs=inputs)
        try:
            _write(base, way, out, threads=threads, force=force)
        except WrongBaseError:
            yield None
            return
        try:
            yield out
        except BaseException:
            out.unlink(missing_ok=True)
            raise


def _write(
    base: LocationLike,
    way: Sequence[DeltaReader],
    out: Path,
    *,
    threads: int | None,
    force: bool,
) -> None:
    folder = out.parent
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
