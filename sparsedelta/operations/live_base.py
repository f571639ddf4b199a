"""A live model as the base of a delta: verified, and what the delta changes in it taken along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from sparsedelta.boxes import Box
from sparsedelta.checkpoint import CheckpointReader, segment_digests
from sparsedelta.delta import Part
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, segment_digest, tensor_digest
from sparsedelta.errors import (
    DAMAGED,
    StructureError,
    UsageError,
    VerificationError,
    WrongBaseError,
)
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.live_entries import LiveEntries
from sparsedelta.live_tensors import LiveTensor, LiveTensors
from sparsedelta.operations.tasks import DeltaTask
from sparsedelta.parallel import OrderedMap
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.slices import new_words
from sparsedelta.state_dict import StateDictReader
from sparsedelta.words import Bytes, Indices, TensorSpec, Words, as_words

Verify: TypeAlias = Literal["touched", "full"]

Kept: TypeAlias = Mapping[str, Sequence[LiveEntries]]
"""Entries whose base words are known, by the model's name of the tensor."""

Found: TypeAlias = dict[str, LiveEntries]
"""What a delta changes, by the model's name of the tensor."""

MODEL: Final = "the model"


class _Run(NamedTuple):
    """What a delta changes in a run of words: old words, which of the box they are, new ones."""

    old: Words
    at: Indices
    words: Words


