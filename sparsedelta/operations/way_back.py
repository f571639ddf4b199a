"""The delta that leads back, written while tensors are at hand before and after their change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.closing import Closing
from sparsedelta.delta import DIFFERENCE
from sparsedelta.digests import tensor_digest
from sparsedelta.encode import EncodedTensor, encode_part
from sparsedelta.operations.arrows import Arrow
from sparsedelta.operations.inherit import inherit
from sparsedelta.operations.route import Route
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Bytes, Indices, Words, as_words
from sparsedelta.writer import DeltaWriter


def leads_back(route: Route) -> bool:
    """Whether the way back follows from words before and after: all that changes are words.

    Where tensors come, go or get other names or shapes, a way back has records of other forms; and
    of what was replaced it is not the delta that holds it.
    """
    return all(
        arrow.source is not None
        and arrow.source == arrow.result
        and arrow.is_leaf
        and all(record.is_plain for record in (hop.record for hop in arrow.hops))
        and all(part.op == DIFFERENCE for hop in arrow.hops for _, part in hop.parts)
        for arrow in route.arrows
    ) and all(record.is_plain for record in route.records)


class WayBack(Closing):
    """The portable delta from where a route leads to where it starts, tensor by tensor.

    Args:
        route: The route, along which only words change: see :func:`leads_back`.
        out: The delta to write.
        pool: Where blocks are encoded, many at a time.
        force: Replace an existing output.
    """

    def __init__(self, route: Route, out: Path, pool: OrderedMap, *, force: bool) -> None:
        self.out = out
        self._back = Route(route.readers[::-1], reverse=True)
        self._pool = pool
        self._writer = DeltaWriter(
            out,
            lean=route.lean,
            force=force,
            ends=(route.end, route.start) if route.lean else None,
            inputs=route.paths,
        )
        self._writer.__enter__()
        self.is_written = False
        for name, digest in route.stay.items():
            self._writer.add_untouched(name, digest)

    @staticmethod
    def changed(arrow: Arrow, start: int, before: Bytes, after: Bytes) -> Run:
        """What leads back of a run of words; in any thread.

        Args:
            arrow: The tensor.
            start: First word.
            before: Bytes of the run in the source.
            after: Bytes of the run in the result.
        """
        old, new = (as_words(data, arrow.word_bytes) for data in (before, after))
        at = np.flatnonzero(old != new)
        return make_run(start, old.size, at, old[at] - new[at])

    @staticmethod
    def entries(start: int, count: int, at: Indices, old: Words, new: Words) -> Run:
        """The same, of a run of which the words that may have changed are known.

        Args:
            start: First word.
            count: Words of the run.
            at: Words of the run that may have changed, ascending, from 0 on.
            old: What they were.
            new: What they are.
        """
        differ = old != new
        return make_run(start, count, at[differ], old[differ] - new[differ])

    def add(self, arrow: Arrow, runs: Iterable[Run]) -> None:
        """Write the record of a tensor; they come in ascending order of their names.

        Raises:
            OutputError: It cannot be written.
        """
        spec = arrow.result
        assert spec is not None and arrow.before is not None  # noqa: S101, PT018 (words change)
        if arrow.before == arrow.after:  # a chain came back to what was there
            self._writer.add_untouched(spec.name, tensor_digest(spec, arrow.after))
            return
        changes = Changes(spec)
        for run in runs:
            changes.append(run)
        part = encode_part(changes, DIFFERENCE, pool=self._pool)
        self._writer.add(EncodedTensor(spec, spec, (part,), arrow.after, arrow.before))

    def finish(self) -> None:
        """Write all else, and give the delta its name.

        Raises:
            OutputError: It exists, or cannot be written.
        """
        layout, files, _ = inherit(self._back, self._writer, forget=False)
        self._writer.attach(layout, files)
        self._writer.finish()
        self.is_written = True

    def close(self) -> None:
        """Leave nothing behind of what was not finished."""
        self._writer.__exit__(None, None, None)
