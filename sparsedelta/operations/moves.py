"""Tensors that come, go, are renamed or resized by one of several tasks on one base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, tensor_digest
from sparsedelta.errors import DAMAGED, StructureError, VerificationError
from sparsedelta.operations.origins import Origins
from sparsedelta.operations.pairing import Pair
from sparsedelta.operations.tasks import DeltaTask, Task
from sparsedelta.records import TensorRecord
from sparsedelta.words import Bytes, ReadWords, TensorSpec, as_words


@dataclass(frozen=True, slots=True)
class Move:
    """A record that does more than change words of a tensor that stays.

    Attributes:
        reader: The delta that has it.
        record: The record.
    """

    reader: DeltaReader
    record: TensorRecord

    @property
    def names(self) -> set[str]:
        """Names of the tensors that it concerns: in the base and in the target."""
        return {spec.name for spec in (self.record.base, self.record.target) if spec is not None}

    @property
    def pair(self) -> Pair:
        """What becomes of the tensor, to be written anew."""
        record = self.record
        copied = record.parts[0].reference if record.base is None else None
        return Pair(record.base, record.target, copied)

    @property
    def source(self) -> str | None:
        """Name of the base tensor whose place the result takes in the checkpoint's files."""
        record = self.record
        return None if record.base is None or record.split else record.base.name

    def is_like(self, other: Move) -> bool:
        """Whether another record leads from the same tensor to the same tensor."""
        one, two = self.record, other.record
        return (one.base, one.target) == (two.base, two.target) and self._leaf() == other._leaf()

    def _leaf(self) -> bytes | None:
        table = self.reader.tables.tensors[self.record.name]
        spec = self.record.target
        return None if spec is None else tensor_digest(spec, table.target_segments)

    def check(self, base: Sequence[Digest] | None, target: Sequence[Digest]) -> None:
        """Compare what was read with the segment digests of the delta.

        Args:
            base: Those of the base tensor, if it was read.
            target: Those of the tensor that it leads to.

        Raises:
            VerificationError: The delta lies about it, or the base is another (SD502).
        """
        table = self.reader.tables.tensors[self.record.name]
        before = table.base_segments if base is None else tuple(base)
        if (before, tuple(target)) != (table.base_segments, table.target_segments):
            raise VerificationError(
                f"{self.reader.path}: tensor {self.record.name!r} has not the digests that the "
                "delta promises (SD502)",
                hint=DAMAGED,
            )


def find_moves(tasks: Sequence[Task], weight: Callable[[int, str], float]) -> list[Move]:
    """All records that do more than change words, each once, ascending by name.

    Args:
        tasks: The tasks.
        weight: The weight of a task, by its number, in a tensor, by its name.

    Raises:
        StructureError: Another task touches one of the tensors, and not in the same way; or the
            weight of the task is not 1.
    """
    found: dict[str, Move] = {}
    touched: dict[str, list[tuple[Task, Move | None]]] = {}
    for number, task in enumerate(tasks):
        if not isinstance(task, DeltaTask):
            continue
        for record in task.moved:
            move = Move(task.reader, record)
            own = weight(number, record.name)
            if own != 1:
                raise StructureError(
                    f"{task.name}: {_deed(record)}, which can only be done at weight 1, not "
                    f"{own!r}",
                    hint="leave its weight out",
                )
            for name in move.names:
                touched.setdefault(name, []).append((task, move))
            found.setdefault(record.name, move)
        for name in task.changed:
            touched.setdefault(name, []).append((task, None))
    for name, deeds in touched.items():
        moves = [move for _, move in deeds if move is not None]
        if moves and any(move is None or not move.is_like(moves[0]) for _, move in deeds):
            others = ", ".join(sorted(task.name for task, _ in deeds))
            raise StructureError(
                f"tensor {name!r}: {_deed(moves[0].record)} in {moves[0].reader.path}, and not all "
                f"that touch it do the same: {others}",
                hint="compose deltas of which one alone touches that tensor, or that agree on it",
            )
    return [found[name] for name in sorted(found)]


def _deed(record: TensorRecord) -> str:
    if record.base is None:
        return f"{record.name!r} comes new"
    if record.target is None:
        return f"{record.name!r} is dropped"
    if record.renamed:
        return f"{record.base.name!r} is renamed {record.name!r}"
    return f"{record.name!r} becomes {record.target} from {record.base}"


class MovedTensors:
    """The tensors that records with moves lead to; implements ``CheckpointReader``.

    Args:
        base: The base.
        moves: The moves.
    """

    def __init__(self, base: CheckpointReader, moves: Sequence[Move]) -> None:
        self._base = base
        self._moves = {m.record.target.name: m for m in moves if m.record.target is not None}
        self.location = "what the deltas lead to"
        self.paths: tuple[Path, ...] = ()
        self.specs: Mapping[str, TensorSpec] = {
            name: move.record.spec for name, move in self._moves.items()
        }

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the words ``[start, stop)``: their blocks alone are decoded."""
        move = self._moves[name]
        piece = move.reader.slice(name, start, stop, self._old(move))
        last = max(start, min(stop, piece.given))
        source = np.empty(0, np.uint8)
        if last > start:
            record = move.record
            made = record.parts[record.split :]
            copied = made[0].reference if record.split or record.base is None else None
            old = copied if copied is not None or record.base is None else record.base.name
            assert old is not None  # noqa: S101 (words that are given come from somewhere)
            source = self._base.read(old, start, last)
        return piece.apply(as_words(source, piece.spec.word_bytes)).view(np.uint8)

    def _old(self, move: Move) -> ReadWords | None:
        """The words that the changes of a tensor are added to, where they are read with them."""
        record = move.record
        needing = [n for n, p in record.coded if p.encoding.needs_base and n >= record.split]
        return Origins(self._base, move.reader).words(record, needing[0]) if needing else None

    def close(self) -> None:
        """There is nothing of its own to close."""