class LiveBase:
    """Base words of what is here of a model; implements ``CheckpointReader``.

    Args:
        tensors: Live tensors by the checkpoint's names.
        kept: What deltas have changed in them, and the base words under it.
    """

    def __init__(self, tensors: Mapping[str, LiveTensor], kept: Kept) -> None:
        self.location = MODEL
        self.paths: tuple[Path, ...] = ()
        self._reader = StateDictReader({name: live.local for name, live in tensors.items()})
        self._kept = {name: kept.get(live.name, ()) for name, live in tensors.items()}
        self.specs = self._reader.specs

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of the base words ``[start, stop)`` of what is here of a tensor."""
        data = self._reader.read(name, start, stop)
        words = as_words(data, self.specs[name].word_bytes)
        for entries in self._kept[name]:
            entries.overlay(words, start)
        return data

    def close(self) -> None:
        """Nothing is open."""


class Candidate:
    """A delta that is to be had on a live model.

    Args:
        reader: The delta.
        live: The tensors of the model.
        kept: What other deltas have changed in them.
        verify: ``"touched"``: the tensors that the delta changes are those of its base;
            ``"full"``: so are all others.
        on_device: Whether tensors are verified on the devices where they are.

    Raises:
        UsageError: Nothing would be verified, or not all can be.
        StructureError: The delta does not fit the model.
    """

    def __init__(
        self,
        reader: DeltaReader,
        live: LiveTensors,
        kept: Kept,
        *,
        verify: Verify,
        on_device: bool = False,
    ) -> None:
        if verify not in ("touched", "full"):
            raise UsageError(f"verify is {verify!r}, expected 'touched' or 'full'")
        self.task = DeltaTask(reader)
        self.reader = reader
        if self.task.moved:
            name = self.task.moved[0].name
            raise StructureError(
                f"{reader.path}: tensor {name!r} comes, goes, or gets another name or shape: "
                "a live model keeps its tensors as they are",
                hint="load the result instead: sparsedelta.from_pretrained(…, deltas=[…])",
            )
        if not self.task.changed and verify == "touched":
            raise UsageError(
                f"{reader.path} touches no tensor: nothing would be verified", hint="verify='full'"
            )
        if verify == "full" and reader.manifest.lean:
            raise UsageError(
                f"{reader.path} is lean: it has no digests of the tensors that stay",
                hint="verify='touched', or make the delta again without --lean",
            )
        self.tensors = {name: live.get(_spec(record)) for name, record in self.task.changed.items()}
        touched = {each.name for each in self.tensors.values()}
        live.check_separate(touched)
        for name in reader.manifest.untouched:
            if live.resolve(name) in touched:
                raise StructureError(
                    f"{reader.path}: tensor {name!r} stays, and one that changes is the same "
                    "tensor in the model: they are tied there, and not in the checkpoint",
                    hint="untie them: tie_word_embeddings=False",
                )
        self.others = self._others(live) if verify == "full" else {}
        self._kept, self._on_device = kept, on_device
        self.base = LiveBase({**self.tensors, **self.others}, kept)

    def _others(self, live: LiveTensors) -> dict[str, LiveTensor]:
        found = {}
        for name in self.reader.manifest.untouched:
            own = live.resolve(name)
            if own is None:
                raise StructureError(
                    f"the model has no tensor {name!r}: not all of the base can be verified",
                    hint="verify='touched'",
                )
            found[name] = live.live(own)
        return found

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the tensors that are to be verified, by the checkpoint's names."""
        every = {**self.tensors, **self.others}
        return {name: live.spec.nbytes for name, live in every.items()}

    def verify(
        self, base: CheckpointReader, name: str, pool: OrderedMap, *, within: Box | None = None
    ) -> list[_Run]:
        """Verify a tensor, before and after; returns what changes in it.

        Args:
            base: Reads its base words.
            name: Its name in the checkpoint.
            pool: Threads.
            within: Verify the runs that meet this part of it, and return what changes in the part:
                together, ranks whose parts make up a tensor verify all of it. None: the whole.

        Raises:
            WrongBaseError: It is not that of the delta's base.
            VerificationError: The delta does not make of it what it promises (SD502).
            FormatError: The delta breaks a rule.
        """
        record = self.task.changed.get(name)
        if record is None:
            spec = base.specs[name]
            expected = self.reader.tables.untouched[name]
            if tensor_digest(spec, segment_digests(base, name)) != expected:
                raise self._wrong(name, already=False)
            return []
        spec = _spec(record)
        box = within or Box.whole(spec.shape)
        size = max(SEGMENT_WORDS, self.task.span(spec))

        def run(start: int) -> _Run:
            data = base.read(name, start, min(start + size, spec.words))
            return self._checked(spec, box, start, as_words(data, spec.word_bytes))

        starts = range(0, spec.words, size)
        met = [start for start in starts if range(*box.run(start, start + size))]
        with pool.mapped(run, met) as runs:
            return list(runs)

    def _checked(self, spec: TensorSpec, box: Box, start: int, old: Words) -> _Run:
        table = self.reader.tables.tensors[spec.name]
        first = start // SEGMENT_WORDS
        before = _digests(old)
        after = list(table.target_segments[first : first + len(before)])
        if before != list(table.base_segments[first : first + len(before)]):
            raise self._wrong(spec.name, already=before == after)
        at, words = self.task.entries(spec, start, old)
        new = old.copy()
        new[at] = words
        if _digests(new) != after:
            raise VerificationError(
                f"{self.reader.path}: tensor {spec.name!r} becomes another one than the delta "
                "promises (SD502)",
                hint=DAMAGED,
            )
        _check_bool(spec, start, at, words)
        differs = words != old[at]
        at, words = at[differs], words[differs]
        places, here = box.find(at + start)
        return _Run(old[at[places]], here, words[places])

    def _wrong(self, name: str, *, already: bool) -> WrongBaseError:
        return WrongBaseError(
            f"{MODEL} is not on the base of {self.reader.path} (SD501): tensor {name!r} "
            f"{'is already what the delta leads to' if already else 'differs there'}",
            hint=f"load the base: sparsedelta info {self.reader.path} says which it is",
        )

    def whole(self, pool: OrderedMap) -> Found:
        """Verify the model, all of which is here; returns what the delta changes in it.

        Where that is asked for, tensors are verified on the devices where they are
        (:mod:`sparsedelta.operations.live_device`). Those for which that does not come off, for
        whatever reason, are looked at here, which tells what is wrong with them.
        """
        proven = self._on_devices(pool) if self._on_device else {}
        found = []
        for name in self.nbytes:
            if name not in proven:
                runs = self.verify(self.base, name, pool)
                if name in self.tensors:
                    found.append((name, self._entries(name, runs)))
            elif name in self.tensors:
                found.append((name, proven[name]))
        return self._one_each(found)

    def _on_devices(self, pool: OrderedMap) -> Mapping[str, LiveEntries]:
        """What the delta changes in tensors that were verified on their devices."""
        # Imported here: it needs torch.
        from sparsedelta.operations.live_device import verified_there  # noqa: PLC0415

        every = {**self.tensors, **self.others}
        kept = {name: self._kept.get(live.name, ()) for name, live in every.items()}
        return verified_there(self.reader, every, kept, pool)

    def _entries(self, name: str, runs: Sequence[_Run]) -> LiveEntries:
        live = self.tensors[name]
        dtype = live.spec.word_dtype
        return LiveEntries.on_host(
            live.box,
            np.concatenate([np.empty(0, np.int64), *(run.at for run in runs)]),
            np.concatenate([np.empty(0, dtype), *(run.old for run in runs)]),
            np.concatenate([np.empty(0, dtype), *(run.words for run in runs)]),
        )

    @property
    def joint(self) -> set[str]:
        """The tensors whose entries are decoded with base words around what is here of them."""
        return {name for name, record in self.task.changed.items() if record.needs_base}

    def here(self, base: CheckpointReader, pool: OrderedMap) -> Found:
        """What the delta changes in what is here of the model.

        Those of :attr:`joint` are verified by this, as far as runs meet what is here; the others
        have been.

        Args:
            base: Reads the base words of whole tensors, wherever they are.
            pool: Threads.

        Raises:
            WrongBaseError: As :meth:`verify`, and its other errors.
        """
        joint = self.joint
        return self._one_each(
            (
                name,
                self._entries(name, self.verify(base, name, pool, within=self.tensors[name].box))
                if name in joint
                else self._local(name, record),
            )
            for name, record in self.task.changed.items()
        )

    def _local(self, name: str, record: TensorRecord) -> LiveEntries:
        live, spec = self.tensors[name], _spec(record)
        box = live.box
        base = as_words(self.base.read(name, 0, box.words), spec.word_bytes)
        where: list[Indices] = [np.empty(0, np.int64)]
        made: list[Words] = [np.empty(0, spec.word_dtype)]
        for number, part in record.coded:
            assert isinstance(part, PartRecord)  # noqa: S101 (it is coded)
            for indices, values in self.reader.blocks(record, number):
                places, within = box.find(indices)
                kept = Part(part.op, indices[places], values[places], None, part.dtype, part.scale)
                where.append(within)
                made.append(new_words(spec, base[within], kept))
        at, words = np.concatenate(where), np.concatenate(made)
        order = at.argsort(kind="stable")
        at, words = at[order], words[order]
        differs = words != base[at]
        return LiveEntries.on_host(box, at[differs], base[at[differs]], words[differs])

    def _one_each(self, found: Iterable[tuple[str, LiveEntries]]) -> Found:
        """Of names of one tensor, what all of them say."""
        entries: Found = {}
        names: dict[str, str] = {}
        for name, own in found:
            live = self.tensors[name].name
            first = entries.setdefault(live, own)
            if first is not own and not first.is_same(own):
                raise StructureError(
                    f"{self.reader.path}: tensors {names[live]!r} and {name!r} are one tensor "
                    "in the model, and the delta makes different ones of them",
                    hint="untie them: tie_word_embeddings=False",
                )
            names.setdefault(live, name)
        return entries


def _spec(record: TensorRecord) -> TensorSpec:
    assert record.base is not None  # noqa: S101 (a plain record has both ends)
    return record.base


def _digests(words: Words) -> list[Digest]:
    data = words.view(np.uint8)
    size = SEGMENT_WORDS * words.itemsize
    return [segment_digest(data[at : at + size].data) for at in range(0, data.size, size)]


def _check_bool(spec: TensorSpec, start: int, at: Indices, words: Words) -> None:
    if spec.dtype == "BOOL" and (words > 1).any():
        index = int(at[np.flatnonzero(words > 1)[0]]) + start
        raise StructureError(
            f"tensor {spec.name!r}, index {index}: a live BOOL tensor holds words 0 and 1 only",
            hint="sparsedelta apply writes any words to files",
        )
