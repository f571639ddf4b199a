"""Deltas as portable ones for a while, where an operation has to see entries without the base."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sparsedelta.checkpoint import CheckpointReader, check_unchanged, open_checkpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import StructureError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.locations import LocationLike
from sparsedelta.manifest import PORTABLE
from sparsedelta.operations.recode import RecodedDelta
from sparsedelta.operations.relay import Relay
from sparsedelta.outputs import output_errors
from sparsedelta.parallel import OrderedMap


@contextmanager
def portable(
    readers: Sequence[DeltaReader],
    base: LocationLike | CheckpointReader | None,
    folder: Path,
    *,
    threads: int | None,
    verb: str,
) -> Iterator[Sequence[DeltaReader]]:
    """A chain of deltas that can all be read without the base.

    Those that cannot are recoded into temporary files, which keep their names in messages.

    Args:
        readers: The chain, in order.
        base: Where it starts, or None.
        folder: Where temporary files may lie.
        threads: Worker threads; None for the cores of this process.
        verb: What is to be done, for an error.

    Raises:
        StructureError: One cannot be read without the base, and there is none.
        WrongBaseError: It is not where the chain starts.
    """
    needing = [reader for reader in readers if reader.needs_base]
    if not needing:
        yield readers
        return
    if base is None:
        raise StructureError(
            f"{needing[0].path} is compact: its entries can only be read with the base at hand, "
            f"and {verb} has none",
            hint=f"name it: --base BASE; or sparsedelta recode {needing[0].path} --base BASE "
            "--profile portable -o OUT",
        )
    with ExitStack() as stack:
        checkpoint = open_checkpoint(at_named_commit(base, readers[:1]))
        if checkpoint is not base:
            stack.callback(checkpoint.close)
        with output_errors(folder):
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        with OrderedMap(threads) as pool:
            made = _recoded(readers, checkpoint, work, pool, stack)
        check_unchanged(checkpoint)
        yield [made.get(reader, reader) for reader in readers]


def _recoded(
    readers: Sequence[DeltaReader],
    checkpoint: CheckpointReader,
    work: Path,
    pool: OrderedMap,
    stack: ExitStack,
) -> dict[DeltaReader, DeltaReader]:
    """All at once, a tensor at a time: what it takes grows with the length of the chain."""
    relay = Relay(checkpoint, pool)
    paths = {each: work / f"{n}.safetensors" for n, each in enumerate(readers) if each.needs_base}
    with ExitStack() as writing:
        written = {
            reader: writing.enter_context(
                RecodedDelta(reader, relay, path, profile=PORTABLE, pool=pool)
            )
            for reader, path in paths.items()
        }
        relay.run(readers, written)
        for each in written.values():
            each.finish()
    return {reader: _opened(reader, path, stack) for reader, path in paths.items()}


def _opened(reader: DeltaReader, path: Path, stack: ExitStack) -> DeltaReader:
    made = stack.enter_context(DeltaReader(path))
    made.path = reader.path
    return made
