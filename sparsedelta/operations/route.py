"""Deltas that are followed one after the other in one direction, as if they were one.

Of every tensor it is worked out what all of them make of it: a chain is one pass over the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, plain_digest, tensor_digest
from sparsedelta.errors import DAMAGED, FormatError
from sparsedelta.operations.arrows import Arrow, arrows_of
from sparsedelta.records import TensorRecord
from sparsedelta.words import TensorSpec


class Route:
    """One delta or a chain of them, and the direction in which it is followed.

    Args:
        readers: The deltas, in the order in which they are followed: each starts where the one
            before leads to.
        reverse: Whether each is followed from its target to its base.

    Attributes:
        readers: The deltas.
        reverse: Whether they are followed back.
    """

    def __init__(self, readers: Sequence[DeltaReader], *, reverse: bool) -> None:
        if not readers:
            raise ValueError("no delta to follow")
        self.readers = tuple(readers)
        self.reverse = reverse
        for before, after in pairwise(self.readers):
            if self._ends(before)[1] != self._ends(after)[0]:
                raise ValueError(f"{after.path} does not start where {before.path} leads to")

    def _ends(self, reader: DeltaReader) -> tuple[str, str]:
        ends = (reader.manifest.base, reader.manifest.target)
        return ends[::-1] if self.reverse else ends

    @property
    def start(self) -> str:
        """Fingerprint of what the route starts from, 64 hex digits."""
        return self._ends(self.readers[0])[0]

    @property
    def end(self) -> str:
        """Fingerprint of what it leads to."""
        return self._ends(self.readers[-1])[1]

    @property
    def name(self) -> str:
        """The deltas, for messages."""
        return ", ".join(str(reader.path) for reader in self.readers)

    @property
    def content(self) -> str:
        """Identity of what is followed, 64 hex digits: of one delta its content digest."""
        contents = [reader.manifest.content for reader in self.readers]
        if len(contents) == 1:
            return contents[0]
        return plain_digest(bytes.fromhex("".join(contents))).hex()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All local files that are read."""
        return tuple(path for reader in self.readers for path in reader.paths)

    @property
    def nnz(self) -> int:
        """Number of entries that are followed."""
        return sum(reader.manifest.nnz for reader in self.readers)

    @property
    def lean(self) -> bool:
        """Whether none of the deltas lists the tensors that stay."""
        return all(reader.manifest.lean for reader in self.readers)

    @property
    def touches(self) -> bool:
        """Whether any tensor has a record."""
        return any(reader.records for reader in self.readers)

    @property
    def records(self) -> Iterator[TensorRecord]:
        """All records, delta by delta."""
        return (record for reader in self.readers for record in reader.manifest.tensors)

    @cached_property
    def touched(self) -> frozenset[str]:
        """Names of all tensors, at any point of the route, that some delta touches there."""
        return frozenset(
            spec.name for record in self.records for spec in (record.base, record.target) if spec
        )

    @cached_property
    def untouched(self) -> frozenset[str]:
        """Names of the tensors that stay all along, as far as any delta lists them."""
        listed = (name for reader in self.readers for name in reader.manifest.untouched)
        return frozenset(listed) - self.touched

    @cached_property
    def arrows(self) -> tuple[Arrow, ...]:
        """What becomes of every tensor that some delta touches.

        Raises:
            FormatError: The tables of a delta break a rule; or lean deltas do not fit each other,
                though their fingerprints do (SD306).
        """
        found = _Tensors()
        for reader in self.readers:
            found.follow(reader, reverse=self.reverse)
        return (*found.present(), *found.gone)

    def specs(self, *, at_end: bool) -> dict[str, TensorSpec]:
        """The touched tensors of an end, by name: those that the route starts from, or leads to."""
        if at_end:
            ends = (arrow.result for arrow in self.arrows)
        else:
            ends = (arrow.source for arrow in self.arrows if arrow.is_leaf)
        return {spec.name: spec for spec in ends if spec is not None}

    @property
    def copied(self) -> Iterator[TensorSpec]:
        """Tensors of the start that tensors of the end are copied from."""
        for arrow in self.arrows:
            if arrow.source is not None and not arrow.is_leaf:
                yield arrow.source

    @property
    def stay(self) -> dict[str, Digest]:
        """Digests of the tensors that stay all along, as far as any delta lists them."""
        found: dict[str, Digest] = {}
        for reader in self.readers:
            untouched = reader.tables.untouched
            found.update({name: untouched[name] for name in untouched if name in self.untouched})
        return found

    def leaves(self, *, at_end: bool) -> dict[str, Digest]:
        """Tensor digests of an end by name; of lean deltas those of touched tensors only."""
        leaves = dict(self.stay)
        for arrow in self.arrows:
            if at_end and arrow.result is not None:
                leaves[arrow.result.name] = tensor_digest(arrow.result, arrow.after)
            elif not at_end and arrow.source is not None and arrow.is_leaf:
                assert arrow.before is not None  # noqa: S101 (it is touched)
                leaves[arrow.source.name] = tensor_digest(arrow.source, arrow.before)
        return leaves


