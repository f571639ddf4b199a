"""Tensors along a chain of deltas: what each comes from, and what is done with its words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sparsedelta.delta import NEW
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest
from sparsedelta.operations.arrows import Arrow, arrows_of
from sparsedelta.operations.route import misfit
from sparsedelta.records import TensorRecord
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A part that is decoded with the words of a tensor."""

    reader: DeltaReader
    record: TensorRecord
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How a tensor is made of the one before it, or, at the start, read or made of nothing."""

    reader: DeltaReader
    arrow: Arrow
    result: Version


@dataclass(slots=True, eq=False)
class Version:
    """A tensor from where a delta makes it, or the chain starts, to where the next touches it.

    Attributes:
        spec: The tensor.
        segments: Its segment digests.
        uses: The parts that are decoded with its words.
        steps: What is made of it, by deltas in their order.
        length: How many versions, this one among them, lead to a use; 0: its words are not needed.
    """

    spec: TensorSpec
    segments: Sequence[Digest]
    uses: list[Use] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    length: int = 0


def lineages(readers: Iterable[DeltaReader]) -> list[Step]:
    """Where the tensors of a chain begin whose words are needed; what follows is behind them.

    Args:
        readers: The chain, in order.

    Returns:
        By their names: of tensors that the chain starts from an arrow that changes nothing, of
        those that a delta carries whole its arrow.

    Raises:
        FormatError: The tables of a delta break a rule, or deltas do not fit each other (SD306).
    """
    chain = _Chain()
    for reader in readers:
        chain.follow(reader)
    for version, before in reversed(chain.versions):
        version.length += bool(version.length or version.uses)
        if before is not None:
            before.length += version.length
    found = [step for step in chain.starts if step.result.length]
    return sorted(found, key=lambda step: step.result.spec.name)


class _Chain:
    """The tensors at a point of a chain, as far as some delta has touched them."""

    def __init__(self) -> None:
        self.starts: list[Step] = []
        self.versions: list[tuple[Version, Version | None]] = []
        self._there: dict[str, Version | None] = {}

    def follow(self, reader: DeltaReader) -> None:
        """Go on to behind a delta."""
        made: dict[str, Version | None] = {}
        for record in reader.manifest.tensors:
            for number, part in record.coded:
                if part.encoding.needs_base:
                    origin = self._at(reader, *_applied_to(reader, record, number))
                    origin.uses.append(Use(reader, record, number))
            for arrow in arrows_of(reader, record, reverse=False):
                before = None
                if arrow.source is not None:
                    before = self._at(reader, arrow.source, arrow.before or ())
                    if arrow.is_leaf:
                        made.setdefault(arrow.source.name, None)
                if arrow.result is not None:
                    made[arrow.result.name] = self._make(reader, arrow, before)
        self._there.update(made)

    def _make(self, reader: DeltaReader, arrow: Arrow, before: Version | None) -> Version:
        assert arrow.result is not None  # noqa: S101 (nothing is made of what goes)
        made = Version(arrow.result, arrow.after)
        steps = self.starts if before is None else before.steps
        steps.append(Step(reader, arrow, made))
        self.versions.append((made, before))
        return made

    def _at(self, reader: DeltaReader, spec: TensorSpec, segments: Sequence[Digest]) -> Version:
        """A tensor before a delta; one that none has touched so far is where the chain starts."""
        if spec.name not in self._there:
            arrow = Arrow(spec, spec, before=tuple(segments), after=tuple(segments))
            self._there[spec.name] = self._make(reader, arrow, None)
        found = self._there[spec.name]
        if found is None or found.spec != spec or tuple(found.segments) != tuple(segments):
            raise misfit(reader, spec)
        return found


def _applied_to(
    reader: DeltaReader, record: TensorRecord, number: int
) -> tuple[TensorSpec, tuple[Digest, ...]]:
    """The tensor that a sparse part is applied to, and its segment digests."""
    table = reader.tables.tensors[record.name]
    made = record.parts[record.split] if number >= record.split else None
    if made is not None and made.op == NEW and made.reference is not None:
        target = record.changed(number)
        spec = TensorSpec(made.reference, target.dtype, target.shape)
        return spec, table.other_segments(record.split)
    assert record.base is not None  # noqa: S101 (a difference is added to something)
    return record.base, table.base_segments
