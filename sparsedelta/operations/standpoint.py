"""Which end of a delta or a chain a checkpoint is: the one asked for, the other, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digest_cache import KnownDigests
from sparsedelta.digests import Digest, checkpoint_fingerprint
from sparsedelta.errors import (
    DAMAGED,
    CheckpointError,
    FormatError,
    NotInvertibleError,
    StructureError,
    WrongBaseError,
)
from sparsedelta.operations.identity import tensor_digests
from sparsedelta.operations.result_files import ResultFiles, result_files
from sparsedelta.operations.route import Route
from sparsedelta.operations.steps import Step
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import ALONE, Ranks, first
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


def refuse_one_way(reader: DeltaReader, what: str) -> None:
    """Refuse a delta that does not lead back, wherever it has to (SD503).

    Args:
        reader: The delta.
        what: What it does not do, such as ``does not lead back``.

    Raises:
        NotInvertibleError: It does not.
    """
    if reader.manifest.invertible:
        return
    lost = next(record for record in reader.manifest.tensors if not record.invertible)
    if lost.needs_base:
        raise NotInvertibleError(
            f"{reader.path} {what} (SD503): it is compact, and the entries of {lost.name!r} can "
            "only be read with the base at hand",
            hint=f"where it is: sparsedelta recode {reader.path} --base BASE --profile portable "
            "-o OUT, or sparsedelta apply … --undo FILE",
        )
    raise NotInvertibleError(
        f"{reader.path} {what} (SD503): it does not hold the old words of {lost.name!r} "
        f"({', '.join(part.op for part in lost.parts)})",
        hint="make it again without --one-way and --forget, or make the way back from the "
        "checkpoints: sparsedelta diff TARGET BASE -o DELTA",
    )


def changed_meanwhile(checkpoint: FileCheckpoint) -> CheckpointError:
    """The error of a checkpoint that is not any more what it was."""
    return CheckpointError(f"{checkpoint.location} changed while it was being read")


class Whereabouts:
    """A checkpoint, and its fingerprint, which is found out at most once."""

    def __init__(self, checkpoint: FileCheckpoint, pool: OrderedMap, ranks: Ranks = ALONE) -> None:
        self.checkpoint = checkpoint
        self.pool = pool
        self.ranks = ranks

    def remembered(self, *, use: bool) -> str | None:
        """What is remembered of the fingerprint beside the files: a hint, or None."""

        def recall() -> str | None:
            known = KnownDigests(self.checkpoint, use=use).tensors
            is_known = known.keys() == self.checkpoint.specs.keys() and bool(known)
            return checkpoint_fingerprint(known).hex() if is_known else None

        return first(self.ranks, recall)

    @cached_property
    def digests(self) -> dict[str, Digest]:
        """Digests of all tensors, from a pass over the checkpoint."""
        return tensor_digests(self.checkpoint, pool=self.pool, ranks=self.ranks)

    @property
    def fingerprint(self) -> str:
        """What it is, from that pass."""
        return checkpoint_fingerprint(self.digests).hex()


class Standpoint:
    """A checkpoint and a route that is to be followed from it: which end is at hand?"""

    def __init__(
        self,
        here: Whereabouts,
        route: Route,
    ) -> None:
        self.here = here
        self.checkpoint = here.checkpoint
        self.route = route
        self.pool = here.pool
        self.end = "target" if route.reverse else "base"

    @cached_property
    def step(self) -> Step:
        """The step from this end; :meth:`check_structure` has passed."""
        return Step.of(self.route, self.checkpoint)

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that are touched: as they are called behind the change."""
        ends = (arrow.result or arrow.source for arrow in self.route.arrows)
        return frozenset(spec.name for spec in ends if spec is not None)

    def files(self, *, with_files: bool) -> ResultFiles:
        """The files of the result."""
        return result_files(self.checkpoint, self.route, with_files=with_files)

    def check_structure(self) -> None:
        """Insist on the names, dtypes and shapes that the delta knows of this end.

        Raises:
            WrongBaseError: They are others.
        """
        found = self.checkpoint.specs
        touched = self.route.specs(at_end=False)
        known = touched.keys() | self.route.untouched
        missing = sorted(known - found.keys())
        lean = self.route.lean
        added = [] if lean else sorted(found.keys() - known)
        # What only the other end has must not be taken for a tensor that stays.
        added += sorted(
            name for name in self.route.specs(at_end=True).keys() - known if lean and name in found
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
        for expected in self.route.copied:
            if found.get(expected.name) != expected:
                raise self._wrong(f"a copy is made of {expected}, which is not there")

    def insist_on_result(self, cause: Exception) -> None:
        """Insist that the checkpoint is where the delta leads.

        Raises:
            WrongBaseError: It is neither end; names the first tensor that differs.
            CheckpointError: It was the right one after all, and changed meanwhile.
        """
        route = self.route
        names = {*route.untouched, *route.specs(at_end=True)}
        if isinstance(cause, WrongBaseError) and not (
            route.lean or names == self.checkpoint.specs.keys()
        ):
            raise cause
        found, fingerprint = self.here.digests, self.here.fingerprint
        if fingerprint == route.end:
            return
        if fingerprint == route.start and route.lean:
            raise FormatError(
                "SD306",
                f"{route.name}: {self.checkpoint.location} has the fingerprint of its "
                f"{self.end}, but not the tensors that its tables tell of",
                hint=DAMAGED,
            ) from None
        if isinstance(cause, WrongBaseError):
            raise cause
        if fingerprint == route.start:
            raise changed_meanwhile(self.checkpoint) from None
        raise self._wrong(_difference(found, self.step.expected, route.start)) from None

    def _wrong(self, message: str) -> WrongBaseError:
        return WrongBaseError(
            f"{self.checkpoint.location} is not the {self.end} of {self.route.name} (SD501): "
            f"{message}",
            hint=_identity_hint(self.checkpoint, self.route.readers[0]),
        )


def touched_specs(reader: DeltaReader, *, target: bool) -> dict[str, TensorSpec]:
    """The touched tensors of an end, by their names there."""
    ends = (record.target if target else record.base for record in reader.manifest.tensors)
    return {spec.name: spec for spec in ends if spec is not None}


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