class _Tensors:
    """The tensors at a point of a route, as far as some delta has touched them."""

    def __init__(self) -> None:
        self._made: dict[str, Arrow | None] = {}  # None: it went, or has another name
        self.gone: list[Arrow] = []

    def present(self) -> Iterable[Arrow]:
        """The arrows to the tensors that are there."""
        return (arrow for arrow in self._made.values() if arrow is not None)

    def follow(self, reader: DeltaReader, *, reverse: bool) -> None:
        """Go along one more delta."""
        made: dict[str, Arrow | None] = {}
        for record in reader.manifest.tensors:
            for arrow in arrows_of(reader, record, reverse=reverse):
                if arrow.source is not None and arrow.is_leaf:
                    made.setdefault(arrow.source.name, None)
                whole = self._whole(reader, arrow)
                if whole is None:
                    continue
                if arrow.result is None:
                    self.gone.append(whole)
                else:
                    made[arrow.result.name] = whole
        self._made.update(made)

    def _whole(self, reader: DeltaReader, arrow: Arrow) -> Arrow | None:
        """The arrow from where the route starts; None for what goes again and never was there."""
        source = arrow.source
        if source is None or source.name not in self._made:
            return arrow
        before = self._made[source.name]
        if before is None or before.result != source or before.after != arrow.before:
            raise misfit(reader, source)
        if arrow.result is not None:
            return before.then(arrow)
        if before.source is None or not before.is_leaf:
            return None
        return Arrow(before.source, None, before=before.before)


def misfit(reader: DeltaReader, spec: TensorSpec) -> FormatError:
    """The error of deltas whose fingerprints fit each other, and whose tables do not (SD306)."""
    return FormatError(
        "SD306",
        f"{reader.path}: tensor {spec.name!r} is not the one that the delta before leads to, though"
        " the fingerprints say so",
        hint=DAMAGED,
    )


def results_of(
    reader: DeltaReader, specs: Mapping[str, TensorSpec], *, reverse: bool
) -> dict[str, tuple[TensorSpec, str | None]]:
    """Every tensor behind a delta by name, and the name of the one that it takes the place of.

    Args:
        reader: The delta.
        specs: Every tensor before it.
        reverse: Whether it is followed back.
    """
    stay = dict(specs)
    made: dict[str, tuple[TensorSpec, str | None]] = {}
    for record in reader.manifest.tensors:
        source, result = record.base, record.target
        if reverse:
            source, result = result, source
        if source is not None:
            stay.pop(source.name, None)
        if result is not None:
            is_new = source is None or bool(record.split)
            made[result.name] = (result, None if is_new or source is None else source.name)
    return {**{name: (spec, name) for name, spec in stay.items()}, **made}
