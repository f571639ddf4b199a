"""Which end of a delta a checkpoint is: that which is asked for, the other, or neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta import DROP, NEW
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, checkpoint_fingerprint
from sparsedelta.errors import (
    DAMAGED,
    CheckpointError,
    FormatError,
    StructureError,
    WrongBaseError,
)
from sparsedelta.operations.identity import tensor_digests
from sparsedelta.operations.result_files import ResultFiles, result_files
from sparsedelta.operations.steps import Step
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import ALONE, Ranks
from sparsedelta.words import TensorSpec

_NAMED_TENSORS: Final = 3
"""How many differing tensors an error names."""


def refuse_part(reader: DeltaReader) -> None:
    """Refuse one part file of a set by itself, wherever a whole delta is needed.

    Raises:
        StructureError: It is one.
    """
    if reader.is_part:
        place = reader.manifest.place
        raise StructureError(
            f"{reader.path} is part file {place.part if place else 0} of a set, a part of a delta",
            hint="name the root of the set: it lies beside it, and lists the part files",
        )


def changed_meanwhile(checkpoint: FileCheckpoint) -> CheckpointError:
    """The error of a checkpoint that is not any more what it was."""
    return CheckpointError(f"{checkpoint.location} changed while it was being read")


class Standpoint:
    """A checkpoint and a delta that is to be followed from it: which end is at hand?"""

    def __init__(
        self,
        checkpoint: FileCheckpoint,
        reader: DeltaReader,
        pool: OrderedMap,
        *,
        reverse: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.checkpoint = checkpoint
        self.reader = reader
        self.pool = pool
        self.reverse = reverse
        self.ranks = ranks
        self.end = "target" if reverse else "base"

    @cached_property
    def step(self) -> Step:
        """The step from this end; :meth:`check_structure` has passed."""
        return Step.of(self.reader, self.checkpoint, reverse=self.reverse)

    def files(self, *, with_files: bool) -> ResultFiles:
        """The files of the result."""
        return result_files(
            self.checkpoint,
            self.reader,
            self.step.results,
            reverse=self.reverse,
            with_files=with_files,
        )

    def check_structure(self) -> None:
        """Insist on the names, dtypes and shapes that the delta knows of this end.

        Raises:
            WrongBaseError: They are others.
        """
        found = self.checkpoint.specs
        touched = touched_specs(self.reader, target=self.reverse)
        known = touched.keys() | set(self.reader.manifest.untouched)
        missing = sorted(known - found.keys())
        lean = self.reader.manifest.lean
        added = [] if lean else sorted(found.keys() - known)
        # What only the other end has must not be taken for a tensor that stays.
        added += sorted(
            name
            for name in touched_specs(self.reader, target=not self.reverse).keys() - known
            if lean and name in found
        )
        if missing or added:
            raise self._wrong(
                f"{_listed('missing', missing)}{'; ' if missing and added else ''}"
                f"{_listed('not in the delta', added)}"
            )
        for name, expected in touched.items():
            if found[name] != expected:
                raise self._wrong(f"tensor {name!r} is {found[name]}, expected {expected}")
        # Of a lean delta nothing has shown yet that what is copied from is there.
        for expected in copied_specs(self.reader, reverse=self.reverse):
            if found.get(expected.name) != expected:
                raise self._wrong(f"a copy is made of {expected}, which is not there")

    def insist_on_result(self, cause: Exception) -> None:
        """Insist that the checkpoint is where the delta leads.

        Raises:
            WrongBaseError: It is neither end; names the first tensor that differs.
            CheckpointError: It was the right one after all, and changed meanwhile.
        """
        manifest = self.reader.manifest
        names = {*manifest.untouched, *touched_specs(self.reader, target=not self.reverse)}
        if isinstance(cause, WrongBaseError) and not (
            manifest.lean or names == self.checkpoint.specs.keys()
        ):
            raise cause
        found = tensor_digests(self.checkpoint, pool=self.pool, ranks=self.ranks)
        fingerprint = checkpoint_fingerprint(found).hex()
        source, result = (manifest.base, manifest.target)
        if self.reverse:
            source, result = result, source
        if fingerprint == result:
            return
        if fingerprint == source and manifest.lean:
            raise FormatError(
                "SD306",
                f"{self.reader.path}: {self.checkpoint.location} has the fingerprint of its "
                f"{self.end}, but not the tensors that its tables tell of",
                hint=DAMAGED,
            ) from None
        if isinstance(cause, WrongBaseError):
            raise cause
        if fingerprint == source:
            raise changed_meanwhile(self.checkpoint) from None
        raise self._wrong(_difference(found, self.step.expected, source)) from None

    def _wrong(self, message: str) -> WrongBaseError:
        return WrongBaseError(
            f"{self.checkpoint.location} is not the {self.end} of {self.reader.path} (SD501): "
            f"{message}",
            hint=_identity_hint(self.checkpoint, self.reader),
        )


def touched_specs(reader: DeltaReader, *, target: bool) -> dict[str, TensorSpec]:
    """The touched tensors of an end, by their names there."""
    ends = (record.target if target else record.base for record in reader.manifest.tensors)
    return {spec.name: spec for spec in ends if spec is not None}


def copied_specs(reader: DeltaReader, *, reverse: bool) -> Iterator[TensorSpec]:
    """The tensors of the source that tensors of the result are copied from."""
    for record in reader.manifest.tensors:
        for number, part in enumerate(record.parts):
            if part.reference is not None and part.op == (DROP if reverse else NEW):
                spec = record.changed(number)
                yield TensorSpec(part.reference, spec.dtype, spec.shape)


def _difference(
    found: Mapping[str, Digest], expected: Mapping[str, Digest], fingerprint: str
) -> str:
    differing = [name for name in found if found[name] != expected.get(name, found[name])]
    if not differing:
        return (
            f"expected fingerprint {fingerprint[:16]}…; a tensor differs that this lean delta does "
            "not touch"
        )
    return (
        f"expected fingerprint {fingerprint[:16]}…; {len(differing)} of {len(found)} tensors "
        f"differ, the first is {differing[0]!r}: expected digest "
        f"{expected[differing[0]].hex()[:16]}…, found {found[differing[0]].hex()[:16]}…"
    )


def _identity_hint(checkpoint: FileCheckpoint, reader: DeltaReader) -> str:
    metadata = reader.header.metadata
    repo = metadata.get("sd.base_repo")
    origin = f" (made from {repo}@{metadata.get('sd.base_revision', 'main')})" if repo else ""
    return (
        f"compare: sparsedelta info {reader.path}{origin}, and sparsedelta fingerprint "
        f"{checkpoint.location}"
    )


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(repr(name) for name in names[:_NAMED_TENSORS])
    return f"{len(names)} tensors {kind}: {shown}{', …' if len(names) > _NAMED_TENSORS else ''}"
