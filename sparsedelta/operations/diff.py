"""``diff``: the delta from one checkpoint to another."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsedelta.changes import Changes
from sparsedelta.checkpoint import CheckpointReader, open_checkpoint, segments
from sparsedelta.delta import DIFFERENCE, REPLACE
from sparsedelta.digests import Digest, segment_digest, tensor_digest
from sparsedelta.encode import encode_part
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.files import check_output
from sparsedelta.manifest import PORTABLE, PROFILES, Manifest
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.words import TensorSpec, Words, as_words, difference
from sparsedelta.writer import DeltaWriter, EncodedTensor


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What a diff found and wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta file, also of one that a dry run did not keep.
        checkpoint_bytes: Bytes of all tensors of the target.
    """

    manifest: Manifest
    size: int
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """One segment, compared: digests of both ends and what changed."""

    base: Digest
    target: Digest
    start: int
    marks: NDArray[np.bool_] | None
    values: Words | None


def diff(
    base: str | Path | CheckpointReader,
    target: str | Path | CheckpointReader,
    out: str | Path,
    *,
    profile: str = PORTABLE,
    one_way: bool = False,
    metadata: Mapping[str, str] | None = None,
    base_repo: str | None = None,
    base_revision: str | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> DiffReport:
    """Write the delta that leads from ``base`` to ``target``, bit for bit.

    Args:
        base: Checkpoint to start from: a file, a directory, an index, or a reader.
        target: Checkpoint to lead to, with the same names, dtypes and shapes.
        out: The delta file.
        profile: ``portable``.
        one_way: Store new words instead of differences: larger, and not invertible.
        metadata: Provenance, string to string; not part of the delta's identity.
        base_repo: Hint where the base can be had.
        base_revision: Hint at its commit.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes were compared, and of how many.

    Raises:
        UsageError: Unknown profile.
        OutputError: The output exists, or cannot be written.
        CheckpointError: A checkpoint cannot be read.
        StructureError: The checkpoints differ in names, dtypes or shapes.
    """
    if profile not in PROFILES:
        raise UsageError(
            f"profile {profile!r} is not available in this release, expected one of {PROFILES}",
            hint="use --profile portable",
        )
    out = Path(out)
    old = open_checkpoint(base)
    try:
        new = open_checkpoint(target)
    except BaseException:
        if old is not base:
            old.close()
        raise
    try:
        check_output(out, force=force, inputs=(*old.paths, *new.paths))
        _check_structure(old, new)
        total = sum(spec.nbytes for spec in new.specs.values())
        op = REPLACE if one_way else DIFFERENCE
        with (
            OrderedMap(threads) as pool,
            DeltaWriter(
                out,
                metadata=metadata,
                base_repo=base_repo,
                base_revision=base_revision,
                force=force,
            ) as writer,
        ):
            with closing(_scan_tensors(old, new, pool=pool, op=op, progress=progress)) as tensors:
                for tensor in tensors:
                    tensor.write(writer, op, pool)
            manifest = writer.finish(dry_run=dry_run)
    finally:
        for given, reader in ((base, old), (target, new)):
            if reader is not given:
                reader.close()
    return DiffReport(manifest, writer.size, total)


def _check_structure(base: CheckpointReader, target: CheckpointReader) -> None:
    missing = sorted(base.specs.keys() - target.specs.keys())
    added = sorted(target.specs.keys() - base.specs.keys())
    if missing or added:
        raise StructureError(
            f"{base.location} and {target.location} hold different tensors: "
            f"{len(base.specs.keys() & target.specs.keys())} shared, {len(missing)} only in the "
            f"base{_first(missing)}, {len(added)} only in the target{_first(added)}",
            hint="this release writes deltas between checkpoints of the same tensors: compare "
            "sparsedelta fingerprint --tensors of both",
        )
    for name in sorted(base.specs):
        if base.specs[name] != target.specs[name]:
            raise StructureError(
                f"tensor {name!r} is {base.specs[name]} in {base.location} and "
                f"{target.specs[name]} in {target.location}",
                hint="save both checkpoints with the same dtype and vocabulary",
            )


def _first(names: list[str]) -> str:
    return f" (first: {names[0]!r})" if names else ""


@dataclass(slots=True)
class _ScannedTensor:
    """A tensor whose segments have all been compared."""

    spec: TensorSpec
    base_segments: list[Digest]
    target_segments: list[Digest]
    changes: Changes | None

    def add(self, scanned: _Scan) -> None:
        """Take the next segment in."""
        self.base_segments.append(scanned.base)
        self.target_segments.append(scanned.target)
        if scanned.marks is not None and scanned.values is not None:
            if self.changes is None:
                self.changes = Changes(self.spec)
            self.changes.append(scanned.start, scanned.marks, scanned.values)

    def write(self, writer: DeltaWriter, op: str, pool: OrderedMap) -> None:
        if self.changes is None:
            digest = tensor_digest(self.spec, self.base_segments)
            writer.add_untouched(self.spec.name, digest)
            return
        writer.add(
            EncodedTensor(
                self.spec,
                (encode_part(self.changes, op, pool=pool),),
                tuple(self.base_segments),
                tuple(self.target_segments),
            )
        )


def _scan_tensors(
    base: CheckpointReader,
    target: CheckpointReader,
    *,
    pool: OrderedMap,
    op: str,
    progress: Progress,
) -> Generator[_ScannedTensor, None, None]:
    names = sorted(base.specs)
    total = 2 * sum(spec.nbytes for spec in base.specs.values())
    done = 0

    def scan(item: tuple[TensorSpec, int, int]) -> _Scan:
        spec, start, stop = item
        old = base.read(spec.name, start, stop)
        new = target.read(spec.name, start, stop)
        before, after = segment_digest(old.data), segment_digest(new.data)
        if before == after:  # a collision is out of reach: the words are equal
            return _Scan(before, after, start, None, None)
        old_words, new_words = as_words(old, spec.word_bytes), as_words(new, spec.word_bytes)
        marks = old_words != new_words
        values = new_words[marks]
        if op == DIFFERENCE:
            values = difference(values, old_words[marks])
        return _Scan(before, after, start, marks, values)

    items = ((base.specs[n], start, stop) for n in names for start, stop in segments(base.specs[n]))
    with pool.mapped(scan, items) as scans:
        for name in names:
            spec = base.specs[name]
            tensor = _ScannedTensor(spec, [], [], None)
            for start, stop in segments(spec):
                tensor.add(next(scans))
                done += 2 * (stop - start) * spec.word_bytes
                progress(done, total)
            yield tensor
